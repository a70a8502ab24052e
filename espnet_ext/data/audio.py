"""Audio files: read with clear errors, brought to one rate, one channel and one format."""

import functools
import hashlib
import io
import re
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import numpy as np
import soundfile as sf

from espnet_ext import files
from espnet_ext.data import kaldi
from espnet_ext.errors import DiskFull, UserError
from espnet_ext.processes import parallel_map

IN_PLACE = ("FLAC", "WAV", "WAVEX")
OVERRUN = 0.1  # seconds that a segment may end after its recording, from rounded times
UNKNOWN_LENGTH = 0x7FFF0000  # bytes; piped WAV files promise this much or more
BLOCK = 2**20  # samples read at a time where none is kept
LOUDEST = 2.0**32  # full scale is 1, or that of 32 bits in files that were never scaled


def parse_rate(rate):
    """Turn a sampling rate such as ``"16k"``, ``"44.1k"`` or ``"8000"`` into Hz.

    Raises:
        UserError: It is not such a number.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(k?)", rate)
    hertz = Fraction(match[1]) * (1000 if match[2] else 1) if match else 0
    if hertz < 1 or hertz != int(hertz):
        raise UserError(f"sampling rate {rate!r}: give Hz or kHz, as in 16000 or 16k")
    return int(hertz)


@contextmanager
def open_audio(path, empty=False):
    """Open an audio file that has samples; every failure, also one while reading, names the file.

    Args:
        path: WAV, FLAC or whatever libsndfile knows.
        empty: Open files without samples as well.

    Yields:
        ``soundfile.SoundFile``.

    Raises:
        UserError: The file is missing, not readable, corrupt or, unless ``empty``, without samples.
    """
    try:
        with open(path, "rb") as raw:
            if not raw.read(1):
                raise UserError(f"{path}: empty, the file has 0 bytes")
        with sf.SoundFile(path) as audio:
            if not (0 if empty else 1) <= audio.frames < 2**40:
                raise UserError(
                    f"{path}: {'no samples' if not audio.frames else 'no length in its header'}"
                )
            # libsndfile shortens a WAV file to what is there, and says so in its log; a writer that
            # could not go back to its header leaves a huge length, which is no fault
            promised = re.search(r"^data : ([0-9]+) \(should be", audio.extra_info, re.M)
            if promised and int(promised[1]) < UNKNOWN_LENGTH:
                raise UserError(
                    f"{path}: truncated: its header promises more samples than it has; get it again"
                )
            yield audio
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except sf.LibsndfileError as error:
        reason = error.error_string.removeprefix("Error :").strip(" .")
        raise UserError(f"{path}: corrupt or no audio file ({reason}); get it again") from error


def read(audio, start, num):
    """Read samples of an open file.

    Args:
        audio: What ``open_audio`` gave.
        start: First sample.
        num: Number of samples.

    Returns:
        float32 array (num, n_channel).

    Raises:
        UserError: The file ends before, or a sample is infinite, not a number or beyond any scale.
    """
    audio.seek(start)
    samples = audio.read(num, dtype="float32", always_2d=True)
    if len(samples) != num:
        raise UserError(f"{audio.name}: ends early; get it again")
    fine = np.abs(samples) <= LOUDEST
    if not fine.all():
        first = np.flatnonzero(~fine.all(axis=1))[0]
        raise UserError(
            f"{audio.name}: has samples that are not numbers or beyond any scale, the first at "
            f"{(start + first) / audio.samplerate:.3f} s ({samples[first][~fine[first]][0]:g}); "
            "get it again"
        )
    return samples


def check(audio):
    """Find what is wrong with an open file that is used as it is, in bounded memory.

    One that ends early is found by its last sample; integers are numbers, so only other kinds of
    samples (``FLOAT``, ``DOUBLE``, compressed ones) are all looked at.

    Args:
        audio: What ``open_audio`` gave.

    Raises:
        UserError: See ``read``.
    """
    first = audio.frames - 1 if audio.subtype.startswith("PCM_") else 0
    for start in range(first, audio.frames, BLOCK):
        read(audio, start, min(BLOCK, audio.frames - start))


@functools.cache
def _resampler(source, target):
    import torchaudio  # here: most directories need no conversion, and it takes seconds

    return torchaudio.transforms.Resample(source, target)


def resample(samples, ratio):
    """Change the number of samples.

    Args:
        samples: float32 array (num,).
        ratio: Fraction of old to new samples: speed factor times old rate over new rate.

    Returns:
        float32 array (ceil(num / ratio),).
    """
    if ratio == 1:
        return samples
    import torch

    return _resampler(ratio.numerator, ratio.denominator)(torch.from_numpy(samples)).numpy()


def encode(samples, rate, audio_format):
    """Encode samples with 16 bits; what exceeds the range is clipped.

    Args:
        samples: float32 array (num,), full scale is 1.
        rate: Sampling rate in Hz.
        audio_format: ``"flac"`` or ``"wav"``.

    Returns:
        Bytes of the file.
    """
    pcm = np.clip(np.rint(samples * 32768), -32768, 32767).astype(np.int16)
    content = io.BytesIO()
    sf.write(content, pcm, rate, format=audio_format.upper(), subtype="PCM_16")
    return content.getvalue()


class _Job(NamedTuple):
    """One utterance to format."""

    utt: str
    source: str
    start: float | None  # seconds
    end: float | None
    speed: Fraction
    target: Path
    written: Path  # the target, or what takes its place when all are done
    rate: int  # Hz
    audio_format: str


class _Done(NamedTuple):
    path: str = ""
    num_samples: int = 0
    n_channel: int = 1
    problem: str = ""


def _format(job):
    try:
        with open_audio(job.source) as audio:
            first, last = 0, audio.frames
            if job.end is not None:
                first, end = round(job.start * audio.samplerate), round(job.end * audio.samplerate)
                last = min(end, audio.frames)
                if last <= first or end - last > OVERRUN * audio.samplerate:
                    seconds = audio.frames / audio.samplerate
                    raise UserError(
                        f"{job.source}: {seconds:.2f} s, its segment {job.start}-{job.end} s"
                    )
            elif (audio.samplerate, audio.channels, job.speed) == (
                job.rate,
                1,
                1,
            ) and audio.format in IN_PLACE:
                check(audio)  # what is wrong is found here, not in training
                return _Done(job.source, last)
            if not job.written.exists():
                samples = read(audio, first, last - first).mean(axis=1)
                samples = resample(samples, job.speed * audio.samplerate / job.rate)
                files.write_atomic(job.written, encode(samples, job.rate, job.audio_format))
            return _Done(str(job.target), sf.info(job.written).frames, audio.channels)
    except DiskFull:
        raise  # every other file would say so too
    except UserError as error:
        return _Done(problem=f"{job.utt}: {error}")


def _signature(job):
    """Describe what a converted file is made from; a file with another signature is made again."""
    version = files.version(job.source)
    return f"{job.rate} {job.speed} {job.start} {job.end} {version} {job.source}"


def _keep_outdated(record, jobs):
    """Have files whose source or settings have changed converted beside those that are there.

    Args:
        record: File with the signatures of what is there; those of files to come are added.
        jobs: List of jobs.

    Returns:
        (jobs, signatures): the jobs with the place that each writes to, and what the record holds
        when these have taken theirs.
    """
    new = {job.target.name: _signature(job) for job in jobs}
    old = kaldi.read_scp(record) if record.exists() else {}
    placed = []
    for job in jobs:
        name = job.target.name
        if old.get(name) != new[name] and job.target.exists():
            version = hashlib.blake2b(f"{name} {new[name]}".encode(), digest_size=16).hexdigest()
            job = job._replace(written=job.target.with_name(f".{version}{job.target.suffix}"))
        else:
            old[name] = new[name]
        placed.append(job)
    kaldi.write_scp(record, old)
    return placed, new


def _replace_outdated(out, jobs, used):
    """Let new files take the place of old ones, and remove what is not used."""
    files.remove(out / "wav.scp")  # lengths and audio do not fit until it is written anew
    for job in jobs:
        if job.written != job.target and str(job.target) in used:
            files.replace(job.written, job.target)
    folder = out / "data"
    for path in folder.iterdir() if folder.exists() else ():
        if str(path) not in used:
            files.remove(path)


def format_data_dir(source, out, rate, audio_format="flac", nj=1):
    """Bring the audio of a data directory to one rate, one channel and one utterance per file.

    FLAC and WAV files that are so already are referenced where they are. Others are converted once,
    into ``<out>/data``: cut as ``segments`` says, channels averaged, resampled, and sped up as
    ``utt2speed`` says.

    Args:
        source: Data directory to read.
        out: Data directory to write.
        rate: Sampling rate in Hz.
        audio_format: ``"flac"`` or ``"wav"``, for what is converted.
        nj: Worker processes.

    Returns:
        Dict ``{"in place": n, "converted": n, "mixed to mono": n}``.

    Raises:
        UserError: A table is wrong or a file cannot be read; ``<out>`` is as it was then, but for
            files that the next run need not convert.
    """
    source, out = Path(source), Path(out)
    if out.resolve() == source.resolve():
        raise UserError(f"{out}: give an output directory that is not the input")
    if audio_format not in ("flac", "wav"):
        raise UserError(
            f"--audio_format {audio_format}: give flac or wav (no archives: audio that "
            "fits is used in place)"
        )
    tables = kaldi.read_data_dir(source)
    kaldi.refuse(kaldi.find_problems(source, tables, on_disk=True))
    speeds = {
        speed: kaldi.parse_speed(speed) for speed in {"1.0", *tables.get("utt2speed", {}).values()}
    }
    jobs = []
    for utt in kaldi.utterances(tables):
        recording, start, end = kaldi.parse_segment(tables, utt)
        speed = speeds[tables["utt2speed"][utt] if "utt2speed" in tables else "1.0"]
        target = out / "data" / f"{quote(utt, safe='')}.{audio_format}"
        wav = tables["wav.scp"][recording]
        jobs.append(_Job(utt, wav, start, end, speed, target, target, rate, audio_format))
    jobs, signatures = _keep_outdated(out / ".sources", jobs)
    done = {
        job.utt: result for job, result in zip(jobs, parallel_map(_format, jobs, nj), strict=True)
    }
    kaldi.refuse([result.problem for result in done.values() if result.problem])

    formatted = {name: tables[name] for name in ("text", "utt2spk", "spk2gender") if name in tables}
    formatted["wav.scp"] = {utt: result.path for utt, result in done.items()}
    formatted["utt2num_samples"] = {utt: str(result.num_samples) for utt, result in done.items()}
    formatted |= {"feats_type": {"raw": ""}, "audio_format": {audio_format: ""}}
    _replace_outdated(out, jobs, set(formatted["wav.scp"].values()))
    kaldi.write_scp(out / ".sources", signatures)
    kaldi.write_data_dir(out, formatted)
    converted = sum(
        result.path == str(job.target) for job, result in zip(jobs, done.values(), strict=True)
    )
    return {
        "in place": len(jobs) - converted,
        "converted": converted,
        "mixed to mono": sum(result.n_channel > 1 for result in done.values()),
    }
