"""Lay evaluated models side by side.

Reads EXPDIR/*/evaluation_results.json and writes, into --output, summary_report.txt,
comparison_table.csv, cache_comparison.png, wer_vs_cache.png, inference_time_comparison.png and
report.html. A model that is expected and not there is shown as missing; a file of no use is named
and skipped.
"""

import argparse
import sys
from pathlib import Path

from espnet_ext.data.kaldi import write_atomic
from espnet_ext.errors import UserError, cli
from espnet_ext.options import Parser, output
from espnet_ext.report.compare import Comparison
from espnet_ext.report.page import report_html
from espnet_ext.report.plots import PLOTS
from espnet_ext.report.tables import comparison_csv, summary_report

BASELINES = Path(__file__).parents[2] / "conf" / "published_baselines.yaml"


def get_parser() -> Parser:
    """Options of this command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--expdir", default="exp", help="directory of the models [%(default)s]")
    parser.add_argument("--output", default="comparison", type=output, help="[%(default)s]")
    parser.add_argument(
        "--encoders", default="conformer branchformer", help="rows that are expected [%(default)s]"
    )
    parser.add_argument("--attentions", help="rows that are expected [every attention there is]")
    parser.add_argument("--published", default=BASELINES, help="YAML of published results")
    return parser


@cli
def main(argv=None):
    """Run the command line."""
    args = get_parser().parse_args(argv)
    attentions = args.attentions
    if attentions is None:
        from espnet_ext.attention import ATTENTIONS

        attentions = " ".join(ATTENTIONS)
    comparison = Comparison(args.expdir, args.encoders.split(), attentions.split(), args.published)
    for note in comparison.notes:
        print(f"asr_compare: {note}", file=sys.stderr)
    if not comparison.models:
        raise UserError(
            f"{args.expdir}: no */evaluation_results.json of use below it; "
            "run local/evaluate_all.sh first"
        )
    output = Path(args.output)
    plots = {name: draw(comparison) for name, draw in PLOTS.items()}
    for name, png in plots.items():
        write_atomic(output / name, png)
    summary = summary_report(comparison)
    write_atomic(output / "summary_report.txt", summary.encode())
    write_atomic(output / "comparison_table.csv", comparison_csv(comparison).encode())
    write_atomic(output / "report.html", report_html(comparison, plots).encode())
    print(summary)
    print(f"All of it with plots: {output / 'report.html'}")


if __name__ == "__main__":
    main()
