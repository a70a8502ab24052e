"""Lay a model and its conversions side by side: WER against bytes of the cache.

Writes, into --output, curve.csv, a plot curve_<test set>.png per test set, and report.html.
local/conversion_curve.sh makes the conversions, decodes them and calls this.
"""

import argparse
from pathlib import Path

from espnet_ext.data.kaldi import write_atomic
from espnet_ext.errors import cli
from espnet_ext.options import Parser, output
from espnet_ext.report.conversion import curve, curve_csv, curve_plot, curve_section
from espnet_ext.report.page import page


@cli
def main(argv=None):
    """Run the command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="directories of conversions, tuned or not")
    parser.add_argument("--source", required=True, help="directory of the model converted")
    parser.add_argument("--inference_tag", required=True, help="directory of the decoding in each")
    parser.add_argument("--inference_asr_model", default="valid.acc.ave.pth", help="[%(default)s]")
    parser.add_argument("--dumpdir", default="dump", help="formatted data [%(default)s]")
    parser.add_argument(
        "--output", default="conversion", type=output, help="[%(default)s]"
    )
    args = parser.parse_args(argv)
    rows = curve(
        args.source, args.models, args.inference_tag, args.inference_asr_model, args.dumpdir
    )
    folder = Path(args.output)
    plots = {
        f"curve_{name}.png": curve_plot(rows, name)
        for name in dict.fromkeys(row["test_set"] for row in rows)
    }
    for name, png in plots.items():
        write_atomic(folder / name, png)
    title = f"Conversions of {Path(args.source).name}"
    write_atomic(folder / "curve.csv", curve_csv(rows).encode())
    write_atomic(folder / "report.html", page(title, [], [curve_section(rows)], plots).encode())
    print(curve_csv(rows), end="")
    print(f"All of it with plots: {folder / 'report.html'}")


if __name__ == "__main__":
    main()
