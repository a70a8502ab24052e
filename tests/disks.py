"""Small disks that can be full."""

import os
import subprocess
from contextlib import contextmanager

import pytest


class Disk:
    """A small file system in memory."""

    def __init__(self, path):
        self.path = path

    def size(self, kib):
        subprocess.run(["mount", "-o", f"remount,size={kib}k", self.path], check=True)

    def leave(self, kib):
        """Fill the disk but for a few KB."""
        found = os.statvfs(self.path)
        free = found.f_bavail * found.f_frsize
        (self.path / "filler").write_bytes(b"x" * (free - kib * 1024))


@contextmanager
def small_disk(path, kib):
    path.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", path]
    mounted = subprocess.run(["mount", *options], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"no small disk can be mounted: {mounted.stderr.strip()}")
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", "-l", path], check=True)
