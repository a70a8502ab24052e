"""Errors that a user can act on, and the decorator that shows them as one line."""

import errno
import functools
import sys
from pathlib import Path

NO_SPACE = (
    "no space left on the disk (or in the quota): free some and run the same command again, "
    "what is finished is kept"
)


class UserError(ValueError):
    """A mistake in the input: the message names the file or key, what is wrong and what to do."""


class DiskFull(UserError):
    """There is no space left; no other file can be written either."""


def disk_full(error):
    """Say whether an exception, or one that led to it, is a full disk's."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


def printable(text):
    """Escape the characters of a text that a terminal or a table would obey; line ends stay."""
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape", "replace").decode()
        for c in text
    )


def cli(main):
    """Turn ``main`` into a command line that ends a user's mistake in one line on stderr.

    Args:
        main: Function of the argument list (``None`` means ``sys.argv[1:]``).

    Returns:
        The same function; on ``UserError`` and on a full disk it prints
        ``<program>: error: <message>`` and exits with status 1, on SIGINT with status 130. Other
        exceptions are bugs and keep their traceback.
    """

    @functools.wraps(main)
    def wrapped(argv=None):
        try:
            return main(argv)
        except UserError as error:
            message = error
        except OSError as error:
            if not disk_full(error):
                raise
            message = f"{error.filename or 'output'}: {NO_SPACE}"
        except KeyboardInterrupt:
            sys.exit(130)
        print(printable(f"{Path(sys.argv[0]).stem}: error: {message}"), file=sys.stderr)
        sys.exit(1)

    return wrapped
