"""Rooms: imports run down one list, and none runs in a circle."""

import ast
import subprocess
import sys
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "espnet_ext"
#: from the top down; those of one line do not import each other
ORDER = (
    "__main__",
    "cli",
    "bin",
    "evaluate",
    "report",
    "serve",
    "export",
    "streaming",
    "convert",
    "decoder",
    "utterance",
    "encoder",
    "frontend",
    "attention",
    "cpu",
    "step",
    "state",
    "positions",
    "scoring",
    "jobs",
    "data",
    "model_options",
    "pretrained",
    "packing",
    "checkpoint",
    "relocate",
    "config results",
    "options",
    "audio",
    "files processes",
    "register",
    "registry",
    "errors",
    "resources",
)
RANK = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms.split()}
OLD_NAMES = {"inference"}  # which documents had: they pass along


def room(module):
    """The package or module directly in ``espnet_ext`` that a dotted name is in."""
    return module.split(".")[1]


def arrows(package=PACKAGE):
    """Every import of this package's own, also inside functions: {(from, to): files}."""
    found = defaultdict(set)
    for path in package.rglob("*.py"):
        source = path.relative_to(package.parent).with_suffix("").parts[1]
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module == "espnet_ext":
                names = [f"espnet_ext.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                if name.startswith("espnet_ext.") and room(name) != source:
                    found[source, room(name)].add(str(path.relative_to(package)))
    return {pair: sorted(files) for pair, files in found.items()}


def upward(found):
    """What goes up the list, or names a room that is not in it."""
    wrong = []
    for (source, target), files in sorted(found.items()):
        if source in OLD_NAMES | {"__init__"} or target == "__version__":
            continue
        if not (source in RANK and target in RANK and RANK[source] < RANK[target]):
            wrong.append(f"{source} -> {target} ({', '.join(files)})")
    return wrong


def test_imports_run_down_the_list():
    found = arrows()
    assert len(found) > 50
    assert upward(found) == []


def test_no_modules_import_each_other_in_a_circle():
    """Of modules, too: those inside one package, also where one is imported inside a function."""
    graph = defaultdict(set)
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("espnet_ext."):
                graph[name].add(node.module)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_an_import_that_runs_up_is_found(tmp_path):
    package = tmp_path / "espnet_ext"
    (package / "report").mkdir(parents=True)
    (package / "report/a.py").write_text("def f():\n    from espnet_ext.bin import score\n")
    (package / "errors.py").write_text("from espnet_ext.report.a import f\n")
    assert upward(arrows(package)) == [
        "errors -> report (errors.py)",
        "report -> bin (report/a.py)",
    ]


def test_attentions_are_named_without_torch():
    code = "import sys; from espnet_ext.attention.registry import ATTENTIONS; list(ATTENTIONS)"
    code += "; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
