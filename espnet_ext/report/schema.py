"""evaluation_results.json: what is in it, and how its numbers are written everywhere.

docs/report.md describes the keys. Numbers are rounded once, when the file is written; every table
prints them as the file does.
"""

import csv
import io
import json
import math
from pathlib import Path

from espnet_ext.errors import UserError, printable
from espnet_ext.results import read_json

VERSION = 2
NAME = "evaluation_results.json"
#: what the bytes of a stream are made of, as every table lists them
KINDS = ("attention", "convolution", "subsampling", "frontend")
#: keys without which a file is of no use, and the types of their values
REQUIRED = {
    "model": str,
    "encoder": str,
    "attention": str,
    "encoder_conf": dict,
    "kv_cache_kb": (int, float),
    "compression_ratio": (int, float),
    "wer": dict,
    "inference_time_ms": (int, float),
    "memory_mb": (int, float, type(None)),
    "parameters": int,
    "training_seconds": (int, float, type(None)),
    "config": str,
    "commit": str,
    "device": str,
    "cache": dict,
}


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
    """A CSV table that a spreadsheet shows as it is.

    Args:
        columns: Keys of the lines, the header.
        lines: Mappings; what is None or not there is an empty cell.

    A text that begins as a formula does gets an apostrophe in front; numbers stay numbers.
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
    """An ``evaluation_results.json``.

    Raises:
        UserError: It is unreadable, not JSON, of another version, lacks something, or holds a
            number that is not finite.
    """
    results = read_json(path)
    if not isinstance(results, dict) or results.get("version") != VERSION:
        raise UserError(f"{path}: is not of version {VERSION}; evaluate the model again")
    for key, kind in REQUIRED.items():
        if key not in results or isinstance(results[key], bool):
            raise UserError(f"{path}: has no {key}; evaluate the model again")
        if not isinstance(results[key], kind):
            raise UserError(f"{path}: {key} is {results[key]!r}; evaluate the model again")
    try:
        _check_inside(results)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: is damaged ({error!r}); evaluate the model again") from None
    return results


def _check_inside(results):
    """Look up what the tables and plots look up."""
    for wer in results["wer"].values():
        low, high = wer["interval_95"]
        sum([low, high, wer["wer"], wer["words"]])
        Path(wer["directory"])
        wer["drawn"].upper()
    for costs in (results, results["input_cache"]):
        if costs is None:
            continue
        for stream in costs["cache"]["streams"]:
            sum([*(stream["kb"][kind] for kind in KINDS), stream["total_kb"]])
            stream["allocated_kb"] + 0
            stream["chunk_size"], stream["left_context"]
        costs["cache"]["streams"][-1], costs["cache"]["bytes_per_frame"], costs["cache"]["frames"]
        sum(costs["multiply_adds_per_second"].values())
        if costs["streaming"] is not None:
            costs["streaming"]["ms_per_chunk_median"] + costs["streaming"]["ms_per_chunk_p95"]
    for stream in results["streaming_wer"]:
        stream["wer"].keys()
