"""Check a Kaldi-style data directory; one line per problem."""

from espnet_ext.errors import cli
from espnet_ext.options import Parser


@cli
def main(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument("directory", metavar="DIR")
    args = parser.parse_args(argv)
    from espnet_ext.data import kaldi

    kaldi.raise_if_any(kaldi.validate(args.directory))


if __name__ == "__main__":
    main()
