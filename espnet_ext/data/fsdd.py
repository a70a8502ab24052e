"""Connected digit strings from the Free Spoken Digit Dataset (FSDD).

FSDD holds single digits, ``recordings/<digit>_<speaker>_<index>.wav`` at 8 kHz. A string is 3 to 7
of them by one speaker with short low-level gaps between them. Recordings are split before strings
are drawn, so no recording is heard in two sets.
"""

import io
import re
import tarfile
import zlib
from pathlib import Path, PurePosixPath

import numpy as np
import soundfile as sf

from espnet_ext.data.kaldi import WORD_ENDS, write_data_dir
from espnet_ext.errors import UserError
from espnet_ext.files import remove, write_atomic

SAMPLE_RATE = 8000
WORDS = "ZERO ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT NINE".split()
STRINGS = {"train": 2400, "dev": 204, "test": 510}
DIGITS_PER_STRING = (3, 7)
GAP = (400, 1600)  # samples: 50 to 200 ms
GAP_NOISE = 2  # 16-bit steps: digital silence would give the features an edge no microphone has
SEED = 2022

_NAME = re.compile(r"([0-9])_([A-Za-z0-9-]+)_([0-9]+)\.wav")


def set_of(index):
    """The set of a recording, by the last number of its file name."""
    return "test" if index < 5 else "dev" if index < 10 else "train"


def _files(source):
    """Yield (path, bytes) of the WAV files in ``recordings`` of a directory or archive."""
    try:
        if source.is_dir():
            for path in source.absolute().rglob("*.wav"):
                if path.parent.name == "recordings":
                    yield path, path.read_bytes()
        else:
            with tarfile.open(source, "r:gz") as archive:  # nothing is unpacked to the disk
                for member in archive:
                    path = PurePosixPath(member.name)
                    if member.isfile() and path.match("recordings/*.wav"):
                        yield path, archive.extractfile(member).read()
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise UserError(
            f"{source}: cannot be read ({error}); FSDD in db.sh is a directory or a .tar.gz archive"
        ) from error


def read_recordings(source):
    """Every recording of FSDD's directory, with ``recordings/`` in it, or ``.tar.gz`` archive.

    Returns:
        Dict ``{(set, speaker, digit): [samples, ...]}`` in the order of the recordings' indices;
        samples are int16 arrays at 8 kHz.

    Raises:
        UserError: A recording is misnamed, unreadable, empty, not 8 kHz mono or there twice, or a
            speaker lacks a digit in one of the sets.
    """
    found = {}
    for path, content in _files(Path(source)):
        name = _NAME.fullmatch(path.name)
        if not name:
            raise UserError(f"{path}: recordings are named <digit>_<speaker>_<index>.wav")
        key = (name[2], int(name[1]), int(name[3]))
        if key in found:
            raise UserError(f"{path}: there twice in {source}; keep one")
        try:
            samples, rate = sf.read(io.BytesIO(content), dtype="int16")
        except sf.LibsndfileError as error:
            raise UserError(f"{path}: cannot be read as audio ({error}); get it again") from error
        if rate != SAMPLE_RATE or samples.ndim != 1 or not len(samples):
            raise UserError(
                f"{path}: {rate} Hz, shape {samples.shape}; FSDD is 8000 Hz, mono, not empty"
            )
        found[key] = samples
    if not found:
        raise UserError(
            f"{source}: no recordings/<digit>_<speaker>_<index>.wav in it; see FSDD in db.sh"
        )

    recordings = {
        (name, speaker, digit): []
        for name in STRINGS
        for speaker in sorted({speaker for speaker, _, _ in found})
        for digit in range(10)
    }
    for (speaker, digit, index), samples in sorted(found.items(), key=lambda item: item[0]):
        recordings[set_of(index), speaker, digit].append(samples)
    for (name, speaker, digit), group in recordings.items():
        if not group:
            raise UserError(
                f"{source}: speaker {speaker} has no recording of {digit} for the {name} set"
            )
    return recordings


def make_strings(recordings, name):
    """Join recordings of a set into digit strings, the same ones on every machine.

    Yields:
        (utterance id, speaker, text, samples, ends): samples is an int16 array at 8 kHz, ends are
        the samples at which the recordings of the words end.
    """
    speakers = sorted({speaker for _, speaker, _ in recordings})
    rng = np.random.default_rng([SEED, list(STRINGS).index(name)])

    def gap():
        length = rng.integers(*GAP, endpoint=True)
        return rng.integers(-GAP_NOISE, GAP_NOISE, length, np.int16, endpoint=True)

    for number in range(STRINGS[name]):
        speaker = speakers[number % len(speakers)]
        digits = rng.integers(10, size=rng.integers(*DIGITS_PER_STRING, endpoint=True))
        parts = []
        for digit in digits:
            group = recordings[name, speaker, int(digit)]
            parts += [gap(), group[rng.integers(len(group))]]
        text = " ".join(WORDS[digit] for digit in digits)
        ends = np.cumsum([len(part) for part in parts])[1::2]
        samples = np.concatenate([*parts, gap()])
        yield f"{speaker}-{name}-{number:04d}", speaker, text, samples, ends


def prepare(source, out):
    """Write data directories ``train``, ``dev`` and ``test`` with their audio below ``out``.

    Returns:
        Dict ``{set: (number of strings, hours)}``.

    Raises:
        UserError: See ``read_recordings``; nothing has been written then.
    """
    recordings = read_recordings(source)
    report = {}
    for name in STRINGS:
        folder = Path(out) / name
        tables = {"text": {}, "utt2spk": {}, "wav.scp": {}, WORD_ENDS: {}}
        seconds = 0.0
        for utt, speaker, text, samples, ends in make_strings(recordings, name):
            path = folder / "flac" / f"{utt}.flac"
            # Level 0 predicts with integers alone, so no processor's rounding gets into the file.
            flac = io.BytesIO()
            sf.write(flac, samples, SAMPLE_RATE, "PCM_16", format="FLAC", compression_level=0)
            if not path.exists() or path.read_bytes() != flac.getvalue():
                remove(folder / "wav.scp")  # without it the directory does not pass for whole
                write_atomic(path, flac.getvalue())
            tables["text"][utt] = text
            tables["utt2spk"][utt] = speaker
            tables[WORD_ENDS][utt] = " ".join(f"{end / SAMPLE_RATE:.4f}" for end in ends)
            tables["wav.scp"][utt] = str(path)
            seconds += len(samples) / SAMPLE_RATE
        write_data_dir(folder, tables)
        report[name] = (len(tables["text"]), seconds / 3600)
    return report
