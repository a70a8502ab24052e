"""Whether two models differ: paired bootstrap over what both have transcribed."""

import math
import re
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as students_t

from espnet_ext.data.kaldi import read_lines, read_scp
from espnet_ext.errors import UserError
from espnet_ext.scoring import bootstrap, error_rates, interval, nesting, score

RESAMPLES = 10000
#: utterance -> (errors, words)
Errors = dict[str, tuple[int, int]]
TRN = re.compile(r"(?P<text>.*)\t\((?P<id>.*)\)")


def read_trn(path: str | Path) -> dict[str, str]:
    """Transcripts by ``speaker-utterance`` of a trn file; ``UserError`` where a line is none."""
    table, lines = {}, read_lines(path)
    for number, line in enumerate(lines, 1):
        if (match := TRN.fullmatch(line)) is None:
            raise UserError(f"{path}: line {number} is no trn line")
        table[match["id"]] = match["text"]
    if len(table) < len(lines):
        raise UserError(f"{path}: two lines have one id")
    return table


def read_score(directory: str | Path) -> tuple[Errors, dict[str, str]]:
    """Errors and reference words, and the speaker, of every utterance in a score_wer directory.

    Raises:
        UserError: A file is missing or damaged.
    """
    directory = Path(directory)
    if not (directory / "utt2spk").is_file():
        raise UserError(f"{directory}: has no utt2spk: score it again (stage 13)")
    speakers = read_scp(directory / "utt2spk")
    references, hypotheses = read_trn(directory / "ref.trn"), read_trn(directory / "hyp.trn")
    names = {f"{speaker}-{utterance}": utterance for utterance, speaker in speakers.items()}
    if names.keys() != references.keys():
        raise UserError(f"{directory}: ref.trn and utt2spk differ: score it again (stage 13)")
    counted = score(references, hypotheses, str.split)
    errors, words = counted.counts[:, 1:].sum(1), counted.counts[:, :3].sum(1)
    pairs = zip(errors.tolist(), words.tolist(), strict=True)
    return dict(zip((names[name] for name in counted.ids), pairs, strict=True)), speakers


def paired_bootstrap(
    model: Errors,
    baseline: Errors,
    speakers: dict[str, str] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Difference of two word error rates on the same utterances, of one training each.

    Args:
        model: Utterance to (errors, words), from ``read_score``.
        baseline: The same of the model it is compared with.
        speakers: Speaker of each utterance; ``nesting`` says what is drawn. One by default.
        resamples: Test sets drawn with replacement.
        seed: Seed of the draws.

    Returns:
        See ``seeds_bootstrap``.

    Raises:
        UserError: The utterances or their words differ.
    """
    return seeds_bootstrap({0: model}, {0: baseline}, speakers, resamples, seed)


def seeds_bootstrap(
    models: dict[int, Errors],
    baselines: dict[int, Errors],
    speakers: dict[str, str] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Difference of two word error rates, over the trainings whose seeds both have.

    Of several seeds, seeds are drawn as well, and the interval is Student's with one degree of
    freedom less than there are, on the bootstrap's standard deviation: percentiles of what so few
    units are drawn from are much too narrow (Hesterberg 2015, section 3.2).

    Args:
        models: Seed of the training to what ``paired_bootstrap`` takes.
        baselines: The same of the model that they are compared with.
        speakers: See ``paired_bootstrap``.
        resamples: See ``paired_bootstrap``.
        seed: Seed of the draws.

    Returns:
        ``difference`` (model - baseline, percentage points), ``interval_95`` (of one seed,
        percentiles), ``drawn`` (speakers or utterances, and seeds), the two-sided ``p``, ``seeds``,
        and what may be said of it, ``verdict``. ``p`` of one seed is twice the share of draws on
        the rarer side of zero, counting ties to both sides and one draw more, so that it is never
        0.

    Raises:
        UserError: They share no seed, or the utterances or their words differ.
    """
    if not (seeds := sorted(models.keys() & baselines.keys())):
        raise UserError("the two models share no seed")
    words = [
        {i: w for i, (_, w) in errors[s].items()} for errors in (models, baselines) for s in seeds
    ]
    if any(other != words[0] for other in words):
        raise UserError("the two models were scored on different utterances")
    ids = sorted(words[0])
    values = np.array(
        [[models[s][i][0] - baselines[s][i][0], words[0][i]] for s in seeds for i in ids]
    )
    within, unit = nesting({i: speakers[i] if speakers else "all" for i in ids})
    tiled = (np.tile(level, len(seeds)) for level in within)
    levels: list[Any] = [np.repeat(seeds, len(ids)), *tiled]
    drawn = error_rates(bootstrap(values, levels, resamples, seed))
    difference = float(error_rates(values.sum(0, keepdims=True))[0])
    if len(seeds) == 1:
        low, high = interval(drawn)
        p = 2 * (int(min((drawn <= 0).sum(), (drawn >= 0).sum())) + 1) / (resamples + 1)
    else:
        # what is drawn with replacement from n units varies by (n - 1) / n of what they do
        error = drawn.std() * math.sqrt(len(seeds) / (len(seeds) - 1))
        times = students_t.ppf(0.975, len(seeds) - 1)
        low, high = difference - times * error, difference + times * error
        p = (
            2 * students_t.sf(abs(difference) / error, len(seeds) - 1)
            if error
            else float(not difference)
        )
    low, high = round(low, 2), round(high, 2)
    if low <= 0 <= high:
        verdict = "within luck: the interval holds 0"
    elif len(seeds) == 1:
        verdict = "beyond luck of these recordings; another seed was not drawn"
    else:
        verdict = "beyond luck: the interval leaves 0 out"
    return {
        "difference": round(difference, 2),
        "interval_95": [low, high],
        "p": round(min(1.0, float(p)), 4),
        "drawn": unit if len(seeds) == 1 else f"seeds and {unit}",
        "seeds": seeds,
        "verdict": verdict,
    }


def spread(rates: list[float]) -> dict[str, Any]:
    """Error rates over seeds: ``mean``, ``deviation`` (sample standard deviation) and ``values``.

    Of one value there is no deviation: None.
    """
    deviation = round(statistics.stdev(rates), 2) if len(rates) > 1 else None
    return {"mean": round(statistics.fmean(rates), 2), "deviation": deviation, "values": rates}
