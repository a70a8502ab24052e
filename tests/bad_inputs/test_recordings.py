"""Recordings from outside: what one command refuses, every command refuses, in one line."""

import io
import itertools
import os
import re
import struct
from fractions import Fraction
from resource import RUSAGE_SELF, getrusage

import numpy as np
import pytest
import soundfile as sf
import torch

from commands import errors
from espnet_ext.audio import (
    open_audio,
    read_audio,
    read_packets,
    resample,
    waveform,
)
from espnet_ext.bin import asr_inference, asr_inference_streaming, data_format, stream
from espnet_ext.data import kaldi
from espnet_ext.errors import UserError
from tiny import FS, speech

PCM = np.round(speech(1.0) * 20000).astype(np.int16)
SOUND = PCM.astype(np.float32) / 2**15


def wav(promised=None, channels=1, rate=FS, samples=PCM, after=b""):
    """A WAV file's bytes, its header as asked."""
    data = samples.tobytes()
    size = len(data) if promised is None else promised
    head = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, channels, rate, 2 * channels * rate,
                       2 * channels, 16)  # fmt: skip
    chunks = head + struct.pack("<4sI", b"data", size) + data + after
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


def without_first_frame(mp3):
    """MP3 without the frame that counts the others: a length is estimated from its size."""
    return mp3[mp3.index(mp3[:2], 4) :]


def uncounted(flac):
    """FLAC whose header says 0 samples, as one that was written to a pipe."""
    head = int.from_bytes(flac[18:26], "big") >> 36 << 36
    return flac[:18] + head.to_bytes(8, "big") + flac[26:]


def encoded(container, samples=SOUND, rate=FS, **options):
    content = io.BytesIO()
    sf.write(content, samples, rate, format=container, **options)
    return content.getvalue()


