"""report.html: one page with everything in it, which needs no network."""

import base64
from html import escape

from espnet_ext.report.compare import Comparison
from espnet_ext.report.tables import Section, sections

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 1600px; }
body { padding: 0 16px 48px; }
h1 { margin-bottom: 0; }
h2 { margin: 40px 0 4px; }
p { max-width: 75ch; margin: 4px 0 12px; }
.note { border-left: 4px solid #c60; padding-left: 12px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 8px; border-bottom: 1px solid #8884; text-align: right; }
th { vertical-align: bottom; line-height: 1.25; }
td { white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: Canvas; }
td.word { text-align: left; }
td.missing { opacity: 0.6; font-style: italic; }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible { outline: 2px solid; }
th[aria-sort=ascending] button::after { content: " \\25b2"; }
th[aria-sort=descending] button::after { content: " \\25bc"; }
tbody tr:hover td { background: color-mix(in srgb, Canvas 92%, CanvasText); }
img { max-width: min(100%, 1200px); height: auto; background: white; display: block; }
img { margin: 12px 0; }
@media (max-width: 600px) {
  body { padding: 0 10px 32px; }
  th, td { padding: 4px 6px; }
  th:first-child, td:first-child { white-space: normal; overflow-wrap: anywhere; }
  th:first-child, td:first-child { min-width: 8em; max-width: 9em; }
  img { max-width: none; width: 680px; }
}
"""

# a number is compared as a number, anything else as text, and what is missing comes last
SCRIPT = """
const value = cell => {
  const number = parseFloat(cell.textContent.replace('[', ''));
  return Number.isNaN(number) ? cell.textContent : number;
};
const gone = cell => ['missing', '-', ''].includes(cell.textContent);
for (const button of document.querySelectorAll('th button')) {
  button.addEventListener('click', () => {
    const th = button.parentElement, table = th.closest('table');
    const up = th.getAttribute('aria-sort') !== 'ascending';
    for (const other of table.querySelectorAll('th')) other.removeAttribute('aria-sort');
    th.setAttribute('aria-sort', up ? 'ascending' : 'descending');
    const rows = [...table.tBodies[0].rows];
    rows.sort((a, b) => {
      const x = a.cells[th.cellIndex], y = b.cells[th.cellIndex];
      if (gone(x) || gone(y)) return gone(x) - gone(y);
      const [v, w] = [value(x), value(y)];
      const order = typeof v === typeof w
        ? (typeof v === 'number' ? v - w : v.localeCompare(w))
        : (typeof v === 'number' ? -1 : 1);
      return up ? order : -order;
    });
    table.tBodies[0].append(...rows);
  });
}
"""


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
    first, *others = tables
    paragraphs = "".join(f'<p class="note">{escape(note)}</p>\n' for note in notes)
    images = "".join(
        f'<div class="scroll"><img alt="{escape(name)}" '
        f'src="data:image/png;base64,{base64.b64encode(png).decode()}"></div>\n'
        for name, png in plots.items()
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n<p>Click a column's title to sort by it.</p>\n"
        f"{paragraphs}{_table(first)}{images}{''.join(map(_table, others))}"
        f"<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _table(section: Section) -> str:
    head = "".join(f'<th scope="col"><button>{escape(t)}</button></th>' for t in section.header)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>\n" for row in section.rows)
    note = f"<p>{escape(section.note)}</p>\n" if section.note else ""
    return (
        f"<section>\n<h2>{escape(section.title)}</h2>\n{note}"
        f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n'
        "</table></div>\n</section>\n"
    )


def _cell(cell: str) -> str:
    if cell.startswith("https://"):
        return f'<td class="word"><a href="{escape(cell)}">{escape(cell)}</a></td>'
    kind = "missing" if cell == "missing" else "word" if cell[:1].isalpha() else ""
    return f"<td{kind and f' class={kind}'}>{escape(cell)}</td>"
