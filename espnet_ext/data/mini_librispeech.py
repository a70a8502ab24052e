"""Mini LibriSpeech: a synthetic corpus in LibriSpeech's layout, spoken by eSpeak NG.

Sentences come from a small grammar, voices from eSpeak NG's variants. No voice variant and no
sentence is in two splits. After eSpeak NG everything is computed with integers, so that no
processor's rounding gets into a sample.
"""

import _ctypes
import ctypes
import functools
import hashlib
import math
from collections import Counter
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile as sf
from scipy.signal import firwin, resample_poly

from espnet_ext import files
from espnet_ext.data.librispeech import SAMPLE_RATE
from espnet_ext.errors import UserError
from espnet_ext.processes import parallel_map

SEED = 2022
WORDS = {
    "NAME": "ANNA CLARA DAVID EMMA FRANK JACK LUCY OSCAR",
    "VERB": "CARRIED COUNTED FOUND MOVED PAINTED WASHED",
    "NUMBER": "THREE FIVE SIX SEVEN NINE TWELVE TWENTY",
    "ADJECTIVE": "BLACK BROKEN CHEAP GREEN LITTLE PURPLE WOODEN YELLOW",
    "NOUN": "BASKETS BOTTLES CHAIRS CLOCKS FLOWERS HAMMERS LAMPS PENCILS WINDOWS",
    "WHERE": "AT BEHIND NEAR UNDER",
    "PLACE": "BRIDGE CHURCH GARDEN KITCHEN RIVER SCHOOL STATION",
    "DAY": "MONDAY WEDNESDAY FRIDAY SATURDAY SUNDAY",
    "WHEN": "BEFORE AFTER",
    "MEAL": "BREAKFAST LUNCH DINNER",
    "SEASON": "SPRING SUMMER WINTER",
}
SENTENCES = (
    "NUMBER ADJECTIVE NOUN",
    "NAME VERB NUMBER NOUN",
    "NAME AND NAME WHERE THE PLACE",
    "NAME VERB THE ADJECTIVE NOUN",
    "NUMBER NOUN WHERE THE PLACE",
    "ON DAY NAME VERB NUMBER NOUN",
    "NAME VERB THE NOUN WHEN MEAL",
    "LAST SEASON NAME VERB NUMBER ADJECTIVE NOUN",
    "NAME VERB NUMBER NOUN WITH NAME ON DAY",
)
VOICES = {  # split -> gender -> eSpeak NG's voice variants
    "train-clean-100": {
        "F": "Alicia Andrea belinda f1 f3 f5 grandma steph steph3",
        "M": "Andy Denis Diogo Gene Hugo Lee Marco Michael adam antonio boris ed edward gustave "
        "iven iven3 klatt klatt3 m1 m3 m4 m5 m7 m8 marcelo michel mike2 paul pedro robert travis "
        "zac",
    },
    "dev-clean": {"F": "Annie f4", "M": "Mario benjamin m2 quincy"},
    "dev-other": {"F": "anika steph2", "M": "Nguyen RicishayMax iven4 pablo"},
    "test-clean": {"F": "f2 linda", "M": "Alex Henrique m6 rob"},
    "test-other": {"F": "aunty shelby", "M": "david max miguel victor"},
}
ACCENTS = ("en-us", "en-us", "en-us", "en", "en-gb-x-rp", "en-us-nyc")
SPEAKERS_PER_VOICE = 2  # they differ in accent, pitch, intonation and speed
CHAPTERS_PER_SPEAKER = 2
SENTENCES_PER_CHAPTER = 6
README = "Synthetic speech of eSpeak NG in the layout of LibriSpeech, made by Mini LibriSpeech"

ESPEAK_RATE = 22050
# what eSpeak NG's header calls AUDIO_OUTPUT_SYNCHRONOUS, espeakINITIALIZE_DONT_EXIT, ...
SYNCHRONOUS, DONT_EXIT, CHARS_UTF8 = 2, 0x8000, 1
PARAMETERS = {"speed": 1, "pitch": 3, "intonation": 4}

FILTER_BITS = 26


class Speaker(NamedTuple):
    """A voice of eSpeak NG and how it is set; ranges of the settings are eSpeak NG's own."""

    name: str
    gender: str
    split: str
    voice: str
    speed: int
    pitch: int
    intonation: int


class Utterance(NamedTuple):
    """A sentence of a speaker; ``number`` seeds the room it is heard in."""

    speaker: Speaker
    chapter: str
    index: int
    text: str
    number: int

    @property
    def name(self):
        return f"{self.speaker.name}-{self.chapter}-{self.index:04d}"

    @property
    def folder(self):
        return Path(self.speaker.split, self.speaker.name, self.chapter)


