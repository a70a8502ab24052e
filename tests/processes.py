"""Watching processes from outside."""

import time
from pathlib import Path


def wait_for(condition, seconds=60):
    """Wait until a condition holds."""
    end = time.time() + seconds
    while not condition():
        assert time.time() < end, f"waited {seconds} s in vain"
        time.sleep(0.02)


def running(pid):
    """Whether a process is there and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
