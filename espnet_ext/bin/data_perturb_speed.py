"""Describe a data directory at another speed (utt2speed); data_format writes the audio."""

from espnet_ext.errors import cli
from espnet_ext.options import Parser, output


@cli
def main(argv=None):
    parser = Parser(description=__doc__)
    parser.option("factor", help="such as 0.9; above 1 is faster", required=True)
    parser.add_argument("input", metavar="IN")
    parser.add_argument("output", type=output, metavar="OUT")
    args = parser.parse_args(argv)
    from espnet_ext.data import kaldi

    kaldi.write_data_dir(
        args.output, kaldi.perturb_speed(kaldi.read_data_dir(args.input), args.factor)
    )


if __name__ == "__main__":
    main()
