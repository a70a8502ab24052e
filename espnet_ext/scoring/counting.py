"""Count the errors of hypotheses against references, with an interval on the error rate."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jiwer
import numpy as np

from espnet_ext.data.kaldi import alike, normal_space
from espnet_ext.errors import UserError
from espnet_ext.scoring.resampling import bootstrap, error_rates, interval, nesting

UNITS = ("cer", "wer", "ter")
SPACE = "<space>"
Tokenize = Callable[[str], list[str]]


@dataclass(frozen=True)
class Score:
    """Errors of a set of utterances in one unit (characters, words or tokens).

    Attributes:
        ids: Utterance ids, n of them, sorted.
        references: Reference tokens per utterance.
        hypotheses: Hypothesis tokens per utterance.
        alignments: Per utterance, ``(type, reference tokens, hypothesis tokens)`` from left to
            right; type is ``equal``, ``substitute``, ``delete`` or ``insert``.
        counts: Integers of shape (n, 4): correct, substituted, deleted, inserted tokens.
    """

    ids: list[str]
    references: list[list[str]]
    hypotheses: list[list[str]]
    alignments: list[list[tuple[str, list[str], list[str]]]]
    counts: np.ndarray

    def summary(self, utterances: Any = slice(None)) -> dict[str, float]:
        """Return the row of a results table.

        Args:
            utterances: Index into the first axis of ``counts``; default: all of them.

        Returns:
            ``snt`` and ``wrd`` (counts), and ``corr sub del ins err s_err`` in percent.
        """
        counts = self.counts[utterances]
        correct, substituted, deleted, inserted = (int(n) for n in counts.sum(0))
        tokens = correct + substituted + deleted
        wrong = int((counts[:, 1:].sum(1) > 0).sum())

        def percent(n: int, of: int) -> float:
            return 100.0 * n / of if of else (0.0 if n == 0 else float("inf"))

        return {
            "snt": len(counts),
            "wrd": tokens,
            "corr": percent(correct, tokens),
            "sub": percent(substituted, tokens),
            "del": percent(deleted, tokens),
            "ins": percent(inserted, tokens),
            "err": percent(substituted + deleted + inserted, tokens),
            "s_err": percent(wrong, len(counts)),
        }

    def interval(
        self,
        speakers: dict[str, str] | None = None,
        resamples: int = 1000,
        seed: int = 0,
        confidence: float = 0.95,
    ) -> tuple[float, float]:
        """Return the percentile bootstrap interval of the error rate.

        Args:
            speakers: Speaker of each utterance id; ``nesting`` says what is drawn. One by default.
            resamples: Number of resampled test sets.
            seed: Seed of the resampling.
            confidence: Share of the resampled error rates inside the interval.

        Returns:
            Lower and upper bound in percent.
        """
        levels, _ = nesting({i: speakers[i] if speakers else "all" for i in self.ids})
        values = np.stack([self.counts[:, 1:].sum(1), self.counts[:, :3].sum(1)], axis=1)
        return interval(error_rates(bootstrap(values, levels, resamples, seed)), confidence)


def tokenizer(unit: str, bpemodel: Any = None) -> Tokenize:
    """Return the function that cuts a transcript into the tokens of a unit.

    Args:
        unit: ``cer`` (characters and ``<space>``), ``wer`` (words) or ``ter`` (BPE pieces).
        bpemodel: Path of the sentencepiece model; needed by ``ter``.

    Returns:
        A function; runs of white space count as one space.
    """
    if unit == "wer":
        return str.split
    if unit == "cer":
        return lambda text: [SPACE if c == " " else c for c in normal_space(text)]
    from espnet_ext.data.tokens import load_bpe  # here: words need no sentencepiece

    model = load_bpe(str(bpemodel))
    return lambda text: model.encode(normal_space(text), out_type=str)


def score(references: dict[str, str], hypotheses: dict[str, str], tokenize: Tokenize) -> Score:
    """Align hypotheses with references at the smallest number of errors.

    Args:
        references: Transcript of each utterance id.
        hypotheses: Decoded text of each utterance id; an empty text counts as deletions.
        tokenize: Function from ``tokenizer``.

    Returns:
        One row per utterance.

    Raises:
        UserError: If the ids of the two differ, or there is nothing to score.
    """
    if same := alike(hypotheses.keys() - references.keys(), references.keys() - hypotheses.keys()):
        raise UserError(same)
    for ids, what in (
        (references.keys() - hypotheses.keys(), "reference utterances have no hypothesis"),
        (hypotheses.keys() - references.keys(), "hypotheses have no reference"),
    ):
        if ids:
            raise UserError(f"{len(ids)} {what}, the first is {min(ids)}: decode this set again")
    if not references:
        raise UserError("there are no utterances to score")
    order = sorted(references)
    refs = [tokenize(references[i]) for i in order]
    hyps = [tokenize(hypotheses[i]) for i in order]
    aligned = jiwer.process_words([" ".join(r) for r in refs], [" ".join(h) for h in hyps])
    alignments = [
        [
            (c.type, ref[c.ref_start_idx : c.ref_end_idx], hyp[c.hyp_start_idx : c.hyp_end_idx])
            for c in chunks
        ]
        for ref, hyp, chunks in zip(refs, hyps, aligned.alignments, strict=True)
    ]
    counts = np.zeros((len(order), 4), dtype=np.int64)
    column = {"equal": 0, "substitute": 1, "delete": 2, "insert": 3}
    for row, chunks in zip(counts, alignments, strict=True):
        for kind, ref, hyp in chunks:
            row[column[kind]] += max(len(ref), len(hyp))
    return Score(order, refs, hyps, alignments, counts)
