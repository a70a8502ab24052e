"""Bring audio to one rate and one channel; FLAC and WAV that are so already stay in place."""

import sys

from espnet_ext.errors import cli
from espnet_ext.options import Parser, output, positive_int, rate


@cli
def main(argv=None):
    parser = Parser(description=__doc__)
    parser.option("fs", rate, "16k", "sampling rate, as in 16k or 8000")
    parser.option("audio_format", default="flac", help="flac or wav, for what is converted")
    parser.option("nj", positive_int, 1, "worker processes")
    parser.add_argument("input", metavar="IN")
    parser.add_argument("output", type=output, metavar="OUT")
    args = parser.parse_args(argv)
    from espnet_ext.audio import parse_rate
    from espnet_ext.data import audio

    counts = audio.format_data_dir(
        args.input, args.output, parse_rate(args.fs), args.audio_format, args.nj
    )
    print(
        f"{args.output}: {', '.join(f'{n} {what}' for what, n in counts.items())}", file=sys.stderr
    )


if __name__ == "__main__":
    main()
