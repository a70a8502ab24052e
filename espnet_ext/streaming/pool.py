"""Many streams through one model: a chunk of each that has one is encoded in the same step."""

import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from espnet_ext.audio import checked_samples
from espnet_ext.errors import UserError
from espnet_ext.streaming.transcriber import Result, Transcriber


class PoolFull(UserError):
    """The budget holds no more streams."""


@dataclass(eq=False)
class PooledStream:
    """One recording on its way through a ``StreamPool``.

    Attributes:
        stream: Its state in the model.
        waiting: Samples that no step has taken yet, in parts (n,).
        received: Samples pushed so far.
        finished: No packet follows.
        needed: Samples pushed without which no step can do anything for it.
        due: It waits for a step.
    """

    stream: Any
    waiting: deque = field(default_factory=deque)
    received: int = 0
    finished: bool = False
    needed: int = 0
    due: bool = False

    @property
    def lag(self) -> int:
        """Samples that wait."""
        return self.received - self.stream.received

    @property
    def nbytes(self) -> int:
        """Bytes in use, the samples that wait included."""
        return self.stream.nbytes + sum(part.nbytes for part in list(self.waiting))


class StreamPool:
    """Streams of one model that begin, end and fail apart, and are stepped together.

        pool = StreamPool(StreamingSpeech2Text.from_pretrained(), budget=2**30)
        stream = pool.start()
        pool.push(stream, samples)
        pool.finish(stream)
        while pool.streams:
            for stream, result in pool.step():
                print(result)

    Every result is that of the stream alone. ``start``, ``push``, ``finish`` and ``drop`` only
    note what is asked for, from any thread; ``step`` computes, in one thread.

    Args:
        speech2text: The model, without rescoring, which keeps all that was heard.
        budget: Bytes that streams may hold; None for no limit. ``StreamingSpeech2Text.most_bytes``
            says what one holds at most, and as many are admitted as fit.
        max_batch: Streams in a step, at most.
        max_seconds: Longest stream. A model that keeps all of the past (``left_context`` -1) needs
            it where there is a budget.
        max_waiting: Seconds of a stream that may wait for a step; two chunks by default.

    Raises:
        UserError: An option breaks its rule.
    """

    def __init__(
        self,
        speech2text: Transcriber,
        budget: int | None = None,
        max_batch: int = 32,
        max_seconds: float | None = None,
        max_waiting: float | None = None,
    ) -> None:
        if speech2text.rescore:
            raise UserError("rescore: keeps all that a stream heard; a pool needs it to be false")
        if max_batch < 1:
            raise UserError(f"max_batch: must be at least 1, got {max_batch}")
        self.speech2text, self.max_batch, self.max_seconds = speech2text, max_batch, max_seconds
        period = speech2text.chunk_seconds
        self.max_waiting = 2 * period if max_waiting is None else max_waiting
        if not self.max_waiting >= period:
            raise UserError(f"max_waiting: must be a chunk, {period:g} s, or more")
        self._part = speech2text.samples(period)
        #: streams that have begun and not ended
        self.streams: dict[PooledStream, None] = {}
        #: those that a step may do something for, the one that waits longest first
        self.due: deque[PooledStream] = deque()
        #: how many streams the budget holds, None without a limit
        self.max_streams: int | None = None
        if budget is not None:
            waiting = 4 * speech2text.samples(self.max_waiting)
            self.stream_bytes = speech2text.most_bytes(max_seconds) + waiting
            self.max_streams = budget // self.stream_bytes
            if self.max_streams < 1:
                raise UserError(
                    f"budget: {budget} bytes hold no stream, one needs {self.stream_bytes}"
                )
        self._lock = threading.Lock()

    def start(self) -> PooledStream:
        """A new stream.

        Raises:
            PoolFull: The budget holds no more.
        """
        with self._lock:
            if self.max_streams is not None and len(self.streams) >= self.max_streams:
                raise PoolFull(f"budget: holds {self.max_streams} streams, and so many are open")
            stream = PooledStream(own := self.speech2text.start())
            stream.needed = self._lacking(own)
            self.streams[stream] = None
            return stream

    def push(self, stream: PooledStream, samples: Any) -> None:
        """Give a stream more samples.

        Args:
            stream: From ``start``.
            samples: Mono waveform at the model's rate (n,), floats in [-1, 1] or int16.

        Raises:
            UserError: They are no such samples, the stream has ended, too many wait, or the stream
                would be longer than ``max_seconds``. The stream is as it was.
        """
        samples = checked_samples(samples)
        fs, total = self.speech2text.fs, stream.received + len(samples)
        if stream not in self.streams or stream.finished:
            raise UserError("stream: has ended, start() begins another")
        if self.max_seconds is not None and total > self.max_seconds * fs:
            raise UserError(f"stream: is longer than max_seconds, {self.max_seconds:g} s")
        if len(samples) > self.room(stream):
            raise UserError(
                f"stream: more than max_waiting, {self.max_waiting:g} s, would wait for a step"
            )
        parts = range(0, len(samples), self._part)
        stream.waiting.extend(samples[at : at + self._part] for at in parts)
        stream.received = total  # last: what counts as waiting is there
        self._call(stream)

    def room(self, stream: PooledStream) -> int:
        """How many samples of a stream may be pushed before a step has taken some."""
        return int(self.max_waiting * self.speech2text.fs) - stream.lag

    def finish(self, stream: PooledStream) -> None:
        """No samples follow: steps to come encode what waits and give the last result."""
        stream.finished = True
        self._call(stream)

    def drop(self, stream: PooledStream) -> None:
        """Forget a stream at once."""
        with self._lock:
            self.streams.pop(stream, None)
            if stream in self.due:
                self.due.remove(stream)

    def step(self) -> list[tuple[PooledStream, Result | UserError]]:
        """Encode one chunk of each stream that has one, ``max_batch`` of them at most.

        Returns:
            Each stream of the step with what is known of it, or with what is wrong with it. One
            whose result is final or wrong has left the pool. Nothing where no stream has a chunk.
        """
        batch: list[PooledStream] = []
        outcomes: list[tuple[PooledStream, Result | UserError]] = []
        called: list[PooledStream] = []
        try:
            while len(batch) < self.max_batch and (stream := self._next()):
                called.append(stream)
                try:
                    if self._take(stream):
                        batch.append(stream)
                    elif stream.stream.ended:
                        outcomes.append((stream, self.speech2text.last(stream.stream)))
                except UserError as error:
                    outcomes.append((stream, error))
            if batch:
                results = self.speech2text.step([stream.stream for stream in batch])
                outcomes += zip(batch, results, strict=True)
            for stream, outcome in outcomes:
                if isinstance(outcome, UserError) or outcome.is_final:
                    self.drop(stream)
        finally:
            for stream in called:  # behind those that were not served
                own = stream.stream
                stream.needed = own.received + self._lacking(own)
                stream.due = False
                self._call(stream)
        return outcomes

    def _lacking(self, own: Any) -> int:
        """Samples with which a step can do something for a stream; a part that waits is taken."""
        if self.speech2text.ready(own):
            return 0
        return max(1, min(self.speech2text.lacking(own), self._part))

    def _next(self) -> PooledStream | None:
        """The stream that waits longest for a step."""
        with self._lock:
            return self.due.popleft() if self.due else None

    def _call(self, stream: PooledStream) -> None:
        """Let a stream wait for a step if one can do something for it."""
        with self._lock:
            possible = stream.finished or stream.received >= stream.needed
            if possible and not stream.due and stream in self.streams:
                stream.due = True
                self.due.append(stream)

    def _take(self, stream: PooledStream) -> bool:
        """Take what waits until a chunk is full; whether one is."""
        speech2text, own = self.speech2text, stream.stream
        while not speech2text.ready(own):
            finished = stream.finished  # first, as nothing is pushed after it
            lag = stream.lag
            if lag and (finished or lag >= self._lacking(own)):
                parts, size = [], 0  # features of much at once cost less
                while stream.waiting and size + len(stream.waiting[0]) <= self._part:
                    parts.append(stream.waiting.popleft())
                    size += len(parts[-1])
                speech2text.take(own, np.concatenate(parts))
            elif finished and not lag and not own.ended:
                speech2text.take(own, is_final=True)
            else:
                return False
        return True
