"""CTC searches that go on from packet to packet, and say when each token came."""

import math
from typing import NamedTuple

import numpy as np

from espnet_ext.errors import UserError, check_log_probs

BLANK = 0
MAX_OPEN = 50  # tokens that hypotheses of the beam search may still disagree on


class Span(NamedTuple):
    """Frames of a token, counted from the beginning of the search.

    Attributes:
        first: The first one.
        last: The last one.
        log_prob: The token's log probability in the frame where it is largest.
    """

    first: int
    last: int
    log_prob: float

    def not_before(self, frame: int) -> "Span":
        """The span without what is before a frame; at least that frame."""
        return Span(max(self.first, frame), max(self.last, frame), self.log_prob)

    def longer(self, frame: int, log_prob: float) -> "Span":
        """The span with one more frame."""
        return Span(self.first, frame, max(self.log_prob, log_prob))


class Hypothesis(NamedTuple):
    """What may have been said.

    Attributes:
        tokens: Token ids.
        score: Log probability.
        spans: When each token came.
    """

    tokens: list[int]
    score: float
    spans: list[Span]


class GreedySearch:
    """CTC best path: the likeliest token of every frame, repeats and blanks dropped."""

    def __init__(self) -> None:
        self.frames = 0
        self.last = BLANK
        self.tokens: list[int] = []
        self.spans: list[Span] = []
        self.score = 0.0

    def extend(self, log_probs: np.ndarray) -> None:
        """Read the log probabilities of more frames (n, tokens); not-a-number is refused."""
        check_log_probs(log_probs)
        best, largest = log_probs.argmax(axis=1), log_probs.max(axis=1)
        self.score += float(largest.sum())
        for frame, (token, log_prob) in enumerate(
            zip(best.tolist(), largest.tolist(), strict=True), self.frames
        ):
            if token not in (BLANK, self.last):
                self.tokens.append(token)
                self.spans.append(Span(frame, frame, log_prob))
            elif token != BLANK:
                self.spans[-1] = self.spans[-1].longer(frame, log_prob)
            self.last = token
        self.frames += len(log_probs)

    @property
    def settled(self) -> int:
        """How many tokens, with their spans, no frame to come changes."""
        return max(0, len(self.tokens) - 1)

    def best(self) -> Hypothesis:
        """The best hypothesis."""
        return Hypothesis(self.tokens, self.score, self.spans)

    def nbest(self) -> list[Hypothesis]:
        """Hypotheses, the best first."""
        return [self.best()]


