"""Keep the utterances whose length is between two bounds and whose text is not empty."""

import sys

from espnet_ext.errors import UserError, cli
from espnet_ext.options import Parser, non_negative, output, positive, rate


@cli
def main(argv=None):
    parser = Parser(description=__doc__)
    parser.option("fs", rate, "16k", "sampling rate of the audio")
    parser.option("min_wav_duration", non_negative, 0.1, "seconds, excluded")
    parser.option("max_wav_duration", positive, 20, "seconds, excluded")
    parser.add_argument("input", metavar="IN")
    parser.add_argument("output", type=output, metavar="OUT")
    args = parser.parse_args(argv)
    from espnet_ext.audio import parse_rate
    from espnet_ext.data import kaldi

    hertz = parse_rate(args.fs)
    tables = kaldi.read_data_dir(args.input)
    try:
        kept, dropped = kaldi.filter_by_length(
            tables, args.min_wav_duration * hertz, args.max_wav_duration * hertz
        )
    except UserError as error:
        raise UserError(f"{args.input}: {error}") from error
    kaldi.write_data_dir(args.output, kept)
    reasons = ", ".join(f"{n} {why}" for why, n in dropped.items())
    print(f"{args.output}: {len(kept['text'])} utterances kept; dropped {reasons}", file=sys.stderr)


if __name__ == "__main__":
    main()
