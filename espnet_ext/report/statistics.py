"""Whether two models differ: paired bootstrap over what both have transcribed."""

import re
from pathlib import Path
from typing import Any

import numpy as np

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
    """Difference of two word error rates on the same utterances.

    Args:
        model: Utterance to (errors, words), from ``read_score``.
        baseline: The same of the model it is compared with.
        speakers: Speaker of each utterance; ``nesting`` says what is drawn. One by default.
        resamples: Test sets drawn with replacement.
        seed: Seed of the draws.

    Returns:
        ``difference`` (model - baseline, percentage points), ``interval_95`` (percentiles),
        ``drawn`` (speakers or utterances) and the two-sided ``p``: twice the share of draws on the
        rarer side of zero, counting ties to both sides and one draw more, so that it is never 0.

    Raises:
        UserError: The utterances or their words differ.
    """
    if {i: w for i, (_, w) in model.items()} != {i: w for i, (_, w) in baseline.items()}:
        raise UserError("the two models were scored on different utterances")
    ids = sorted(model)
    values = np.array([[model[i][0] - baseline[i][0], model[i][1]] for i in ids])
    levels, unit = nesting({i: speakers[i] if speakers else "all" for i in ids})
    drawn = error_rates(bootstrap(values, levels, resamples, seed))
    rarer = min((drawn <= 0).sum(), (drawn >= 0).sum())
    low, high = interval(drawn)
    return {
        "difference": round(float(error_rates(values.sum(0, keepdims=True))[0]), 2),
        "interval_95": [round(low, 2), round(high, 2)],
        "p": round(min(1.0, 2 * (int(rarer) + 1) / (resamples + 1)), 4),
        "drawn": unit,
    }
