"""The audio of a data directory brought to one rate, one channel and one format."""

import hashlib
import os
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from espnet_ext import files
from espnet_ext.audio import encode, open_audio, resample
from espnet_ext.data import kaldi
from espnet_ext.errors import DiskFull, UserError
from espnet_ext.processes import parallel_map

IN_PLACE = ("FLAC", "WAV", "WAVEX")
OVERRUN = 0.1  # seconds that a segment may end after its recording, from rounded times


def refuse_channels(path, wavs, several=()):
    """Refuse recordings that are one channel of a file: channels are averaged here.

    They are those that ``reco2file_and_channel`` of the directory names, and ``several``.
    """
    table = path / "reco2file_and_channel"
    named = kaldi.read_scp(table).keys() & wavs.keys() if os.path.exists(table) else set()
    for reco in sorted(named.union(several)):
        if open_audio(wavs[reco], empty=True).channels > 1:
            remove = f" and remove {table.name}" if reco in named else ""
            raise UserError(
                f"{path}: {reco} is one channel of {wavs[reco]}, and channels are averaged here: "
                "write each channel to a file (sox IN.wav OUT.wav remix 2), name that in "
                f"wav.scp{remove}"
            )


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
        audio, first, last = open_audio(job.source), 0, None
        if job.end is not None:
            first, end = round(job.start * audio.rate), round(job.end * audio.rate)
            frames = audio.length()
            last = min(end, frames)
            if last <= first or end - last > OVERRUN * audio.rate:
                seconds = frames / audio.rate
                raise UserError(
                    f"{job.source}: {seconds:.2f} s, its segment {job.start}-{job.end} s"
                )
        elif (
            audio.frames is not None
            and audio.format in IN_PLACE
            and (audio.rate, audio.channels, job.speed) == (job.rate, 1, 1)
        ):
            audio.check()  # what is wrong is found here, not in training
            return _Done(job.source, audio.frames)
        if not job.written.exists():
            samples = audio.read(first, last).mean(axis=1)
            if not len(samples):
                raise UserError(f"{job.source}: no samples")
            samples = resample(samples, job.speed * audio.rate / job.rate)
            files.write_atomic(job.written, encode(samples, job.rate, job.audio_format))
        return _Done(str(job.target), open_audio(job.written).frames, audio.channels)
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

    Returns:
        (jobs, signatures): the jobs with the place that each writes to, and what ``record`` holds
        when these have taken theirs; those of files to come are in it already.
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
    into ``<out>/data``, as ``"flac"`` or ``"wav"``: cut as ``segments`` says, channels averaged,
    resampled, and sped up as ``utt2speed`` says.

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
    kaldi.raise_if_any(kaldi.find_problems(source, tables, on_disk=True))
    refuse_channels(source, tables["wav.scp"])
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
    kaldi.raise_if_any([result.problem for result in done.values() if result.problem])

    kept = ("text", "utt2spk", "spk2gender", kaldi.WORD_ENDS)
    formatted = {name: tables[name] for name in kept if name in tables}
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
