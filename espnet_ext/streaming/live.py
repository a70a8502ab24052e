"""What a model that hears a recording as it comes knows after each packet."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from espnet_ext.errors import UserError, about
from espnet_ext.streaming.transcriber import Result, Transcriber


@dataclass
class Heard:
    """What a model knows after a packet.

    Attributes:
        seconds: Heard so far.
        utterances: All so far, of which the last one goes on.
        has_stepped: The packet completed a chunk.
        ms: Milliseconds that it took.
        ledger: Bytes of state by kind.
    """

    seconds: float
    utterances: list[Result]
    has_stepped: bool
    ms: float
    ledger: dict[str, int]

    @property
    def texts(self) -> list[str]:
        """Of all utterances that have one."""
        return [result.text for result in self.utterances if result.text]

    @property
    def words(self) -> list[dict[str, Any]]:
        """Of all utterances."""
        return [asdict(word) for result in self.utterances for word in result.words]


def hear(speech2text: Transcriber, packets: Iterable[np.ndarray], name: str) -> Iterator[Heard]:
    """Let a model hear packets of samples (n,); the last of what it gives is final.

    Raises:
        UserError: A packet cannot be heard, or all are too short for any text; the message says
            where in the recording ``name``.
    """
    stream, fs, ended = speech2text.start(), speech2text.fs, []

    def read(samples: Any = (), is_final: bool = False) -> Heard:
        before, began = stream.frames, time.perf_counter()
        result = speech2text(stream, samples, is_final)
        ms = 1000 * (time.perf_counter() - began)
        ended.extend(result.utterances)
        seconds, has_stepped = stream.received / fs, stream.frames > before
        return Heard(seconds, [*ended, result], has_stepped, ms, stream.ledger())

    for samples in packets:
        with about(f"{name}: from {stream.received / fs:.2f} s on"):
            heard = read(samples)
        yield heard
    with about(name):
        heard = read(is_final=True)
        if not stream.frames:
            samples = stream.received
            raise UserError(f"{samples} samples ({samples / fs:.4f} s) are too short for any text")
    yield heard
