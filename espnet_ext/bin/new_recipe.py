"""Write a recipe, egs2/NAME/asr1, for an own corpus: docs/own_corpus.md."""

import os
from pathlib import Path

from espnet_ext.bin.data_prep_corpus import add_source, source
from espnet_ext.errors import cli, printable
from espnet_ext.options import Parser, name

ROOT = Path(__file__).absolute().parents[2]


@cli
def main(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument("name", type=name, metavar="NAME", help="name of the new recipe")
    add_source(parser)
    args = parser.parse_args(argv)
    from espnet_ext.data import recipe

    directory, notes = recipe.create(ROOT, args.name, source(args), args.nj)
    notes.append(f"written: {directory}; train and test: {os.path.relpath(directory)}/run.sh")
    print(printable("\n".join(notes)))


if __name__ == "__main__":
    main()
