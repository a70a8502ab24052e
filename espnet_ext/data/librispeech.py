"""LibriSpeech: from ``<split>/<speaker>/<chapter>/*.flac`` to the tables of a data directory."""

import os
from pathlib import Path

from espnet_ext.audio import open_audio
from espnet_ext.data import kaldi
from espnet_ext.data.download import Archive
from espnet_ext.errors import UserError
from espnet_ext.processes import parallel_map

SAMPLE_RATE = 16000
UTTERANCES = {
    "train-clean-100": 28539,
    "dev-clean": 2703,
    "dev-other": 2864,
    "test-clean": 2620,
    "test-other": 2939,
}
MIRRORS = [
    f"https://{host}/resources/12"
    for host in (
        "www.openslr.org",
        "openslr.trmal.net",
        "openslr.elda.org",
        "openslr.magicdatatech.com",
    )
]
ARCHIVES = {
    archive.name: archive
    for archive in (
        Archive("train-clean-100", 6387309499, "2a93770f6d5c6c964bc36631d331a522"),
        Archive("dev-clean", 337926286, "42e2234ba48799c1f50f24a7926300a1"),
        Archive("dev-other", 314305928, "c8d0bcc9cca99d4f8b62fcc847357931"),
        Archive("test-clean", 346663984, "32fa31d27d2e1cad72775fee3f4849a9"),
        Archive("test-other", 328757843, "fb5a50374b501bb3bac4815ee91d3135"),
    )
}


def read_genders(path):
    """Speaker -> ``"m"`` or ``"f"`` of SPEAKERS.TXT: ``id | M or F | split | minutes | name``."""
    genders = {}
    for number, line in enumerate(kaldi.read_lines(path), 1):
        if not line.strip() or line.startswith(";"):
            continue
        fields = [field.strip() for field in line.split("|")]
        if len(fields) < 2 or fields[1] not in ("M", "F"):
            raise UserError(f"{path}: line {number} is not: speaker | M or F | ...")
        genders[fields[0]] = fields[1].lower()
    return genders


def missing(split):
    """Directories ``<speaker>`` or ``<speaker>/<chapter>`` that a split lacks, sorted.

    SPEAKERS.TXT is beside the split, and CHAPTERS.TXT should be.
    """
    listed = []  # (directory, split it belongs to)
    for line in kaldi.read_lines(split.parent / "SPEAKERS.TXT"):
        if not line.startswith(";") and line.count("|") >= 2:
            speaker, _, name = line.split("|")[:3]
            listed.append((speaker.strip(), name.strip()))
    chapters = split.parent / "CHAPTERS.TXT"
    for line in kaldi.read_lines(chapters) if chapters.exists() else ():
        if not line.startswith(";") and line.count("|") >= 3:
            chapter, speaker, _, name = line.split("|")[:4]
            listed.append((f"{speaker.strip()}/{chapter.strip()}", name.strip()))
    gone = {path for path, name in listed if name == split.name and not (split / path).is_dir()}
    return sorted(path for path in gone if path.partition("/")[0] not in gone - {path})


def check_audio(path):
    """Decode a FLAC file; ``""``, or a line saying why it is no utterance of LibriSpeech."""
    try:
        file = open_audio(path)
        if (file.rate, file.channels) != (SAMPLE_RATE, 1):
            found = f"{file.rate} Hz, {file.channels} channels"
            return f"{path}: {found}; LibriSpeech has {SAMPLE_RATE} Hz, 1 channel"
        for _ in file.blocks():
            pass
        return ""
    except UserError as error:
        return str(error)


def _read_chapter(chapter, tables):
    """Add a chapter to ``wav.scp``, ``text`` and ``utt2spk``; yield its problems."""
    name = f"{chapter.parent.name}-{chapter.name}"
    transcript = chapter / f"{name}.trans.txt"
    files = {path.stem: path for path in sorted(chapter.glob("*.flac"))}
    try:
        texts = kaldi.read_scp(transcript)
    except UserError as error:
        yield f"{error}"
        return
    if not files and not texts:
        yield f"{chapter}: no utterances in it"
    for utt in sorted(files.keys() | texts.keys()):
        if utt not in files:
            yield f"{transcript}: {utt} has no {utt}.flac beside it"
        elif utt not in texts:
            yield f"{files[utt]}: {transcript.name} has no line for it"
        elif not texts[utt]:
            yield f"{transcript}: {utt} has an empty transcript"
        elif not utt.startswith(f"{name}-"):
            yield f"{files[utt]}: its name does not begin with {name}-, from its directories"
        elif utt in tables["text"]:
            yield f"{files[utt]}: the id {utt} is also that of {tables['wav.scp'][utt]}"
        else:
            tables["wav.scp"][utt] = str(files[utt])
            tables["text"][utt] = texts[utt]
            tables["utt2spk"][utt] = name


def prepare(split, check_counts=True, decode=True, nj=1):
    """Read one split of LibriSpeech. A "speaker" is one chapter, as in the published recipes.

    Args:
        split: Directory such as ``LibriSpeech/dev-clean``; SPEAKERS.TXT is beside it.
        check_counts: Whether a split in ``UTTERANCES`` must have that many.
        decode: Whether to decode every file, and to refuse what is not 16 kHz mono.
        nj: Worker processes.

    Returns:
        Tables ``wav.scp`` (absolute paths), ``text`` (as it is), ``utt2spk``, ``spk2gender``.

    Raises:
        UserError: Something is missing, double, empty or corrupt; one line per problem.
    """
    split = Path(os.path.abspath(split))
    if not split.is_dir():
        raise UserError(
            f"{split}: no such directory; get this split of LibriSpeech or correct db.sh"
        )
    genders = read_genders(split.parent / "SPEAKERS.TXT")
    tables = {"wav.scp": {}, "text": {}, "utt2spk": {}, "spk2gender": {}}
    problems = []
    for chapter in sorted(path for path in split.glob("*/*") if path.is_dir()):
        problems += _read_chapter(chapter, tables)
        speaker = chapter.parent.name
        if speaker in genders:
            tables["spk2gender"][f"{speaker}-{chapter.name}"] = genders[speaker]
        else:
            problems.append(
                f"{split.parent / 'SPEAKERS.TXT'}: the speaker {speaker} of {chapter} is not listed"
            )
    if decode:
        results = parallel_map(check_audio, list(tables["wav.scp"].values()), nj)
        problems += [problem for problem in results if problem]
    kaldi.raise_if_any(problems)

    found, expected = len(tables["text"]), UTTERANCES.get(split.name, len(tables["text"]))
    if not found:
        raise UserError(
            f"{split}: no <speaker>/<chapter>/*.flac in it; get this split of LibriSpeech again"
        )
    if check_counts and found != expected:
        count = (
            f"{split}: {found} utterances, not {expected}; get it again, "
            "or pass --check_counts false for a part of the corpus"
        )
        kaldi.raise_if_any([count, *(f"{split / path}: missing" for path in missing(split))])
    kaldi.raise_if_any(kaldi.find_problems(split, tables))
    return tables
