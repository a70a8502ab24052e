"""What an option may be: refusals that name the key, the rule and the value."""

from collections.abc import Iterable
from typing import Any


def check_at_least(key: str, value: Any, least: int) -> None:
    """Refuse ``value`` unless it is an integer of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{key}: must be an integer of at least {least}, got {value!r}")


def check_choice(key: str, value: Any, choices: Iterable) -> None:
    """Refuse ``value`` unless it is one of ``choices``."""
    if value not in tuple(choices):
        raise ValueError(f"{key}: must be one of {', '.join(map(str, choices))}, got {value!r}")
