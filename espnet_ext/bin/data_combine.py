"""Merge data directories into one."""

from espnet_ext.errors import cli
from espnet_ext.options import Parser, output


@cli
def main(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument("output", type=output, metavar="OUT")
    parser.add_argument("inputs", metavar="IN", nargs="+")
    args = parser.parse_args(argv)
    from espnet_ext.data import kaldi

    kaldi.write_data_dir(
        args.output, kaldi.combine([(path, kaldi.read_data_dir(path)) for path in args.inputs])
    )


if __name__ == "__main__":
    main()
