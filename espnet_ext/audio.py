"""Recordings in packets, with every fault of a file or stream in one clear line."""

from collections.abc import Iterator

import numpy as np

from espnet_ext.data.audio import open_audio
from espnet_ext.errors import UserError


def read_packets(source, fs: int, packet: int) -> Iterator[np.ndarray]:
    """Packets of a recording as they arrive, none of one without samples.

    Args:
        source: Path of an audio file, or a binary stream of raw mono 16-bit little-endian PCM.
        fs: The rate in Hz that is needed; a file of another rate is refused.
        packet: Samples per packet.

    Yields:
        Float samples (n,), n at most ``packet``.

    Raises:
        UserError: The source is unreadable, truncated, of another rate or not mono, or holds
            samples that are not numbers.
    """
    is_pcm = hasattr(source, "read")
    name = "standard input" if is_pcm else source
    heard = 0
    for samples in _pcm_packets(source, packet) if is_pcm else _file_packets(source, fs, packet):
        finite = np.isfinite(samples)
        if not finite.all():
            at = heard + int(np.argmin(finite))
            raise UserError(f"{name}: sample {at} is NaN or infinite; export the file again")
        heard += len(samples)
        yield samples


def read_whole(path, fs: int) -> np.ndarray:
    """A whole recording (n,), n being 0 where it has no samples; see ``read_packets``."""
    return np.concatenate([np.zeros(0, np.float32), *read_packets(path, fs, 1 << 20)])


def _file_packets(path, fs, packet):
    with open_audio(path, empty=True) as audio:
        if audio.samplerate != fs:
            raise UserError(
                f"{path}: has {audio.samplerate} Hz, the model needs {fs} Hz; resample it first"
            )
        if audio.channels != 1:
            raise UserError(f"{path}: has {audio.channels} channels, mono is needed")
        left = audio.frames
        while len(samples := audio.read(packet, dtype="float32")):
            left -= len(samples)
            yield samples
        if left:
            raise UserError(f"{path}: truncated: its header promises more samples than it has")


def _pcm_packets(stream, packet):
    held = b""
    while block := stream.read(2 * packet):
        held += block
        whole = len(held) - len(held) % 2
        yield np.frombuffer(held[:whole], "<i2").astype(np.float32) / 32768
        held = held[whole:]
    if held:
        raise UserError("standard input: truncated: it ends in half a 16-bit sample")
