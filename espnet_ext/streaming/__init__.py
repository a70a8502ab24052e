"""Live recordings: text from packets, long recordings, proof that a stream equals offline."""

from espnet_ext.streaming.equivalence import compare
from espnet_ext.streaming.long_audio import LongAudio
from espnet_ext.streaming.pool import PoolFull, StreamPool
from espnet_ext.streaming.searches import GreedySearch, PrefixBeamSearch
from espnet_ext.streaming.speech2text import Result, Stream, StreamingSpeech2Text
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