def _speakers(split):
    """Draw the speakers of a split."""
    number = list(VOICES).index(split) + 1
    rng = np.random.default_rng([SEED, number])
    voices = [(gender, voice) for gender, names in VOICES[split].items() for voice in names.split()]
    for n, (gender, voice) in enumerate(voices * SPEAKERS_PER_VOICE):
        yield Speaker(
            name=f"{number}{n:03d}",
            gender=gender,
            split=split,
            voice=f"{ACCENTS[rng.integers(len(ACCENTS))]}+{voice}",
            speed=int(rng.integers(140, 186)),
            pitch=int(rng.integers(35, 66)),
            intonation=int(rng.integers(30, 71)),
        )


def _sentence(rng):
    """Draw a sentence of the grammar."""
    words = []
    for word in SENTENCES[rng.integers(len(SENTENCES))].split():
        choices = WORDS.get(word, word).split()
        words.append(choices[rng.integers(len(choices))])
    return " ".join(words)


def plan():
    """Every ``Utterance`` that is to be spoken, the same on every machine; no sentence is twice."""
    rng, said, utterances = np.random.default_rng([SEED]), set(), []
    speakers = [speaker for split in VOICES for speaker in _speakers(split)]
    for speaker, chapter in product(speakers, range(1, CHAPTERS_PER_SPEAKER + 1)):
        index = 0
        while index < SENTENCES_PER_CHAPTER:
            if (text := _sentence(rng)) not in said:
                said.add(text)
                place = speaker, f"{speaker.name}{chapter}", index
                utterances.append(Utterance(*place, text, len(utterances)))
                index += 1
    return utterances


@contextmanager
def _espeak():
    """Yield a copy of eSpeak NG of one's own: one utterance leaves traces in the next."""
    try:
        import espeakng_loader
    except ImportError as error:
        raise UserError(
            "the package espeakng-loader, which speaks this corpus, is not installed: make setup"
        ) from error
    again = "install espeakng-loader again"
    try:
        library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = espeakng_loader.get_data_path()
    except (OSError, RuntimeError) as error:
        raise UserError(f"eSpeak NG cannot be loaded ({error}); {again}") from error
    try:
        if library.espeak_Initialize(SYNCHRONOUS, 0, data.encode(), DONT_EXIT) != ESPEAK_RATE:
            raise UserError(f"{data}: eSpeak NG cannot read its voices; {again}")
        yield library
        library.espeak_Terminate()
    finally:
        _ctypes.dlclose(library._handle)


def espeak_version():
    """The version of eSpeak NG, such as ``"1.52.0"``."""
    with _espeak() as library:
        library.espeak_Info.restype = ctypes.c_char_p
        return library.espeak_Info(None).decode()


def synthesize(text, speaker):
    """Words by a ``Speaker`` of eSpeak NG, int16 at 22.05 kHz; they depend on the two alone.

    Raises:
        UserError: eSpeak NG is missing or lacks the voice.
    """
    parts = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
    def receive(samples, count, _events):
        if samples and count > 0:
            parts.append(ctypes.string_at(samples, 2 * count))
        return 0

    with _espeak() as library:
        library.espeak_SetSynthCallback(receive)
        library.espeak_ng_SetRandSeed(ctypes.c_long(SEED))  # breath; otherwise seeded by the clock
        if library.espeak_SetVoiceByName(speaker.voice.encode()):
            raise UserError(
                f"eSpeak NG has no voice {speaker.voice}; install espeakng-loader again"
            )
        for name, number in PARAMETERS.items():
            library.espeak_SetParameter(number, getattr(speaker, name), 0)
        content = text.lower().encode()
        library.espeak_Synth(content, len(content) + 1, 0, 1, 0, CHARS_UTF8, None, None)
    return np.frombuffer(b"".join(parts), np.int16)


@functools.cache
def _low_pass():
    """Filter of ``to_16k``, as whole numbers: products and sums of them are exact in float64."""
    divisor = math.gcd(SAMPLE_RATE, ESPEAK_RATE)
    up, down = SAMPLE_RATE // divisor, ESPEAK_RATE // divisor
    taps = firwin(2 * 10 * max(up, down) + 1, 1 / max(up, down), window=("kaiser", 5.0))
    return up, down, np.rint(taps * 2**FILTER_BITS)


def to_16k(samples):
    """Resample int16 samples from 22.05 kHz; int64."""
    up, down, taps = _low_pass()
    filtered = resample_poly(samples.astype(np.float64), up, down, window=taps)
    return np.rint(filtered / 2**FILTER_BITS).astype(np.int64)


