"""Processes that end with the one for which they work."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from espnet_ext.processes import RUN, pool
from processes import running, wait_for

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")

POOL = """
import os, sys, time
from espnet_ext.processes import pool

def work(n):
    open(f"{os.getpid()}.pid", "w").close()
    time.sleep(600)

if __name__ == "__main__":
    with pool(2, **eval(sys.argv[1])) as workers:
        list(workers.map(work, range(4)))
"""


@pytest.mark.parametrize("options", [{}, {"max_tasks_per_child": 1}], ids=["kept", "fresh"])
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_end_with_their_parent(tmp_path, signum, options):
    (tmp_path / "work.py").write_text(POOL)
    parent = subprocess.Popen(
        [sys.executable, "work.py", repr(options)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        stderr=subprocess.DEVNULL,
    )
    wait_for(lambda: len(list(tmp_path.glob("*.pid"))) == 2)
    workers = [int(path.stem) for path in tmp_path.glob("*.pid")]
    parent.send_signal(signum)
    assert parent.wait(30) != 0
    wait_for(lambda: not any(map(running, workers)))


def test_workers_that_begin_alike_end_when_an_error_leaves_the_block(tmp_path):
    with pytest.raises(KeyError), pool(1, os.chdir, tmp_path) as workers:  # noqa: PT012
        assert workers.submit(os.getcwd).result() == str(tmp_path) != os.getcwd()
        workers.submit(time.sleep, 600)
        raise KeyError


# A run that starts a child, a grandchild, one of another session, one whose parent ends, and a run
TREE = """
python3 -m espnet_ext.processes $$ < /dev/null > /dev/null 2>&1 &
sleep 600 &
bash -c 'sleep 600; true' &
setsid sleep 600 &
(sleep 600 &)
(while :; do sleep 600; done) &
RUN="$RUN 1 2" sleep 600 &
touch started
wait
""".replace("python3", sys.executable)


def start(folder):
    """Start a run as asr.sh does."""
    folder.mkdir()
    again = f'[ -n "${{{RUN}:-}}" ] || {RUN}=$$ exec bash "$0"\n'
    (folder / "tree.sh").write_text(again + TREE.replace("RUN", RUN))
    run = subprocess.Popen(
        ["bash", "tree.sh"], cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    wait_for((folder / "started").exists)
    return run


def at_work(folder):
    """Processes that work in a directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cwd"):
        try:
            found += [int(path.parent.name)] if os.readlink(path) == str(folder) else []
        except OSError:
            pass
    return {pid for pid in found if running(pid)}


def test_killed_run_leaves_nothing_behind_and_other_runs_alone(tmp_path):
    first, second = start(tmp_path / "first"), start(tmp_path / "second")
    wait_for(lambda: len(at_work(tmp_path / "first")) >= 10)
    others = at_work(tmp_path / "second")
    first.kill()
    first.wait()
    wait_for(lambda: not at_work(tmp_path / "first"))
    assert second.pid in others <= at_work(tmp_path / "second")
    second.terminate()
    second.wait()
    wait_for(lambda: not at_work(tmp_path / "second"))


def test_run_that_is_killed_before_its_watchdog_works_is_cleared_up_too(tmp_path):
    sleeper = subprocess.Popen(["sleep", "600"], env=os.environ | {RUN: "4194305"})  # no process
    subprocess.run([sys.executable, "-m", "espnet_ext.processes", "4194305"], cwd=ROOT, check=True)
    assert sleeper.wait() == -signal.SIGKILL
