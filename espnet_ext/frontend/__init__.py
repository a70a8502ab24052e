"""Features of a waveform, whole or live."""

from espnet_ext.frontend.base import FrontEnd, front_end, known_front_end
from espnet_ext.frontend.kaldi_fbank import KaldiFbank
from espnet_ext.frontend.streaming import FrontendState, StreamingFrontend

__all__ = [
    "FrontEnd",
    "FrontendState",
    "KaldiFbank",
    "StreamingFrontend",
    "front_end",
    "known_front_end",
]
