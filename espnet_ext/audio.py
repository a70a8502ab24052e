"""The one door for recordings: files, streams of bytes and arrays, each fault in one clear line.

``open_audio`` is for everybody who reads a file, ``read_audio`` and ``read_packets`` for everybody
who gives its samples to a model, ``waveform`` for arrays.
"""

import functools
import io
import os
import re
import stat
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import soundfile as sf

from espnet_ext.errors import UserError

if TYPE_CHECKING:
    import torch

#: bytes; a writer that could not go back to its header promises this much, or more: no fault
UNKNOWN_LENGTH = 0x7FFF0000
UNKNOWN_FRAMES = 2**40
#: what libsndfile says of a header that promises more than there is: WAV, AIFF, AU, SVX, W64, RF64
SHORTENED = re.compile(
    r"^ *(?:data|SSND|BODY|Data Size|riff|Riff size) *: ([0-9]+) \(should be ([0-9]+)\)", re.M
)
BLOCK_SAMPLES = 2**20  # read at a time where none is kept
HEADER_BYTES = 2**20  # of a part of a WAV header, at most
LOUDEST = 2.0**32  # full scale is 1, or that of 32 bits in files that were never scaled
#: Hz, least and most; a damaged header of less would make thousands of samples of one
RATES = (1000, 2**20)
#: a second axis longer than this is no axis of channels
MAX_CHANNELS = 64
#: nothing is louder, not even 16-bit samples that were not scaled; features of far more overflow
MAX_SAMPLE = 2**15
#: values of a torchaudio resampler's kernel; beyond, for odd rates, soxr needs none
MAX_KERNEL = 2**23
STANDARD_INPUT = "standard input"

#: first bytes of a container, its name, and whether libsndfile reads it
CONTAINERS = (
    (rb"RIFF|RIFX|RF64", "WAV", True),
    (rb"fLaC", "FLAC", True),
    (rb"OggS", "Ogg", True),
    (rb"ID3", "MP3", True),
    (rb"FORM", "AIFF", True),
    (rb"caff", "CAF", True),
    (rb"\.snd", "AU", True),
    (rb"riff", "W64", True),
    (rb"NIST_1A", "NIST SPHERE", True),
    (rb"....ftyp", "MP4 (m4a)", False),
    (rb"\x1aE\xdf\xa3", "WebM or Matroska", False),
    (rb"0&\xb2u", "WMA", False),
    (rb"#!AMR", "AMR", False),
    (rb"ADIF|\xff[\xf0\xf1\xf8\xf9]", "AAC", False),
)
#: libsndfile's names of samples in WAV by format tag and bits
WAV_SAMPLES = {
    (1, 8): "PCM_U8",
    (1, 16): "PCM_16",
    (1, 24): "PCM_24",
    (1, 32): "PCM_32",
    (3, 32): "FLOAT",
    (3, 64): "DOUBLE",
    (6, 8): "ALAW",
    (7, 8): "ULAW",
}
BITRATES = {  # kbit/s of MPEG 1 and of MPEG 2 and 2.5, layer III
    3: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
MPEG_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}


def parse_rate(rate):
    """Hz of a rate such as ``"16k"``, ``"44.1k"`` or ``"8000"``; others are a ``UserError``."""
    match = re.fullmatch(r"([0-9]{1,99}(?:\.[0-9]{1,99})?)(k?)", rate)
    hertz = Fraction(match[1]) * (1000 if match[2] else 1) if match else 0
    if hertz < 1 or hertz != int(hertz):
        raise UserError(f"sampling rate {rate!r}: give Hz or kHz, as in 16000 or 16k")
    return int(hertz)


class _Decoder(sf.SoundFile):
    """libsndfile without soundfile's own seeking, which fails where no length is known."""

    def seekable(self):
        return False