class PrefixBeamSearch:
    """CTC prefix beam search (Hannun et al. 2014) that goes on from frame to frame.

    What all hypotheses of the beam agree on is committed, and what is ``MAX_OPEN`` tokens back as
    well, so a frame costs the same after an hour.

    Args:
        beam_size: Hypotheses kept after every frame.
        token_beam: Tokens tried per frame, the likeliest first.
    """

    def __init__(self, beam_size: int = 10, token_beam: int = 10) -> None:
        self.beam_size = beam_size
        self.token_beam = token_beam
        self.frames = 0
        self.committed: list[int] = []
        self.committed_spans: list[Span] = []
        # prefix -> log probability that it ends in a blank, and that it ends in its last token
        self.beam: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, -math.inf)}
        # prefix -> spans of its tokens on its likeliest path, after that of the last one committed
        self.spans: dict[tuple[int, ...], tuple[Span, ...]] = {(): ()}
        self.last_committed: int | None = None

    def extend(self, log_probs: np.ndarray) -> None:
        """Read the log probabilities of more frames (n, tokens); not-a-number is refused."""
        check_log_probs(log_probs)
        width = min(self.token_beam, log_probs.shape[1])
        for frame in log_probs:
            tokens = np.argpartition(-frame, width - 1)[:width].tolist()
            self._step(frame.tolist(), tokens)
            self._commit()
            self.frames += 1

    def _step(self, frame: list[float], tokens: list[int]) -> None:
        beam: dict[tuple[int, ...], list[float]] = {}
        paths: dict[tuple[int, ...], tuple[float, tuple[Span, ...]]] = {}

        def add(
            prefix: tuple[int, ...], end: int, log_prob: float, spans: tuple[Span, ...]
        ) -> None:
            entry = beam.setdefault(prefix, [-math.inf, -math.inf])
            entry[end] = float(np.logaddexp(entry[end], log_prob))
            if prefix not in paths or log_prob > paths[prefix][0]:
                paths[prefix] = log_prob, spans

        for prefix, (blank, token_end) in self.beam.items():
            total = np.logaddexp(blank, token_end)
            last = prefix[-1] if prefix else self.last_committed
            spans = self.spans[prefix]
            add(prefix, 0, total + frame[BLANK], spans)
            if last is not None:
                log_prob = frame[last]
                longer = (*spans[:-1], spans[-1].longer(self.frames, log_prob))
                add(prefix, 1, token_end + log_prob, longer)
            for token in tokens:
                if token != BLANK:  # a repeated token is a new one only after a blank
                    log_prob = frame[token]
                    begun = (*spans, Span(self.frames, self.frames, log_prob))
                    before = blank if token == last else total
                    add((*prefix, token), 1, before + log_prob, begun)
        possible = [(p, ends) for p, ends in beam.items() if max(ends) > -math.inf]
        best = sorted(possible, key=lambda item: -np.logaddexp(item[1][0], item[1][1]))
        self.beam = {prefix: (ends[0], ends[1]) for prefix, ends in best[: self.beam_size]}
        self.spans = {prefix: paths[prefix][1] for prefix in self.beam}

    def _commit(self) -> None:
        best = next(iter(self.beam))
        shared = 0
        while shared < len(best) and all(
            prefix[shared : shared + 1] == best[shared : shared + 1] for prefix in self.beam
        ):
            shared += 1
        # past MAX_OPEN tokens the best hypothesis decides, and what contradicts it is dropped
        shared = max(shared, len(best) - MAX_OPEN)
        if shared:
            # the last one committed may still grow, so its span stays
            over = len(self.spans[best]) - len(best) + shared - 1
            self.committed += best[:shared]
            self.committed_spans += self.spans[best][:over]
            self.last_committed = best[shared - 1]
            kept = [prefix for prefix in self.beam if prefix[:shared] == best[:shared]]
            self.beam = {prefix[shared:]: self.beam[prefix] for prefix in kept}
            # of what is committed the best knows best; the others' own spans follow it
            begun = self.committed_spans[-1].first if self.committed_spans else 0
            self.spans = {
                prefix[shared:]: tuple(span.not_before(begun) for span in self.spans[prefix][over:])
                for prefix in kept
            }

    @property
    def settled(self) -> int:
        """How many tokens, with their spans, no frame to come changes."""
        return len(self.committed_spans)

    def best(self) -> Hypothesis:
        """The best hypothesis."""
        return self._hypothesis(next(iter(self.beam)))

    def nbest(self) -> list[Hypothesis]:
        """Hypotheses, the best first."""
        return [self._hypothesis(prefix) for prefix in self.beam]

    def _hypothesis(self, prefix: tuple[int, ...]) -> Hypothesis:
        return Hypothesis(
            self.committed + list(prefix),
            float(np.logaddexp(*self.beam[prefix])),
            self.committed_spans + list(self.spans[prefix]),
        )


def make_search(search: str, beam_size: int) -> GreedySearch | PrefixBeamSearch:
    """State of a search that begins.

    Raises:
        UserError: ``search`` is neither ``greedy`` nor ``beam``, or ``beam_size`` is below 1.
    """
    if search not in ("greedy", "beam"):
        raise UserError(f"search: must be greedy or beam, got {search!r}")
    if beam_size < 1:
        raise UserError(f"beam_size: must be at least 1, got {beam_size}")
    return PrefixBeamSearch(beam_size) if search == "beam" else GreedySearch()
