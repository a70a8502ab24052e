"""Read English sentences of two corpora: one native voice, and learners of English.

Kathleen (github.com/rhasspy/dataset-voice-kathleen) reads the prompts of CMU Arctic, many of them
several times, so its recordings are divided by prompt. speechocean762
(github.com/jimbozhang/speechocean762) is the test out of domain: other voices, half of them
children's, other accents and other sentences.
"""

import re
from pathlib import Path

from espnet_ext.data import corpus, kaldi
from espnet_ext.errors import UserError

NOT_SAID = re.compile("[^A-Z' ]")


def said(text):
    """Return what is said of a text: words of capital letters and apostrophes."""
    return kaldi.normal_space(NOT_SAID.sub(" ", text.upper()))


def _clone(source, repository, needed):
    """Return the directory of a corpus, or say what it has to be."""
    source = Path(source).absolute()
    if not (source / needed).exists():
        raise UserError(f"{source}: no {needed} in it: db.sh needs a clone of {repository}")
    return source


def prepare(kathleen, speechocean, out, nj=1):
    """Write Kaldi-style data directories ``train``, ``dev``, ``kathleen`` and ``speechocean``.

    Args:
        kathleen: Clone of rhasspy/dataset-voice-kathleen: a tenth of the speech each for ``dev``
            and ``kathleen``, no prompt in two sets.
        speechocean: Clone of jimbozhang/speechocean762, whose test set is ``speechocean``.
        out: Directory that receives them. The audio stays where it is.
        nj: Worker processes.

    Returns:
        Lines for a person to read.

    Raises:
        UserError: One is no such clone, or what is in it cannot be read; nothing is written then.
    """
    kathleen = _clone(kathleen, "github.com/rhasspy/dataset-voice-kathleen", "data")
    learners = _clone(speechocean, "github.com/jimbozhang/speechocean762", "test/wav.scp") / "test"
    voice = corpus.read(wavs=kathleen / "data", speaker_from="one", nj=nj)
    tables = voice.tables
    tables["utt2spk"] = dict.fromkeys(tables["text"], "kathleen")
    sets, notes = corpus.split(voice)
    tables["text"] = {utt: said(text) for utt, text in tables["text"].items()}
    other = corpus.read(data=learners, nj=nj)
    for source, found in ((kathleen, voice), (learners, other)):
        if lacking := [note for note in found.notes if note.startswith("left out")]:
            raise UserError(f"{source}: not whole: {'; '.join(lacking)}: clone it again")
    if silent := [utt for utt, text in tables["text"].items() if not text]:
        raise UserError(f"{kathleen}: no words in the text of {corpus.some(silent)}")
    for name, utts in zip(("train", "dev", "kathleen"), sets.values(), strict=True):
        kaldi.write_data_dir(Path(out) / name, kaldi.select(tables, set(utts)))
    kaldi.write_data_dir(Path(out) / "speechocean", other.tables)
    notes[-1] = notes[-1].replace("test", "kathleen", 1)
    hours = other.hours(other.seconds)
    return [*voice.notes, *notes, f"speechocean: {len(other.seconds)} utterances, {hours:.2f} h"]