@dataclass(frozen=True)
class Audio:
    """A recording whose header was read; its samples are decoded when they are asked for.

    Attributes:
        path: Its file.
        rate: Hz.
        channels: At most ``MAX_CHANNELS``.
        frames: Samples of a channel, or None where the header only estimates them.
        format: Container, such as ``WAV``.
        subtype: Kind of samples, such as ``PCM_16``.
    """

    path: str
    rate: int
    channels: int
    frames: int | None
    format: str
    subtype: str

    def blocks(self, size: int = BLOCK_SAMPLES, start: int = 0) -> Iterator[np.ndarray]:
        """Samples from ``start`` to the end, float32 (n, channels), n at most ``size``.

        Raises:
            UserError: The file ends before its header says, or a sample is infinite, not a number
                or beyond any scale.
        """
        with _faults(self.path), _decoder(self.path, self.format) as file:
            at = file.seek(start) if start and self.format != "MP3" else 0
            while len(samples := file.read(size, dtype="float32", always_2d=True)):
                check_samples(samples, self.path, at, self.rate)
                if start < at + len(samples):
                    yield samples[max(0, start - at) :]
                at += len(samples)
            if self.frames is not None and at < self.frames:
                raise UserError(
                    f"{self.path}: truncated: ends early, at sample {at} of {self.frames}; "
                    "get it again"
                )

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Samples ``start`` to ``stop``, float32 (n, channels); see ``blocks``."""
        kept, wanted = [np.zeros((0, self.channels), np.float32)], stop
        size = BLOCK_SAMPLES if stop is None else max(1, min(BLOCK_SAMPLES, stop - start))
        for block in self.blocks(size, start):
            kept.append(block if wanted is None else block[: wanted - start])
            start += len(block)
            if wanted is not None and start >= wanted:
                break
        return np.concatenate(kept)

    def length(self) -> int:
        """Samples of a channel, counted where the header only estimates them."""
        return sum(map(len, self.blocks())) if self.frames is None else self.frames

    def check(self) -> None:
        """Find what is wrong with a file that is used as it is, in bounded memory; see ``blocks``.

        One that ends early is found by its last sample; integers are numbers, so only other kinds
        of samples (floats, compressed ones) are all looked at.
        """
        pcm = self.subtype.startswith("PCM_") and self.frames
        for _ in self.blocks(start=self.frames - 1 if pcm else 0):
            pass


def open_audio(path, empty: bool = False) -> Audio:
    """What the header of a recording says.

    Args:
        path: WAV, FLAC, MP3 or whatever libsndfile knows.
        empty: Take a file without samples as well.

    Raises:
        UserError: The file is missing, unreadable, no file but a pipe, damaged, of a container that
            must be converted first, of an impossible rate or number of channels, or, unless
            ``empty``, without samples; the message says what to do.
    """
    with _faults(path):
        mode = os.stat(path).st_mode
        if stat.S_ISFIFO(mode):
            raise UserError(f"{path}: is a pipe; only the command stream reads one, as -: < {path}")
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise UserError(f"{path}: is a device, not a file")
        with open(path, "rb") as raw:
            head = raw.read(1024)
        if not head:
            raise UserError(f"{path}: empty, the file has 0 bytes")
        with _decoder(path) as file:
            kind, said = file.format, file.extra_info
        with _decoder(path, kind) as file:
            frames = file.frames if file.frames < UNKNOWN_FRAMES else None
            found = Audio(path, file.samplerate, file.channels, frames, kind, file.subtype)
    # libsndfile shortens a file to what is there, and says so in its log
    shortened = [(int(promised), int(there)) for promised, there in SHORTENED.findall(said)]
    if promised := re.search(rb"^NIST_1A[\s\S]*sample_count -i ([0-9]+)", head):
        shortened.append((int(promised[1]), found.frames))
    if any(there < promised < UNKNOWN_LENGTH for promised, there in shortened):
        raise UserError(
            f"{path}: truncated: its header promises more samples than it has; get it again"
        )
    if frames == 0 and not empty:
        raise UserError(f"{path}: no samples")
    if not RATES[0] <= found.rate <= RATES[1]:
        raise UserError(f"{path}: {found.rate} Hz is no sampling rate of speech; get it again")
    if found.channels > MAX_CHANNELS:
        raise UserError(
            f"{path}: has {found.channels} channels, more than {MAX_CHANNELS} are no recording of "
            "speech; get it again"
        )
    return found


@contextmanager
def _faults(path):
    """Every fault of reading a file names it and says what to do."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except TypeError as error:  # what soundfile takes for samples without a header by the name
        raise UserError(
            f"{path}: has no header that says its rate; convert it to WAV or FLAC first"
        ) from error
    except (sf.LibsndfileError, RuntimeError) as error:
        with open(path, "rb") as raw:
            name, reads = container(raw.read(16))
        if name and not reads:
            raise UserError(
                f"{path}: is {name}, which is not read here; convert it to WAV or FLAC first, "
                "as in ffmpeg -i IN OUT.wav"
            ) from error
        reason = getattr(error, "error_string", str(error)).removeprefix("Error :").strip(" .")
        raise UserError(f"{path}: corrupt or no audio file ({reason}); get it again") from error


