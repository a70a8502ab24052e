"""Digit strings: what is in them, which recordings they come from, and what a broken FSDD says."""

import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from commands import run_stage_1
from espnet_ext.bin.data_prep_fsdd import main
from espnet_ext.data import fsdd
from espnet_ext.data.kaldi import read_data_dir, validate
from espnet_ext.errors import UserError

REPO = Path(__file__).resolve().parents[2]
WORDS = "ZERO ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT NINE".split()


@pytest.fixture(scope="module")
def recordings(fsdd_archive):
    return fsdd.read_recordings(fsdd_archive)


@pytest.fixture(scope="module")
def prepared(fsdd_archive, tmp_path_factory):
    out = tmp_path_factory.mktemp("fsdd") / "data"
    main([str(fsdd_archive), str(out)])
    return out


def small_tree(folder, indices=(0, 5, 10)):
    """FSDD's layout with two speakers; every recording is a constant of its own."""
    (folder / "recordings").mkdir(parents=True)
    level = 100
    for speaker in ("ann", "bob"):
        for digit in range(10):
            for index in indices:
                path = folder / "recordings" / f"{digit}_{speaker}_{index}.wav"
                sf.write(path, np.full(80, level, np.int16), 8000)
                level += 10
    return folder


def pack(folder, archive):
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, "fsdd-1.0")
    return archive


def recording(folder, name="3_ann_5.wav"):
    return folder / "recordings" / name


def test_sets_are_sound_and_of_the_promised_size(prepared):
    hours = {}
    for name, least in (("train", 2400), ("dev", 200), ("test", 500)):
        assert validate(prepared / name) == []
        tables = read_data_dir(prepared / name)
        assert len(tables["text"]) >= least
        infos = [sf.info(path) for path in tables["wav.scp"].values()]
        assert {(i.samplerate, i.channels, i.format) for i in infos} == {(8000, 1, "FLAC")}
        hours[name] = sum(i.frames for i in infos) / 8000 / 3600
        for utt, text in tables["text"].items():
            assert 3 <= len(text.split()) <= 7 and set(text.split()) <= set(WORDS)
            assert utt.startswith(tables["utt2spk"][utt] + "-")
        assert {len(text.split()) for text in tables["text"].values()} == {3, 4, 5, 6, 7}
        assert len(set(tables["utt2spk"].values())) == 6
    assert 1.8 < hours["train"] < 2.2


def test_recordings_do_not_cross_sets(recordings):
    digests = {name: set() for name in fsdd.STRINGS}
    for (name, _, _), group in recordings.items():
        digests[name] |= {hashlib.md5(samples.tobytes()).digest() for samples in group}
    assert {name: len(group) for name, group in digests.items()} == {
        "train": 2400, "dev": 300, "test": 300,
    }  # fmt: skip
    assert not digests["train"] & digests["dev"]
    assert not digests["train"] & digests["test"]
    assert not digests["dev"] & digests["test"]


def test_strings_hold_the_recordings_their_text_names(tmp_path):
    recordings = fsdd.read_recordings(small_tree(tmp_path / "fsdd"))
    level = {key: int(group[0][0]) for key, group in recordings.items()}
    for name in fsdd.STRINGS:
        for utt, speaker, text, samples, ends in fsdd.make_strings(recordings, name):
            loud = np.flatnonzero(np.abs(samples) > 50)
            first = loud[np.flatnonzero(np.diff(loud, prepend=-2) > 1)]
            heard = [int(samples[start]) for start in first]
            assert heard == [level[name, speaker, WORDS.index(word)] for word in text.split()], utt
            assert ends.tolist() == [start + 80 for start in first]
            gaps = np.diff([-80, *first, len(samples)]) - 80
            assert gaps.min() >= 400 and gaps.max() <= 1600


def test_data_is_the_same_bytes_from_archive_and_directory(prepared, fsdd_archive, tmp_path):
    with tarfile.open(fsdd_archive) as archive:
        archive.extractall(tmp_path / "some where", filter="data")
    (folder,) = (tmp_path / "some where").iterdir()
    again = tmp_path / "data"
    main([str(folder / "recordings"), str(again)])
    files = sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert files == sorted(p.relative_to(prepared) for p in prepared.rglob("*") if p.is_file())
    for path in files:
        if path.name != "wav.scp":
            assert (again / path).read_bytes() == (prepared / path).read_bytes(), path


def test_strings_are_those_of_every_machine(recordings):
    digest = hashlib.md5()
    for name in fsdd.STRINGS:
        for utt, _, text, samples, _ in fsdd.make_strings(recordings, name):
            digest.update(f"{utt} {text}\n".encode() + samples.astype("<i2").tobytes())
    assert digest.hexdigest() == "25460f93893c6df39803aa97f3cf9568"


