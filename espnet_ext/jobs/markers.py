"""Finished results: what they were made from, and where a new one is made beside an old one.

A marker is a JSON file beside a result: the options of the work, and the fingerprints of what it
read, taken before it began, and of what it wrote. The result is up to date while all of them fit.
"""

import hashlib
import json
import os
import re
from pathlib import Path

from espnet_ext import files
from espnet_ext.data.kaldi import TABLES
from espnet_ext.errors import UserError
from espnet_ext.files import MISSING

BEGUN = ".begun"  # marker of a training that has begun
BESIDE = ".new"  # holds results that are not whole yet
WORDS = re.compile(r"[\s\[\]{}\"',=:]+")  # between the words of YAML and of options


def fingerprint(path):
    """Digest of a file or a data directory, or ``"missing"``.

    A ``wav.scp`` stands for its recordings too, of which size and time of change are looked at; a
    directory stands for its tables.
    """
    if os.path.isdir(path):
        tables = [os.path.join(path, name) for name in TABLES]
        found = "\n".join(f"{table} {fingerprint(table)}" for table in tables)
        return _digest(found) if os.path.exists(tables[-1]) else MISSING
    try:
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "blake2b").hexdigest()[:32]
    except FileNotFoundError:
        return MISSING
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if os.path.basename(path) == "wav.scp":
        with open(path, encoding="utf-8", errors="surrogateescape") as lines:
            values = (line.rstrip("\n").partition(" ")[2] for line in lines)
            found = _digest("\n".join([found, *map(files.version, values)]))
    return found


def _digest(text):
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _named_files(text):
    """Files that options or a YAML name, e.g. the weights that a training starts from."""
    words = set(WORDS.split(text))
    for line in text.split("\n"):  # one word of the options, so a name may have blanks in it
        words |= {part.partition(":")[0] for part in (line, line.partition("=")[2])}
    return {word for word in words if "." in word and os.path.isfile(word)}


def prepare(options, inputs, outputs):
    """Describe a piece of work before it begins.

    Args:
        options: Its options, one a line; files that they name count as inputs.
        inputs: Files and data directories that it reads. ``@FILE`` stands for a YAML and the files
            that it names.
        outputs: Files and data directories that it writes, relative to the marker's directory.

    Returns:
        ``{"options": str, "inputs": {path: fingerprint}, "outputs": [path]}``.
    """
    texts, paths = [options], set()
    for path in inputs:
        if path.startswith("@"):
            path = path[1:]
            if os.path.isfile(path):
                texts.append(Path(path).read_text(encoding="utf-8", errors="replace"))
        paths.add(path)
    paths = sorted(paths.union(*map(_named_files, texts)))
    return {
        "options": options,
        "inputs": {path: fingerprint(path) for path in paths},
        "outputs": list(outputs),
    }


def write(marker, work):
    """Write the marker of work that has ended, as ``prepare`` said; its outputs must be there."""
    marker = Path(marker)
    outputs = {path: fingerprint(marker.parent / path) for path in work["outputs"]}
    if gone := [str(marker.parent / path) for path, found in outputs.items() if found == MISSING]:
        raise UserError(f"{' '.join(gone)}: was not written")
    files.write_atomic(marker, f"{json.dumps(work | {'outputs': outputs}, indent=1)}\n".encode())


def read(marker):
    """What a marker holds; None without one, or where it is of an earlier version."""
    try:
        content = json.loads(Path(marker).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    known = isinstance(content, dict) and content.keys() == {"options", "inputs", "outputs"}
    return content if known else None


def difference(old, new):
    """What differs between two pieces of work: a path, ``"its options"`` or ``""``."""
    for path in sorted(old["inputs"].keys() | new["inputs"].keys()):
        if old["inputs"].get(path) != new["inputs"].get(path):
            return path
    return "" if old["options"] == new["options"] else "its options"


def up_to_date(marker, work):
    """Whether a result was made from just what ``prepare`` says now, and is as it was."""
    marker = Path(marker)
    files.settle(beside(marker.parent), marker.parent)
    known = read(marker)
    return (
        known is not None
        and not difference(known, work)
        and known["outputs"]
        == {path: fingerprint(marker.parent / path) for path in work["outputs"]}
    )


def changed(marker, paths=()):
    """Name what has changed since a result was made: then what reads it must not go on.

    Args:
        marker: Its marker.
        paths: Inputs that matter; none stands for all of them and the result itself.

    Returns:
        A path, or ``""`` where nothing has changed or nothing is known. An input that is no longer
        there cannot be compared, and counts as unchanged.
    """
    marker = Path(marker)
    files.settle(beside(marker.parent), marker.parent)
    known = read(marker)
    if known is None:
        return ""
    for path, old in known["inputs"].items():
        if (not paths or path in paths) and fingerprint(path) not in (old, MISSING):
            return path
    for path, old in known["outputs"].items():
        if not paths and fingerprint(marker.parent / path) != old:
            return str(marker.parent / path)
    return ""


def beside(directory):
    """Where a new result is made while the old one stays: ``DIR`` is ``.new/DIR`` until then."""
    directory = Path(directory)
    return directory.parent / BESIDE / directory.name


def replace(directory):
    """Put the new result of ``beside(directory)`` in its place, and remove the old one."""
    new = beside(directory)
    files.replace(new, directory)
    if not any(new.parent.iterdir()):
        new.parent.rmdir()
