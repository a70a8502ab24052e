"""Test sets drawn anew: how far an error rate, or a difference of two, is chance."""

import re
from collections.abc import Sequence

import numpy as np

#: with fewer speakers than this, drawing speakers says too little: utterances are drawn alone
FEWEST_SPEAKERS = 20
#: observations drawn at once, so that memory stays small on large test sets
DRAWN_AT_ONCE = 1 << 20
LIBRISPEECH = re.compile(r"(\d+)-\d+-\d+")


def reader(utterance: str, speaker: str) -> str:
    """Who speaks: the reader of LibriSpeech's ``reader-chapter-number``, else the speaker.

    LibriSpeech's Kaldi "speaker" is one chapter of a reader, and a reader has several.
    """
    match = LIBRISPEECH.fullmatch(utterance)
    return match[1] if match else speaker


def nesting(speakers: dict[str, str]) -> tuple[list[list[str]], str]:
    """What is drawn for a test set.

    Args:
        speakers: Speaker of each utterance id.

    Returns:
        Levels for ``bootstrap``, outermost first, and what it draws: ``speakers``, or
        ``utterances`` where there are fewer than FEWEST_SPEAKERS.
    """
    readers = [reader(utterance, speaker) for utterance, speaker in speakers.items()]
    if len(set(readers)) < FEWEST_SPEAKERS:
        return [list(speakers)], "utterances"
    return [readers, list(speakers)], "speakers"


def bootstrap(
    values: np.ndarray, levels: Sequence[Sequence], resamples: int, seed: int = 0
) -> np.ndarray:
    """Sums of observations, of which whole units are drawn with replacement.

    Units of the outermost level are drawn, each with all that is nested in it: its own noise comes
    with it, and drawing inside it as well would count that noise twice (Davison and Hinkley 1997,
    section 3.8). A level that is not nested in one before it is drawn beside it, such as speakers
    beside the seeds of trainings that all decode the same recordings; so is what lies in a level
    of a single unit, which leaves nothing to draw. Where models differ by speaker, or by seed,
    drawing utterances alone takes that for a difference of the models.

    Args:
        values: What is summed (n, m), such as errors and words of every utterance.
        levels: Outermost first, a label per observation (n,), such as
            ``[seeds, speakers, utterances]``.
        resamples: Draws.
        seed: Of the draws.

    Returns:
        Sums (resamples, m).
    """
    values = np.asarray(values, dtype=np.float64)
    drawn: list[np.ndarray] = []
    for level in levels:
        units = np.unique(np.asarray(level), return_inverse=True)[1]
        if units.max() and not any(_nested(units, outer) for outer in drawn):
            drawn.append(units)
    generator = np.random.default_rng(seed)
    sums = np.empty((resamples, values.shape[1]))
    block = max(1, DRAWN_AT_ONCE // len(values))
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        times = np.ones((rows, len(values)))
        for units in drawn:
            count = units.max() + 1
            chosen = generator.integers(count, size=(rows, count))
            chosen += count * np.arange(rows)[:, None]
            often = np.bincount(chosen.ravel(), minlength=rows * count).reshape(rows, count)
            times *= often[:, units]
        sums[start : start + rows] = times @ values
    return sums


def _nested(units: np.ndarray, outer: np.ndarray) -> bool:
    """Whether each of ``units`` lies in one unit of ``outer``."""
    pairs = np.unique(np.stack([units, outer]), axis=1)
    return pairs.shape[1] == units.max() + 1


def error_rates(sums: np.ndarray) -> np.ndarray:
    """Percent of (errors, words) sums (n, 2); a draw of empty references alone has no error."""
    return 100.0 * sums[:, 0] / np.maximum(sums[:, 1], 1)


def interval(drawn: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Percentile interval of what was drawn."""
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(drawn, [tail, 100.0 - tail])
    return float(low), float(high)