REFUSED = {
    "promises four times": (wav(promised=8 * len(PCM)), "truncated: its header promises more"),
    "cut": (wav()[: len(PCM)], "truncated: its header promises more"),
    "cut in the header": (wav()[:20], "corrupt or no audio"),
    "cut flac": (encoded("FLAC")[:5000], "corrupt"),
    "cut aiff": (encoded("AIFF")[:5000], "truncated"),
    "cut au": (encoded("AU")[:5000], "truncated"),
    "cut sphere": (encoded("NIST")[:9000], "truncated"),
    "empty": (b"", "0 bytes"),
    "999983 Hz": (wav(rate=999983), "has 999983 Hz, the model needs 8000 Hz"),
    "2 GHz": (wav(rate=2**31 - 1), "2147483647 Hz is no sampling rate"),
    "1 Hz": (wav(rate=1), "1 Hz is no sampling rate"),
    "255 channels": (wav(channels=255, samples=PCM[: 31 * 255]), "has 255 channels"),
    "m4a": (b"\0\0\0 ftypM4A " + bytes(2000), "MP4 (m4a), which is not read here; convert it"),
    "webm": (b"\x1aE\xdf\xa3" + bytes(2000), "WebM or Matroska, which is not read here; convert"),
    "text": (b"This is no sound. " * 99, "corrupt or no audio"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_every_command_refuses_the_same_recordings(model_dir, tmp_path, capsys, case):
    content, words = REFUSED[case]
    path = tmp_path / "ill.wav"
    path.write_bytes(content)
    model = ("--asr_train_config", model_dir / "config.yaml")
    model += ("--asr_model_file", model_dir / "model.pth")
    (tmp_path / "wav.scp").write_text(f"u {path}\n")
    data = ("--data_path_and_name_and_type", f"{tmp_path}/wav.scp,speech,sound")
    commands = [(stream.main, path, *model)]
    for main in (asr_inference_streaming.main, asr_inference.main):
        commands.append((main, *model, *data, "--output_dir", tmp_path / "out"))
    commands[-1] += ("--num_workers", 0)
    if case != "999983 Hz":  # which stage 3 resamples
        tables = {"wav.scp": {"u": str(path)}, "text": {"u": "A"}, "utt2spk": {"u": "s"}}
        kaldi.write_data_dir(tmp_path / "org", tables)
        commands.append((data_format.main, "--fs", "8k", tmp_path / "org", tmp_path / "made"))
    for main, *argv in commands:
        status, lines = errors(capsys, main, *argv)
        assert status == 1 and len(lines) == 1, (main, lines)
        assert f"{path}: " in lines[0] and words in lines[0]


@pytest.mark.parametrize("kind", ["mp3", "flac"])
def test_length_that_a_header_only_estimates_is_decoded_to_the_end(tmp_path, kind):
    path, rate = tmp_path / f"a.{kind}", 16000
    sound = np.repeat(speech(3.0), 2)
    if kind == "mp3":
        quiet = encoded("MP3", 1e-4 * sound, rate, bitrate_mode="VARIABLE", compression_level=0.9)
        loud = encoded("MP3", sound, rate, bitrate_mode="VARIABLE", compression_level=0.0)
        path.write_bytes(without_first_frame(loud) + without_first_frame(quiet))
        assert sf.info(path).frames < 1.9 * len(sound)  # the estimate
        least, most = 2 * len(sound), 2 * len(sound) + 6000  # a coder adds some at both ends
    else:
        path.write_bytes(uncounted(encoded("FLAC", sound, rate)))
        least = most = len(sound)
    audio = open_audio(path)
    assert audio.frames is None and least <= audio.length() <= most
    heard = audio.read()
    assert len(heard) == audio.length() == len(read_audio(path, rate))
    assert np.array_equal(audio.read(1000, 1500), heard[1000:1500])
    if kind == "flac":
        assert np.abs(heard[:, 0] - sound).max() <= 1 / 2**15
        path.write_bytes(path.read_bytes()[:9000])
        with pytest.raises(UserError, match="a.flac: corrupt"):
            open_audio(path).read()


def test_uncounted_flac_is_converted_and_counted_by_stage_3(tmp_path, capsys):
    path = tmp_path / "a.flac"
    path.write_bytes(uncounted(encoded("FLAC")))
    tables = {"wav.scp": {"u": str(path)}, "text": {"u": "A"}, "utt2spk": {"u": "s"}}
    kaldi.write_data_dir(tmp_path / "org", tables)
    data_format.main(["--fs", "8k", str(tmp_path / "org"), str(tmp_path / "out")])
    made = kaldi.read_data_dir(tmp_path / "out")
    assert made["utt2num_samples"] == {"u": str(len(PCM))} and made["wav.scp"]["u"] != str(path)
    assert np.array_equal(sf.read(made["wav.scp"]["u"], dtype="int16")[0], PCM)


# standard input


def packets(content, packet=777, rate=FS):
    return np.concatenate([np.zeros(0), *read_packets(io.BytesIO(content), rate, packet)])


@pytest.mark.parametrize("packet", [7, 777, 10**6])
def test_header_of_a_stream_is_read_and_obeyed(packet):
    content = PCM[:3000].tobytes()
    note = struct.pack("<4sI", b"LIST", 8) + b"INFOISFT"
    extensible = encoded("WAVEX", SOUND[:3000])
    big = struct.pack(">4sI4s4sI", b"RIFX", 0, b"WAVE", b"fmt ", 16)
    big += struct.pack(">HHIIHH4sI", 1, 1, FS, 2 * FS, 2, 16, b"data", len(content))
    for stream_, error in (
        (content, 0),
        (wav(samples=PCM[:3000]), 0),
        (wav(samples=PCM[:3000], after=note), 0),  # no sound
        (wav(samples=PCM[:3000], promised=0), 0),  # of a writer into a pipe
        (wav(samples=PCM[:3000], promised=0xFFFFFFFF), 0),
        (wav(samples=PCM[:3000], promised=0x7FFFFFFF), 0),
        (extensible, 1 / 2**15),
        (encoded("RF64", SOUND[:3000]), 1 / 2**15),
        (encoded("WAV", SOUND[:3000], subtype="PCM_24"), 1e-6),
        (encoded("WAV", SOUND[:3000], subtype="FLOAT"), 0),
        (encoded("WAV", SOUND[:3000], subtype="ULAW"), 0.05),
        (big + PCM[:3000].astype(">i2").tobytes(), 0),
    ):
        heard = packets(stream_, packet)
        assert heard.shape == (3000,) and np.abs(heard - SOUND[:3000]).max() <= error


@pytest.mark.parametrize(
    "content,words",
    [
        (wav(rate=16000), "has 16000 Hz, the model needs 8000 Hz"),
        (wav(channels=2), "has 2 channels"),
        (wav()[:5000], "truncated: its header promises more"),
        (wav()[:5001], "truncated: it ends in half a 16-bit sample"),
        (wav()[:30], "damaged: its WAV header"),
        (PCM.tobytes()[:-1], "half a 16-bit sample"),
        (encoded("WAV", subtype="IMA_ADPCM"), "stream FILE"),
        (encoded("FLAC"), "is FLAC; - takes WAV or samples without a header: give the file"),
        (encoded("OGG"), "is Ogg; "),
        (encoded("AIFF"), "is AIFF; "),
        (without_first_frame(encoded("MP3")), "is MP3; "),
        (b"ID3" + bytes(500), "is MP3; "),
        (b"\0\0\0 ftypM4A " + bytes(500), "is MP4 (m4a); "),
    ],
)
def test_stream_of_another_kind_is_refused(content, words):
    with pytest.raises(UserError, match="^standard input: ") as error:
        packets(content)
    assert words in str(error.value)


def test_samples_that_begin_as_a_container_of_two_bytes_are_samples():
    for first in itertools.product((0xFF,), (0xE2, 0xF1, 0xFB, 0xF3), (0x00, 0x90, 0xFF), (0x64,)):
        assert len(packets(bytes(first) + PCM.tobytes())) == len(PCM) + 2


def test_closed_standard_input_is_one_line(model_dir, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", None)
    argv = ("-", "--asr_train_config", model_dir / "config.yaml")
    status, lines = errors(capsys, stream.main, *argv)
    assert status == 1 and len(lines) == 1 and "standard input: is closed" in lines[0]


def test_pipe_is_refused_with_what_to_do_and_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=re.escape(f"as -: < {tmp_path}/pipe")):
        read_audio(tmp_path / "pipe", FS)
    with pytest.raises(UserError, match="is a device"):
        open_audio("/dev/zero")


# arrays


def test_16_bit_integers_are_scaled_and_others_refused():
    for samples in (PCM, torch.from_numpy(PCM)):
        assert np.array_equal(waveform(samples).numpy(), SOUND)
    assert np.array_equal(waveform(np.stack([PCM, PCM], 1)).numpy(), SOUND)
    assert waveform(PCM, torch.float64).dtype == torch.float64
    for dtype in (np.int8, np.int32, np.int64, np.uint8, np.bool_):
        with pytest.raises(UserError, match="must be floats in .* or int16"):
            waveform(PCM.astype(dtype))


# stage 3


def test_one_channel_of_a_file_is_refused_with_how_to_split(tmp_path, capsys):
    sf.write(tmp_path / "call.wav", np.stack([SOUND, -SOUND], 1), FS)
    tables = {"wav.scp": {"u": str(tmp_path / "call.wav")}, "text": {"u": "A"}}
    kaldi.write_data_dir(tmp_path / "org", tables | {"utt2spk": {"u": "s"}})
    argv = ("--fs", "8k", tmp_path / "org")
    assert errors(capsys, data_format.main, *argv, tmp_path / "mean")[0] == 0
    (tmp_path / "org/reco2file_and_channel").write_text("u call A\n")
    status, lines = errors(capsys, data_format.main, *argv, tmp_path / "out")
    assert status == 1 and len(lines) == 1 and not (tmp_path / "out").exists()
    assert "u is one channel" in lines[0] and "sox IN.wav OUT.wav remix 2" in lines[0]


@pytest.mark.parametrize("rate", [999983, 47999])
def test_odd_rates_are_resampled_without_gigabytes(rate):
    before = getrusage(RUSAGE_SELF).ru_maxrss
    old = np.cos(2 * np.pi * 440 * np.arange(rate // 2) / rate).astype(np.float32)
    made = resample(old, Fraction(rate, 16000))
    assert getrusage(RUSAGE_SELF).ru_maxrss - before < 300_000  # KB
    want = np.cos(2 * np.pi * 440 * np.arange(len(made)) / 16000)
    assert len(made) == -(-len(old) * 16000 // rate)
    assert np.abs(made - want)[400:-400].max() < 1e-3
