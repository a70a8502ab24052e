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

#: token types whose words are the same text in any company
LOCAL = ("char", "word", "bpe", "phn")


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


@dataclass
class Settled:
    """Words that nothing to come changes, so that a result costs no more after an hour.

    Attributes:
        tokens: How many tokens they are.
        words: The words.
        text: The text of these tokens.
        ending: Symbols of the last word, and what follows it.
    """

    tokens: int = 0
    words: list[Word] = field(default_factory=list)
    text: str = ""
    ending: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class Transcript:
    """What the text of a stream goes on from.

    Attributes:
        search: State of the CTC search of this utterance.
        before: Encoder frames of the utterances before it.
        blanks: Encoder frames since the last token.
        settled: What is known of the utterance for good.
        appeared: Of each word after it, what it was last and since when, see ``Word``.
    """

    search: GreedySearch | PrefixBeamSearch
    before: int = 0
    blanks: int = 0
    settled: Settled = field(default_factory=Settled)
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

    #: names of the encoder's attentions, with a plus between them
    attention: str
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
        return stream.search.best()

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
        stream.search = make_search(self.search, self.beam_size)
        stream.settled, stream.appeared = Settled(), []

    def _result(
        self, stream: Any, is_final: bool, utterances: list[Result] | None = None
    ) -> Result:
        """What is known of a stream's utterance."""
        best, settled = self._best(stream, is_final), stream.settled
        symbols, spans = self._symbols(best.tokens[settled.tokens :]), best.spans[settled.tokens :]
        before, seconds = stream.before, self.frame_seconds
        heard = round(stream.received / self.fs, 4)
        words: list[Word] = []  # after those that are settled
        begins: list[int] = []  # of their symbols
        for group in words_of(symbols, self.token_type):
            if text := self._text(symbols[group]).strip():
                own, known = spans[group], stream.appeared[len(words) : len(words) + 1]
                begins.append(group.start)
                words.append(
                    Word(
                        text,
                        round((before + own[0].first) * seconds, 4),
                        round((before + own[-1].last + 1) * seconds, 4),
                        math.exp(sum(span.log_prob for span in own)),
                        known[0][1] if known and known[0][0] == text else heard,
                    )
                )
        result = Result(
            self._after(settled, symbols),
            list(best.tokens),
            best.score,
            is_final,
            settled.words + words,
            tuple(utterances or ()),
        )
        count = self._settle(settled, stream.search.settled, symbols, words, begins)
        stream.appeared = [(word.text, word.appeared) for word in words[count:]]
        return result

    def _after(self, settled: Settled, symbols: list[str]) -> str:
        """The text with symbols that follow; what stands between two words is the tokenizer's."""
        ending = len(self._text(settled.ending)) if settled.ending else 0
        return settled.text + self._text(settled.ending + symbols)[ending:]

    def _settle(
        self,
        settled: Settled,
        tokens: int,
        symbols: list[str],
        words: list[Word],
        begins: list[int],
    ) -> int:
        """Add the words before the last one that begins in so many tokens; how many they were."""
        if self.token_type not in LOCAL:
            return 0
        count = sum(settled.tokens + begin <= tokens for begin in begins) - 1
        if count < 1:
            return 0
        end = begins[count]
        settled.text = self._after(settled, symbols[:end])
        settled.ending = symbols[begins[count - 1] : end]
        settled.words += words[:count]
        settled.tokens += end
        return count
