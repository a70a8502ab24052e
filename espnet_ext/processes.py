"""Processes that end with the one for which they work, however that ends (Linux)."""

import ctypes
import functools
import multiprocessing
import os
import re
import signal
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from pathlib import Path

from tqdm import tqdm

from espnet_ext.errors import UserError

PR_SET_PDEATHSIG = 1
RUN = "ESPNET_EXT_RUN"  # the variable of all that a run starts: its process, after an outer run's
CHUNK = 32  # items handed to a worker at a time


def die_with_parent(parent=None, signum=signal.SIGKILL):
    """Have the kernel send a signal to this process when the thread that started it ends.

    It comes now where ``parent``, the process that started it, is known and gone.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signum, 0, 0, 0)
        if parent not in (None, os.getppid()):
            os.kill(os.getpid(), signum)


@contextmanager
def pool(n, begin=None, *args, **more):
    """Run ``n`` fresh worker processes, which end with this one and when an error leaves the block.

    Each first calls ``begin`` of ``args``; ``more`` are options of the ``ProcessPoolExecutor``.

    Raises:
        UserError: A worker died.
    """
    before = multiprocessing.active_children()
    context = multiprocessing.get_context("spawn")  # threads of this process are not forked
    try:
        with ProcessPoolExecutor(n, context, _begin, (os.getpid(), begin, args), **more) as workers:
            try:
                yield workers
            except BaseException:
                for process in set(multiprocessing.active_children()) - set(before):
                    process.kill()
                raise
    except BrokenProcessPool as error:
        fewer = f"; use fewer than --nj {n}" if n > 1 else ""
        raise UserError(f"a worker process died, perhaps for lack of memory{fewer}") from error


def _begin(parent, begin, args):
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the pool
    if begin:
        begin(*args)


def _one_thread():
    os.environ["OMP_NUM_THREADS"] = "1"


def parallel_map(function, items, nj):
    """Apply a picklable function to items in processes, at most one per core; 1 means this process.

    Yields:
        Results in the order of ``items``.

    Raises:
        UserError: A worker died.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    nj = min(nj, cores, -(-len(items) // CHUNK))
    progress = functools.partial(tqdm, total=len(items), unit="file", disable=None, leave=False)
    if nj <= 1:
        yield from progress(map(function, items))
        return
    with pool(nj, _one_thread) as workers:
        yield from progress(workers.map(function, items, chunksize=CHUNK))


def end_with(parent):
    """Wait until the process of a run has ended, then end all that it has started and left behind.

    They are told by the variable ``RUN`` of their environment, so it does not matter who their
    parents are. Each run has one process that does this (asr.sh starts it).
    """
    os.setsid()  # not among those that Ctrl-C ends
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    die_with_parent(parent, signal.SIGHUP)
    while _running(parent):
        signal.sigtimedwait({signal.SIGHUP}, 0.5)
    while left := _started_by(parent):
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _running(pid):
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def _started_by(run):
    """Processes that a run has started, less this one."""
    found, mark = set(), re.compile(rf"(\A|\0){RUN}=[0-9 ]*\b{run}\b".encode())
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # another user's, or it has just ended
            if mark.search(path.read_bytes()):
                found.add(int(path.parent.name))
    return found - {os.getpid()}


if __name__ == "__main__" and sys.platform == "linux":
    end_with(int(sys.argv[1]))
