"""A corpus as people keep it: recordings and a list of transcripts, or a Kaldi-style directory.

``read`` finds out what it holds, ``split`` divides it into train, dev and test. What cannot be used
is named, counted and left out; what cannot be understood is refused, with what to give instead.
"""

import csv
import hashlib
import os
import re
import unicodedata
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from espnet_ext.audio import open_audio
from espnet_ext.data import audio, kaldi
from espnet_ext.errors import UserError
from espnet_ext.processes import parallel_map

SETS = ("train", "dev", "test")
SHARE, MOST = 0.1, 5 * 3600  # of the speech, and seconds: what dev and test get each
ENOUGH = 0.6  # of the speech for train; less is said
SECONDS = (0.1, 30.0)  # utterances of a length between these are used
RULES = ("one", "directory", "field1", "field2", "field3", "field4")
AUDIO = set(".wav .flac .ogg .oga .opus .mp3 .aif .aiff .au .caf .sph .w64".split())
UNREAD = set(".m4a .mp4 .aac .wma .webm .amr .3gp".split())
FIELDS = re.compile("[-_]")
OF_SETS = ("train", "dev", "test", "valid", "eval")  # how folders begin that are no speakers
LINES = "lines of an id or file name, a tab or comma, and the"
WITHOUT = "if they do not matter, --speaker_from one splits by text"


@dataclass
class Corpus:
    """What ``read`` found.

    Attributes:
        tables: ``wav.scp`` (absolute paths), ``text``, ``utt2spk`` and perhaps ``segments``.
        seconds: Length of each utterance.
        rates: Number of recordings by sampling rate in Hz.
        sets: Utterance -> ``"train"``, ``"dev"`` or ``"test"`` where it came divided, else empty.
        notes: Lines for a person to read: what was left out, assumed or changed.
    """

    tables: dict
    seconds: dict
    rates: Counter
    sets: dict = field(default_factory=dict)
    notes: list = field(default_factory=list)

    def hours(self, utts):
        """Return the hours of some utterances."""
        return sum(self.seconds[utt] for utt in utts) / 3600


def some(ids, most=5):
    """Name the first few of many."""
    ids = sorted(ids)
    return ", ".join(ids[:most]) + (f" and {len(ids) - most} more" if len(ids) > most else "")


def bare(name):
    """Return a file name without its ending, if that is an audio file's."""
    stem, ending = os.path.splitext(name)
    return stem.rstrip() if ending.lower() in AUDIO | UNREAD else name


class Names:
    """Finds the utterance that an id, file name or path means, of ``{utterance: path or id}``."""

    def __init__(self, names):
        self._whole, self._ends = defaultdict(set), defaultdict(set)
        self.example = min(names.values())
        for utt, name in names.items():
            parts = kaldi.shown(name).split("/")
            for n in range(len(parts)):
                end = "/".join(parts[n:])
                for form in {end, bare(end)}:
                    (self._ends if n else self._whole)[form].add(utt)

    def find(self, name):
        """Return the set of utterances that a name may mean, empty if none."""
        parts = kaldi.shown(name).replace("\\", "/").removeprefix("./").split("/")
        name = "/".join(parts)
        tries = [(self._whole, name), (self._ends, name)]
        tries += [(self._whole, "/".join(parts[n:])) for n in range(1, len(parts))]
        return next((t[f] for t, n in tries for f in (n, bare(n)) if f in t), set())


def _fields(line, separator):
    """Split a line into name and value; with commas, they may be quoted as spreadsheets do."""
    if separator == "," and '"' in line:
        try:
            name, *rest = next(csv.reader([line]))
            return name.strip(), ",".join(rest)
        except csv.Error:
            pass  # too long for a spreadsheet's field: taken as it is
    name, _, value = line.strip().partition(separator)
    return name.strip(), value


