"""The tables of a comparison, made once, as text, as CSV and for the page."""

import io
import textwrap
from dataclasses import dataclass

from rich.box import Box
from rich.console import Console
from rich.table import Table as RichTable

from espnet_ext.errors import printable
from espnet_ext.report.columns import TABLES
from espnet_ext.report.compare import Comparison
from espnet_ext.report.schema import csv_text

#: a line below the headings and nothing else
RULED = Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)


@dataclass
class Section:
    """A table with its heading.

    Attributes:
        title: Heading.
        note: What the reader must know; may be empty.
        header: Titles of the columns.
        rows: Cells as shown.
    """

    title: str
    note: str
    header: list[str]
    rows: list[list[str]]


def sections(comparison: Comparison) -> list[Section]:
    """Every table of the report that has something to show, the most important one first."""
    made = []
    for table in TABLES:
        columns = [(c, name) for c, name in table.columns_of(comparison.sets) if c.title]
        header = [c.heading(comparison, name) for c, name in columns]
        rows = [[c.show(c.of(row, name)) for c, name in columns] for row in table.rows(comparison)]
        made.append(Section(table.title, table.note, header, rows))
    return [section for section in made if section.rows]


def comparison_csv(comparison: Comparison) -> str:
    """The wide table: a line per row, empty cells where a value is missing."""
    columns = [pair for t in TABLES if t.per_model for pair in t.columns_of(comparison.sets)]
    lines = [
        {key: cell for c, name in columns for key, cell in c.csv_cells(row, name).items()}
        for row in (*comparison.rows, *comparison.published)
    ]
    return csv_text(list(lines[0]), lines)


def text_table(header: list[str], rows: list[list[str]]) -> str:
    """Columns below one another, for a terminal or a file."""
    table = RichTable(*header, box=RULED, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for row in rows:
        table.add_row(*row)
    out = io.StringIO()
    Console(file=out, width=10_000, markup=False, emoji=False, highlight=False).print(table)
    return "".join(f"{line.rstrip()}\n" for line in out.getvalue().splitlines())


def summary_report(comparison: Comparison) -> str:
    """All sections as plain text."""
    parts = ["COMPARISON\n"]
    if comparison.notes:
        parts.append("\n".join(f"NOTE: {note}" for note in comparison.notes) + "\n")
    for section in sections(comparison):
        parts.append(f"{section.title}\n{'=' * len(section.title)}\n")
        if section.note:
            parts.append(textwrap.fill(section.note, 100) + "\n")
        parts.append(text_table(section.header, section.rows))
    return printable("\n".join(parts))
