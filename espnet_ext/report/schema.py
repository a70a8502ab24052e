"""evaluation_results.json: what is in it, and how its numbers are written everywhere.

docs/report.md describes the keys. Numbers are rounded once, when the file is written; every table
prints them as the file does.
"""

import csv
import io
import json
import math

from espnet_ext.errors import UserError, about, printable
from espnet_ext.results import EVALUATION, KINDS, check, read_json

__all__ = ["KINDS", "NAME", "VERSION", "csv_text", "read", "rounded", "text"]

VERSION = 2
NAME = "evaluation_results.json"


def rounded(value, decimals):
    """``value`` to so many decimals; None stays None."""
    return None if value is None else round(value, decimals)


def text(value, missing="missing") -> str:
    """A value as every table shows it, in one line; ``missing`` stands for None."""
    if value is None:
        return missing
    if isinstance(value, float) and not math.isfinite(value):
        return "not a number"
    if isinstance(value, str):
        return printable(value).replace("\n", "\\n")
    return json.dumps(value)


def csv_text(columns, lines) -> str:
    """A CSV table of lines, mappings from columns, that a spreadsheet shows as it is.

    What is None or not there is an empty cell. A text that begins as a formula does gets an
    apostrophe in front; numbers stay numbers.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([_csv_cell(column) for column in columns])
    writer.writerows([_csv_cell(line.get(column)) for column in columns] for line in lines)
    return out.getvalue()


def _csv_cell(value):
    formula = isinstance(value, str) and value[:1] in tuple("=+-@\t\r")
    return ("'" if formula else "") + text(value, missing="")


def read(path) -> dict:
    """An ``evaluation_results.json`` of this version and its schema; see ``read_json``."""
    results = read_json(path)
    if not isinstance(results, dict) or results.get("version") != VERSION:
        raise UserError(f"{path}: is not of version {VERSION}; evaluate the model again")
    with about(path):
        check(results, EVALUATION)
    return results