def read_values(path, names, what):
    """Read a user's table: an id or file name, a tab, comma or blank, and a value in each line.

    Args:
        path: The file; which separator it has is what gives the most names of utterances.
        names: ``Names`` of the utterances.
        what: The values are called so.

    Returns:
        (values, unknown): ``{utterance: value}``, white space normal; names that mean none.

    Raises:
        UserError: No name is one, one means several utterances, or an utterance has two values.
    """
    lines = kaldi.read_lines(path)
    numbered = [(n, line.removeprefix("\ufeff")) for n, line in enumerate(lines, 1) if line.strip()]
    readings = [
        [(n, *_fields(line, separator)) for n, line in numbered] for separator in ("\t", ",", " ")
    ]
    reading = max(readings, key=lambda rows: sum(bool(names.find(name)) for _, name, _ in rows))
    values, unknown, problems = {}, [], []
    for number, name, value in reading:
        utts, value = names.find(name), kaldi.normal_space(value)
        if not utts:
            unknown.append(name)
        elif len(utts) > 1:
            problems.append(
                f"{path}: line {number}: {name} may be {some(utts, 2)}: give the path in its folder"
            )
        elif values.setdefault(min(utts), value) != value:
            problems.append(f"{path}: line {number}: {name} is there twice, with another value")
    kaldi.raise_if_any(problems)
    if not values:
        raise UserError(
            f"{path}: none of its {len(unknown)} lines begins with the name of a recording (such "
            f"as {names.example}): give {LINES} {what}"
        )
    return values, unknown


def _ids(paths):
    """Make ids without blanks from paths, as short as keeps them apart."""
    forms = (lambda p: bare(p.rsplit("/", 1)[-1]), bare, str)
    for form in forms:
        ids = {path: "_".join(form(path).replace("/", "-").split()) for path in paths}
        if len(set(ids.values())) == len(paths):
            return {utt: path for path, utt in ids.items()}
    twice = Counter(ids.values()).most_common(1)[0][0]
    same = [path for path in paths if ids[path] == twice]
    raise UserError(f"{same[0]}, {same[1]}: names too much alike: rename one")


def _read_folder(wavs, text):
    """Return the tables of a folder of recordings, their paths below it, and notes."""
    wavs = Path(wavs).absolute()
    if not os.path.isdir(wavs):
        raise UserError(f"{wavs}: no such directory: --wavs is the folder of the recordings")
    found = defaultdict(list)
    for path in sorted(wavs.rglob("*")):
        if not path.name.startswith(".") and os.path.isfile(path):
            found[path.suffix.lower()].append(path.relative_to(wavs).as_posix())
    files = [path for kind in sorted(AUDIO & found.keys()) for path in found[kind]]
    if not files:
        unread = sorted(UNREAD & found.keys())
        hint = f"; ffmpeg turns {unread[0]} into .wav" if unread else ""
        raise UserError(f"{wavs}: no recordings ({' '.join(sorted(AUDIO))}) in it{hint}")
    paths = _ids(files)
    if text:
        texts, unknown = read_values(text, Names(paths), "transcript")
    else:
        beside = {utt: (wavs / path).with_suffix(".txt") for utt, path in paths.items()}
        texts = {
            utt: " ".join(kaldi.read_lines(p)).removeprefix("\ufeff")
            for utt, p in beside.items()
            if os.path.isfile(p)
        }
        unknown = []
        if not texts:
            raise UserError(
                f"{wavs}: no .txt beside any recording: give --text FILE, {LINES} transcript"
            )
    tables = {"wav.scp": {utt: str(wavs / path) for utt, path in paths.items()}, "text": texts}
    return tables, paths, unknown


def _read_kaldi(path):
    """Return the tables of a Kaldi-style directory with absolute paths, and texts without audio."""
    path = Path(path).absolute()
    tables = kaldi.read_data_dir(path)
    kaldi.raise_if_any(kaldi.not_files(path / "wav.scp", tables["wav.scp"]))
    wavs = tables["wav.scp"]
    for base in (path, *path.parents):  # as seen from where its paths were written
        there = {reco: str(base / wav) for reco, wav in wavs.items() if os.path.isfile(base / wav)}
        if there:
            break
    else:
        first = next(iter(wavs.items()), ("nothing", ""))
        raise UserError(
            f"{path / 'wav.scp'}: {first[0]}: no such file: {first[1]}, seen from {path} or from a "
            "directory above it: write absolute paths"
        )
    times = Counter(there.values())
    audio.refuse_channels(path, there, {reco for reco, wav in there.items() if times[wav] > 1})
    tables = {name: tables[name] for name in ("text", "utt2spk", "segments") if name in tables}
    if "segments" in tables:
        problems, kept = [], {}
        for utt, line in tables["segments"].items():
            try:
                reco, _, _ = kaldi.parse_segment(tables, utt)
            except ValueError:
                problems.append(f"{path / 'segments'}: {utt} needs: recording start end (seconds)")
                continue
            if reco in there:
                kept[utt] = line
        kaldi.raise_if_any(problems)
        tables["segments"] = kept
    tables["wav.scp"] = there
    if "text" not in tables:
        raise UserError(f"{path / 'text'}: missing: lines of an utterance and its transcript")
    return tables, tables["text"].keys() - kaldi.utterances(tables)


