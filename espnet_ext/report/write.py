"""The files of a comparison."""

from pathlib import Path

from espnet_ext.files import write_atomic
from espnet_ext.report.compare import Comparison
from espnet_ext.report.page import report_html
from espnet_ext.report.plots import PLOTS
from espnet_ext.report.tables import comparison_csv, summary_report


def write_comparison(comparison: Comparison, output) -> str:
    """Write tables, plots and the page into a directory; returns the tables as text."""
    output, summary = Path(output), summary_report(comparison)
    plots = {name: draw(comparison) for name, draw in PLOTS.items()}
    for name, png in plots.items():
        write_atomic(output / name, png)
    write_atomic(output / "summary_report.txt", summary.encode())
    write_atomic(output / "comparison_table.csv", comparison_csv(comparison).encode())
    write_atomic(output / "report.html", report_html(comparison, plots).encode())
    return summary
