"""Old name of ``espnet_ext.streaming``."""

from espnet_ext.streaming.speech2text import *  # noqa: F403
