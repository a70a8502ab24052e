"""Command lines, and the scripts of recipes, run by a test."""

import shutil
import subprocess
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]


def run(capsys, main, *argv):
    """Exit status, standard output and standard error of a command line."""
    try:
        status = main([str(a) for a in argv]) or 0
    except SystemExit as end:
        status = end.code or 0
    return status, *capsys.readouterr()


def errors(capsys, main, *argv):
    """Exit status and the lines of errors of a command line."""
    status, _, said = run(capsys, main, *argv)
    assert "Traceback" not in said, said
    return status, [line for line in said.splitlines() if ": error: " in line]


def run_stage_1(name, root, db, *options):
    """Directory of a recipe below another root, with this db.sh, after its local/data.sh."""
    recipe = root / f"egs2/{name}/asr1"
    skip = shutil.ignore_patterns("data", "dump", "exp")
    shutil.copytree(REPO / f"egs2/{name}/asr1", recipe, symlinks=True, ignore=skip)
    (root / "path.sh").write_text(f". '{REPO}/path.sh'\n")
    (root / "db.sh").write_text(db)
    command = ["local/data.sh", *options]
    return recipe, subprocess.run(command, cwd=recipe, capture_output=True, text=True)
