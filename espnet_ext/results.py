"""Result files: JSON in which every number is one."""

import json
import math
from pathlib import Path

from espnet_ext.errors import UserError


def to_json(value, indent=None) -> str:
    """A result as a line, or lines, of JSON.

    Raises:
        UserError: A number in it is not finite; the message names its keys.
    """
    for keys, number in _numbers(value):
        if not math.isfinite(number):
            raise UserError(f"{'.'.join(keys)}: the measurement is not a number ({number})")
    return f"{json.dumps(value, indent=indent)}\n"


def read_json(path):
    """What a result file holds.

    Raises:
        UserError: It is unreadable, not JSON, or holds a number that is not finite.
    """

    def number(written):
        if not math.isfinite(value := float(written)):
            raise ValueError(f"{written} is not a number")
        return value

    try:
        text = Path(path).read_text(encoding="utf-8")
        return json.loads(text, parse_constant=number, parse_float=number)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"{path}: is not JSON of numbers ({error}); make it again") from None


def _numbers(value, keys=()):
    """(keys, number) of every float in nested dictionaries and lists."""
    if isinstance(value, float):
        yield keys, value
    elif isinstance(value, (dict, list, tuple)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from _numbers(inner, (*keys, str(key)))
