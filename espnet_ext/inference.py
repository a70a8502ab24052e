"""Old name of ``espnet_ext.streaming``."""

from espnet_ext.streaming import *  # noqa: F403
from espnet_ext.streaming.speech2text import packet_samples  # noqa: F401
