"""CTC searches that go on from packet to packet."""

import math

import numpy as np

from espnet_ext.utterance import check_log_probs

BLANK = 0
MAX_OPEN = 50  # tokens that hypotheses of the beam search may still disagree on


class GreedySearch:
    """CTC best path: the likeliest token of every frame, repeats and blanks dropped."""

    def __init__(self) -> None:
        self.last = BLANK
        self.tokens: list[int] = []
        self.score = 0.0

    def extend(self, log_probs: np.ndarray) -> None:
        """Read the log probabilities of more frames (n, tokens); not-a-number is refused."""
        check_log_probs(log_probs)
        best = log_probs.argmax(axis=1)
        self.score += float(log_probs.max(axis=1).sum())
        for token in best.tolist():
            if token not in (BLANK, self.last):
                self.tokens.append(token)
            self.last = token

    def nbest(self) -> list[tuple[list[int], float]]:
        """Hypotheses, the best first, and their log probabilities."""
        return [(self.tokens, self.score)]


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
        self.committed: list[int] = []
        # prefix -> log probability that it ends in a blank, and that it ends in its last token
        self.beam: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, -math.inf)}
        self.last_committed: int | None = None

    def extend(self, log_probs: np.ndarray) -> None:
        """Read the log probabilities of more frames (n, tokens); not-a-number is refused."""
        check_log_probs(log_probs)
        width = min(self.token_beam, log_probs.shape[1])
        for frame in log_probs:
            tokens = np.argpartition(-frame, width - 1)[:width].tolist()
            self._step(frame.tolist(), tokens)
            self._commit()

    def _step(self, frame: list[float], tokens: list[int]) -> None:
        beam: dict[tuple[int, ...], list[float]] = {}

        def add(prefix: tuple[int, ...], end: int, log_prob: float) -> None:
            entry = beam.setdefault(prefix, [-math.inf, -math.inf])
            entry[end] = float(np.logaddexp(entry[end], log_prob))

        for prefix, (blank, token_end) in self.beam.items():
            total = np.logaddexp(blank, token_end)
            last = prefix[-1] if prefix else self.last_committed
            add(prefix, 0, total + frame[BLANK])
            if last is not None:
                add(prefix, 1, token_end + frame[last])
            for token in tokens:
                if token != BLANK:  # a repeated token is a new one only after a blank
                    add((*prefix, token), 1, (blank if token == last else total) + frame[token])
        possible = [(p, ends) for p, ends in beam.items() if max(ends) > -math.inf]
        best = sorted(possible, key=lambda item: -np.logaddexp(item[1][0], item[1][1]))
        self.beam = {prefix: (ends[0], ends[1]) for prefix, ends in best[: self.beam_size]}

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
            self.committed += best[:shared]
            self.last_committed = best[shared - 1]
            self.beam = {
                prefix[shared:]: ends
                for prefix, ends in self.beam.items()
                if prefix[:shared] == best[:shared]
            }

    def nbest(self) -> list[tuple[list[int], float]]:
        """Hypotheses, the best first, and their log probabilities."""
        return [
            (self.committed + list(prefix), float(np.logaddexp(*ends)))
            for prefix, ends in self.beam.items()
        ]