def _probe(path):
    """Return rate in Hz, number of channels and seconds of a file, or what is wrong with it."""
    try:
        file = open_audio(path, empty=True)
        return file.rate, file.channels, file.length() / file.rate
    except UserError as error:
        return str(error)


def _speakers(paths, how):
    """Utterance -> speaker by one of ``RULES``, where it applies."""
    if how == "one":
        return dict.fromkeys(paths, "speaker")
    if how == "directory":
        return {utt: path.split("/")[0] for utt, path in paths.items() if "/" in path}
    number = int(how.removeprefix("field")) - 1
    fields = {utt: FIELDS.split(bare(path.rsplit("/", 1)[-1])) for utt, path in paths.items()}
    return {utt: f[number] for utt, f in fields.items() if number < len(f) - 1 and f[number]}


def _find_speakers(paths, source, given, speakers, speaker_from):
    """Return utterance -> speaker and a note, or refuse with what there is to choose from."""
    if speakers:
        found, _ = read_values(speakers, Names(paths), "speaker")
        what = speakers
    elif speaker_from:
        found, what = _speakers(paths, speaker_from), f"--speaker_from {speaker_from}"
    elif given:
        found, what = given, f"{source}: utt2spk"
    else:
        found, what = _speakers(paths, "directory"), "the directories"
        names = set(found.values())
        if len(found) < len(paths) or len(names) < 3 or any(n.startswith(OF_SETS) for n in names):
            found = {}
    if found:
        if lacking := paths.keys() - {utt for utt, speaker in found.items() if speaker}:
            raise UserError(f"{what}: no speaker for {some(lacking)}")
        found = {utt: "_".join(found[utt].split()) for utt in paths}
        several = len(set(found.values())) < len(paths)  # else ids stand for unknown speakers
        if several or speakers or speaker_from or len(paths) < 2:
            return found, f"speakers: {len(set(found.values()))} ({what})"
    choices = []
    for how in RULES[1:]:
        rule = _speakers(paths, how)
        if len(rule) == len(paths) and 1 < len(names := set(rule.values())) < len(paths):
            choices.append(f"{how} ({len(names)}: {some(names, 3)})")
    rules = f"; or --speaker_from {' | '.join(choices)}" if choices else ""
    raise UserError(
        f"{source}: cannot tell who speaks, and a test needs speakers that training has not heard: "
        f"give --speakers FILE ({LINES} speaker){rules}; {WITHOUT}"
    )


def _read_any(wavs, text, data):
    """Return tables, paths, sets, and texts without recordings, of whatever was given."""
    if wavs:
        tables, paths, unknown = _read_folder(wavs, text)
        return tables, paths, {}, unknown
    if os.path.exists(Path(data) / "wav.scp"):
        tables, unknown = _read_kaldi(data)
        return tables, {utt: utt for utt in kaldi.utterances(tables)}, {}, unknown
    parts = [Path(data) / name for name in SETS]
    lacking = {part.name for part in parts if not os.path.exists(part / "wav.scp")}
    if lacking - {"dev"}:
        raise UserError(
            f"{data}: no wav.scp in it, nor in {some(name + '/' for name in lacking)}: --data is a "
            "Kaldi-style directory, or holds some: train, test and, unless training is to give of "
            "its own, dev"
        )
    parts = [part for part in parts if part.name not in lacking]
    read = [(part, *_read_kaldi(part)) for part in parts]
    tables = kaldi.combine([(part, tables) for part, tables, _ in read])
    sets = {utt: part.name for part, tables, _ in read for utt in kaldi.utterances(tables)}
    return tables, {utt: utt for utt in sets}, sets, [utt for *_, more in read for utt in more]


