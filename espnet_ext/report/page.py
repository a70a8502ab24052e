"""report.html: one page with everything in it, which needs no network."""

import base64

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from espnet_ext.report.compare import Comparison
from espnet_ext.report.tables import Section, sections
from espnet_ext.resources import RESOURCES


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
