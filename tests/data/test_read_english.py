"""Two corpora of read English: what gets into which set, and what a wrong directory says."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from commands import run_stage_1
from espnet_ext.bin.data_prep_read_english import main
from espnet_ext.data.kaldi import read_data_dir, validate

REPO = Path(__file__).resolve().parents[2]
PROMPTS = [f"Mister {word}-like, don't go" for word in "ash bay cow day elm fog gum hay".split()]


@pytest.fixture
def corpora(tmp_path):
    """Both layouts: eight prompts with two takes each, and two utterances by learners."""
    kathleen, learners = tmp_path / "my kathleen", tmp_path / "speechocean762"
    (kathleen / "data").mkdir(parents=True)
    for number, text in enumerate(PROMPTS, 1):
        for take in (1592748574, 1592748585):
            path = kathleen / f"data/arctic_a{number:04d}_{take}.wav"
            sf.write(path, np.full((24000, 2), take % 100, np.int16), 48000)
            # some of the takes lack the line's end, and punctuation differs between takes
            path.with_suffix(".txt").write_text(text + ("." if take % 2 else ".\n"))
    for part, speaker in (("train", "0001"), ("test", "0003")):
        (learners / part).mkdir(parents=True)
        folder = learners / f"WAVE/SPEAKER{speaker}"
        folder.mkdir(parents=True)
        tables = {"wav.scp": "", "text": "", "utt2spk": ""}
        for utt in (f"0{speaker}0011", f"0{speaker}0035"):
            sf.write(folder / f"{utt}.WAV", np.full(8000, 9, np.int16), 16000, format="WAV")
            tables["wav.scp"] += f"{utt}\tWAVE/SPEAKER{speaker}/{utt}.WAV\n"
            tables["text"] += f"{utt}\tWE CALL IT BEAR\n"
            tables["utt2spk"] += f"{utt}\t{speaker}\n"
        for name, content in tables.items():
            (learners / part / name).write_text(content)
        (learners / part / "spk2age").write_text(f"{speaker}\t6\n")
    return kathleen, learners


def prepare(corpora, out):
    main(["--nj", "1", *map(str, corpora), str(out)])
    return {name: read_data_dir(out / name) for name in ("train", "dev", "kathleen", "speechocean")}


def test_takes_of_a_prompt_stay_together(corpora, tmp_path):
    sets = prepare(corpora, tmp_path / "data")
    of_voice = [set(sets[name]["text"].values()) for name in ("train", "dev", "kathleen")]
    assert len(set().union(*of_voice)) == sum(map(len, of_voice)) == len(PROMPTS)
    assert all(of_voice)
    utts = [utt for name in ("train", "dev", "kathleen") for utt in sets[name]["text"]]
    assert len(utts) == len(set(utts)) == 2 * len(PROMPTS)


def test_sets_are_sound_and_hold_what_is_said(corpora, tmp_path):
    sets = prepare(corpora, tmp_path / "data")
    texts = {text for name in ("train", "dev", "kathleen") for text in sets[name]["text"].values()}
    assert "MISTER ASH LIKE DON'T GO" in texts
    assert sets["speechocean"]["text"] == {
        "000030011": "WE CALL IT BEAR",
        "000030035": "WE CALL IT BEAR",
    }
    assert set(sets["speechocean"]["utt2spk"].values()) == {"0003"}
    for name, tables in sets.items():
        assert validate(tmp_path / "data" / name) == []
        assert all(Path(wav).is_file() for wav in tables["wav.scp"].values())


def test_data_is_the_same_wherever_the_clones_are(corpora, tmp_path):
    sets = prepare(corpora, tmp_path / "data")
    moved = [shutil.move(path, tmp_path / f"moved {path.name}") for path in corpora]
    again = prepare(moved, tmp_path / "again")
    for tables in (*sets.values(), *again.values()):
        del tables["wav.scp"]
    assert again == sets


def no_words(kathleen, learners):
    (kathleen / "data/arctic_a0003_1592748585.txt").write_text("...")


def cut(kathleen, learners):
    path = kathleen / "data/arctic_a0003_1592748585.wav"
    path.write_bytes(path.read_bytes()[:30])


def silent(kathleen, learners):
    (kathleen / "data/arctic_a0003_1592748585.txt").unlink()


def absent(kathleen, learners):
    next((learners / "WAVE/SPEAKER0003").iterdir()).unlink()


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda k, s: shutil.rmtree(k / "data"), "github.com/rhasspy/dataset-voice-kathleen"),
        (lambda k, s: shutil.rmtree(s / "test"), "github.com/jimbozhang/speechocean762"),
        (no_words, "arctic_a0003_1592748585"),
        (cut, "arctic_a0003_1592748585.wav"),
        (silent, "arctic_a0003_1592748585"),
        (absent, "not whole: left out, texts without a recording: 1 (000030"),
    ],
    ids=["not Kathleen", "not speechocean762", "no words", "cut", "silent", "absent"],
)
def test_broken_corpus_is_named_in_one_line(corpora, tmp_path, capsys, damage, message):
    damage(*corpora)
    with pytest.raises(SystemExit) as stop:
        prepare(corpora, tmp_path / "data")
    assert stop.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line and not (tmp_path / "data").exists()


def test_recipe_reads_the_corpora_relative_to_db_sh(corpora, tmp_path):
    places = "KATHLEEN='my kathleen'\nSPEECHOCEAN762=speechocean762\n"
    recipe, done = run_stage_1("read_english", tmp_path, places, "--nj", "1")
    assert done.returncode == 0, done.stderr
    wav = read_data_dir(recipe / "data/speechocean")["wav.scp"]
    assert len(wav) == 2 and all((recipe / path).is_file() for path in wav.values())


@pytest.mark.parametrize("name", ["KATHLEEN", "SPEECHOCEAN762"])
def test_recipe_without_a_corpus_says_what_to_fill_in(corpora, tmp_path, name):
    places = {"KATHLEEN": "'my kathleen'", "SPEECHOCEAN762": "speechocean762"} | {name: ""}
    db = "".join(f"{k}={v}\n" for k, v in places.items())
    _, done = run_stage_1("read_english", tmp_path, db)
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert f"{name} is empty: set it in db.sh" in line
