"""Fresh processes, their memory, the machine that they run on, and the commit that they run."""

import ctypes
import multiprocessing
import os
import platform
import subprocess
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

from espnet_ext.errors import UserError
from espnet_ext.jobs import die_with_parent

STATUS = Path("/proc/self/status")


def _status_mb(key):
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) / 1024
    raise KeyError(key)


@contextmanager
def workers(number: int, log=None, **options):
    """A pool of fresh processes, which end with this one and when an error leaves the block.

    Args:
        number: How many.
        log: File that gets what they print, appended; their own outputs without it.
        options: Of ``ProcessPoolExecutor``.

    Yields:
        The pool.

    Raises:
        UserError: One of them was killed.
    """
    spawn, before = multiprocessing.get_context("spawn"), multiprocessing.active_children()
    pool = ProcessPoolExecutor(number, spawn, _begin, (log,), **options)
    try:
        yield pool
    except BaseException as error:
        for process in multiprocessing.active_children():
            if process not in before:
                process.kill()
        if isinstance(error, BrokenProcessPool):
            raise UserError("a process was killed; is the memory too small?") from None
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(log):
    die_with_parent()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy and PyTorch are imported
    if log:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        for output in (1, 2):
            os.dup2(file, output)
        os.close(file)


class PeakMemory:
    """Peak resident memory above what the process holds when this is made (Linux).

    The heap is trimmed and the kernel's high-water mark is set back first, so that what loading the
    weights needed for a while does not count.
    """

    def __init__(self, device: str = "cpu"):
        self.device = device
        if device != "cpu":
            import torch

            torch.cuda.reset_peak_memory_stats()
            self.held_cuda = torch.cuda.memory_allocated()
        try:
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
            self.held_mb = _status_mb("VmRSS")
        except (OSError, AttributeError):
            self.held_mb = None

    def read(self) -> dict:
        """``held_mb`` at the beginning, ``peak_mb`` above it, and ``cuda_peak_mb``; MiB or None."""
        peak = cuda = None
        if self.held_mb is not None:
            peak = max(0.0, _status_mb("VmHWM") - self.held_mb)
        if self.device != "cpu":
            import torch

            cuda = (torch.cuda.max_memory_allocated() - self.held_cuda) / 2**20
        return {"held_mb": self.held_mb, "peak_mb": peak, "cuda_peak_mb": cuda}


def device_name(device: str = "cpu") -> str:
    """The processor and its cores, or the GPU."""
    if device != "cpu":
        import torch

        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


def commit(*written) -> str:
    """Commit of this repository, ``-dirty`` if files under version control differ, or unknown.

    Args:
        written: Files that a measurement itself writes, which may differ.
    """
    here = Path(__file__).parent

    def git(*args):
        result = subprocess.run(
            ["git", *args], cwd=here, capture_output=True, text=True, check=True
        )
        return result.stdout.strip()

    try:
        others = [f":(exclude){Path(path).resolve()}" for path in written]
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", *others)
        return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
