"""Files and directories that are whole or not there, and the locks of those who work on them."""

import contextlib
import ctypes
import errno
import fcntl
import logging
import os
import shutil
import time
from pathlib import Path

from espnet_ext.errors import NO_SPACE, DiskFull, UserError, disk_full

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of renameat2
UNKNOWN = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)  # to this system, or to this file system
#: bytes of what every file, table and message calls a KB and an MB
KB = 1024
MB = 1024 * KB
MISSING = "missing"  # the version of what is not there
PATIENCE = 5.0  # seconds in which the processes of a run that was killed give their lock back


def read_bytes(path, most=-1):
    """The first ``most`` bytes of a file, or all; one that cannot be read is a ``UserError``."""
    try:
        with open(path, "rb") as file:
            return file.read(most)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


@contextlib.contextmanager
def beside(path):
    """Lend a name beside a path for what is not whole yet; what is there at the end is removed.

    Missing directories above it are made. Nothing is there yet, also after a kill.

    Raises:
        DiskFull: There is no space left.
        UserError: The system refused something in the block.
    """
    path, new = Path(path), temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _discard(new)
        yield new
    except UserError:
        raise
    except Exception as error:
        if disk_full(error):
            raise DiskFull(f"{path}: {NO_SPACE}") from error
        if getattr(error, "errno", None) is None:  # not the system's
            raise
        name = str(error.filename or new)
        other = "" if name.startswith((str(new), str(path))) else f"{name}: "
        raise UserError(f"{path}: cannot be written ({other}{error.strerror})") from error
    finally:
        with contextlib.suppress(OSError):
            _discard(new)


@contextlib.contextmanager
def whole(path, sync=False):
    """Write a file or a directory that is either whole or not there, at the name that is yielded.

    It takes its place at the end of the block. A file may be there; a directory must not. With
    ``sync``, a file reaches the disk before.
    """
    with beside(path) as new:
        yield new
        if sync:
            with open(new, "rb") as file:
                os.fsync(file.fileno())
        os.replace(new, path)


def write_atomic(path, content):
    """Write a file of some bytes that is either whole or not there; see ``whole``."""
    write_together({path: content})


def write_together(contents, seal=None):
    """Write files; none is replaced before all the new ones are on the disk.

    Args:
        contents: Dict ``{path: bytes}``, or ``{path: None}`` for a file to remove, in this order.
        seal: The last of them, which says that the others belong together; it is removed before
            the first is replaced.

    Raises:
        UserError: See ``beside``; every file is as it was.
    """
    with contextlib.ExitStack() as last_first:
        for path, content in reversed(contents.items()):
            if content is None:
                last_first.enter_context(_removed(path))
            else:
                last_first.enter_context(whole(path)).write_bytes(content)
        if seal is not None:
            remove(seal)


@contextlib.contextmanager
def _removed(path):
    yield
    remove(path)


def remove(path):
    """Remove a file if it is there; one that cannot be removed is a ``UserError``."""
    try:
        Path(path).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be removed ({error.strerror})") from error


def replace(new, path):
    """Let a file or a directory take the place of another, if there is one, which is removed.

    One system call exchanges two directories. Where the file system cannot do that, the old one is
    moved aside first; ``settle`` puts it back after a kill between the two halves.

    Raises:
        UserError: It cannot be moved; the old one stays.
    """
    new, path = Path(new), Path(path)
    settle(new, path)
    aside = _aside(new)
    try:
        if not (path.is_dir() and new.is_dir()):
            os.replace(new, path)
        elif not _exchange(new, path):
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(path, aside)
            os.replace(new, path)
    except OSError as error:
        settle(new, path)
        raise UserError(f"{path}: cannot be replaced ({error.strerror})") from error
    for old in (new, aside):
        shutil.rmtree(old, ignore_errors=True)


def settle(new, path):
    """Put an old directory back that a killed ``replace(new, path)`` had moved aside."""
    if not Path(path).exists() and _aside(new).exists():
        os.replace(_aside(new), path)


def version(path):
    """Return what tells a large file from another that takes its place: size and time of change."""
    try:
        stat = os.stat(path)
    except (OSError, ValueError):
        return MISSING
    return f"{stat.st_size} {stat.st_mtime_ns}"


def temporary(path):
    """Return the name beside a path that ``beside`` lends."""
    return Path(path).with_name(f".{Path(path).name}.tmp")


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


def _discard(path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path, what):
    """Hold the lock of a file, which is made when it is not there, for a block; see ``lock``."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
    try:
        lock(file, path.parent, what, os.getpid())
        yield
    finally:
        os.close(file)


def lock(file, folder, what, owner):
    """Take the kernel's lock of an open file; the last process that has it open gives it back.

    Args:
        file: Its descriptor, open for reading and writing; a shell's may be inherited.
        folder: What the lock stands for.
        what: What is done there, such as ``"run works"``.
        owner: Number of the process that will have the lock, for the message to others.

    Raises:
        UserError: Another process has it, or it cannot be taken. No locks at all are a warning.
    """
    end = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            if error.errno in (errno.ENOLCK, *UNKNOWN):
                logging.warning(f"{folder}: its file system has no locks, start nothing else there")
                return
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise UserError(f"{folder}: cannot be locked ({error.strerror})") from error
        if time.monotonic() > end:
            other = os.pread(file, 200, 0).decode(errors="replace").strip()
            raise UserError(f"another {what} in {folder} ({other}): wait for it or stop it")
        time.sleep(0.05)
    with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
        os.ftruncate(file, 0)
        os.pwrite(file, f"process {owner} on {os.uname().nodename}\n".encode(), 0)
