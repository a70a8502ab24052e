"""Archives from the web: resumed where a transfer broke, checked, extracted whole or not at all.

What is only partly there never has its final name: a transfer grows ``<archive>.part``, and an
archive is extracted beside its directory.
"""

import gzip
import hashlib
import http.client
import itertools
import os
import re
import shutil
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from espnet_ext.data import kaldi
from espnet_ext.errors import UserError
from espnet_ext.files import beside, locked, replace

BLOCK_BYTES = 1 << 20
QUIET = {"disable": None, "leave": False}  # a bar on a terminal alone
FAILURES = 3  # times that each mirror may fail without having sent anything new


class Archive(NamedTuple):
    """An archive ``<name>.tar.gz`` with a directory ``LibriSpeech/<name>`` in it."""

    name: str
    size: int  # bytes
    md5: str  # hexadecimal


def read_checksums(path):
    """``{name: Archive}`` of a file of lines ``md5 bytes name``."""
    archives = {}
    for number, line in enumerate(kaldi.read_lines(path), 1):
        match = re.fullmatch(r"([0-9a-f]{32})\s+([0-9]+)\s+([\w-]+)", line.strip())
        if not match:
            raise UserError(f"{path}: line {number} is not: md5 bytes name")
        archives[match[3]] = Archive(match[3], int(match[2]), match[1])
    return archives


def _progress(name, total, initial=0):
    return tqdm(desc=name, total=total, initial=initial, unit="B", unit_scale=True, **QUIET)


def _bytes(path):
    return path.stat().st_size if path.exists() else 0


def _md5(path):
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file, _progress(f"checking {path.name}", _bytes(path)) as bar:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


def _write(file, block):
    """Write to a file without a buffer, so that every failure of the disk is met here."""
    try:
        while block:
            block = block[file.write(block) :]
    except OSError as error:
        raise UserError(f"{file.name}: cannot be written ({error.strerror})") from error


def _transfer(url, part, size, timeout):
    """Append what ``part`` lacks, or write it anew if the server cannot send a part.

    Raises:
        OSError, http.client.HTTPException: The transfer failed or broke.
        UserError: The disk is full.
    """
    start = _bytes(part)
    if start > size:
        part.unlink()
        start = 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    with urllib.request.urlopen(request, timeout=timeout) as response:
        if response.status == 206:
            sent = response.headers.get("Content-Range", "")
            if sent != f"bytes {start}-{size - 1}/{size}":
                raise OSError(f"the server sent '{sent}', not from byte {start} of {size}")
        else:  # everything from the beginning
            start = 0
            length = response.headers.get("Content-Length", str(size))
            if length != str(size):
                raise OSError(f"the server has {length} bytes, not {size}")
        with (
            open(part, "ab" if start else "wb", buffering=0) as file,
            _progress(part.stem, size, start) as bar,
        ):
            while block := response.read1(BLOCK_BYTES):
                _write(file, block)
                bar.update(len(block))
    if _bytes(part) < size:
        raise OSError(f"the connection ended at byte {_bytes(part)} of {size}")


