"""Formatting of audio: what stays in place, what is converted, and to which samples."""

import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile as sf

from espnet_ext import audio as door
from espnet_ext.bin import data_format
from espnet_ext.data import audio, kaldi
from espnet_ext.errors import UserError
from espnet_ext.processes import CHUNK, parallel_map

RATE = 16000


def tone(seconds=1.0, rate=RATE, hertz=440.0):
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def make_dir(path, files, **tables):
    """Write a data directory whose utterances are ``{id: (file name, samples, rate)}``."""
    path.mkdir(parents=True)
    for name, samples, rate in files.values():
        sf.write(path / name, samples, rate)
    first = {utt: str(path / file[0]) for utt, file in files.items()}
    utts = tables.get("segments", files)
    words = {"text": dict.fromkeys(utts, "A"), "utt2spk": dict.fromkeys(utts, "s")}
    kaldi.write_data_dir(path, {"wav.scp": first, **words, **tables})
    return path


def run_format(source, out, *options):
    data_format.main([*options, str(source), str(out)])
    assert kaldi.validate(out) == []
    return kaldi.read_data_dir(out)


def snapshot(path):
    return {p.relative_to(path): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_16k_mono_flac_and_wav_are_used_in_place(tmp_path, capsys):
    source = make_dir(
        tmp_path / "a b", {"f": ("f 1.flac", tone(), RATE), "w": ("w.wav", tone(0.5), RATE)}
    )
    before = snapshot(source)
    tables = run_format(source, tmp_path / "out", "--fs", "16k")
    assert tables["wav.scp"] == kaldi.read_data_dir(source)["wav.scp"]
    assert tables["utt2num_samples"] == {"f": "16000", "w": "8000"}
    assert tables["feats_type"] == {"raw": ""} and tables["audio_format"] == {"flac": ""}
    assert not (tmp_path / "out" / "data").exists() and snapshot(source) == before
    assert "2 in place, 0 converted" in capsys.readouterr().err


@pytest.mark.parametrize(("factor", "samples"), [("0.9", 17778), ("1.0", 16000), ("1.1", 14546)])
def test_speed_gives_the_samples_of_torchaudio(tmp_path, factor, samples):
    import torch
    import torchaudio

    source = make_dir(tmp_path / "org", {"u": ("u.flac", tone(), RATE)})
    kaldi.write_data_dir(tmp_path / "sp", kaldi.perturb_speed(kaldi.read_data_dir(source), factor))
    tables = run_format(tmp_path / "sp", tmp_path / "out")
    (utt,) = tables["wav.scp"]
    assert utt == f"sp{factor}-u" and tables["utt2num_samples"] == {utt: str(samples)}
    found, rate = sf.read(tables["wav.scp"][utt], dtype="float32")
    assert rate == RATE and len(found) == samples
    wave = torch.from_numpy(sf.read(source / "u.flac", dtype="float32")[0])
    expected = torchaudio.functional.speed(wave, RATE, float(factor))[0].numpy()
    assert np.abs(found - expected).max() <= 0.5 / 32768 + 1e-6


@pytest.mark.parametrize("audio_format", ["flac", "wav"])
def test_other_rates_become_the_wanted_one(tmp_path, audio_format):
    rates = (8000, 11025, 22050, 44100, 48000)
    files = {f"u{rate}": (f"{rate}.wav", tone(0.5, rate), rate) for rate in rates}
    source = make_dir(tmp_path / "org", files)
    tables = run_format(source, tmp_path / "out", "--audio_format", audio_format)
    for path in tables["wav.scp"].values():
        found, rate = sf.read(path)
        assert rate == RATE and len(found) == 8000 and path.endswith(f".{audio_format}")
        inner = slice(800, -800)
        assert np.abs(found[inner] - tone(0.5)[inner]).max() < 0.01


def test_8k_recipe_keeps_8k_and_converts_16k(tmp_path):
    source = make_dir(
        tmp_path / "org", {"a": ("a.wav", tone(1, 8000), 8000), "b": ("b.flac", tone(), RATE)}
    )
    tables = run_format(source, tmp_path / "out", "--fs", "8k")
    assert tables["wav.scp"]["a"] == str(source / "a.wav")
    assert sf.info(tables["wav.scp"]["b"]).samplerate == 8000
    assert set(tables["utt2num_samples"].values()) == {"8000"}


def test_stereo_becomes_the_mean_of_its_channels_and_is_reported(tmp_path, capsys):
    stereo = np.stack([tone(), 0.25 * tone()], axis=1)
    source = make_dir(tmp_path / "org", {"u": ("u.wav", stereo, RATE)})
    tables = run_format(source, tmp_path / "out")
    found = sf.read(tables["wav.scp"]["u"])[0]
    assert np.abs(found - 0.625 * tone()).max() <= 1.5 / 32768
    assert "1 mixed to mono" in capsys.readouterr().err


def test_segments_are_cut_and_sped_up(tmp_path):
    ramp = np.arange(RATE) / 32768
    segments = {"u1": "rec 0 0.25", "u2": "rec 0.5 1.05"}  # the end may exceed by a rounded time
    source = make_dir(tmp_path / "org", {"rec": ("rec.flac", ramp, RATE)}, segments=segments)
    tables = run_format(source, tmp_path / "out")
    assert "segments" not in tables and tables["utt2num_samples"] == {"u1": "4000", "u2": "8000"}
    found = sf.read(tables["wav.scp"]["u2"], dtype="int16")[0]
    assert np.array_equal(found, np.arange(8000, 16000))

    slow = kaldi.perturb_speed(kaldi.read_data_dir(source), "0.9")
    both = kaldi.combine([("org", kaldi.read_data_dir(source)), ("slow", slow)])
    kaldi.write_data_dir(tmp_path / "sp", both)
    tables = run_format(tmp_path / "sp", tmp_path / "out_sp")
    assert tables["utt2num_samples"] == {
        "sp0.9-u1": "4445", "sp0.9-u2": "8889", "u1": "4000", "u2": "8000",
    }  # fmt: skip

    beyond = kaldi.read_data_dir(source) | {"segments": segments | {"u2": "rec 0.5 1.2"}}
    kaldi.write_data_dir(tmp_path / "beyond", beyond)
    with pytest.raises(UserError, match=r"u2: .*rec.flac: 1.00 s, its segment 0.5-1.2 s"):
        audio.format_data_dir(tmp_path / "beyond", tmp_path / "none", RATE)


def test_loud_samples_are_clipped_and_ids_may_hold_slashes(tmp_path):
    source = tmp_path / "org"
    source.mkdir()
    sf.write(source / "x.wav", np.array([2.0, -2.0, 0.5] * 100), 8000, subtype="FLOAT")
    words = {"text": {"a/../b": "A"}, "utt2spk": {"a/../b": "s"}}
    kaldi.write_data_dir(source, {"wav.scp": {"a/../b": str(source / "x.wav")}, **words})
    content = door.encode(np.float32([2.0, -2.0, 0.5]), 8000, "wav")
    assert np.frombuffer(content[-6:], "<i2").tolist() == [32767, -32768, 16384]
    tables = run_format(source, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out" / "data").iterdir()] == ["a%2F..%2Fb.flac"]
    assert tables["utt2num_samples"] == {"a/../b": "600"}


def perturbed(tmp_path, num=3):
    """A directory whose every file needs conversion."""
    files = {f"u{n:03d}": (f"{n}.flac", tone(0.2, hertz=200 + n), RATE) for n in range(num)}
    source = make_dir(tmp_path / "org", files)
    kaldi.write_data_dir(tmp_path / "sp", kaldi.perturb_speed(kaldi.read_data_dir(source), "1.1"))
    return tmp_path / "sp"


def test_two_runs_give_the_same_bytes(tmp_path):
    source, out = perturbed(tmp_path), tmp_path / "out"
    run_format(source, out)
    first = snapshot(out)
    shutil.rmtree(out)
    run_format(source, out)
    assert snapshot(out) == first and len(first) == 3 + 8


def test_second_run_keeps_converted_files_and_a_changed_source_renews_its_own(tmp_path):
    source, out = perturbed(tmp_path), tmp_path / "out"
    run_format(source, out)
    first, files = snapshot(out), sorted((out / "data").iterdir())
    inodes = [p.stat().st_ino for p in files]
    run_format(source, out)
    assert snapshot(out) == first and [p.stat().st_ino for p in files] == inodes

    files[2].unlink()  # as after a kill
    sf.write(tmp_path / "org" / "1.flac", tone(0.3), RATE)
    tables = run_format(source, out)
    assert tables["utt2num_samples"] == {
        "sp1.1-u000": "2910",
        "sp1.1-u001": "4364",
        "sp1.1-u002": "2910",
    }
    assert files[0].stat().st_ino == inodes[0]
    assert files[2].read_bytes() == first[files[2].relative_to(out)]

    run_format(source, out, "--fs", "8k")
    assert {sf.info(p).samplerate for p in files} == {8000}
    run_format(tmp_path / "org", out)  # nothing to convert now: nothing is left
    assert list((out / "data").iterdir()) == []


def test_run_that_fails_leaves_the_earlier_result_whole_and_the_next_one_goes_on(tmp_path):
    source, out = perturbed(tmp_path), tmp_path / "out"
    run_format(source, out)
    before = snapshot(out)
    for number in range(3):
        sf.write(tmp_path / "org" / f"{number}.flac", tone(0.3, hertz=900), RATE)
    last = tmp_path / "org" / "2.flac"
    cut(last)
    with pytest.raises(UserError, match=r"2.flac: corrupt"):
        audio.format_data_dir(source, out, RATE)
    assert kaldi.validate(out) == []
    after = snapshot(out)
    for name in before.keys() - {type(last)(".sources")}:
        assert after[name] == before[name]

    made = {p: p.stat().st_ino for p in (out / "data").glob(".*")}
    assert len(made) == 2  # of the two that could be read
    sf.write(last, tone(0.3, hertz=900), RATE)
    tables = run_format(source, out)
    assert set(tables["utt2num_samples"].values()) == {"4364"}
    files = sorted((out / "data").iterdir())
    assert [p.name for p in files] == [f"sp1.1-u00{n}.flac" for n in range(3)]
    assert set(made.values()) < {p.stat().st_ino for p in files}
    whole = tmp_path / "whole"
    run_format(source, whole)
    assert [p.read_bytes() for p in files] == [
        p.read_bytes() for p in sorted((whole / "data").iterdir())
    ]


def test_killed_parallel_run_leaves_no_worker_and_the_next_run_completes_it(tmp_path):
    source, out = perturbed(tmp_path, CHUNK + 8), tmp_path / "out"
    whole = run_format(source, tmp_path / "whole")
    last = tmp_path / "org" / f"{CHUNK + 7}.flac"
    last.rename(tmp_path / "aside")
    os.mkfifo(last)  # the worker that opens it waits, so the run cannot end
    command = [sys.executable, "-m", "espnet_ext.bin.data_format", "--nj", "2"]
    process = subprocess.Popen([*command, str(source), str(out)])
    while len(list(out.glob("data/*.flac"))) < 8:
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    while has_reader(last):  # hangs if a worker outlives its parent
        time.sleep(0.02)
    assert not (out / "wav.scp").exists()

    last.unlink()
    (tmp_path / "aside").rename(last)
    assert run_format(source, out)["utt2num_samples"] == whole["utt2num_samples"]
    for path in (tmp_path / "whole" / "data").iterdir():
        assert (out / "data" / path.name).read_bytes() == path.read_bytes()
    assert not list(out.rglob("*.tmp"))


def has_reader(fifo):
    """Whether a process has a named pipe open for reading, or waits to."""
    try:
        os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
    except OSError:
        return False
    return True


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


BROKEN = {
    "empty": (lambda p: p.write_bytes(b""), "empty, the file has 0 bytes"),
    "no samples": (lambda p: sf.write(p, [], RATE, format="WAV"), "no samples"),
    "garbage": (lambda p: p.write_bytes(b"garbage" * 99), "corrupt or no audio file"),
    "cut short": (cut, "corrupt"),
}


@pytest.mark.parametrize("fault", BROKEN)
@pytest.mark.parametrize("speed", [None, "0.9"], ids=["in place", "converted"])
def test_file_that_cannot_be_read_is_named_and_the_directory_is_not_whole(
    tmp_path, capsys, fault, speed
):
    source = make_dir(
        tmp_path / "org", {"a": ("a.flac", tone(), RATE), "b": ("b 1.flac", tone(), RATE)}
    )
    if speed:
        tables = kaldi.perturb_speed(kaldi.read_data_dir(source), speed)
        kaldi.write_data_dir(tmp_path / "sp", tables)
    break_it, message = BROKEN[fault]
    break_it(source / "b 1.flac")
    with pytest.raises(SystemExit) as end:
        data_format.main([str(tmp_path / "sp" if speed else source), str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert end.value.code == 1 and error.count("\n") == 1
    assert f"b: {source / 'b 1.flac'}: {message}" in error
    assert not (tmp_path / "out" / "wav.scp").exists()


def test_not_a_number_is_refused(tmp_path):
    source = tmp_path / "org"
    source.mkdir()
    sf.write(source / "x.wav", np.array([0.1, np.nan]), 8000, subtype="FLOAT")
    tables = {"wav.scp": {"u": str(source / "x.wav")}, "text": {"u": "A"}, "utt2spk": {"u": "s"}}
    kaldi.write_data_dir(source, tables)
    with pytest.raises(UserError, match=r"x.wav: .*not numbers"):
        audio.format_data_dir(source, tmp_path / "out", RATE)


@pytest.mark.parametrize("bad", [np.nan, -np.inf, 1e30], ids=str)
@pytest.mark.parametrize(
    ("container", "subtype"),
    [("WAV", "FLOAT"), ("WAV", "DOUBLE"), ("WAVEX", "FLOAT"), ("AIFF", "FLOAT"), ("CAF", "DOUBLE"),
     ("W64", "FLOAT"), ("MAT5", "FLOAT"), ("AU", "FLOAT")],
)  # fmt: skip
def test_one_sample_that_is_no_sound_is_refused_where_nothing_needs_conversion(
    tmp_path, container, subtype, bad
):
    """16 kHz mono, the last but one of the samples: no other check looks at it."""
    samples, path = tone(0.5), tmp_path / "file"
    words = {"wav.scp": {"u": str(path)}, "text": {"u": "A"}, "utt2spk": {"u": "s"}}
    sf.write(path, samples, RATE, format=container, subtype=subtype)
    kaldi.write_data_dir(tmp_path / "org", words)
    audio.format_data_dir(tmp_path / "org", tmp_path / "sound", RATE)
    samples[-2] = bad
    sf.write(path, samples, RATE, format=container, subtype=subtype)
    with pytest.raises(UserError, match=rf"^u: {path}: .*not numbers.*at 0.500 s"):
        audio.format_data_dir(tmp_path / "org", tmp_path / "out", RATE)
    assert not (tmp_path / "out/wav.scp").exists()


def test_file_longer_than_a_block_is_checked_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(door.Audio.blocks, "__defaults__", (1000, 0))
    for place in (0, 999, 1000, 2499):
        samples = np.zeros(2500)
        samples[place] = np.nan
        sf.write(tmp_path / "x.wav", samples, RATE, subtype="FLOAT")
        with pytest.raises(UserError, match=f"at {place / RATE:.3f} s"):
            door.open_audio(tmp_path / "x.wav").check()


def test_impossible_settings_are_refused(tmp_path):
    source = make_dir(tmp_path / "org", {"u": ("u.flac", tone(), RATE)})
    for audio_format in ("flac.ark", "mp3"):
        with pytest.raises(UserError, match="give flac or wav"):
            audio.format_data_dir(source, tmp_path / "out", RATE, audio_format)
    with pytest.raises(UserError, match="not the input"):
        audio.format_data_dir(source, source, RATE)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "hertz"), [("16k", 16000), ("8000", 8000), ("44.1k", 44100), ("22.05k", 22050)]
)
def test_rate_is_read_as_espnet_reads_it(text, hertz):
    import humanfriendly

    assert door.parse_rate(text) == hertz == humanfriendly.parse_size(text)


@pytest.mark.parametrize("text", ["", "0", "k", "-8k", "16 kHz", "8000.5", "nan"])
def test_rate_that_is_none_is_refused(text):
    with pytest.raises(UserError, match="sampling rate"):
        door.parse_rate(text)


def die(_):
    os.kill(os.getpid(), 9)


def test_worker_that_dies_is_reported():
    with pytest.raises(UserError, match="worker process died"):
        list(parallel_map(die, list(range(2 * CHUNK)), 2))


@pytest.mark.parametrize("promised,readable", [(0xFFFFFFFF, True), (32000, True), (64000, False)])
def test_truncated_wav_is_refused_and_a_piped_one_is_not(tmp_path, promised, readable):
    path = tmp_path / "a.wav"
    sf.write(path, np.zeros(16000), 16000)
    content = path.read_bytes()
    at = content.index(b"data") + 4
    path.write_bytes(content[:at] + promised.to_bytes(4, "little") + content[at + 4 :])
    if readable:
        assert door.open_audio(path).frames == 16000
    else:
        with pytest.raises(UserError, match="a.wav: truncated"):
            door.open_audio(path)
