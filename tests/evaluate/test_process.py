"""Processes that measure: what they print, and that none of them is left behind."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool

import pytest

from espnet_ext.errors import UserError
from espnet_ext.evaluate.process import workers
from processes import running, wait_for

PARENT = """
import os, time
from espnet_ext.evaluate.process import workers
if __name__ == "__main__":
    with workers(1) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        pool.submit(time.sleep, 300).result()
"""


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT], ids=lambda s: s.name)
def test_workers_end_with_their_parent(tmp_path, signum):
    (tmp_path / "parent.py").write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, tmp_path / "parent.py"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    worker = int(parent.stdout.readline())
    assert running(worker)
    parent.send_signal(signum)
    parent.wait(30)
    wait_for(lambda: not running(worker), 30)


def test_output_of_workers_is_in_the_log_and_a_killed_one_is_named(tmp_path):
    log = tmp_path / "log"
    with workers(1, log) as pool:
        pool.submit(os.write, 1, b"a word\n").result()
    assert log.read_bytes() == b"a word\n"
    with pytest.raises(UserError, match="a worker process died"), workers(1) as pool:
        pool.submit(os.kill, pool.submit(os.getpid).result(), signal.SIGKILL).result()


def test_error_of_one_job_does_not_wait_for_the_others():
    with pytest.raises(ZeroDivisionError), workers(2) as pool:
        long = pool.submit(time.sleep, 300)
        pool.submit(divmod, 1, 0).result()
    assert isinstance(long.exception(), BrokenProcessPool)
