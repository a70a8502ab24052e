"""Live recordings: text from packets, long recordings, their equivalence to offline."""

from espnet_ext.streaming.equivalence import compare
from espnet_ext.streaming.long_audio import LongAudio
from espnet_ext.streaming.searches import GreedySearch, PrefixBeamSearch
from espnet_ext.streaming.speech2text import Result, Stream, StreamingSpeech2Text

__all__ = [
    "GreedySearch",
    "LongAudio",
    "PrefixBeamSearch",
    "Result",
    "Stream",
    "StreamingSpeech2Text",
    "compare",
]
