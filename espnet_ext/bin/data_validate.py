"""Check a Kaldi-style data directory; one line per problem."""

import argparse

from espnet_ext.data import kaldi
from espnet_ext.errors import cli


@cli
def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", metavar="DIR")
    args = parser.parse_args(argv)
    kaldi.refuse(kaldi.validate(args.directory))


if __name__ == "__main__":
    main()
