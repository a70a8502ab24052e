"""The same numbers in less time on a CPU, and recordings of an hour in less memory anywhere.

Nothing here is part of the method: caches, masks and causal convolutions are in ``attention`` and
``encoder``, and give the same without it, to rounding. ``replace.py`` has the table of what takes
the place of which class of ESPnet and PyTorch; causal convolutions (``conv.py``) and attention of
whole utterances (``by_head.py``) ask for a kernel here.

``ESPNET_EXT_CPU=0`` in the environment, or ``enable(False)``, takes all of it out of the models
that are built from then on.
"""

import os

_enabled = os.environ.get("ESPNET_EXT_CPU", "1") != "0"


def enabled() -> bool:
    """Whether this package is in use."""
    return _enabled


def enable(on: bool = True) -> None:
    """Put this package in use, or out of it. Build models anew: theirs are as they were built."""
    global _enabled
    _enabled = on