def read(wavs=None, text=None, data=None, speakers=None, speaker_from=None, nj=1):
    """Find out what a corpus holds; every file is opened, none is written.

    Args:
        wavs: Directory of recordings, in any depth.
        text: Their transcripts, see ``read_values``; ``None``: a ``.txt`` beside each recording.
        data: In place of both, a Kaldi-style directory, or one that holds ``train``, ``test``
            and perhaps ``dev``.
        speakers: File that says who speaks, see ``read_values``.
        speaker_from: In place of it ``"directory"`` (the first below ``wavs``), ``"field<n>"`` (of
            the file name, split at ``-`` and ``_``) or ``"one"``.
        nj: Worker processes.

    Returns:
        ``Corpus``.

    Raises:
        UserError: Something in it cannot be understood or read, or nothing can be used.
    """
    source = Path(wavs or data).absolute()
    tables, paths, sets, unknown = _read_any(wavs, text, data)
    notes = []

    def leave_out(utts, why):
        if utts:
            notes.append(f"left out, {why}: {len(utts)} ({some(utts)})")

    texts = {
        utt: kaldi.normal_space(unicodedata.normalize("NFKC", words))
        for utt, words in tables["text"].items()
    }
    changed = sum(texts[utt] != kaldi.normal_space(words) for utt, words in tables["text"].items())
    if changed:
        notes.append(f"texts with other characters in Unicode's form NFKC, now in it: {changed}")
    silent = {utt for utt in paths if not texts.get(utt)}
    if same := kaldi.alike(unknown, silent):
        raise UserError(f"{source}: {same}")
    leave_out(list(unknown), "texts without a recording")
    leave_out(silent, "recordings without text")
    keep = paths.keys() - silent

    segments = {utt: kaldi.parse_segment(tables, utt) for utt in sorted(keep)}
    files = {reco: tables["wav.scp"][reco] for reco, _, _ in segments.values()}
    probed = dict(zip(files, parallel_map(_probe, list(files.values()), nj), strict=True))
    kaldi.raise_if_any([problem for problem in probed.values() if isinstance(problem, str)])
    seconds, problems = {}, []
    for utt, (reco, start, end) in segments.items():
        length = probed[reco][2]
        seconds[utt] = length if end is None else end - start
        if end is not None and end > length + audio.OVERRUN:
            problems.append(
                f"{source}: segments: {utt} ends at {end} s, {files[reco]} at {length:.2f} s"
            )
    kaldi.raise_if_any(problems)
    short = {utt for utt in keep if not seconds[utt] > SECONDS[0]}
    leave_out(short, f"shorter than {SECONDS[0]} s")
    long = {utt for utt in keep if not seconds[utt] < SECONDS[1]}
    leave_out(long, f"longer than {SECONDS[1]:g} s, cut them and list the pieces in segments")
    keep = keep - short - long
    if not keep:
        raise UserError(f"{source}: nothing is left: {'; '.join(notes)}")
    used = [probed[reco] for reco in {segments[utt][0] for utt in keep}]
    if mixed := sum(channels > 1 for _, channels, _ in used):
        notes.append(
            f"recordings of several channels, which are averaged: {mixed} (where each channel is a "
            "speaker, write each to a file first)"
        )

    kept = {utt: paths[utt] for utt in sorted(keep)}
    tables["text"] = {utt: texts[utt] for utt in kept}
    given = {utt: tables["utt2spk"][utt] for utt in kept if utt in tables.get("utt2spk", ())}
    if "dev" in sets.values() and not (given or speakers or speaker_from):
        tables["utt2spk"] = {utt: utt for utt in kept}
    else:
        tables["utt2spk"], note = _find_speakers(kept, source, given, speakers, speaker_from)
        notes.append(note)
    return Corpus(
        kaldi.select(tables, kept.keys()),
        {utt: seconds[utt] for utt in kept},
        Counter(rate for rate, _, _ in used),
        {utt: sets[utt] for utt in kept if sets},
        notes,
    )


def prompt(text):
    """Return what two readings of one sentence share: its letters, in lower case."""
    return "".join(c for c in text.casefold() if c.isalnum()) or text


