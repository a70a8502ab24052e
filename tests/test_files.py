"""Files and directories that are whole or not there, and locks."""

import errno
import fcntl
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from espnet_ext import files
from espnet_ext.errors import DiskFull, UserError

ROOT = Path(__file__).parents[1]


def write(path, kind, content):
    if kind == "directory":
        path.mkdir()
        path = path / "file"
    path.write_text(content)


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_whole_takes_its_place_at_the_end_and_uses_up_what_a_kill_left(tmp_path, kind):
    path = tmp_path / "below" / "x"
    path.parent.mkdir()
    write(files.temporary(path), kind, "left behind")
    with files.whole(path) as new:
        assert not new.exists() and not path.exists()
        write(new, kind, "new")
    assert [p.name for p in path.parent.iterdir()] == ["x"]
    assert (path / "file" if kind == "directory" else path).read_text() == "new"


FAILURES = {
    "ours": (UserError("a: is wrong"), UserError, "^a: is wrong$"),
    "refused": (OSError(errno.EACCES, "Denied"), UserError, "x: cannot be written .Denied"),
    "other file": (
        OSError(errno.ENOENT, "Gone", "/y"),
        UserError,
        "x: cannot be written ./y: Gone",
    ),
    "full": (OSError(errno.ENOSPC, "Full"), DiskFull, "x: no space left"),
    "quota": (OSError(errno.EDQUOT, "Full"), DiskFull, "x: no space left"),
    "bug": (KeyError("k"), KeyError, "k"),
    "not of the system": (OSError("bad archive"), OSError, "^bad archive$"),
    "Ctrl-C": (KeyboardInterrupt(), KeyboardInterrupt, None),
}


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_whole_that_fails_leaves_what_was_there(tmp_path, kind, failure):
    error, expected, message = FAILURES[failure]
    (tmp_path / "x").write_text("old")
    with pytest.raises(expected, match=message), files.whole(tmp_path / "x") as new:
        write(new, kind, "new")
        raise error
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_text() == "old"


def test_directory_that_is_there_is_not_lost_to_a_new_one(tmp_path):
    write(tmp_path / "x", "directory", "old")
    with pytest.raises(UserError, match="x: cannot be written"), files.whole(tmp_path / "x") as new:
        write(new, "directory", "new")
    assert (tmp_path / "x" / "file").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_together_is_in_the_order_given_with_the_seal_last(tmp_path, monkeypatch):
    for name in "abc":
        (tmp_path / name).write_text("old")
    seen, replace = [], os.replace

    def watched(new, path):
        assert not (tmp_path / "c").exists()  # the seal
        seen.append(Path(path).name)
        replace(new, path)

    monkeypatch.setattr(files.os, "replace", watched)
    contents = {tmp_path / "a": b"1", tmp_path / "b": None, tmp_path / "c": b"2"}
    files.write_together(contents, seal=tmp_path / "c")
    assert seen == ["a", "c"] and sorted(p.name for p in tmp_path.iterdir()) == ["a", "c"]
    assert (tmp_path / "a").read_text() == "1"


HOLD = (
    "from espnet_ext import files\nwith files.locked({!r}, 'run works'): print(flush=True), input()"
)


def test_lock_is_refused_to_others_with_its_owner_and_free_when_that_is_killed(
    tmp_path, monkeypatch
):
    path, host = tmp_path / "below" / ".lock", os.uname().nodename
    owner = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(str(path))],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    owner.stdout.readline()
    said = f"another run works in {path.parent} (process {owner.pid} on {host}): wait"
    with monkeypatch.context() as patch:
        patch.setattr(files, "PATIENCE", 0.1)
        with pytest.raises(UserError, match=re.escape(said)), files.locked(path, "run works"):
            pass
    owner.kill()  # nobody has waited for its end
    with files.locked(path, "run works"):
        assert path.read_text() == f"process {os.getpid()} on {host}\n"
    owner.communicate()


def test_lock_that_cannot_be_opened_or_taken_is_no_lock(tmp_path, monkeypatch, caplog):
    folder, lock = tmp_path / "folder", tmp_path / "lock"
    folder.mkdir()
    with pytest.raises(UserError, match="folder: cannot be"), files.locked(folder, ""):
        pass

    def failing(code):
        def flock(*_):
            raise OSError(code, os.strerror(code))

        return flock

    monkeypatch.setattr(fcntl, "flock", failing(errno.EIO))
    with pytest.raises(UserError, match="cannot be locked"), files.locked(lock, ""):
        pass
    monkeypatch.setattr(fcntl, "flock", failing(errno.ENOLCK))  # some network file systems
    with files.locked(lock, ""):
        assert "its file system has no locks" in caplog.text


LOCKED = """
exec 9<> .lock
python3 -m espnet_ext.bin.marker claim . $$ && echo held && read -r _
"""


def test_lock_of_a_shell_outlives_the_command_that_took_it(tmp_path, monkeypatch):
    shell = subprocess.Popen(
        ["bash", "-c", LOCKED.replace("python3", sys.executable)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert shell.stdout.readline() == "held\n"
    lock = tmp_path / ".lock"
    monkeypatch.setattr(files, "PATIENCE", 0.1)
    with pytest.raises(UserError, match=f"process {shell.pid} "), files.locked(lock, ""):
        pass
    shell.communicate("\n")
    with files.locked(lock, ""):
        pass


ONCE = {
    r"\bos\.(replace|rename)\b|\.rename\(|renameat2|\bfcntl\b": "files.py",
    r"\bNamedTemporaryFile\b|\bmkstemp\b": None,
    r"\bprctl\b|ProcessPoolExecutor\(|\bPool\(": "processes.py",
}


@pytest.mark.parametrize("words", ONCE)
def test_renames_locks_and_ends_are_written_once(words):
    found = {
        str(path.relative_to(ROOT / "espnet_ext"))
        for path in (ROOT / "espnet_ext").rglob("*.py")
        if re.search(words, path.read_text())
    }
    assert found == ({ONCE[words]} if ONCE[words] else set())
