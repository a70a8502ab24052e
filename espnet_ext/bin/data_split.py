"""Split a file by lines into at most NUM parts, PREFIX.1.SUFFIX and so on; prints how many."""

from espnet_ext.errors import cli
from espnet_ext.options import Parser, positive_int


@cli
def main(argv=None):
    parser = Parser(description=__doc__)
    parser.option("num", positive_int, help="parts wanted", required=True)
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("prefix", metavar="PREFIX")
    parser.add_argument("suffix", metavar="SUFFIX")
    args = parser.parse_args(argv)
    from espnet_ext.data import kaldi

    print(kaldi.split_lines(args.file, args.num, args.prefix, args.suffix))


if __name__ == "__main__":
    main()
