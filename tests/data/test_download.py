"""Downloading LibriSpeech from a real server on 127.0.0.1 that fails in every way it can."""

import hashlib
import io
import os
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from espnet_ext.bin import data_download
from espnet_ext.data import download

ROOT = Path(__file__).parents[2]
SPLIT = "dev-clean"
NAME = f"{SPLIT}.tar.gz"
TIMEOUT = 0.2  # seconds


def make_archive(members, extra=()):
    """An archive of ``{name: content}``, and other members as (TarInfo, content)."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for info, data in extra:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return content.getvalue()


MEMBERS = {
    "LibriSpeech/SPEAKERS.TXT": b"1 | F | dev-clean | 1 | A\n",
    f"LibriSpeech/{SPLIT}/1/7/1-7.trans.txt": b"1-7-0000 A B\n",
    f"LibriSpeech/{SPLIT}/1/7/1-7-0000.flac": os.urandom(60_000),
}
ARCHIVE = make_archive(MEMBERS)


class Handler(BaseHTTPRequestHandler):
    """``/<mirror>/<archive>``, as ``server.behave(mirror, request number)`` says."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):  # noqa: N802  (the name http.server calls)
        mirror = self.path.split("/")[1]
        start = self.headers.get("Range")
        self.server.requests.append((mirror, start))
        behaviour = self.server.behaviours[mirror]
        if isinstance(behaviour, list):
            behaviour = behaviour.pop(0) if len(behaviour) > 1 else behaviour[0]
        content = self.server.content
        first = int(start.removeprefix("bytes=").rstrip("-")) if start else 0
        if isinstance(behaviour, int):
            return self.send_error(behaviour)
        if behaviour == "wrong":
            content = content[::-1]
        if behaviour == "longer":
            content += b"more"
        if start and behaviour != "no range":
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
            content = content[first:]
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if behaviour in ("truncated", "stalled"):
            content = content[: len(content) // 2]
        self.wfile.write(content)
        self.wfile.flush()
        if behaviour == "stalled":
            self.server.released.wait(20)
        self.close_connection = True


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.content, server.behaviours, server.requests = ARCHIVE, {}, []
    server.released = threading.Event()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def get(server, tmp_path, capfd):
    """Run the command against mirrors that behave as told; (exit status, lines of stderr)."""

    def get(*behaviours, content=ARCHIVE, out=tmp_path / "corpora"):
        server.content = content
        server.behaviours = {f"m{n}": behaviour for n, behaviour in enumerate(behaviours)}
        sums = tmp_path / "sums"
        sums.write_text(f"{hashlib.md5(content).hexdigest()} {len(content)} {SPLIT}\n")
        base = f"http://127.0.0.1:{server.server_port}"
        urls = ",".join(f"{base}/m{n}" for n in range(len(behaviours)))
        options = ["--url", urls, "--checksums", str(sums), "--timeout", str(TIMEOUT)]
        get.command = [*options, str(out), SPLIT]
        try:
            data_download.main(get.command)
            status = 0
        except SystemExit as end:
            status = end.code
        return status, capfd.readouterr().err.splitlines()

    return get


def assert_whole(folder):
    """The split is there, byte for byte, with its marker, and nothing unfinished is beside it."""
    corpus = folder / "LibriSpeech"
    for name, content in MEMBERS.items():
        assert (folder / name).read_bytes() == content
    assert (corpus / SPLIT / ".complete").is_file()
    assert sorted(p.name for p in corpus.iterdir()) == ["SPEAKERS.TXT", SPLIT]
    assert not list(folder.glob("*.part"))


def assert_not_there(folder):
    """Nothing that could pass for the split is there."""
    assert not (folder / "LibriSpeech" / SPLIT).exists()
    assert not list(folder.glob("LibriSpeech/.*"))


RECOVERIES = {  # how the mirrors behave, and the ranges they are asked for
    "sound": (["good"], [None]),
    "mirror without the file": ([404, "good"], [None, None]),
    "broken mirror": ([503, "good"], [None, None]),
    "file of another length": (["longer", "good"], [None, None]),
    "wrong sum": (["wrong", "good"], [None, None]),
    "truncated, resumed": ([["truncated", "good"]], [None, "half"]),
    "truncated, resumed on a mirror": (["truncated", "good"], [None, "half"]),
    "stalled, resumed": ([["stalled", "good"]], [None, "half"]),
    "truncated, then no ranges": ([["truncated", "no range"]], [None, "half"]),
    "resumed with another file's bytes": ([["truncated", "wrong", "good"]], [None, "half", None]),
    "range refused": ([["truncated", 416, "good"]], [None, "half", None]),
}


@pytest.mark.parametrize("case", RECOVERIES)
def test_download_recovers(case, server, get, tmp_path):
    behaviours, ranges = RECOVERIES[case]
    assert get(*behaviours) == (0, [])
    assert_whole(tmp_path / "corpora")
    asked = [start for _, start in server.requests]
    assert asked == [start and f"bytes={len(ARCHIVE) // 2}-" for start in ranges]


def test_connection_may_break_any_number_of_times_while_it_goes_on(server, get, tmp_path):
    assert get(["truncated"] * 8 + ["good"]) == (0, [])
    assert_whole(tmp_path / "corpora")
    starts = [int(start.removeprefix("bytes=")[:-1]) for _, start in server.requests[1:]]
    assert len(starts) == 8 > download.FAILURES and starts == sorted(set(starts))


@pytest.mark.parametrize(
    "behaviour, said",
    [
        (404, "HTTP 404 Not Found"),
        ("wrong", "what it sent has another MD5"),
        ("longer", f"has {len(ARCHIVE) + 4} bytes, not {len(ARCHIVE)}"),
        ("stalled", "timed out"),
        ("truncated", f"the connection ended at byte {len(ARCHIVE) - 1} of {len(ARCHIVE)}"),
    ],
    ids=["404", "wrong", "longer", "stalled", "truncated"],  # the archive's size is not always one
)
def test_download_that_cannot_be_had_is_one_line(behaviour, said, server, get, tmp_path):
    status, lines = get(behaviour, 404)
    assert status == 1 and len(lines) == 1, lines
    assert said in lines[0] and "HTTP 404" in lines[0]
    assert f"{tmp_path}/corpora/{NAME}: cannot be downloaded, run again to go on" in lines[0]
    assert_not_there(tmp_path / "corpora")
    assert not (tmp_path / "corpora" / NAME).exists()
    server.requests.clear()
    assert get("good") == (0, [])  # run again
    assert_whole(tmp_path / "corpora")
    assert [start is not None for _, start in server.requests] == [
        behaviour in ("stalled", "truncated")
    ]


def test_no_server_is_one_line(get, tmp_path, capfd):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        get("good")
        with pytest.raises(SystemExit):
            data_download.main(["--url", url, *get.command[2:-2], str(tmp_path / "other"), SPLIT])
    (line,) = capfd.readouterr().err.splitlines()
    assert f"{url}/{NAME}: " in line and "Connection refused" in line
    assert_not_there(tmp_path / "other")


def test_what_is_complete_is_not_fetched_again(server, get, tmp_path):
    assert get("good") == (0, [])
    server.requests.clear()
    assert get(404) == (0, []) and server.requests == []
    (tmp_path / "corpora" / "LibriSpeech" / SPLIT).rename(tmp_path / "away")
    assert get(404) == (0, []) and server.requests == []  # the archive is still there
    assert_whole(tmp_path / "corpora")


def test_own_corpus_without_a_marker_is_left_alone(server, get, tmp_path):
    own = tmp_path / "corpora" / "LibriSpeech" / SPLIT
    own.mkdir(parents=True)
    assert get(404) == (0, []) and server.requests == [] and list(own.iterdir()) == []


def test_archive_of_another_program_is_resumed_or_refused(server, get, tmp_path):
    path = tmp_path / "corpora" / NAME
    path.parent.mkdir()
    path.write_bytes(ARCHIVE[:100])
    assert get("good") == (0, [])
    assert server.requests == [("m0", "bytes=100-")]
    assert_whole(tmp_path / "corpora")

    (tmp_path / "corpora" / "LibriSpeech" / SPLIT).rename(tmp_path / "away")
    path.write_bytes(ARCHIVE[::-1])
    status, (line,) = get("good")
    assert status == 1 and f"{path}: not the archive it should be" in line and "remove it" in line
    assert path.read_bytes() == ARCHIVE[::-1]
    assert_not_there(tmp_path / "corpora")


def link(name, target):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


HOSTILE = {
    "parent": [(tarfile.TarInfo("../escaped"), b"x")],
    "inner parent": [(tarfile.TarInfo("LibriSpeech/../../../escaped"), b"x")],
    "link": [(link("LibriSpeech/out", "../../.."), b"")],
    "absolute link": [(link("LibriSpeech/out", "/tmp"), b"")],
    "through a link": [
        (link(f"LibriSpeech/{SPLIT}/up", "../../../.."), b""),
        (tarfile.TarInfo(f"LibriSpeech/{SPLIT}/up/escaped"), b"x"),
    ],
}


@pytest.mark.parametrize("case", HOSTILE)
def test_archive_that_would_write_elsewhere_is_refused(case, get, tmp_path):
    before = {p for p in tmp_path.rglob("*")}
    status, (line,) = get("good", content=make_archive(MEMBERS, HOSTILE[case]))
    assert status == 1 and f"{NAME}: cannot be extracted" in line
    assert_not_there(tmp_path / "corpora")
    assert not list(tmp_path.rglob("escaped")) and not (tmp_path.parent / "escaped").exists()
    new = {p for p in tmp_path.rglob("*")} - before
    assert {p.name for p in new} == {"corpora", "LibriSpeech", NAME, ".lock", "sums"}


DAMAGED = {
    "cut": ARCHIVE[: len(ARCHIVE) // 2],
    "cut at the end": ARCHIVE[:-9],
    "checksum": ARCHIVE[:-8] + bytes(4) + ARCHIVE[-4:],
    "no archive": b"<html>not found</html>",
    "another split": make_archive({"LibriSpeech/test-clean/x": b""}),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_archive_never_passes_for_the_split(case, get, tmp_path):
    status, (line,) = get("good", content=DAMAGED[case])
    assert status == 1 and f"{tmp_path}/corpora/{NAME}: " in line and "remove it" in line
    assert_not_there(tmp_path / "corpora")


def test_too_small_a_disk_is_found_before_anything_is_fetched(server, get, tmp_path, capfd):
    get(404)
    server.requests.clear()
    (tmp_path / "sums").write_text(f"{'0' * 32} {10**18} {SPLIT}\n")
    with pytest.raises(SystemExit):
        data_download.main(get.command)
    (line,) = capfd.readouterr().err.splitlines()
    assert f"{tmp_path}/corpora: " in line and "2050000000.0 GB needed for dev-clean" in line
    assert "GB free" in line and "LIBRISPEECH in db.sh" in line
    assert server.requests == []


def test_disk_that_fills_on_the_way_is_one_line_and_nothing_is_lost(server, get, tmp_path):
    def limited(kib):
        command = [sys.executable, "-m", "espnet_ext.bin.data_download", *get.command]
        shell = ["bash", "-c", f'ulimit -f {kib}; exec "$@"', "bash", *command]  # for every file
        done = subprocess.run(shell, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 1 and done.stderr.count("\n") == 1
        return done.stderr

    get(404)
    server.behaviours = {"m0": "good"}
    part = tmp_path / "corpora" / f"{NAME}.part"
    assert f"{part}: cannot be written (File too large)" in limited(20)
    assert part.read_bytes() == ARCHIVE[: 20 * 1024]
    part.with_name(NAME).write_bytes(ARCHIVE)
    assert f"/{SPLIT}: cannot be written (File too large)" in limited(20)
    assert_not_there(tmp_path / "corpora")
    assert get(404) == (0, [])


def wait_for(condition):
    end = time.time() + 20
    while not condition():
        assert time.time() < end, "waited in vain"
        time.sleep(0.01)


def test_killed_download_goes_on_and_two_at_once_are_refused(server, get, tmp_path):
    get(404)
    server.behaviours, server.requests[:] = {"m0": ["stalled", "good"]}, []
    command = [sys.executable, "-m", "espnet_ext.bin.data_download", *get.command]
    command[command.index("--timeout") + 1] = "60"
    process = subprocess.Popen(command, cwd=ROOT)
    part = tmp_path / "corpora" / f"{NAME}.part"
    wait_for(lambda: part.exists() and part.stat().st_size == len(ARCHIVE) // 2)
    status, (line,) = get("good")
    assert status == 1 and "another download is running" in line
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert_not_there(tmp_path / "corpora")
    server.requests.clear()
    assert get("good") == (0, [])
    assert_whole(tmp_path / "corpora")
    assert server.requests == [("m0", f"bytes={len(ARCHIVE) // 2}-")]


def test_killed_extraction_is_done_again(get, tmp_path):
    """A process that dies with half of the members written, as SIGKILL leaves it."""
    archive = download.Archive(SPLIT, len(ARCHIVE), hashlib.md5(ARCHIVE).hexdigest())
    folder = tmp_path / "corpora"
    folder.mkdir()
    (folder / NAME).write_bytes(ARCHIVE)
    script = f"""
import os, signal, tarfile
from espnet_ext.data import download
extract, members = tarfile.TarFile.extract, []
def dying(self, member, *args, **kwargs):
    members.append(member)
    if len(members) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    extract(self, member, *args, **kwargs)
tarfile.TarFile.extract = dying
download.extract(download.{archive!r}, "{folder / NAME}", "{folder / "LibriSpeech"}")
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    assert list((folder / "LibriSpeech").rglob("*.txt"))  # it had begun
    assert not (folder / "LibriSpeech" / SPLIT).exists()
    assert get(404) == (0, [])
    assert_whole(folder)


@pytest.mark.parametrize(
    "options, said",
    [
        (["--url", "ftp://x"], "--url 'ftp://x': give http"),
        (["--timeout", "0"], "--timeout is a finite number above 0, not '0'"),
        (["--checksums", "none"], "none: cannot be read"),
        ([], "train-clean-360: unknown split; known are train-clean-100 dev-clean"),
    ],
)
def test_wrong_option_is_one_line(options, said, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        data_download.main([*options, str(tmp_path / "out"), "train-clean-360"])
    assert end.value.code == 1 and said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_checksums_of_another_form_are_refused(tmp_path, capsys):
    sums = tmp_path / "sums"
    sums.write_text(f"{'0' * 32} 5 {SPLIT}\n{'0' * 31} 5 {SPLIT}\n")
    with pytest.raises(SystemExit):
        data_download.main(["--checksums", str(sums), str(tmp_path / "out"), SPLIT])
    assert f"{sums}: line 2 is not: md5 bytes name" in capsys.readouterr().err