def test_archive_is_not_unpacked(tmp_path):
    small_tree(tmp_path / "fsdd")
    with tarfile.open(tmp_path / "evil.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "fsdd", "fsdd")
        outside = tarfile.TarInfo("../outside/recordings/0_eve_0.txt")
        tar.addfile(outside, io.BytesIO())
        link = tarfile.TarInfo("fsdd/recordings/0_eve_0.wav")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    found = fsdd.read_recordings(tmp_path / "evil.tar.gz")
    assert {speaker for _, speaker, _ in found} == {"ann", "bob"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evil.tar.gz", "fsdd"]


def truncate(folder):
    recording(folder).write_bytes(recording(folder).read_bytes()[:30])


def empty(folder):
    recording(folder).write_bytes(b"")


def no_samples(folder):
    sf.write(recording(folder), np.zeros(0, np.int16), 8000)


def wrong_rate(folder):
    sf.write(recording(folder), np.zeros(80, np.int16), 16000)


def stereo(folder):
    sf.write(recording(folder), np.zeros((80, 2), np.int16), 8000)


def misnamed(folder):
    recording(folder).rename(recording(folder, "three_ann_5.wav"))


def missing(folder):
    recording(folder).unlink()


def twice(folder):
    (folder / "copy").mkdir()
    recording(folder).parent.rename(folder / "copy" / "recordings")
    small_tree(folder)


@pytest.mark.parametrize("packed", [False, True], ids=["directory", "archive"])
@pytest.mark.parametrize(
    "damage, message",
    [
        (truncate, "3_ann_5.wav: cannot be read as audio"),
        (empty, "3_ann_5.wav: cannot be read as audio"),
        (no_samples, r"3_ann_5.wav: 8000 Hz, shape \(0,\)"),
        (wrong_rate, "3_ann_5.wav: 16000 Hz"),
        (stereo, r"3_ann_5.wav: 8000 Hz, shape \(80, 2\)"),
        (misnamed, "three_ann_5.wav: recordings are named"),
        (missing, "speaker ann has no recording of 3 for the dev set"),
        (twice, "there twice"),
    ],
)
def test_broken_recording_is_named_and_nothing_written(tmp_path, damage, message, packed):
    source = small_tree(tmp_path / "fsdd")
    damage(source)
    if packed:
        source = pack(source, tmp_path / "fsdd.tar.gz")
    with pytest.raises(UserError, match=message):
        fsdd.prepare(source, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_prepared_again_nothing_changes_not_even_the_time_of_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(fsdd, "STRINGS", {"train": 3, "dev": 2, "test": 2})
    small_tree(tmp_path / "fsdd")
    out = tmp_path / "data"
    fsdd.prepare(tmp_path / "fsdd", out)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.flac")}
    content = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    fsdd.prepare(tmp_path / "fsdd", out)
    assert before and {p: p.stat().st_mtime_ns for p in out.rglob("*.flac")} == before
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == content


@pytest.mark.parametrize("kind", ["absent", "empty directory", "text file", "cut archive"])
def test_wrong_source_says_so_in_one_line(tmp_path, capsys, kind):
    source = tmp_path / "source"
    if kind == "empty directory":
        source.mkdir()
    elif kind == "text file":
        source.write_text("no archive")
    elif kind == "cut archive":
        pack(small_tree(tmp_path / "fsdd"), source)
        source.write_bytes(source.read_bytes()[:1500])
    with pytest.raises(SystemExit) as stop:
        main([str(source), str(tmp_path / "data")])
    assert stop.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert str(source) in line and not (tmp_path / "data").exists()


def test_recipe_reads_fsdd_relative_to_db_sh(tmp_path):
    small_tree(tmp_path / "my fsdd")
    recipe, run = run_stage_1("fsdd", tmp_path, "FSDD='my fsdd'\n")
    assert run.returncode == 0, run.stderr
    assert [line.split(":")[0] for line in run.stdout.splitlines()] == [
        "data/train", "data/dev", "data/test",
    ]  # fmt: skip
    wav = read_data_dir(recipe / "data/test")["wav.scp"]
    assert all((recipe / path).is_file() for path in wav.values())


def test_recipe_without_fsdd_says_what_to_fill_in(tmp_path):
    _, run = run_stage_1("fsdd", tmp_path, "FSDD=\n")
    assert run.returncode == 1 and run.stdout == ""
    (line,) = run.stderr.splitlines()
    assert "FSDD is empty: set it in db.sh" in line
