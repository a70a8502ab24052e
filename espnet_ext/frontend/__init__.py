"""Features from a live waveform."""

from espnet_ext.frontend.streaming import FrontendState, StreamingFrontend

__all__ = ["FrontendState", "StreamingFrontend"]
