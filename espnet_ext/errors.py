"""Errors that a user can act on, and the decorator that shows them as one line."""

import errno
import functools
import sys
from collections.abc import Callable, Iterator, Mapping
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
    """Look for values that are infinite or not a number.

    Statistics of features and a BatchNorm's running mean that hold such a value spoil every later
    result, while the loss of the training may look sound.

    Args:
        arrays: Tensors or NumPy arrays by name; only those of floats are looked at.
        what: What holds them, for the message.
        advice: What to do about it.

    Raises:
        UserError: If there are any; the message names the first array.
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


def _message(error: UserError) -> str:
    """Return what a ``UserError`` says; PyTorch's loader puts a worker's traceback around it."""
    text = str(error)
    if text.startswith("Caught UserError in DataLoader worker"):
        text = text.rstrip().rpartition("UserError: ")[2]
    return text


def printable(text: str) -> str:
    """Escape the characters of a text that a terminal or a table would obey; line ends stay."""
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape", "replace").decode()
        for c in text
    )


def cli(main: Callable[..., Any]) -> Callable[..., Any]:
    """Turn ``main`` into a command line that ends a user's mistake in one line on stderr.

    Args:
        main: Function of the argument list (``None`` means ``sys.argv[1:]``).

    Returns:
        The same function; on ``UserError`` and on a full disk it prints
        ``<program>: error: <message>`` and exits with status 1, on SIGINT with status 130. Other
        exceptions are bugs and keep their traceback.
    """

    @functools.wraps(main)
    def wrapped(argv: list[str] | None = None) -> Any:
        try:
            return main(argv)
        except UserError as error:
            message = _message(error)
        except OSError as error:
            if not disk_full(error):
                raise
            message = f"{error.filename or 'output'}: {NO_SPACE}"
        except KeyboardInterrupt:
            sys.exit(130)
        print(printable(f"{Path(sys.argv[0]).stem}: error: {message}"), file=sys.stderr)
        sys.exit(1)

    return wrapped
