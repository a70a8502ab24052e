"""Preparation of LibriSpeech on small trees of its layout."""

import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from espnet_ext.bin import data_prep_librispeech
from espnet_ext.data import kaldi, librispeech

ROOT = Path(__file__).parents[2]
SPEAKERS = ";ID |SEX| SUBSET |MINUTES| NAME\n1 | F | x | 8.0 | A | B\n20 | M | x | 8.0 | C\n"


def make_split(corpus, split="dev-clean", speakers=("1", "20")):
    """Write two chapters of two utterances for every speaker; return the split's directory."""
    rng = np.random.default_rng(0)
    for speaker in speakers:
        for chapter in ("7", "30"):
            name = f"{speaker}-{chapter}"
            folder = corpus / split / speaker / chapter
            folder.mkdir(parents=True)
            for number in range(2):
                samples = 0.1 * rng.standard_normal(1600 + number)
                sf.write(folder / f"{name}-{number:04d}.flac", samples, 16000)
            (folder / f"{name}.trans.txt").write_text(f"{name}-0000 A B\n{name}-0001 I'M C\n")
    (corpus / "SPEAKERS.TXT").write_text(SPEAKERS)
    return corpus / split


def prepare(split, out, *options):
    """Run the command line in this process; return its exit status."""
    try:
        data_prep_librispeech.main(["--check_counts", "false", *options, str(split), str(out)])
    except SystemExit as end:
        return end.code
    return 0


@pytest.fixture
def split(tmp_path):
    return make_split(tmp_path / "a corpus" / "LibriSpeech")


def test_librispeech_tables_are_those_of_the_published_recipe(split, tmp_path):
    out = tmp_path / "data" / "dev clean"
    assert prepare(split, out) == 0
    assert kaldi.validate(out) == []
    lines = {path.name: path.read_text().splitlines() for path in out.iterdir()}
    assert sorted(lines) == ["spk2gender", "spk2utt", "text", "utt2spk", "wav.scp"]
    assert lines["text"][:2] == ["1-30-0000 A B", "1-30-0001 I'M C"]
    assert lines["wav.scp"][0] == f"1-30-0000 {split}/1/30/1-30-0000.flac"
    assert lines["utt2spk"][-1] == "20-7-0001 20-7"
    assert lines["spk2utt"][-1] == "20-7 20-7-0000 20-7-0001"
    assert lines["spk2gender"] == ["1-30 f", "1-7 f", "20-30 m", "20-7 m"]


def test_librispeech_twice_gives_the_same_bytes(split, tmp_path):
    for name in ("one", "two"):
        assert prepare(split, tmp_path / name, "--nj", "2") == 0
    first, second = (
        {p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in ("one", "two")
    )
    assert first == second


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def misname(transcript):
    edit(transcript, "1-7-0001", "1-9-0001")
    transcript.with_name("1-7-0001.flac").rename(transcript.with_name("1-9-0001.flac"))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-200])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x55
    path.write_bytes(content)


def dangle(path):
    path.unlink()
    path.symlink_to("nowhere.flac")


def clear(transcript):
    transcript.write_text("")
    for path in transcript.parent.glob("*.flac"):
        path.unlink()


def mkdir(path):
    path.unlink()
    path.mkdir()


def rewrite(path, shape, rate=16000):
    sf.write(path, np.zeros(shape), rate)


