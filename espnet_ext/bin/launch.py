"""ESPnet's launcher of training on one or several GPUs and nodes."""

import contextlib
import io
import logging
import sys

from espnet2.bin import launch

from espnet_ext.errors import UserError, cli


@cli
def main(argv=None):
    """Launch the training in ``argv``; its log is rotated first."""
    argv = sys.argv[1:] if argv is None else argv
    log = launch.get_parser().parse_args(argv).log
    logging.basicConfig(level=logging.WARNING)  # the log file starts with the command
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # the command again
            launch.main(argv)
    except RuntimeError:  # holds the last 1000 lines of the log
        raise UserError(f"training failed, see {log}") from None


if __name__ == "__main__":
    main()
