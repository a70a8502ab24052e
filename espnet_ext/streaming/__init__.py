"""Live recordings: text from packets, long recordings, their equivalence to offline."""

from importlib import import_module
from typing import Any

from espnet_ext.streaming.pool import PoolFull, StreamPool
from espnet_ext.streaming.searches import GreedySearch, PrefixBeamSearch
from espnet_ext.streaming.speech2text import StreamingSpeech2Text
from espnet_ext.streaming.transcriber import Result
from espnet_ext.streaming.words import Word

__all__ = [
    "GreedySearch",
    "LongAudio",
    "PoolFull",
    "PrefixBeamSearch",
    "Result",
    "Stream",
    "StreamPool",
    "StreamingSpeech2Text",
    "Word",
    "compare",
]
#: what imports PyTorch, when it is asked for: an exported model streams without
IN_TORCH = {"LongAudio": "long_audio", "Stream": "eager", "compare": "equivalence"}


def __getattr__(name: str) -> Any:
    if name not in IN_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{IN_TORCH[name]}"), name)