def in_room(samples, other, rng):
    """Put speech (int64, 16 kHz) into a room, int16 with 50 to 200 ms more at both ends.

    Args:
        samples: The speech.
        other: Whether it is a reverberant, noisy room.
        rng: Draws the room.
    """
    samples = np.pad(samples, rng.integers(800, 3201, size=2))
    if other:
        length = rng.integers(1600, 4800)  # 100 to 300 ms
        delays = rng.integers(80, length, size=40)
        gains = rng.choice([-1, 1], size=40) * 220 * (length - delays) ** 2 // length**2
        heard = samples * 1024
        for delay, gain in zip(delays, gains, strict=True):
            heard[delay:] += samples[:-delay] * gain
        samples = heard // 1024
    noise = rng.integers(-1000, 1001, size=len(samples) + 7)
    noise = np.convolve(noise, np.ones(rng.integers(1, 9), np.int64))[: len(samples)]
    ratio = rng.integers(5, 16) if other else rng.integers(30, 201)  # 14 to 24 dB, 30 to 46 dB
    energy, noise_energy = int(samples @ samples), int(noise @ noise)
    samples = samples + noise * math.isqrt(energy * 2**20 // noise_energy) // (ratio * 1024)
    level = rng.integers(6000, 20001)
    return (samples * level // np.abs(samples).max()).astype(np.int16)


def speak(utterance):
    """An ``Utterance`` as int16 samples at 16 kHz; see ``synthesize``."""
    rng = np.random.default_rng([SEED, 0, utterance.number])
    speech = to_16k(synthesize(utterance.text, utterance.speaker))
    return in_room(speech, utterance.speaker.split.endswith("other"), rng)


def _write(root, utterance):
    """Write an utterance's file; return its number of samples and their SHA-256."""
    samples = speak(utterance)
    path = root / utterance.folder / f"{utterance.name}.flac"
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path, samples, SAMPLE_RATE, "PCM_16", compression_level=0)
    return len(samples), hashlib.sha256(samples.astype("<i2").tobytes()).hexdigest()


def _write_tables(root, utterances, lengths):
    """Write transcripts and SPEAKERS.TXT."""
    texts, minutes = {}, Counter()
    for utterance, length in zip(utterances, lengths, strict=True):
        path = root / utterance.folder / f"{utterance.speaker.name}-{utterance.chapter}.trans.txt"
        texts.setdefault(path, []).append(f"{utterance.name} {utterance.text}\n")
        minutes[utterance.speaker] += length / (60 * SAMPLE_RATE)
    for path, lines in texts.items():
        path.write_text("".join(lines))
    lines = [f"; {README}.\n", ";ID  |SEX| SUBSET           |MINUTES| NAME\n"]
    for speaker, length in minutes.items():
        fields = (speaker.name, speaker.gender, f"{speaker.split:16}", f"{length:5.2f}")
        lines.append(" | ".join((*fields, f"eSpeak NG {speaker.voice}\n")))
    (root / "SPEAKERS.TXT").write_text("".join(lines))


def make(out, nj=1):
    """Write the corpus to ``<out>/LibriSpeech``; one that is there already stays.

    Returns:
        Line saying what the corpus holds, with a SHA-256 of all samples and texts.

    Raises:
        UserError: eSpeak NG is missing, or ``<out>/LibriSpeech`` was not made here.
    """
    corpus = Path(out) / "LibriSpeech"
    utterances = plan()
    identity = hashlib.sha256(f"{utterances} {espeak_version()}".encode()).hexdigest()
    readme = corpus / "README.TXT"
    files.settle(files.temporary(corpus), corpus)
    if corpus.exists():
        lines = readme.read_text().splitlines() if readme.exists() else [""]
        if lines[0] != README:
            raise UserError(f"{corpus}: not made here, so it stays; give another directory")
        if lines[1] == identity:
            return lines[2]
    with files.beside(corpus) as part:
        written = list(parallel_map(functools.partial(_write, part), utterances, nj))
        _write_tables(part, utterances, [length for length, _ in written])
        digest, minutes = hashlib.sha256(), Counter()
        for utterance, (length, samples) in zip(utterances, written, strict=True):
            digest.update(f"{utterance.name} {utterance.text} {samples}\n".encode())
            minutes[utterance.speaker.split] += length / (60 * SAMPLE_RATE)
        summary = ", ".join(f"{split} {length:.1f} min" for split, length in minutes.items())
        summary = f"{len(utterances)} utterances: {summary}; SHA-256 {digest.hexdigest()}"
        (part / "README.TXT").write_text(f"{README}\n{identity}\n{summary}\n")
        files.replace(part, corpus)
    return summary
