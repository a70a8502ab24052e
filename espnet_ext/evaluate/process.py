"""Fresh processes, their memory, the machine that they run on, and the commit that they run."""

import ctypes
import os
import platform
import subprocess
from pathlib import Path

from espnet_ext import __version__
from espnet_ext.files import KB, MB
from espnet_ext.processes import pool

STATUS = Path("/proc/self/status")


def _status_mb(key):
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * KB / MB
    raise KeyError(key)


def workers(number: int, log=None, **options):
    """A ``pool`` of workers on one thread each; what they print goes to the end of ``log``."""
    return pool(number, _begin, log, **options)


def _begin(log):
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
        """``held_mb`` at the beginning, ``peak_mb`` above it, and ``cuda_peak_mb``; MB or None."""
        peak = cuda = None
        if self.held_mb is not None:
            peak = max(0.0, _status_mb("VmHWM") - self.held_mb)
        if self.device != "cpu":
            import torch

            cuda = (torch.cuda.max_memory_allocated() - self.held_cuda) / MB
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
    """Commit of this repository, ``-dirty`` if files differ, but for those ``written`` just now.

    Of an installed package, which is in no repository or in somebody else's, its version.
    """
    here = Path(__file__).parent

    def git(*args):
        result = subprocess.run(
            ["git", *args], cwd=here, capture_output=True, text=True, check=True
        )
        return result.stdout.strip()

    try:
        others = [f":(exclude){Path(path).resolve()}" for path in written]
        git("ls-files", "--error-unmatch", __file__)
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", *others)
        return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return f"espnet_ext {__version__}"
