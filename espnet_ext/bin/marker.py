"""Markers of finished results, for asr.sh.

Commands:
    marker check [--again] MARKER OPTIONS INPUT... -- OUTPUT...
        Print nothing if the result is up to date, else the work, for "write" when it is done. With
        --again nothing counts as up to date.
    marker write MARKER WORK
    marker changed MARKER [INPUT]...
        Print an input, of all or of those given, that has changed since.
    marker claim DIR PROCESS
        Take the lock of a directory for a process, as whose descriptor 9 it is open.
    marker replace DIR
        Put .new/DIR in the place of DIR.
"""

import json
import sys
from pathlib import Path

from espnet_ext import files
from espnet_ext.errors import UserError, cli
from espnet_ext.jobs import markers


def check(words):
    """Print what is to be done, if anything is."""
    again = words[0] == "--again"
    marker, options, *paths = words[again:]
    end = paths.index("--")
    work = markers.prepare(options, paths[:end], paths[end + 1 :])
    begun = Path(marker).with_name(markers.BEGUN)
    first = markers.read(begun) if Path(marker).name == ".done" else None
    if first and (found := markers.difference(first, work)):
        print(
            f"warning: {begun.parent}: its training began before {found} changed, and goes on from "
            "its last epoch; to train from the start, give another directory or remove this one",
            file=sys.stderr,
        )
    if again or not markers.up_to_date(marker, work):
        print(json.dumps(work))


@cli
def main(argv=None):
    command, *words = (sys.argv[1:] if argv is None else argv) or [""]
    if command == "check" and "--" in words:
        check(words)
    elif command == "write" and len(words) == 2:
        markers.write(words[0], json.loads(words[1]))
    elif command == "changed" and words:
        print(markers.changed(words[0], words[1:]))
    elif command == "claim" and len(words) == 2:
        files.lock(9, words[0], "run works", words[1])
    elif command == "replace" and len(words) == 1:
        markers.replace(words[0])
    elif command in ("-h", "--help"):
        print(__doc__)
    else:
        raise UserError(f"unknown command: {' '.join([command, *words])}; see --help")


if __name__ == "__main__":
    main()
