"""Kaldi-style data directories: tables of ``id value`` lines, sorted by bytes.

A directory is held in memory as ``{"wav.scp": {id: path}, "text": {id: words}, ...}``. ``wav.scp``
is written last, so a directory that has one is whole.
"""

import os
import re
import unicodedata
from fractions import Fraction
from pathlib import Path

from espnet_ext.errors import UserError
from espnet_ext.files import read_bytes, write_atomic, write_together

#: seconds at which each word of an utterance ends, where it is known
WORD_ENDS = "word_ends"
BY_UTTERANCE = ("text", "utt2spk", "utt2speed", "utt2num_samples", WORD_ENDS)
BY_SPEAKER = ("spk2utt", "spk2gender")
CONSTANTS = ("feats_type", "audio_format")  # one line with one word
TABLES = (*BY_UTTERANCE, *BY_SPEAKER, *CONSTANTS, "segments", "wav.scp")
REQUIRED = ("wav.scp", "text", "utt2spk")
MAX_PROBLEMS = 20


def raise_if_any(problems):
    """Raise what is wrong, if anything is: the first 20 lines of these, one per problem."""
    if problems:
        more = len(problems) - MAX_PROBLEMS
        tail = [f"... and {more} problems more"] if more > 0 else []
        raise UserError("\n".join(problems[:MAX_PROBLEMS] + tail))


def read_lines(path):
    """Lines of a UTF-8 text file, without line ends; ``UserError`` where it is none."""
    content = read_bytes(path)
    try:
        lines = content.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: byte {error.start + 1} is not UTF-8 text; iconv converts it"
        ) from error
    return lines if lines[-1] else lines[:-1]


def read_scp(path):
    """A table ``{id: value}``: the id ends at the first space, the rest of the line is the value.

    A line with an id alone has the value ``""``.

    Raises:
        UserError: The file is not readable, or a line is blank or repeats an id.
    """
    table = {}
    for number, line in enumerate(read_lines(path), 1):
        key, *value = line.rstrip().split(maxsplit=1) or [""]
        if not key:
            raise UserError(f"{path}: line {number} is blank")
        if key in table:
            raise UserError(f"{path}: line {number} repeats the id {key}")
        table[key] = value[0] if value else ""
    return table


def normal_space(text):
    """A text with one blank between words: no tab, no-break space, ideographic space, ...

    Tokens are made, models trained and errors counted on such text.
    """
    return " ".join(text.split())


def write_scp(path, table):
    """Write a table ``{id: value}``, sorted by the bytes of its ids, whole or not at all.

    An id or a value that would not be read back as it is is a ``UserError``.
    """
    write_atomic(path, _scp(path, table))


def _scp(path, table):
    """The bytes of a table; see ``write_scp``."""
    for key, value in table.items():
        if key.split() != [key]:
            raise UserError(f"{path}: the id {key!r} is empty or has a space in it")
        if value != value.strip() or "\n" in value or "\r" in value:
            raise UserError(
                f"{path}: the value {value!r} of {key} has a space at an end, or a line end"
            )
    try:  # code points sort as their UTF-8 bytes do
        return "".join(f"{key} {table[key]}".rstrip() + "\n" for key in sorted(table)).encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{path}: {error.object[error.start - 40 : error.end]!r} is not UTF-8 text"
        ) from error


def spk2utt(utt2spk):
    """Turn utterance -> speaker into speaker -> its utterances, space-separated and sorted."""
    utts = {}
    for utt in sorted(utt2spk):
        utts.setdefault(utt2spk[utt], []).append(utt)
    return {speaker: " ".join(group) for speaker, group in utts.items()}


def utterances(tables):
    """Return the utterance ids of a data directory, a dict's keys in their order."""
    return tables.get("segments", tables["wav.scp"]).keys()


def shown(text):
    """Return a text as it looks: in Unicode's form NFC, less what has no width."""
    if text.isascii():
        return text
    kinds = ((c, unicodedata.category(c)) for c in unicodedata.normalize("NFC", text))
    return normal_space("".join(c for c, kind in kinds if kind != "Cf"))


def alike(ids, others):
    """Name an id that differs from another only in what does not show; "" where there is none."""
    looks = {shown(other): other for other in others}
    for one in sorted(ids):
        if (other := looks.get(shown(one), one)) != one:
            return (
                f"{one!a} and {other!a} differ only in what does not show (byte order mark, "
                "Unicode form, blanks of no width): write both alike"
            )
    return ""