@contextmanager
def _decoder(path, kind=None):
    """libsndfile with a file.

    libsndfile reads MP3 without a count of frames up to an estimate and no further, unless it
    comes through a pipe, where there is nothing to estimate from.
    """
    if kind != "MP3":
        with _Decoder(path) as file:
            yield file
        return
    reader, writer = os.pipe()

    def feed():
        try:
            with open(writer, "wb") as pipe, open(path, "rb") as raw:
                while block := raw.read(1 << 16):
                    pipe.write(block)
        except OSError:  # the reader has all that it wants
            pass

    thread = threading.Thread(target=feed, daemon=True)
    thread.start()
    try:
        with _Decoder(reader) as file:
            yield file
    finally:
        thread.join()


def check_samples(samples, name, start: int, rate: int) -> None:
    """Refuse samples (n, channels) that are infinite, not numbers or beyond any scale.

    ``start`` is the place of the first in the recording ``name``, for the message.
    """
    fine = np.abs(samples) <= LOUDEST  # not-a-number is not
    if not fine.all():
        first = int(np.flatnonzero(~fine.all(axis=1))[0])
        raise UserError(
            f"{name}: has samples that are not numbers or beyond any scale, the first at "
            f"{(start + first) / rate:.3f} s (sample {start + first}: "
            f"{samples[first][~fine[first]][0]:g}); get it again"
        )


def container(head: bytes) -> tuple[str, bool]:
    """Name of the container that begins with these bytes, "" if none, and whether it is read."""
    if _is_mpeg(head):
        return "MP3", True
    for pattern, name, reads in CONTAINERS:
        if re.match(pattern, head, re.S):
            return name, reads
    return "", False


def _is_mpeg(head):
    """Whether a frame of MP3 is followed by another; two samples alone may look like one."""
    size = _frame_size(head)
    return size is not None and _frame_size(head[size:]) is not None


