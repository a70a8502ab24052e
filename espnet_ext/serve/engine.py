"""Models that hear many streams: one thread computes, whoever else only asks."""

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from espnet_ext.errors import UserError, about
from espnet_ext.streaming.pool import PooledStream, StreamPool
from espnet_ext.streaming.speech2text import StreamingSpeech2Text
from espnet_ext.streaming.transcriber import Result


@dataclass(eq=False)
class ServedModel:
    """A model with the streams that it hears, which may hold so many bytes (``budget``)."""

    name: str
    speech2text: StreamingSpeech2Text
    pool: StreamPool
    budget: int

    def describe(self) -> dict:
        """What a client should know of it."""
        model = self.speech2text
        return {
            "name": self.name,
            "attention": model.attention,
            "rate": model.fs,
            "chunk_seconds": model.chunk_seconds,
            "chunk_size": model.chunk_size,
            "left_context": model.left_context,
            "budget": self.budget,
            "stream_bytes": self.pool.stream_bytes,
            "max_streams": self.pool.max_streams,
            "open_streams": len(self.pool.streams),
        }


@dataclass
class Outcome:
    """What a step gives to one stream.

    Attributes:
        result: What is known, or what is wrong.
        ms: Milliseconds of the step.
        batch: Streams in it.
        heard: Seconds that the model has taken in.
        ledger: Bytes of state by kind.
    """

    result: Result | UserError
    ms: float
    batch: int
    heard: float
    ledger: dict[str, int]


class Engine:
    """One thread that steps the pools of all models, as long as any has something to do.

    Args:
        models: What is served.
    """

    def __init__(self, models: list[ServedModel]) -> None:
        self.models = models
        self._listeners: dict[PooledStream, Callable[[Outcome], None]] = {}
        self._waiting: deque[Callable[[], None]] = deque()
        self._work = threading.Event()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def start(self, model: ServedModel, listener: Callable[[Outcome], None]) -> PooledStream:
        """A new stream; the engine's thread calls the listener after each of its steps.

        Raises:
            PoolFull: The budget holds no more.
        """
        stream = model.pool.start()
        self._listeners[stream] = listener
        return stream

    def push(self, model: ServedModel, stream: PooledStream, samples) -> None:
        """See ``StreamPool.push``."""
        model.pool.push(stream, samples)
        if model.pool.due:
            self._work.set()

    def finish(self, model: ServedModel, stream: PooledStream) -> None:
        """See ``StreamPool.finish``."""
        model.pool.finish(stream)
        self._work.set()

    def drop(self, model: ServedModel, stream: PooledStream) -> None:
        """See ``StreamPool.drop``."""
        self._listeners.pop(stream, None)
        model.pool.drop(stream)

    def after_round(self, call: Callable[[], None]) -> None:
        """Have something called, in the engine's thread, when each pool was stepped once more."""
        self._waiting.append(call)
        self._work.set()

    def close(self) -> None:
        """End the thread."""
        self._stopped = True
        self._work.set()
        self._thread.join()

    def _run(self):
        while not self._stopped:
            self._work.wait()
            self._work.clear()
            busy = True
            while busy and not self._stopped:
                waiting = len(self._waiting)
                busy = any([self._step(model) for model in self.models])
                for _ in range(waiting):
                    with contextlib.suppress(RuntimeError):  # its event loop has ended
                        self._waiting.popleft()()

    def _step(self, model):
        """One step of a model; whether it may be stepped again at once."""
        began = time.perf_counter()
        try:
            outcomes = model.pool.step()
        except Exception:  # a bug, or no memory: the other models go on
            logging.exception(f"{model.name}: a step failed, its streams are dropped")
            error = UserError(f"{model.name}: a step failed; the server's log says why")
            outcomes = [(stream, error) for stream in list(model.pool.streams)]
            for stream, _ in outcomes:
                model.pool.drop(stream)
        ms = 1000 * (time.perf_counter() - began)
        for stream, result in outcomes:
            listener = self._listeners.get(stream)
            if stream not in model.pool.streams:
                self._listeners.pop(stream, None)
            if listener:
                own = stream.stream
                heard, ledger = own.received / model.speech2text.fs, own.ledger()
                with contextlib.suppress(RuntimeError):  # its event loop has ended
                    listener(Outcome(result, ms, len(outcomes), heard, ledger))
        return bool(outcomes or model.pool.due)


def load_models(
    models: list[tuple[str, dict]],
    options: dict,
    budget: int,
    max_seconds: float,
    max_batch: int = 32,
) -> list[ServedModel]:
    """Models to serve.

    Args:
        models: Name of each, and its files as ``StreamingSpeech2Text`` takes them.
        options: Its other options.
        budget: Bytes that the streams of a model may hold.
        max_seconds: Longest stream.
        max_batch: Streams in a step, at most.

    Raises:
        UserError: A model cannot stream, or the budget holds not one stream of it.
    """
    served: dict[str, ServedModel] = {}
    for name, files in models:
        same = sum(known.partition(" (")[0] == name for known in served)
        unique = f"{name} ({same + 1})" if same else name
        with about(unique):
            speech2text = StreamingSpeech2Text(**files, **options)
            # a resampler may round up
            pool = StreamPool(speech2text, budget, max_batch, max_seconds + 1)
        served[unique] = ServedModel(unique, speech2text, pool, budget)
    return list(served.values())
