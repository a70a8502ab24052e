"""A new directory takes the place of an old one; a kill leaves the old or the new one."""

import ctypes
import errno
import os
import shutil
from pathlib import Path

from espnet_ext.errors import UserError

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of renameat2
UNKNOWN = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)  # to this system, or to this file system


def swap(new, directory):
    """Put a directory in the place of another one, which is removed.

    One system call exchanges the two. Where the file system cannot do that, the old one is moved
    aside first; ``settle`` puts it back after a kill between the two halves.

    Args:
        new: Directory, on the same file system.
        directory: Where it goes.

    Raises:
        UserError: It cannot be moved; the old one stays.
    """
    new, directory = Path(new), Path(directory)
    settle(new, directory)
    aside = _aside(new)
    try:
        if not directory.exists():
            os.rename(new, directory)
        elif not _exchange(new, directory):
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(directory, aside)
            os.rename(new, directory)
    except OSError as error:
        settle(new, directory)
        raise UserError(f"{directory}: cannot be replaced ({error.strerror})") from error
    for old in (new, aside):
        shutil.rmtree(old, ignore_errors=True)


def settle(new, directory):
    """Put an old directory back that a killed ``swap`` had moved aside.

    Args:
        new: See ``swap``; it stays, if it is there.
        directory: See ``swap``.
    """
    if not Path(directory).exists() and _aside(new).exists():
        os.rename(_aside(new), directory)


def _aside(new):
    return Path(new).with_name(f"{Path(new).name}.old")


def _exchange(one, other):
    """Exchange two directories at once; False where that is not possible."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):  # no Linux
        return False
    done = rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE)
    if done != 0 and (code := ctypes.get_errno()) not in UNKNOWN:
        raise OSError(code, os.strerror(code))
    return done == 0
