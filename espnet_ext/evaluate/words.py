"""How late words appear in streams, and how far their confidence can be trusted."""

from collections.abc import Mapping, Sequence

import numpy as np

from espnet_ext.scoring.counting import score
from espnet_ext.streaming.words import Word

BINS = 10


def word_figures(
    references: Mapping[str, str],
    words: Mapping[str, Sequence[Word]],
    ends: Mapping[str, Sequence[float]] | None = None,
) -> dict[str, float | int | None]:
    """Delay and calibration of the words of a test set decoded as streams.

    Args:
        references: Utterance id to transcript.
        words: The same to the words that were found.
        ends: The same to the second at which each word of the transcript ends, where it is known.

    Returns:
        ``confidence_error``, the expected calibration error (Guo et al. 2017): over ``BINS`` bins
        of confidence, the mean distance of mean confidence and share of right words, weighted by
        words; None without words. ``word_delay_ms`` and ``word_delay_ms_p95``, median and 95th
        percentile over the right words of the time from a word's end to its appearance, in
        milliseconds of the recording: computing is not in it; None without ``ends``.
    """
    texts = {utt: " ".join(word.text for word in found) for utt, found in words.items()}
    aligned = score(dict(references), texts, str.split)
    confidences, right, delays = [], [], []
    for utt, chunks in zip(aligned.ids, aligned.alignments, strict=True):
        # an unknown token is a word of its own in the text, also within a word
        found = [word for word in words[utt] for _ in word.text.split()]
        ref = hyp = 0
        for kind, wanted, got in chunks:
            for i in range(len(got)):
                word = found[hyp + i]
                confidences.append(word.confidence)
                right.append(kind == "equal")
                if kind == "equal" and ends is not None:
                    delays.append(1000 * (word.appeared - ends[utt][ref + i]))
            ref, hyp = ref + len(wanted), hyp + len(got)
    return {
        "confidence_error": calibration_error(np.array(confidences), np.array(right)),
        "word_delay_ms": float(np.median(delays)) if delays else None,
        "word_delay_ms_p95": float(np.percentile(delays, 95)) if delays else None,
    }


def calibration_error(confidences: np.ndarray, right: np.ndarray) -> float | None:
    """Expected calibration error of confidences (n,) of words that are right or not (n,)."""
    if not len(confidences):
        return None
    bins = np.minimum((confidences * BINS).astype(int), BINS - 1)
    gaps = [abs((confidences - right)[bins == b].sum()) for b in range(BINS)]
    return float(sum(gaps) / len(confidences))
