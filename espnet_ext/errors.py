"""Errors that a user can act on, and the decorator that shows them as one line."""

import errno
import functools
import math
import multiprocessing
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NO_SPACE = (
    "no space left on the disk (or in the quota): free some and run the same command again, "
    "what is finished is kept"
)


class UserError(ValueError):
    """A mistake in the input: the message names the file or key, what is wrong and what to do."""


class DiskFull(UserError):
    """There is no space left; no other file can be written either."""


@contextmanager
def about(name: object) -> Iterator[None]:
    """Put the name of what is worked on (an utterance, a file) before a user's mistake."""
    try:
        yield
    except DiskFull:
        raise
    except UserError as error:
        named = str(error).startswith(f"{name}: ")
        raise UserError(str(error) if named else f"{name}: {error}") from None


def no_checkpoint(path: str | Path) -> UserError:
    """Return the error of a checkpoint that is not there; it names those of its directory."""
    path = Path(path)
    there = ", ".join(sorted(file.name for file in path.parent.glob("*.*.*.pth")))
    what = f"name one with --inference_asr_model: {there}" if there else "its training is not done"
    return UserError(f"{path}: no such file; {what}")


def disk_full(error: BaseException | None) -> bool:
    """Say whether an exception, or one that led to it, is a full disk's."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


def refuse_not_finite(arrays: Mapping[str, Any], what: object, advice: str) -> None:
    """Refuse values that are infinite or not a number.

    Statistics of features and a BatchNorm's running mean that hold such a value spoil every later
    result, while the loss of the training may look sound.

    Args:
        arrays: Tensors or NumPy arrays by name; only those of floats are looked at.
        what: What holds them, for the message.
        advice: What to do about it.

    Raises:
        UserError: There are any; the message names the first array.
    """
    limit = float("inf")
    bad = [
        name
        for name, values in arrays.items()
        if "float" in str(getattr(values, "dtype", ""))
        and not ((values > -limit) & (values < limit)).all()
    ]
    if bad:
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise UserError(f"{what}: {bad[0]}{more} is infinite or not a number: {advice}")


def check_log_probs(log_probs: Any) -> None:
    """Refuse log probabilities (..., n, tokens) with a frame that has no largest one.

    Raises:
        UserError: A frame holds not-a-number or plus infinity, or all of it is minus infinity.
    """
    if log_probs.shape[-2]:
        best = log_probs.amax(-1) if hasattr(log_probs, "amax") else log_probs.max(-1)
        check_number(float(best.min()) + float(best.max()))


def check_number(value: float) -> None:
    """Refuse a score, or a sum of what a model puts out, that is not finite.

    Raises:
        UserError: It is not.
    """
    if not math.isfinite(value):
        raise UserError(
            f"the model's output is not a number ({value:g}): the checkpoint is of no use, or the "
            "dtype is too narrow, use float32"
        )


def _message(error: UserError) -> str:
    """Return what a ``UserError`` says; PyTorch's loader puts a worker's traceback around it."""
    text = str(error)
    if text.startswith("Caught UserError in DataLoader worker"):
        text = text.rstrip().rpartition("UserError: ")[2]
    return text


def floats(value: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], float]]:
    """Every float in nested mappings and lists, with the keys to it."""
    if isinstance(value, float):
        yield keys, value
    elif isinstance(value, (dict, list, tuple)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from floats(inner, (*keys, str(key)))


def short(text: str) -> str:
    """What a message says of a value, cut where it is long."""
    return text if len(text) <= 60 else f"{text[:57]}..."


def printable(text: str) -> str:
    """Escape the characters of a text that a terminal or a table would obey; line ends stay."""
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape", "replace").decode()
        for c in text
    )


def _open_standard_streams() -> None:
    """Give what is closed its place, so that no file that is opened later takes it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")
    if sys.stdout is None:
        raise UserError("standard output is closed; send it somewhere, as in > /dev/null")


def _environment(error: Exception) -> str:
    """What the machine refuses, in words; "" of an error that is a bug."""
    if disk_full(error):
        return f"{getattr(error, 'filename', None) or 'output'}: {NO_SPACE}"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}; look at the path and who may write there"
    if isinstance(error, OSError) or "shared memory" in str(error) or "Bus error" in str(error):
        try:
            multiprocessing.get_context("spawn").Lock()
            with tempfile.TemporaryFile(dir="/dev/shm"):
                pass
        except OSError as refused:
            return (
                f"/dev/shm: shared memory cannot be used ({refused.strerror}); processes that work "
                "together need it: mount it writable, or start the container with --shm-size"
            )
    return ""


def _show(message: str) -> None:
    message = re.sub("(.{900}).{300,}(.{300})", r"\1 ... \2", message)  # of a file of one line
    print(printable(f"{Path(sys.argv[0]).stem}: error: {message}"), file=sys.stderr)


def each(things: Iterable[Any], function: Callable[[Any], object]) -> int:
    """Call a function for each; a user's mistake is printed and stops no other; the exit status."""
    status = 0
    for thing in things:
        try:
            function(thing)
        except UserError as error:
            _show(str(error))
            status = 1
    return status


def cli(main: Callable[..., Any]) -> Callable[..., Any]:
    """Turn ``main`` into a command line that ends a user's mistake in one line on stderr.

    Args:
        main: Function of the argument list (``None`` means ``sys.argv[1:]``).

    Returns:
        The same function; on ``UserError`` and where the machine refuses (a full or read-only disk,
        a file that cannot be opened, no shared memory, a closed standard output) it prints
        ``<program>: error: <message>`` and exits with status 1, on SIGINT with status 130. Other
        exceptions are bugs and keep their traceback.
    """

    @functools.wraps(main)
    def wrapped(argv: list[str] | None = None) -> Any:
        try:
            _open_standard_streams()
            status = main(argv)
            sys.stdout.flush()
            return status
        except UserError as error:
            message = _message(error)
        except BrokenPipeError:  # who reads has enough, as head does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)
        except (OSError, RuntimeError) as error:
            message = _environment(error)
            if not message:
                raise
        except KeyboardInterrupt:
            sys.exit(130)
        _show(message)
        sys.exit(1)

    return wrapped
