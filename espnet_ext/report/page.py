"""The files of a comparison; report.html has everything in it, and needs no network."""

import base64
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from espnet_ext.files import write_atomic
from espnet_ext.report.compare import Comparison
from espnet_ext.report.plots import PLOTS
from espnet_ext.report.tables import Section, comparison_csv, sections, summary_report
from espnet_ext.resources import RESOURCES


def write_comparison(comparison: Comparison, output: str | Path) -> str:
    """Write tables, plots and the page into a directory; returns the tables as text."""
    output, summary = Path(output), summary_report(comparison)
    plots = {name: png for name, draw in PLOTS.items() if (png := draw(comparison))}
    for name, png in plots.items():
        write_atomic(output / name, png)
    write_atomic(output / "summary_report.txt", summary.encode())
    write_atomic(output / "comparison_table.csv", comparison_csv(comparison).encode())
    write_atomic(output / "report.html", report_html(comparison, plots).encode())
    return summary


def report_html(comparison: Comparison, plots: dict[str, bytes]) -> str:
    """The page of a comparison; see ``page``."""
    return page("Attention variants compared", comparison.notes, sections(comparison), plots)


def page(title: str, notes: list[str], tables: list[Section], plots: dict[str, bytes]) -> str:
    """A page of tables and plots.

    Args:
        title: Heading.
        notes: What was skipped, and why.
        tables: What to show.
        plots: File name to PNG; they are shown after the first table.
    """
    environment = Environment(
        loader=FileSystemLoader(RESOURCES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    images = {name: base64.b64encode(png).decode() for name, png in plots.items()}
    template = environment.get_template("report.html.j2")
    return template.render(title=title, notes=notes, tables=tables, plots=images)