def assign(seconds, names=("test", "dev")):
    """Divide groups into train and other sets so that those get a tenth each, always the same.

    Args:
        seconds: Dict ``{group: seconds}`` of more groups than there are names.
        names: Sets beside train.

    Returns:
        Dict ``{group: set}``; no set is empty, and the largest group is in train.
    """
    target = min(SHARE * sum(seconds.values()), MOST)
    drawn = sorted(seconds, key=lambda group: hashlib.sha1(group.encode("utf-8")).digest())
    free = [group for group in drawn if group != max(drawn, key=seconds.get)]
    sets = dict.fromkeys(seconds, "train")
    for later, name in reversed(list(enumerate(reversed(names)))):
        taken = 0.0
        for group in list(free):
            if taken < target and taken + seconds[group] <= 1.5 * target and len(free) > later:
                sets[group] = name
                free.remove(group)
                taken += seconds[group]
        if not taken:
            smallest = min(free, key=seconds.get)
            sets[smallest] = name
            free.remove(smallest)
    return sets


def split(corpus):
    """Divide a corpus: by speaker, or by text where there are fewer than three speakers.

    One that came divided stays so, and gives to dev, if that is not there, of train alone.

    Returns:
        (sets, notes): ``{"train": utterances, "dev": ..., "test": ...}``, sorted; lines for a
        person to read.

    Raises:
        UserError: There are fewer than three speakers and fewer than three texts, or one of the
            sets that it came in is empty.
    """
    texts, speakers = corpus.tables["text"], corpus.tables["utt2spk"]
    chosen = {utt: corpus.sets.get(utt, "train") for utt in texts}
    notes, made = [], ["test", "dev"]
    if corpus.sets:
        made = [] if "dev" in corpus.sets.values() else ["dev"]
        notes.append("divided as it came" + (", but for dev, taken from train" if made else ""))
    if made:
        free = [utt for utt in texts if chosen[utt] == "train"]
        n_speaker = len({speakers[utt] for utt in free})
        by_speaker = n_speaker > len(made)
        group = {utt: speakers[utt] if by_speaker else prompt(texts[utt]) for utt in free}
        seconds = Counter()
        for utt in free:
            seconds[group[utt]] += corpus.seconds[utt]
        parts = "train, dev and test need three" if len(made) > 1 else "train and dev need two"
        if len(seconds) <= len(made):
            raise UserError(
                f"speakers: {n_speaker}, different texts: {len(seconds)}; {parts} of "
                "either: give more recordings"
            )
        of_group = assign(seconds, made)
        chosen |= {utt: of_group[group[utt]] for utt in free}
        notes.append(
            "split by speaker: each is in one set"
            if by_speaker
            else f"split by text, as {n_speaker} speaker{'s are' if n_speaker > 1 else ' is'} too "
            f"few to split by: each text is in one set, and the speakers of {made[0]} are heard in "
            "training"
        )
    sets = {name: sorted(utt for utt in chosen if chosen[utt] == name) for name in SETS}
    if empty := [name for name in SETS if not sets[name]]:
        raise UserError(f"{empty[0]}: no utterance of it can be used: {'; '.join(corpus.notes)}")
    share = corpus.hours(sets["train"]) / corpus.hours(chosen)
    if not corpus.sets and by_speaker and share < ENOUGH:
        notes.append(
            f"train has {share:.0%} of the speech, for want of speakers: --speaker_from one "
            "divides by text"
        )
    words = {word for utt in sets["train"] for word in texts[utt].split()}
    prompts = {prompt(texts[utt]) for utt in sets["train"]}
    for name, utts in sets.items():
        line = f"{name}: {len(utts)} utterances, {corpus.hours(utts):.2f} h, "
        line += f"speakers: {len({speakers[utt] for utt in utts})}"
        if name != "train":
            running = [word for utt in utts for word in texts[utt].split()]
            new = sum(word not in words for word in running) / len(running)
            unread = sum(prompt(texts[utt]) not in prompts for utt in utts) / len(utts)
            heard = {speakers[utt] for utt in utts} & {speakers[utt] for utt in sets["train"]}
            line += f" ({len(heard)} of them in train), not in train: {new:.0%} of its words, "
            line += f"{unread:.0%} of its texts"
        notes.append(line)
    return sets, notes


def prepare(corpus, out):
    """Divide a corpus and write its sets below ``out``; returns what ``split`` does."""
    sets, notes = split(corpus)
    for name, utts in sets.items():
        kaldi.write_data_dir(Path(out) / name, kaldi.select(corpus.tables, set(utts)))
    return sets, [*corpus.notes, *notes]
