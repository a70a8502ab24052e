"""Whether two models differ: paired bootstrap over the utterances both have transcribed."""

import re
from pathlib import Path

import numpy as np

from espnet_ext.errors import UserError

RESAMPLES = 10000
#: utterances drawn at once, so that memory stays small on large test sets
DRAWN_AT_ONCE = 1 << 20
TRN = re.compile(r"(?P<text>.*)\t\((?P<id>.*)\)")


def read_trn(path) -> dict[str, str]:
    """Transcripts by ``speaker-utterance`` of a trn file.

    Raises:
        UserError: It is unreadable, or a line is no trn line.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    matches = [TRN.fullmatch(line) for line in lines]
    if None in matches:
        raise UserError(f"{path}: line {matches.index(None) + 1} is no trn line")
    return {match["id"]: match["text"] for match in matches}


def errors_and_words(directory) -> dict[str, tuple[int, int]]:
    """Errors and reference words of every utterance in a score_wer directory."""
    from espnet_ext.scoring import score

    directory = Path(directory)
    counted = score(read_trn(directory / "ref.trn"), read_trn(directory / "hyp.trn"), str.split)
    errors, words = counted.counts[:, 1:].sum(1), counted.counts[:, :3].sum(1)
    return dict(zip(counted.ids, zip(errors.tolist(), words.tolist(), strict=True), strict=True))


def paired_bootstrap(model, baseline, resamples: int = RESAMPLES, seed: int = 0) -> dict:
    """Difference of two word error rates on the same utterances.

    Args:
        model: Utterance to (errors, words), from ``errors_and_words``.
        baseline: The same of the model it is compared with.
        resamples: Test sets drawn with replacement.
        seed: Seed of the draws.

    Returns:
        ``difference`` (model - baseline, percentage points), ``interval_95`` (percentiles) and the
        two-sided ``p``: twice the share of draws on the rarer side of zero, counting ties to both
        sides and one draw more, so that it is never 0.

    Raises:
        UserError: The utterances or their words differ.
    """
    if {i: w for i, (_, w) in model.items()} != {i: w for i, (_, w) in baseline.items()}:
        raise UserError("the two models were scored on different utterances")
    ids = sorted(model)
    delta = np.array([model[i][0] - baseline[i][0] for i in ids])
    words = np.array([model[i][1] for i in ids])
    generator = np.random.default_rng(seed)
    drawn = np.empty(resamples)
    block = max(1, DRAWN_AT_ONCE // len(ids))
    for start in range(0, resamples, block):
        chosen = generator.integers(len(ids), size=(min(block, resamples - start), len(ids)))
        rates = 100 * delta[chosen].sum(1) / np.maximum(words[chosen].sum(1), 1)
        drawn[start : start + block] = rates
    rarer = min((drawn <= 0).sum(), (drawn >= 0).sum())
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {
        "difference": round(100 * float(delta.sum()) / max(int(words.sum()), 1), 2),
        "interval_95": [round(float(low), 2), round(float(high), 2)],
        "p": round(min(1.0, 2 * (int(rarer) + 1) / (resamples + 1)), 4),
    }
