"""Every command with every file that it reads broken, and every place that it writes refused."""

import os
import random
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bad_inputs import illnesses
from bad_inputs.good import COMMANDS, write_sums
from bad_inputs.outcome import files, run
from espnet_ext.cli import MODULES

#: how many broken files of each line are tried; many find more, for who has the time
EXAMPLES = int(os.environ.get("BAD_INPUTS", 3))
LINES = [(name, line) for name, lines in COMMANDS.items() for line in lines]
#: these take seconds
SLOW = ("run-all", "evaluate", "curve", "compare", "check", "grid")
#: these end in one line, for nobody answers
REFUSED = ("upload",)
#: these keep what is done for the next run
KEEP = ("run-all", "evaluate", "curve", "data download", "data format")


@pytest.fixture
def folder(good, monkeypatch):
    """A copy of the good inputs, where the command runs; it returns the good ones."""
    monkeypatch.setenv("HF_TOKEN", "nobody's")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    here = good.with_name(f"{good.name}-copy")
    here.mkdir(exist_ok=True)
    monkeypatch.chdir(here)
    restore(good)
    return good


def restore(good):
    """Make the current directory as the good one is; what differs is copied."""
    for folder, _, names in os.walk(".", topdown=False):
        for path in (Path(folder, name) for name in names):
            if not (good / path).exists():
                path.unlink()
        if not (good / folder).exists():
            os.rmdir(folder)
    own, here = files(good), files()
    for name in own.keys() | here.keys():
        if own.get(name) != here.get(name):
            os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
            shutil.copy2(good / name, name)


def named(line):
    """The files that the words of a line name, those below directories and in tables as well."""
    found = []
    for word in line.split():
        path = Path(word.split(",")[0])
        found += [path] if path.is_file() else path.rglob("*") if path.is_dir() else []
    tables = [path for path in found if path.name == "wav.scp" and "dump" in path.parts]
    for table in tables:
        found += [Path(row.split()[1]) for row in table.read_text().splitlines()]
    return sorted({path for path in found if path.is_file()})


def test_every_command_has_a_good_line():
    assert COMMANDS.keys() == MODULES.keys()


@pytest.mark.parametrize("name,line", LINES)
def test_good_line_works(folder, name, line):
    outcome = run([*name.split(), *line.split()])
    outcome.must_be_clear()
    assert (outcome.status == 0) != (name in REFUSED), outcome


def break_file(path, draw):
    """Break a file; say how."""
    illness = draw.choice(illnesses.of(path))
    stat = path.stat()
    content = path.read_bytes()
    path.write_bytes(illness(content, draw))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # nothing is measured again for it
    if path.name == "dev-clean.tar.gz" and draw.random() < 0.8:
        write_sums()
    return path.read_bytes() != content and illness.__name__


@pytest.mark.parametrize("name,line", [pair for pair in LINES if named and pair[1]])
def test_broken_file_is_a_result_or_one_line(folder, name, line):
    inputs = named(line)

    @settings(
        max_examples=EXAMPLES if EXAMPLES > 3 or name not in SLOW else 1,
        deadline=None,
        derandomize="BAD_INPUTS" not in os.environ,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(inputs), st.integers(0, 2**32))
    def check(path, seed):
        try_one(folder, name, line, path, random.Random(seed))

    check()


def try_one(good, name, line, path, draw):
    """Run a line with one of its files broken."""
    names = {name for one in named(line) for name in (one.name, one.stem, one.parent.name)}
    illness = break_file(path, draw)
    before = files()
    try:
        outcome = run([*name.split(), *line.split()])
        outcome.must_be_clear()
        for log in Path("exp/run_all").glob("*.log"):
            assert "Traceback" not in (text := log.read_text()), text
        if outcome.status:
            said = outcome.err + outcome.out
            assert any(name in said for name in names), f"{path} is not named: {outcome}"
        if outcome.status and name not in KEEP:
            assert not (lost := changes(before, files())), f"{illness} {path}: {lost} {outcome}"
    except BaseException as error:
        error.add_note(f"{name} {line}: {illness} {path}")
        raise
    finally:
        shutil.copy2(good / path, path)  # it may be as long, and as old
        restore(good)


def changes(before, after):
    """Files that came, went or changed; logs and locks aside."""
    other = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    return sorted(name for name in other if not name.endswith((".log", ".lock")))
