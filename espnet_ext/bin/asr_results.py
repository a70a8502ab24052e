"""Keep results of trained models as small files, and make the tables of a page from them.

With EXPDIRs: copies what is kept of each to RESULTS/seed<N>/<model>. Without: puts the tables into
--page, where it says <!-- table: NAME -->, or restores an exp directory for asr_compare. Run it in
the directory of the recipe.
"""

import argparse
from pathlib import Path

from espnet_ext.data.kaldi import write_atomic
from espnet_ext.errors import UserError, cli
from espnet_ext.evaluate.gather import gather
from espnet_ext.options import Parser, boolean, count
from espnet_ext.report.kept import read_kept, restore, tables, updated


def get_parser() -> Parser:
    """Options of this command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("expdir", nargs="*", help="directories of models whose results to keep")
    parser.add_argument("--results", default="results", help="the kept results [%(default)s]")
    parser.add_argument("--dumpdir", default="dump", help="formatted data [%(default)s]")
    parser.add_argument(
        "--weights", type=boolean, default=False, help="keep the averaged weights [%(default)s]"
    )
    parser.add_argument("--inference_asr_model", default="valid.acc.ave.pth", help="[%(default)s]")
    parser.add_argument("--page", help="Markdown whose tables are made again, e.g. RESULTS.md")
    parser.add_argument("--test_set", default="test", help="of the tables [%(default)s]")
    parser.add_argument("--seed", type=count, default=1, help="of the tables [%(default)s]")
    parser.add_argument("--restore", help="directory to write for asr_compare --expdir")
    return parser


@cli
def main(argv=None):
    """Run the command line."""
    args = get_parser().parse_args(argv)
    for expdir in args.expdir:
        weights = args.weights, args.inference_asr_model
        print(gather(expdir, args.results, args.dumpdir, *weights), flush=True)
    if args.expdir and not (args.page or args.restore):
        return
    kept = read_kept(args.results)
    if args.seed not in kept:
        raise UserError(f"{args.results}: keeps nothing of seed {args.seed}; give an EXPDIR first")
    if args.restore:
        restore(kept[args.seed], args.restore)
    if args.page:
        page = Path(args.page)
        text = page.read_text(encoding="utf-8")
        made = tables(args.results, args.test_set, args.seed)
        write_atomic(page, updated(text, made).encode())


if __name__ == "__main__":
    raise SystemExit(main())
