"""Keep results of trained models as small files, and make the tables of a page from them.

With EXPDIRs: copies what is kept of each to RESULTS/seed<N>/<model>. Without: puts the tables into
--page, where it says <!-- table: NAME -->, draws --figure, or restores an exp directory for
compare. Run it in the directory of the recipe.
"""

from pathlib import Path

from espnet_ext import model_options as shared
from espnet_ext.errors import UserError, about, cli
from espnet_ext.options import Parser, boolean, count, name, output, path


@cli
def main(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument("expdir", nargs="*", type=path, metavar="EXPDIR", help="models to keep")
    parser.option("results", path, "results", "the kept results")
    parser.option("dumpdir", path, "dump", "formatted data")
    parser.option("weights", boolean, False, "keep the averaged weights")
    shared.add_checkpoint(parser)
    parser.option("page", path, help="Markdown whose tables are made again, e.g. RESULTS.md")
    parser.option("figure", output, help="PNG of WER over bytes and latency, every cell of grids")
    parser.option("test_set", name, "test", "of the tables and the figure")
    parser.option("seed", count, 1, "of the tables and the figure")
    parser.option("restore", output, help="directory to write for compare --expdir")
    args = parser.parse_args(argv)
    from espnet_ext.data.kaldi import read_lines
    from espnet_ext.evaluate.gather import gather
    from espnet_ext.files import write_atomic
    from espnet_ext.report.kept import grid_rows, read_kept, restore, tables, updated

    for expdir in args.expdir:
        weights = args.weights, args.inference_asr_model
        print(gather(expdir, args.results, args.dumpdir, *weights), flush=True)
    wanted = args.page or args.figure or args.restore
    if args.expdir and not wanted:
        return
    kept = read_kept(args.results)
    if args.seed not in kept:
        raise UserError(f"{args.results}: keeps nothing of seed {args.seed}; give an EXPDIR first")
    if not wanted:
        raise UserError("give EXPDIR of a model to keep, --page, --figure or --restore")
    if args.restore:
        restore(kept[args.seed], args.restore)
    if args.figure:
        from espnet_ext.report.plots import draw_cells

        cells = grid_rows(kept[args.seed], args.test_set)
        if not cells:
            raise UserError(
                f"{args.results}: no grid.json of seed {args.seed}; run espnet-ext grid"
            )
        write_atomic(args.figure, draw_cells(cells, [args.test_set]))
    if args.page:
        page = Path(args.page)
        text = "".join(f"{line}\n" for line in read_lines(page))
        made = tables(args.results, args.test_set, args.seed)
        with about(page):
            text = updated(text, made)
        write_atomic(page, text.encode())


if __name__ == "__main__":
    raise SystemExit(main())