def fetch(archive, folder, urls, timeout=60):
    """Download an archive, going on where an earlier transfer broke.

    Args:
        archive: An ``Archive``.
        folder: Where ``<name>.tar.gz`` goes.
        urls: Mirrors, each a base URL without the file's name, tried in turn.
        timeout: Seconds without a byte after which a connection counts as broken.

    Returns:
        Its path; size and MD5 are as they should be.

    Raises:
        UserError: No mirror has it, or the disk is full; what was received stays for the next run.
    """
    path = Path(folder, f"{archive.name}.tar.gz")
    part = path.with_name(f"{path.name}.part")
    if path.exists():
        if path.stat().st_size < archive.size:  # another program's transfer that broke
            replace(path, part)
        elif path.stat().st_size == archive.size and _md5(path) == archive.md5:
            return path
        else:
            raise UserError(f"{path}: not the archive it should be (size or MD5); remove it")
    problems, longest, failures = {}, _bytes(part), 0
    for base in itertools.cycle(urls):
        url = f"{base.rstrip('/')}/{path.name}"
        try:
            if _bytes(part) != archive.size:
                _transfer(url, part, archive.size, timeout)
            if _md5(part) == archive.md5:
                replace(part, path)
                return path
            part.unlink()
            problems[url] = "what it sent has another MD5"
        except urllib.error.HTTPError as error:
            problems[url] = f"HTTP {error.code} {error.reason}"
            if error.code == 416:  # Range Not Satisfiable: another file than the one begun
                part.unlink(missing_ok=True)
        except (OSError, http.client.HTTPException) as error:
            problems[url] = str(getattr(error, "reason", error)) or type(error).__name__
        failures = 0 if _bytes(part) > longest else failures + 1
        longest = max(longest, _bytes(part))
        if failures == FAILURES * len(urls):
            raise UserError(
                f"{path}: cannot be downloaded, run again to go on ("
                + "; ".join(f"{url}: {problem}" for url, problem in problems.items())
                + ")"
            )
        if failures and failures % len(urls) == 0:
            time.sleep(min(timeout, 5))


def extract(archive, path, corpus):
    """Extract an archive; ``<corpus>/<name>`` is there, with ``.complete`` in it, or it is not.

    Args:
        archive: An ``Archive``.
        path: Its file.
        corpus: The directory ``LibriSpeech``; tables such as SPEAKERS.TXT go there.

    Raises:
        UserError: The file is corrupt, a member would be written elsewhere, or the disk is full.
    """
    path, corpus = Path(path), Path(corpus)
    try:
        with beside(corpus / archive.name) as part:
            part.mkdir()
            with (
                open(path, "rb") as file,
                tqdm.wrapattr(
                    file, "read", _bytes(path), desc=f"extracting {path.name}", **QUIET
                ) as counted,
                gzip.GzipFile(fileobj=counted) as stream,
            ):
                with tarfile.open(fileobj=stream, mode="r|") as tar:
                    for member in tar:
                        tar.extract(member, part, filter="data")
                while stream.read(BLOCK_BYTES):  # to the end, where gzip has its checksum
                    pass
            root = part / "LibriSpeech"
            if not (root / archive.name).is_dir():
                raise UserError(f"{path}: has no LibriSpeech/{archive.name} in it; remove it")
            for table in root.glob("*.TXT"):
                replace(table, corpus / table.name)
            os.sync()  # .complete must not reach the disk before the files do
            (root / archive.name / ".complete").touch()
            replace(root / archive.name, corpus / archive.name)
    except (tarfile.TarError, EOFError, KeyError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: cannot be extracted ({error}); remove it") from error


def get(archives, folder, urls, timeout=60):
    """Download and extract, into ``folder``, the archives whose directories are not there.

    Raises:
        UserError: The disk has too little space (nothing is downloaded then), or see ``fetch`` and
            ``extract``.
    """
    folder, corpus = Path(folder), Path(folder, "LibriSpeech")
    with locked(folder / ".lock", "download is running"):
        todo = [archive for archive in archives if not (corpus / archive.name).exists()]
        needed = 0
        for archive in todo:
            path = folder / f"{archive.name}.tar.gz"
            here = max(_bytes(path), _bytes(path.with_name(f"{path.name}.part")))
            # FLAC does not shrink in an archive: what comes out is as large, a little is for blocks
            needed += max(0, archive.size - here) + int(1.05 * archive.size)
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise UserError(
                f"{folder}: {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB needed for "
                f"{' '.join(archive.name for archive in todo)}; free some, or set LIBRISPEECH in "
                "db.sh to a directory on a larger disk"
            )
        for archive in todo:
            print(f"{corpus / archive.name}: {archive.size / 1e9:.1f} GB to get", flush=True)
            extract(archive, fetch(archive, folder, urls, timeout), corpus)
