"""Turn a split of LibriSpeech, such as LibriSpeech/dev-clean, into a data directory."""

import argparse
import sys

from espnet_ext.data import kaldi, librispeech
from espnet_ext.errors import cli


@cli
def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    truth = {"choices": ("true", "false"), "default": "true"}
    parser.add_argument(
        "--check_counts", **truth, help="refuse a split that is not complete (default: true)"
    )
    parser.add_argument(
        "--check_audio",
        **truth,
        help="decode every file; refuse other than 16 kHz mono (default: true)",
    )
    parser.add_argument("--nj", type=int, default=1, help="worker processes (default: %(default)s)")
    parser.add_argument("split", metavar="SPLIT", help="directory; SPEAKERS.TXT is beside it")
    parser.add_argument("output", metavar="OUT")
    args = parser.parse_args(argv)
    tables = librispeech.prepare(
        args.split, args.check_counts == "true", args.check_audio == "true", args.nj
    )
    kaldi.write_data_dir(args.output, tables)
    print(f"{args.output}: {len(tables['text'])} utterances", file=sys.stderr)


if __name__ == "__main__":
    main()
