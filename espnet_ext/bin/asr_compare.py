"""Lay evaluated models side by side.

Reads evaluation_results.json, and grid.json beside it, of every model below EXPDIR: directories of
models, of one model, or files, of several machines, too. Writes, into --output,
summary_report.txt, comparison_table.csv, plots and report.html. A model that is expected and not
there is shown as missing; a file of no use is named and skipped; a model that is there twice is
refused, unless the seeds of its trainings differ.
"""

import sys
from pathlib import Path

from espnet_ext.errors import UserError, cli
from espnet_ext.options import Parser, listed, name, path
from espnet_ext.options import output as output_path
from espnet_ext.resources import PUBLISHED_BASELINES


def add_expected(parser):
    """Options that say which models a comparison is of."""
    parser.option(
        "encoders", listed(name), "conformer branchformer", "each with every one of --attentions"
    )
    parser.option("attentions", listed(name), help="their attentions [every one there is]")


def compare(expdir, output, encoders, attentions, published=PUBLISHED_BASELINES):
    """Write a comparison and print its tables; see the module."""
    from espnet_ext.report.compare import Comparison
    from espnet_ext.report.page import write_comparison

    if attentions is None:
        from espnet_ext.attention import ATTENTIONS as attentions
    comparison = Comparison(expdir, encoders, list(attentions), published)
    for note in comparison.notes:
        print(f"{Path(sys.argv[0]).stem}: {note}", file=sys.stderr)
    if not comparison.models:
        raise UserError(
            f"{' '.join(map(str, comparison.expdirs))}: no */evaluation_results.json of use below "
            "it; run espnet-ext evaluate first"
        )
    print(write_comparison(comparison, output))
    print(f"All of it with plots: {Path(output) / 'report.html'}")


@cli
def main(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument(
        "expdirs", nargs="*", type=path, metavar="EXPDIR", help="directories of models, or results"
    )
    parser.option("expdir", path, [], "the same [exp]", nargs="+")
    parser.option("output", output_path, "comparison")
    add_expected(parser)
    parser.option("published", default=PUBLISHED_BASELINES, help="YAML of published results")
    args = parser.parse_args(argv)
    expdirs = args.expdirs + args.expdir or ["exp"]
    compare(expdirs, args.output, args.encoders, args.attentions, args.published)


if __name__ == "__main__":
    main()
