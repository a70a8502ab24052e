"""Errors that a user can act on, and the decorator that shows them as one line."""

import functools
import sys
from pathlib import Path


class UserError(ValueError):
    """A mistake in the input: the message names the file or key, what is wrong and what to do."""


def cli(main):
    """Turn ``main`` into a command line that ends a user's mistake in one line on stderr.

    Args:
        main: Function of the argument list (``None`` means ``sys.argv[1:]``).

    Returns:
        The same function; on ``UserError`` it prints ``<program>: error: <message>`` and exits with
        status 1, on SIGINT with status 130. Other exceptions are bugs and keep their traceback.
    """

    @functools.wraps(main)
    def wrapped(argv=None):
        try:
            return main(argv)
        except UserError as error:
            print(f"{Path(sys.argv[0]).stem}: error: {error}", file=sys.stderr)
            sys.exit(1)
        except KeyboardInterrupt:
            sys.exit(130)

    return wrapped
