"""What is known of a stream's text, and how every runtime makes it of log probabilities."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from espnet_ext.errors import UserError
from espnet_ext.streaming.searches import (
    BLANK,
    GreedySearch,
    Hypothesis,
    PrefixBeamSearch,
    make_search,
)
from espnet_ext.streaming.words import Word, words_of


@dataclass
class Result:
    """What is known so far of an utterance, which is the whole stream unless ``endpoint`` is set.

    Attributes:
        text: The text.
        tokens: Its token ids.
        score: Log probability of the hypothesis.
        is_final: The utterance has ended, and nothing of it will change any more.
        words: Its words with their times.
        utterances: Utterances that ended before it since the last result.
    """

    text: str
    tokens: list[int]
    score: float
    is_final: bool
    words: list[Word] = field(default_factory=list)
    utterances: tuple["Result", ...] = ()


@dataclass(kw_only=True)
class Transcript:
    """What the text of a stream goes on from.

    Attributes:
        search: State of the CTC search of this utterance.
        before: Encoder frames of the utterances before it.
        blanks: Encoder frames since the last token.
        appeared: Of each word of the utterance, what it was last and since when, see ``Word``.
    """

    search: GreedySearch | PrefixBeamSearch
    before: int = 0
    blanks: int = 0
    appeared: list[tuple[str, float]] = field(default_factory=list)

    @property
    def received(self) -> int:
        """Samples so far."""
        raise NotImplementedError


class Transcriber:
    """What the runtimes of a model that transcribes streams have in common: words, utterances.

    A runtime says how a stream begins, what its packets give, and what its symbols are. See
    ``StreamingSpeech2Text``.
    """

    chunk_size: int
    left_context: int
    fs: int
    #: seconds of an encoder frame
    frame_seconds: float
    #: of the symbols that ``_symbols`` gives, see ``words_of``
    token_type: str
    rescore = False

    def _set_search(self, search: str, beam_size: int, endpoint: float | None) -> None:
        make_search(search, beam_size)  # complains
        if endpoint is not None and not endpoint > 0:
            raise UserError(f"endpoint: must be more than 0 seconds, got {endpoint:g}")
        self.search, self.beam_size, self.endpoint = search, beam_size, endpoint

    def start(self) -> Any:
        """State of a new recording."""
        raise NotImplementedError

    def __call__(self, stream: Any, samples: Any = (), is_final: bool = False) -> Result:
        """Read a packet.

        Args:
            stream: From ``start``; it is updated in place.
            samples: Mono waveform at the model's rate (n,), floats in [-1, 1] or int16,
                any length.
            is_final: No packet follows.

        Returns:
            What is known so far.

        Raises:
            UserError: The samples are not a mono waveform of numbers in [-1, 1], or the stream has
                ended, which leaves it as it was; or the model's output is not a number.
        """
        raise NotImplementedError

    # many streams, see ``StreamPool``

    def take(self, stream: Any, samples: Any = (), is_final: bool = False) -> None:
        """Keep a packet for ``step``; as ``__call__`` but for what it gives."""
        raise NotImplementedError

    def ready(self, stream: Any) -> bool:
        """Whether packets for a step of the stream were taken."""
        raise NotImplementedError

    def lacking(self, stream: Any) -> int:
        """Samples without which the stream will not be ready, however many more it needs."""
        raise NotImplementedError

    def step(self, streams: list[Any]) -> list[Result | UserError]:
        """One chunk of each stream, in one step of the model.

        Args:
            streams: All ``ready``. They are updated in place.

        Returns:
            What is known of each so far, or what is wrong with it.
        """
        raise NotImplementedError

    def most_bytes(self, max_seconds: float | None = None) -> int:
        """Bytes that a stream holds at most, allocated ones, between steps and in one.

        Args:
            max_seconds: Its length; needed where it keeps all of its past.

        Raises:
            UserError: There is no such most without it.
        """
        raise NotImplementedError

    def last(self, stream: Any) -> Result:
        """The final result of a stream that has nothing left to encode."""
        return self._result(stream, is_final=True)

    @property
    def chunk_seconds(self) -> float:
        """Seconds from one step of a stream to the next."""
        return self.chunk_size * self.frame_seconds

    def samples(self, seconds: float) -> int:
        """So many seconds in samples, rounded up."""
        return math.ceil(seconds * self.fs)

    # text

    def _symbols(self, tokens: list[int]) -> list[str]:
        """Symbols of token ids."""
        raise NotImplementedError

    def _text(self, symbols: list[str]) -> str:
        """Text of symbols."""
        raise NotImplementedError

    def _best(self, stream: Any, is_final: bool) -> Hypothesis:
        """The best hypothesis of a stream's utterance."""
        return stream.search.nbest()[0]

    def _extend(self, stream: Any, log_probs: np.ndarray) -> list[Result]:
        """Search log probabilities (n, tokens) of a chunk; the utterance that ended with it."""
        stream.search.extend(log_probs)
        spoken = np.flatnonzero(log_probs.argmax(axis=1) != BLANK)
        since = len(log_probs) - 1 - int(spoken[-1]) if len(spoken) else None
        stream.blanks = stream.blanks + len(log_probs) if since is None else since
        if self.endpoint and stream.blanks * self.frame_seconds >= self.endpoint:
            if (ended := self._result(stream, is_final=True)).tokens:
                self._begin(stream)
                return [ended]
        return []

    def _begin(self, stream: Any) -> None:
        """A new utterance of a stream."""
        stream.before += stream.search.frames
        stream.search, stream.appeared = make_search(self.search, self.beam_size), []

    def _result(
        self, stream: Any, is_final: bool, utterances: list[Result] | None = None
    ) -> Result:
        """What is known of a stream's utterance."""
        best = self._best(stream, is_final)
        symbols = self._symbols(best.tokens)
        words: list[Word] = []
        before, seconds = stream.before, self.frame_seconds
        heard = round(stream.received / self.fs, 4)
        for group in words_of(symbols, self.token_type):
            if text := self._text(symbols[group]).strip():
                spans, place = best.spans[group], len(words)
                known = stream.appeared[place : place + 1]
                words.append(
                    Word(
                        text,
                        round((before + spans[0].first) * seconds, 4),
                        round((before + spans[-1].last + 1) * seconds, 4),
                        math.exp(sum(span.log_prob for span in spans)),
                        known[0][1] if known and known[0][0] == text else heard,
                    )
                )
        stream.appeared = [(word.text, word.appeared) for word in words]
        text, tokens = self._text(symbols), list(best.tokens)
        return Result(text, tokens, best.score, is_final, words, tuple(utterances or ()))