def _frame_size(head):
    """Bytes of the MP3 frame that begins here, or None."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:
        return None
    version, bitrate, rate = head[1] >> 3 & 3, head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or not 0 < bitrate < 15 or rate == 3:
        return None
    table, samples = (3, 144) if version == 3 else (2, 72)
    padding = head[2] >> 1 & 1
    rate = MPEG_RATES[version][rate]
    return samples * 1000 * BITRATES[table][bitrate - 1] // rate + padding


def _require(name, rate, channels, needed):
    """Refuse a recording that a stream cannot take as it is."""
    if rate != needed:
        raise UserError(f"{name}: has {rate} Hz, the model needs {needed} Hz; resample it first")
    if channels != 1:
        raise UserError(f"{name}: has {channels} channels, mono is needed")


def read_packets(source, rate: int, packet: int) -> Iterator[np.ndarray]:
    """Packets of a recording as they arrive, none of one without samples.

    Args:
        source: Path of an audio file, or a binary stream: WAV, or mono 16-bit little-endian PCM
            of the rate without a header.
        rate: The rate in Hz that is needed; a recording of another rate is refused.
        packet: Samples per packet.

    Yields:
        float32 samples (n,), n at most ``packet``.

    Raises:
        UserError: See ``open_audio``; or it has another rate or several channels, or a stream is
            of another container.
    """
    if hasattr(source, "read"):
        yield from _stream_packets(source, rate, packet)
        return
    audio = open_audio(source, empty=True)
    _require(source, audio.rate, audio.channels, rate)
    for samples in audio.blocks(packet):
        yield samples[:, 0]


def read_audio(path, rate: int) -> np.ndarray:
    """A whole mono recording (n,), n being 0 where it has no samples; see ``read_packets``."""
    return np.concatenate([np.zeros(0, np.float32), *read_packets(path, rate, BLOCK_SAMPLES)])


def standard_input():
    """Standard input as bytes; ``UserError`` where it is closed."""
    if sys.stdin is None:
        raise UserError(f"{STANDARD_INPUT}: is closed; give a file or pipe samples to -")
    return sys.stdin.buffer


def _stream_packets(stream, rate, packet):
    samples, left, held = "PCM_16", UNKNOWN_LENGTH, stream.read(12)
    width, endian = 2, "LITTLE"
    if held[:1] == b"\xff":
        held += stream.read(2048)  # a second frame of MP3 may follow
    name, _ = container(held)
    if name == "WAV":
        samples, width, left, endian = _wav_header(stream, held, rate)
        held = b""
    elif name not in ("", "AAC"):  # two bytes are too few to tell AAC from samples
        raise UserError(
            f"{STANDARD_INPUT}: is {name}; - takes WAV or samples without a header: give the file, "
            "stream FILE"
        )
    exact, at = left < UNKNOWN_LENGTH, 0
    while block := held + stream.read(max(0, min(packet * width, left) - len(held))):
        left -= len(block) if exact else 0
        if len(block) % width:
            raise UserError(
                f"{STANDARD_INPUT}: truncated: it ends in half a {8 * width}-bit sample"
            )
        for start in range(0, len(block), packet * width):
            part = block[start : start + packet * width]
            decoded, _ = sf.read(
                io.BytesIO(part), dtype="float32", always_2d=True, channels=1, samplerate=rate,
                format="RAW", subtype=samples, endian=endian,
            )  # fmt: skip
            check_samples(decoded, STANDARD_INPUT, at, rate)
            at += len(decoded)
            yield decoded[:, 0]
        held = b""
    if exact and left:
        raise UserError(
            f"{STANDARD_INPUT}: truncated: its header promises more samples than it has"
        )


def _wav_header(stream, head, rate):
    """Kind of samples, bytes of one, bytes of all and byte order of a WAV stream."""

    def take(size):
        if size > HEADER_BYTES or len(taken := stream.read(size)) < size:
            raise UserError(f"{STANDARD_INPUT}: damaged: its WAV header is cut or no header")
        return taken

    order = ">" if head[:4] == b"RIFX" else "<"
    kind = None
    long = UNKNOWN_LENGTH
    while True:
        name, size = struct.unpack(f"{order}4sI", take(8))
        if name == b"data":
            break
        body = take(size + size % 2)
        if name == b"ds64" and len(body) >= 16:
            long = struct.unpack(f"{order}Q", body[8:16])[0]
        if name == b"fmt " and len(body) >= 16:
            tag, channels, hertz, _, _, bits = struct.unpack(f"{order}HHIIHH", body[:16])
            if tag == 0xFFFE and len(body) >= 26:
                (tag,) = struct.unpack(f"{order}H", body[24:26])
            _require(STANDARD_INPUT, hertz, channels, rate)
            kind = WAV_SAMPLES.get((tag, bits))
    if kind is None:
        raise UserError(
            f"{STANDARD_INPUT}: is WAV of samples that - does not take; give the file, stream FILE"
        )
    # without a known size all that follows is samples
    if size == 0xFFFFFFFF:
        size = long
    return kind, bits // 8, size or UNKNOWN_LENGTH, "BIG" if order == ">" else "LITTLE"


def read_channels(path, rate: int | None = None) -> np.ndarray:
    """A whole recording (n,) or, of several channels, (n, channels); of ``rate``, if given."""
    audio = open_audio(path, empty=True)
    _require(path, audio.rate, 1, rate or audio.rate)
    samples = audio.read()
    return samples[:, 0] if audio.channels == 1 else samples


def mono(samples):
    """Samples (n, channels), an array or a tensor, as their mean (n,); others as they are."""
    is_array = samples.ndim == 2 and samples.shape[1] <= MAX_CHANNELS
    return samples.mean(1) if is_array else samples


def waveform(samples, dtype=None, device=None, channels=True) -> "torch.Tensor":
    """One utterance as a model takes it.

    Args:
        samples: Floats in [-1, 1] or 16-bit integers, (n,) or, with ``channels``, (n, channels),
            which become their mean as in stage 3. A stream's have one channel.
        dtype: Of the result; that of the samples by default, float32 for integers.
        device: Of the result.
        channels: Take several.

    Returns:
        (n,).

    Raises:
        UserError: They are other integers, of another shape, not numbers, or far too large for
            samples.
    """
    import torch  # here, and below: who prepares data need not wait for it

    samples = checked_samples(samples, functools.partial(torch.as_tensor, device=device), channels)
    return samples.to(dtype or samples.dtype)


def checked_samples(samples, convert=np.asarray, channels=False):
    """Samples as floats (n,), as ``convert`` makes an array of them; see ``waveform``."""
    try:
        samples = convert(samples)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"samples: must be an array of numbers ({error!s:.80})") from None
    kind = str(samples.dtype).removeprefix("torch.")
    if kind == "int16":
        samples = samples / 2**15
    elif "float" not in kind and 0 not in samples.shape:
        raise UserError(f"samples: must be floats in [-1, 1] or int16, got {kind}; scale them")
    samples = mono(samples) if channels else samples
    if samples.ndim != 1:
        shapes = "(n,) or (n, channels)" if channels else "mono (n,)"
        raise UserError(f"samples: must be {shapes}, got shape {tuple(samples.shape)}")
    fine = abs(samples) <= MAX_SAMPLE  # not-a-number is not
    if not fine.all():
        at = int((fine * 1).argmin())
        raise UserError(
            f"samples: must be finite numbers in [-1, 1], sample {at} is {samples[at].item():g}"
        )
    return samples


@functools.cache
def _resampler(source, target):
    import torchaudio

    return torchaudio.transforms.Resample(source, target)


def resample(samples, ratio: Fraction):
    """Change the number of float32 samples (num,) to ceil(num / ratio).

    ``ratio`` is old to new samples: speed factor times old rate over new rate.
    """
    if ratio == 1:
        return samples
    if ratio.numerator * ratio.denominator > MAX_KERNEL:  # 47999 Hz would need gigabytes
        import soxr

        made = soxr.resample(samples, ratio.numerator, ratio.denominator)
        length = -(-len(samples) * ratio.denominator // ratio.numerator)
        return np.pad(made, (0, max(0, length - len(made))))[:length]
    import torch

    return _resampler(ratio.numerator, ratio.denominator)(torch.from_numpy(samples)).numpy()


def encode(samples, rate, audio_format):
    """A FLAC or WAV file of 16 bits of samples (num,), full scale 1; what exceeds is clipped."""
    pcm = np.clip(np.rint(samples * 32768), -32768, 32767).astype(np.int16)
    content = io.BytesIO()
    sf.write(content, pcm, rate, format=audio_format.upper(), subtype="PCM_16")
    return content.getvalue()