FAULTS = {  # (file of the chapter 1/7, what is done to it, what the error says)
    "missing transcript": (
        "1-7.trans.txt",
        Path.unlink,
        "1-7.trans.txt: cannot be read (No such file",
    ),
    "empty transcript file": ("1-7.trans.txt", lambda p: p.write_text(""), "has no line for it"),
    "empty transcript": (
        "1-7.trans.txt",
        lambda p: edit(p, " I'M C", ""),
        "1-7-0001 has an empty transcript",
    ),
    "duplicate id": (
        "1-7.trans.txt",
        lambda p: edit(p, "0000", "0001"),
        "line 2 repeats the id 1-7-0001",
    ),
    "no line for a file": (
        "1-7.trans.txt",
        lambda p: edit(p, "1-7-0001 I'M C\n", ""),
        "0001.flac: 1-7.trans.txt",
    ),
    "no file for a line": ("1-7-0001.flac", Path.unlink, "1-7-0001 has no 1-7-0001.flac beside it"),
    "id of another chapter": (
        "1-7.trans.txt",
        misname,
        "1-9-0001.flac: its name does not begin with 1-7-",
    ),
    "transcript not text": ("1-7.trans.txt", lambda p: p.write_bytes(b"\xff\xfe"), "not UTF-8"),
    "corrupt FLAC": ("1-7-0001.flac", flip, "1-7-0001.flac: corrupt"),
    "truncated FLAC": ("1-7-0001.flac", truncate, "1-7-0001.flac: corrupt"),
    "no FLAC at all": (
        "1-7-0001.flac",
        lambda p: p.write_text("hello"),
        "1-7-0001.flac: corrupt or no audio",
    ),
    "zero bytes": ("1-7-0001.flac", lambda p: p.write_bytes(b""), "1-7-0001.flac: empty"),
    "zero samples": (
        "1-7-0001.flac",
        lambda p: sf.write(p, [], 16000, format="WAV"),
        "1-7-0001.flac: no samples",
    ),
    "wrong rate": (
        "1-7-0001.flac",
        lambda p: rewrite(p, 800, 8000),
        "8000 Hz, 1 channels; LibriSpeech has",
    ),
    "stereo": (
        "1-7-0001.flac",
        lambda p: rewrite(p, (800, 2)),
        "16000 Hz, 2 channels; LibriSpeech has",
    ),
    "dangling link": ("1-7-0001.flac", dangle, "1-7-0001.flac: cannot be read (No such file"),
    "directory for a file": ("1-7-0001.flac", mkdir, "0001.flac: cannot be read (Is a directory)"),
    "missing SPEAKERS.TXT": (
        "../../../SPEAKERS.TXT",
        Path.unlink,
        "SPEAKERS.TXT: cannot be read (No such file",
    ),
    "bad SPEAKERS.TXT": (
        "../../../SPEAKERS.TXT",
        lambda p: edit(p, "| F |", "| X |"),
        "SPEAKERS.TXT: line 2 is not",
    ),
    "speaker not listed": (
        "../../../SPEAKERS.TXT",
        lambda p: edit(p, "\n1 |", "\n2 |"),
        "the speaker 1 of",
    ),
    "empty chapter": ("1-7.trans.txt", clear, "dev-clean/1/7: no utterances in it"),
    "no utterances": (
        "../..",
        lambda p: [shutil.rmtree(p / s) for s in ("1", "20")],
        "no <speaker>/<chapter>",
    ),
    "no directory": ("../..", shutil.rmtree, "no such directory"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_librispeech_fault_is_one_clear_line_and_nothing_is_written(split, tmp_path, capsys, fault):
    name, break_it, message = FAULTS[fault]
    break_it(
        (split / "1" / "7" / name).resolve() if name.startswith(".") else split / "1" / "7" / name
    )
    assert prepare(split, tmp_path / "data" / "out") == 1
    error = capsys.readouterr().err
    assert str(split.parent) in error and message in error and "Traceback" not in error
    assert error.count("\n") <= 2
    assert not (tmp_path / "data").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_librispeech_unreadable_file_is_named(split, tmp_path, capsys):
    (split / "1" / "7" / "1-7-0001.flac").chmod(0)
    assert prepare(split, tmp_path / "out") == 1
    assert "1-7-0001.flac: cannot be read (Permission denied)" in capsys.readouterr().err


def test_librispeech_lists_many_problems_but_not_all(split, tmp_path, capsys):
    for number in range(40):
        (split / "1" / "7" / f"1-7-1{number:03d}.flac").touch()
    assert prepare(split, tmp_path / "out") == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == kaldi.MAX_PROBLEMS + 1 and "20 problems more" in lines[-1]


def test_librispeech_counts_are_checked(split, tmp_path, capsys):
    assert prepare(split, tmp_path / "out", "--check_counts", "true") == 1
    assert f"{split}: 8 utterances, not 2703" in capsys.readouterr().err
    assert librispeech.UTTERANCES == {
        "train-clean-100": 28539,
        "dev-clean": 2703,
        "dev-other": 2864,
        "test-clean": 2620,
        "test-other": 2939,
    }


def test_librispeech_lists_missing_speakers_and_chapters(split, tmp_path, capsys):
    corpus = split.parent
    speakers = [(1, "dev-clean"), (20, "dev-clean"), (21, "dev-clean"), (5, "test-clean")]
    (corpus / "SPEAKERS.TXT").write_text(
        ";ID |SEX| SUBSET\n" + "".join(f"{n:<4} | F | {name:16} | 8 | A\n" for n, name in speakers)
    )
    chapters = [(7, 1), (30, 1), (8, 20), (7, 20), (9, 21)]
    (corpus / "CHAPTERS.TXT").write_text(
        ";ID |READER|MINUTES| SUBSET\n"
        + "".join(f"{n:<4} | {speaker} | 8.1 | dev-clean | 1 | 2 | T\n" for n, speaker in chapters)
    )
    assert prepare(split, tmp_path / "out", "--check_counts", "true") == 1
    first, *listed = capsys.readouterr().err.splitlines()
    assert "8 utterances, not 2703" in first
    assert listed == [f"{split}/20/8: missing", f"{split}/21: missing"]


def test_librispeech_without_audio_check_leaves_rates_to_formatting(split, tmp_path):
    rewrite(split / "1" / "7" / "1-7-0001.flac", 800, 8000)
    assert prepare(split, tmp_path / "out", "--check_audio", "false") == 0


@pytest.fixture
def recipe(tmp_path):
    """A recipe directory: data.sh with its path.sh, and a db.sh to write."""
    recipe = tmp_path / "my recipe"
    (recipe / "local").mkdir(parents=True)
    shutil.copy(ROOT / "local" / "data.sh", recipe / "local")
    (recipe / "path.sh").write_text(
        f'export PATH="{Path(sys.executable).parent}:$PATH" PYTHONPATH="{ROOT}"\n'
    )
    (recipe / "db.sh").write_text((ROOT / "db.sh").read_text())

    def run(*options, librispeech=None):
        if librispeech is not None:
            (recipe / "db.sh").write_text(f"LIBRISPEECH='{librispeech}'\n")
        command = ["local/data.sh", *options]
        return subprocess.run(command, cwd=recipe, capture_output=True, text=True, check=False)

    run.path = recipe
    return run


def test_data_sh_with_the_db_sh_of_the_repository_says_what_to_fill_in(recipe):
    done = recipe()
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "LIBRISPEECH is empty: set it in db.sh" in done.stderr
    assert not (recipe.path / "data").exists()


def test_data_sh_names_a_corpus_that_is_not_there(recipe, tmp_path):
    done = recipe(librispeech=tmp_path)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert f"LIBRISPEECH={tmp_path} in db.sh has no LibriSpeech/ in it" in done.stderr
    make_split(tmp_path / "LibriSpeech", "test-clean")
    done = recipe(librispeech=tmp_path)
    assert "lacks train-clean-100 dev-clean dev-other test-other" in done.stderr
    assert not (recipe.path / "data").exists()


SETS = {
    "dev": 12,
    "dev_clean": 8,
    "dev_other": 4,
    "test_clean": 8,
    "test_other": 4,
    "train_clean_100": 8,
}


def make_corpus(folder):
    for split in librispeech.UTTERANCES:  # the "other" sets have other readers
        make_split(folder / "LibriSpeech", split, ["3"] if "other" in split else ["1", "20"])
    (folder / "LibriSpeech" / "SPEAKERS.TXT").write_text(SPEAKERS + "3 | F | x | 1 | D\n")


def assert_prepared(data):
    assert {p.name: len(kaldi.read_data_dir(p)["text"]) for p in data.iterdir()} == SETS
    assert all(kaldi.validate(data / name) == [] for name in SETS)


def test_data_sh_prepares_every_set(recipe, tmp_path):
    corpus = tmp_path / "with space"
    make_corpus(corpus)
    done = recipe("--check-counts", "false", "--nj", "2", librispeech=corpus)
    assert done.returncode == 0, done.stderr
    data = recipe.path / "data"
    assert_prepared(data)

    first = {p: p.read_bytes() for p in data.rglob("*") if p.is_file()}
    assert recipe("--check_counts", "false", librispeech=corpus).returncode == 0
    assert {p: p.read_bytes() for p in data.rglob("*") if p.is_file()} == first


@pytest.fixture
def archives(tmp_path):
    """The five splits as archives behind a server; (its URL, the file of their checksums)."""
    folder = tmp_path / "archives"
    make_corpus(folder)
    sums = []
    for split in librispeech.UTTERANCES:
        path = folder / f"{split}.tar.gz"
        with tarfile.open(path, "w:gz") as tar:
            for name in (split, "SPEAKERS.TXT"):
                tar.add(folder / "LibriSpeech" / name, f"LibriSpeech/{name}")
        content = path.read_bytes()
        sums.append(f"{hashlib.md5(content).hexdigest()} {len(content)} {split}\n")
    (tmp_path / "sums").write_text("".join(sums))
    handler = functools.partial(SimpleHTTPRequestHandler, directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", tmp_path / "sums"
        server.shutdown()
        thread.join()


def test_data_sh_downloads_the_corpus_and_finds_it_again(recipe, archives):
    url, sums = archives
    options = ["--download", "true", "--url", url, "--checksums", sums, "--check_counts", "false"]
    done = recipe(*options)
    assert done.returncode == 0, done.stderr
    assert_prepared(recipe.path / "data")
    corpus = recipe.path / "downloads" / "LibriSpeech"
    assert all((corpus / split / ".complete").exists() for split in librispeech.UTTERANCES)
    again = recipe("--check_counts", "false")
    assert again.returncode == 0, again.stderr


def test_data_sh_ends_where_the_download_does(recipe, archives):
    url, sums = archives
    options = ["--download", "true", "--url", f"{url}/none", "--checksums", sums]
    done = recipe(*options, "--timeout", "0.1")
    assert done.returncode == 1 and "HTTP 404" in done.stderr
    assert "train-clean-100.tar.gz: cannot be downloaded" in done.stderr
    assert not (recipe.path / "data").exists()


@pytest.mark.parametrize("options", [["--chek_counts", "false"], ["--nj"]])
def test_data_sh_refuses_unknown_options(recipe, options):
    done = recipe(*options)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and options[0] in done.stderr
