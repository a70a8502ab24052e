"""Copies of the mini_an4 recipe for tests, and runs of it that are watched or killed."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from processes import running, wait_for

ROOT = Path(__file__).parents[1]
MINI_AN4 = "egs2/mini_an4/asr1"


def make_tree(root):
    """Make a tree in ``root`` that is this repository, without recipes."""
    for name in ("path.sh", "cmd.sh", "conf", "espnet_ext"):
        (root / name).symlink_to(ROOT / name)
    (root / ".venv").symlink_to(sys.prefix)
    (root / "egs2").mkdir()
    (root / "egs2/TEMPLATE").symlink_to(ROOT / "egs2/TEMPLATE")


def copy_recipe(root, recipe):
    """Copy a recipe, without what it produced, into a tree."""
    produced = shutil.ignore_patterns("data", "dump", "exp", "downloads")
    shutil.copytree(ROOT / recipe, root / recipe, ignore=produced, symlinks=True)
    return root / recipe


def copy_mini_an4(root):
    """Make a tree in ``root`` that is this repository, with its own copy of the recipe."""
    make_tree(root)
    return copy_recipe(root, MINI_AN4)


def run(recipe, *options):
    return subprocess.run([recipe / "run.sh", *options], capture_output=True, text=True)


def descendants(pid):
    parents = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            parent = stat.read_text().rsplit(")", 1)[1].split()[1]
            parents.append((int(stat.parent.name), int(parent)))
    found = {pid}
    while more := {child for child, parent in parents if parent in found} - found:
        found |= more
    return found - {pid}


def kill_when(recipe, condition, *options):
    """Start the recipe and send SIGKILL to it alone as soon as a condition holds.

    All that it has started is stopped first: what ends then was ended, and did not come to its end.
    """
    with open(recipe / "killed.log", "w") as log:
        process = subprocess.Popen([recipe / "run.sh", *options], stdout=log, stderr=log)
        wait_for(lambda: condition() or process.poll() is not None, 600)
    assert process.poll() is None, (recipe / "killed.log").read_text()
    wait_for(lambda: watchdog(process.pid))
    stopped, spared = set(), watchdog(process.pid)
    while more := ({process.pid} | descendants(process.pid)) - stopped - spared:
        for pid in more:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(pid, signal.SIGSTOP)
        stopped |= more
    process.kill()
    process.wait()
    wait_for(lambda: not any(running(pid) for pid in stopped | spared))


def watchdog(pid):
    """The set of the process that ends what a run leaves behind, empty before it has begun."""
    found = set()
    for child in descendants(pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            words = Path(f"/proc/{child}/cmdline").read_text().split("\0")
            found |= {child} if words[1:4] == ["-m", "espnet_ext.processes", str(pid)] else set()
    return found