def _difference(path, expected, found, source):
    """Name the ids that a table lacks or has too many, at most one of each by name."""
    lacking, more = expected - found, found - expected
    if same := alike(more, lacking):
        yield f"{path}: {same}; the other is in {source}"
        return
    for word, ids in (("lacks", lacking), ("alone has", more)):
        if ids:
            more = f" and {len(ids) - 1} more" if len(ids) > 1 else ""
            yield f"{path}: {word} the id {min(ids)}{more}; compared with {source}"


def at_even_distances(items: list, number: int) -> list:
    """At most so many of a list, from its beginning to its end: of all speakers of a sorted one."""
    number = min(number, len(items))
    return [items[i * len(items) // number] for i in range(number)]


def read_wavs(path):
    """Read the paths of recordings by id.

    Raises:
        UserError: See ``read_scp``; or one is no path of a file.
    """
    wavs = read_scp(path)
    raise_if_any([f"{path}: {key} has no value" for key, value in wavs.items() if not value])
    raise_if_any(not_files(path, wavs))
    return wavs


def not_files(path, wavs):
    """Lines about values of ``wav.scp`` that are commands or parts of archives, one a kind."""
    kinds = {
        r".*\|": "a command: run each of them once, write what it prints to a file (COMMAND > "
        "x.wav)",
        r".*\.ark:[0-9]+(\[.*\])?": "a part of an archive: write each to a file (kaldi's wav-copy)",
    }
    problems = []
    for kind, advice in kinds.items():
        if found := [key for key, audio in wavs.items() if re.fullmatch(kind, audio)]:
            more = f" and {len(found) - 1} more" if len(found) > 1 else ""
            problems.append(f"{path}: {found[0]}{more} is {advice}, and name that in wav.scp")
    return problems


def find_problems(path, tables, on_disk=False):
    """What is wrong with the tables of a data directory, by the one set of rules that there is.

    Args:
        path: The directory, for the messages.
        tables: What ``read_data_dir`` returned.
        on_disk: Check their order as well, and that the audio files exist.

    Returns:
        Lines, one per problem.
    """
    path = Path(path)
    problems = [f"{path / name}: missing" for name in REQUIRED if name not in tables]
    for name, table in tables.items():
        if not table:
            problems.append(f"{path / name}: empty")
        if name not in ("text", *CONSTANTS):
            problems += [
                f"{path / name}: {key} has no value" for key, value in table.items() if not value
            ]
    wavs = tables.get("wav.scp", {})
    problems += not_files(path / "wav.scp", wavs)
    if problems:
        return problems

    utts = utterances(tables)
    source = "segments" if "segments" in tables else "wav.scp"
    for name in BY_UTTERANCE:
        if name in tables:
            problems += _difference(path / name, utts, tables[name].keys(), source)
    speakers = set(tables["utt2spk"].values())
    for ids in (utts, speakers):
        if same := alike(ids, ids):
            problems.append(f"{path / 'utt2spk'}: {same}")
    for name in BY_SPEAKER:
        if name in tables:
            problems += _difference(path / name, speakers, tables[name].keys(), "utt2spk")
    if not problems and tables.get("spk2utt", expected := spk2utt(tables["utt2spk"])) != expected:
        problems.append(f"{path / 'spk2utt'}: does not list the utterances of utt2spk in order")
    for speaker, gender in tables.get("spk2gender", {}).items():
        if gender not in ("m", "f"):
            problems.append(f"{path / 'spk2gender'}: {speaker} is {gender!r}, not m or f")
    for speed in sorted(set(tables.get("utt2speed", {}).values())):
        try:
            parse_speed(speed)
        except UserError as error:
            problems.append(f"{path / 'utt2speed'}: {error}")
    unknown = {}
    for utt in tables.get("segments", {}):
        try:
            recording, _, _ = parse_segment(tables, utt)
        except ValueError:
            problems.append(
                f"{path / 'segments'}: {utt} needs: recording start end (seconds, 0 <= start < end)"
            )
        else:
            if recording not in wavs:
                unknown[utt] = recording
    if same := alike(unknown.values(), wavs):
        problems.append(f"{path / 'segments'}: {same}; the other is in wav.scp")
        unknown = {}
    for utt, recording in unknown.items():
        problems.append(f"{path / 'segments'}: {utt} is cut from {recording}, which wav.scp lacks")
    if on_disk and not problems:
        for name, table in tables.items():
            if list(table) != sorted(table):
                problems.append(f"{path / name}: not sorted by bytes (LC_ALL=C sort)")
        for key, audio in wavs.items():
            if not os.path.exists(audio):
                problems.append(f"{path / 'wav.scp'}: {key}: no such file: {audio}")
    return problems


def parse_segment(tables, utt):
    """Which part of which recording an utterance is.

    Returns:
        (recording, start, end) in seconds; (utterance, None, None) without ``segments``.

    Raises:
        ValueError: Its line in ``segments`` is not a recording and two times.
    """
    if "segments" not in tables:
        return utt, None, None
    recording, start, end = tables["segments"][utt].split()
    if not 0 <= float(start) < float(end) < float("inf"):
        raise ValueError(utt)
    return recording, float(start), float(end)


def read_data_dir(path):
    """Tables ``{table: {id: value}}`` of a directory; the white space of ``text`` is normal."""
    path = Path(path)
    if not (path / "wav.scp").exists():
        raise UserError(
            f"{path}: no data directory, it has no wav.scp; run the stage that makes it"
        )
    tables = {name: read_scp(path / name) for name in TABLES if (path / name).exists()}
    for utt, words in tables.get("text", {}).items():
        tables["text"][utt] = normal_space(words)
    return tables


def write_data_dir(path, tables):
    """Write ``tables`` and their ``spk2utt``; those of an earlier run stay until all are written.

    Raises:
        UserError: The tables do not agree or cannot be written; the directory is as it was then.
    """
    path = Path(path)
    tables = tables | {"spk2utt": spk2utt(tables.get("utt2spk", {}))}
    raise_if_any(find_problems(path, tables))
    contents = {
        path / name: _scp(path / name, tables[name]) if name in tables else None for name in TABLES
    }
    write_together(contents, seal=path / "wav.scp")


def validate(path):
    """Lines about what is wrong with a data directory on disk; see ``find_problems``."""
    try:
        return find_problems(path, read_data_dir(path), on_disk=True)
    except UserError as error:
        return [str(error)]


def parse_speed(factor):
    """Exact ratio of a speed factor such as ``"0.9"``, from 0.5 to 2, two decimals at most."""
    if not re.fullmatch(r"[0-9](\.[0-9]{1,2})?", factor) or not 0.5 <= Fraction(factor) <= 2:
        raise UserError(
            f"speed factor {factor!r}: give a number from 0.5 to 2 with at most two decimals"
        )
    return Fraction(factor)


def perturb_speed(tables, factor):
    """Describe the same utterances at another speed; no audio is written, formatting does that.

    Args:
        tables: What ``read_data_dir`` returned.
        factor: Such as ``"0.9"``; above 1 is faster.

    Returns:
        Tables whose utterances and speakers are named ``sp<factor>-<id>``, with ``utt2speed``. With
        ``segments``, recordings and times stay those of the unchanged audio.

    Raises:
        UserError: The factor is out of range or the directory is perturbed already.
    """
    parse_speed(factor)
    if "utt2speed" in tables:
        raise UserError(
            f"speed factor {factor}: the utterances have a speed factor (utt2speed) already"
        )
    prefix = f"sp{factor}-"
    keyed = {"text", "utt2spk", "spk2gender", "segments" if "segments" in tables else "wav.scp"}
    out = {
        name: {prefix + key: value for key, value in tables[name].items()}
        for name in keyed & tables.keys()
    }
    out["utt2spk"] = {utt: prefix + speaker for utt, speaker in out["utt2spk"].items()}
    out.setdefault("wav.scp", tables["wav.scp"])
    out["utt2speed"] = dict.fromkeys(out["utt2spk"], factor)
    return out


def combine(directories):
    """Merge data directories, given as (path, tables), into the tables of one.

    Utterances without ``utt2speed`` get factor 1.0 when others have one.

    Raises:
        UserError: Two share an utterance or disagree about a speaker, or only some have segments.
    """
    if len({"segments" in tables for _, tables in directories}) > 1:
        raise UserError("data_combine: only some directories have segments; format them first")
    speeds = any("utt2speed" in tables for _, tables in directories)
    out, owner = {}, {}
    for path, tables in directories:
        if speeds and "utt2speed" not in tables:
            tables = tables | {"utt2speed": dict.fromkeys(utterances(tables), "1.0")}
        if shared := owner.keys() & utterances(tables):
            raise UserError(f"{path}: the utterance {min(shared)} is in {owner[min(shared)]} too")
        owner |= dict.fromkeys(utterances(tables), path)
        for name, table in tables.items():
            merged = out.setdefault(name, {})
            for key, value in table.items():
                if name != "spk2utt" and merged.setdefault(key, value) != value:
                    raise UserError(
                        f"{Path(path) / name}: {key} is {value!r}, elsewhere {merged[key]!r}"
                    )
    for name in CONSTANTS:
        if len(out.get(name, ())) > 1:
            raise UserError(f"data_combine: {name} differs: {', '.join(out[name])}")
    return out


def select(tables, keep):
    """The tables of some utterances, with their speakers and their recordings."""
    ids_of = {"spk2gender": {tables["utt2spk"][utt] for utt in keep & tables["utt2spk"].keys()}}
    if "segments" in tables:
        ids_of["wav.scp"] = {parse_segment(tables, utt)[0] for utt in keep}
    out = {}
    for name in tables.keys() - {"spk2utt"}:
        ids = tables[name] if name in CONSTANTS else ids_of.get(name, keep)
        out[name] = {key: value for key, value in tables[name].items() if key in ids}
    return out


def filter_by_length(tables, min_samples, max_samples):
    """Keep the utterances that training can use.

    Those that every table has, whose text is not empty, and min_samples < samples < max_samples.

    Returns:
        (tables, dropped): dropped is ``{reason: number of utterances}``.

    Raises:
        UserError: A table is missing, a length is not a number, or nothing is left.
    """
    needed = (*REQUIRED, "utt2num_samples")
    missing = [name for name in needed if name not in tables]
    if missing or "segments" in tables:
        reason = f"no {', no '.join(missing)}" if missing else "segments are not cut"
        raise UserError(f"{reason}: format the directory first (data_format)")
    keep = set.intersection(*(set(tables[name]) for name in needed))
    dropped = {"not in every table": len(set().union(*(tables[name] for name in needed)) - keep)}
    tests = {
        "without text": lambda utt, samples: not tables["text"][utt],
        "too short": lambda utt, samples: samples <= min_samples,
        "too long": lambda utt, samples: samples >= max_samples,
    }
    try:
        lengths = {utt: int(tables["utt2num_samples"][utt]) for utt in keep}
    except ValueError as error:
        raise UserError(f"utt2num_samples: {error}") from error
    for reason, fails in tests.items():
        failed = {utt for utt in keep if fails(utt, lengths[utt])}
        dropped[reason] = len(failed)
        keep -= failed
    if not keep:
        raise UserError(
            f"no utterance is left: {', '.join(f'{n} {why}' for why, n in dropped.items())}"
        )
    return select(tables, keep), dropped


def split_lines(path, num, prefix, suffix):
    """Split a file into parts of contiguous lines whose sizes differ by at most one.

    Parts are ``<prefix>.<n>.<suffix>``, n from 1; older ones with a larger n are removed.

    Returns:
        Number of parts: ``num``, or as many as the file has lines.

    Raises:
        UserError: ``num`` is not positive or the file is empty.
    """
    lines = read_lines(path)
    num = min(num, len(lines))
    if num < 1:
        raise UserError(f"{path}: no lines to split" if not lines else "--num: give at least 1")
    size, larger = divmod(len(lines), num)
    start = 0
    for part in range(1, num + 1):
        stop = start + size + (part <= larger)
        write_atomic(
            f"{prefix}.{part}.{suffix}", "".join(f"{line}\n" for line in lines[start:stop]).encode()
        )
        start = stop
    name = re.compile(re.escape(Path(prefix).name) + r"\.([0-9]+)\." + re.escape(suffix))
    for old in Path(prefix).parent.iterdir():
        if (match := name.fullmatch(old.name)) and int(match[1]) > num:
            old.unlink()
    return num
