"""Unpack a packed model and print the options with which asr_inference and the others load it."""

import shlex
import sys

from espnet_ext import packing
from espnet_ext.errors import cli
from espnet_ext.options import Parser, output


@cli
def main(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument("archive", help=".zip of stage 14")
    parser.add_argument("folder", type=output, help="directory to make")
    args = parser.parse_args(argv)
    arguments, versions = packing.unpack(args.archive, args.folder)
    made = ", ".join(f"{name} {version}" for name, version in versions.items())
    print(f"{args.archive}: packed with {made}", file=sys.stderr)
    print(shlex.join(word for key, path in arguments.items() for word in (f"--{key}", path)))


if __name__ == "__main__":
    main()
