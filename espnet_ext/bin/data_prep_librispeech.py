"""Turn a split of LibriSpeech, such as LibriSpeech/dev-clean, into a data directory."""

import sys

from espnet_ext.errors import cli
from espnet_ext.options import Parser, boolean, output, positive_int


@cli
def main(argv=None):
    parser = Parser(description=__doc__)
    truth = {"type": boolean, "default": True}
    parser.add_argument(
        "--check_counts", **truth, help="refuse a split that is not complete (default: true)"
    )
    parser.add_argument(
        "--check_audio",
        **truth,
        help="decode every file; refuse other than 16 kHz mono (default: true)",
    )
    parser.option("nj", positive_int, 1, "worker processes")
    parser.add_argument("split", metavar="SPLIT", help="directory; SPEAKERS.TXT is beside it")
    parser.add_argument("output", type=output, metavar="OUT")
    args = parser.parse_args(argv)
    from espnet_ext.data import kaldi, librispeech

    tables = librispeech.prepare(args.split, args.check_counts, args.check_audio, args.nj)
    kaldi.write_data_dir(args.output, tables)
    print(f"{args.output}: {len(tables['text'])} utterances", file=sys.stderr)


if __name__ == "__main__":
    main()
