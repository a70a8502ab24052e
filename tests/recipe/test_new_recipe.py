"""new-recipe: corpora as users bring them, to a recipe that gives a word error rate."""

import os
import re
import shutil
import stat
import subprocess
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from copies import ROOT, copy_recipe, make_tree, run
from espnet_ext.bin import data_prep_corpus, new_recipe
from espnet_ext.data import corpus, kaldi, recipe
from espnet_ext.errors import UserError

WORDS = re.findall("[a-z]+", " ".join(p.read_text() for p in sorted(ROOT.glob("docs/*.md"))))
ENGLISH = [" ".join(WORDS[n : n + 8]) for n in range(0, len(WORDS), 8)]
GREEK = ["καλημέρα σας", "τι κάνεις", "όλα καλά", "αύριο πάλι"]


def record(path, seconds=0.5, rate=44100, channels=2):
    """Write noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(len(path.name)).normal(0, 0.1, (int(seconds * rate), channels))
    sf.write(path, samples, rate)
    return path


def lines(path, rows, separator="\t"):
    path.write_text("".join(f"{separator.join(row)}\n" for row in rows), "utf-8")
    return path


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A clone of the repository, in which the command works."""
    root = tmp_path / "clone"
    root.mkdir()
    make_tree(root)
    monkeypatch.setattr(new_recipe, "ROOT", root)
    monkeypatch.chdir(tmp_path)
    return root


def simple(folder, speakers="abc", n=2, **audio):
    """A small corpus: wavs/<speaker>_<n>.wav and text.csv."""
    rows = [(f"{s}_{i}.wav", f"word {s} {i}") for s in speakers for i in range(n)]
    for name, _ in rows:
        record(folder / "wavs" / name, **{"rate": 16000, "channels": 1, **audio})
    return lines(folder / "text.csv", rows, ",")


SIMPLE = ["--wavs", "wavs", "--text", "text.csv", "--nj", "1"]


def written(tree):
    return sorted(p.name for p in (tree / "egs2").iterdir())


# A corpus that nobody prepared, through every stage


@pytest.fixture(scope="module")
def greek(tmp_path_factory):
    """Stereo at 44.1 kHz, Greek names and words, tabs, texts and recordings that lack the other."""
    root = tmp_path_factory.mktemp("clone") / "it's $HOME @HOURS@"
    root.mkdir()
    make_tree(root)
    (root / "local").mkdir()
    shutil.copy(ROOT / "local/new_recipe.sh", root / "local")
    rows = []
    for speaker in ("Άννα", "Νίκος", "eleni", "ary"):
        for number, words in enumerate(GREEK):
            name = f"{speaker}-{number} x"
            record(root / "φωνές" / unicodedata.normalize("NFD", f"{name}.WAV"), 0.7 + number / 10)
            rows.append((f"{name}.wav", words.replace(" ", "\u00a0\t")))
    record(root / "φωνές/ary-4.wav")
    record(root / "φωνές/ary-5.wav")
    record(root / "φωνές/ary-6.wav", 0)
    rows += [("ary-5.wav", ""), ("ary-6", "τίποτα"), ("lost-1.wav", "χαμένο")]
    lines(root / "κείμενα.tsv", rows)
    options = ["--wavs", "φωνές", "--text", "κείμενα.tsv", "--speaker_from", "field1"]
    done = subprocess.run(
        ["local/new_recipe.sh", "greek", *options], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return root / "egs2/greek/asr1", done.stdout


def test_own_corpus_goes_through_every_stage_to_an_error_rate(greek):
    directory, _ = greek
    options = ["--nj", "1", "--inference_nj", "1", "--speed_perturb_factors", "1.0 1.1"]
    options += ["--asr_config", "conf/train_asr_conformer_mla.yaml"]
    options += ["--asr_args", "--max_epoch 1 --num_workers 0 --encoder_conf num_blocks=1"]
    options += ["--inference_args", "--beam_size 2 --maxlenratio -5", "--stop_stage", "13"]
    done = run(directory, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\|decode_asr\S*/test\|4\|8\|", done.stdout)
    rates = {sf.info(p).samplerate for p in (directory / "dump/raw/test/data").iterdir()}
    assert rates == {16000}
    tokens = (directory / "data/token_list/char/tokens.txt").read_text("utf-8").split("\n")
    assert {"ύ", "κ", "<space>"} <= set(tokens)
    sets = [kaldi.read_data_dir(directory / "data" / name) for name in corpus.SETS]
    assert [len(tables["text"]) for tables in sets] == [8, 4, 4]
    speakers = [set(tables["utt2spk"].values()) for tables in sets]
    assert len(set.union(*speakers)) == 4 == sum(map(len, speakers))
    assert set(sets[2]["text"].values()) == set(GREEK)


def test_own_corpus_is_told_what_was_left_out_and_assumed(greek):
    _, said = greek
    assert "left out, texts without a recording: 1 (lost-1.wav)\n" in said
    assert "left out, recordings without text: 2 (ary-4, ary-5)\n" in said
    assert "left out, shorter than 0.1 s: 1 (ary-6)\n" in said
    assert "averaged: 16 (" in said and "recordings: 16 of 44100 Hz" in said
    assert "speakers: 4 (--speaker_from field1)\n" in said and "split by speaker" in said
    assert "train has 50% of the speech, for want of speakers: --speaker_from one" in said
    assert "test: 4 utterances, 0.00 h, speakers: 1 (0 of them in train), not in train: 0% " in said


def test_recipe_is_complete_and_can_be_run(greek):
    directory, _ = greek
    template = ROOT / recipe.TEMPLATE
    expected = {p.relative_to(template) for p in template.rglob("*") if p.is_file()}
    models = {
        Path(f"conf/train_asr_{encoder}_{attention}.yaml")
        for encoder in recipe.ENCODERS
        for attention in recipe.ATTENTIONS
    }
    found = {p for p in expected - {Path("conf/train_asr.yaml")} | models}
    assert all((directory / path).is_file() for path in found)
    for name in ("run.sh", "local/data.sh"):
        assert os.access(directory / name, os.X_OK)
        subprocess.run(["bash", "-n", directory / name], check=True)
    assert stat.S_IMODE(directory.parent.stat().st_mode) == stat.S_IMODE(
        (ROOT / "egs2").stat().st_mode
    )
    assert not [p for p in found if recipe.WORD.search((directory / p).read_text("utf-8"))
                and p.name != "db.sh"]  # fmt: skip
    shown = run(directory, "--help").stderr
    assert "--fs " in shown and "(default: 16k)" in shown


# What the recipe holds


@pytest.mark.parametrize("hertz", [8000, 16000])
@pytest.mark.parametrize("hours", [0.5, 30, 300])
def test_models_of_every_size_build_and_stream_and_differ_in_attention_alone(tree, hours, hertz):
    from espnet2.tasks.asr import ASRTask

    words = recipe.values("x", hours, hertz, "char", 30)
    directory = recipe.write(tree, "x", {"wavs": "/a"}, words)
    sizes = []
    for encoder in recipe.ENCODERS:
        rest = []
        for attention in recipe.ATTENTIONS:
            path = directory / f"conf/train_asr_{encoder}_{attention}.yaml"
            config = yaml.safe_load(path.read_text())
            assert config["encoder"] == f"kv_{encoder}"
            conf = config["encoder_conf"]
            assert conf["causal"] is True and conf["dynamic_chunk"] is True
            assert conf.pop("attention") == attention
            conf.pop("attention_conf")
            rest.append(config)
            options = ["--config", str(path), "--output_dir", "x", "--token_type", "char"]
            args = ASRTask.get_parser().parse_args([*options, "--frontend_conf", f"fs={hertz}"])
            args.token_list, args.normalize = ["<blank>", "<unk>", "a", "<sos/eos>"], None
            with torch.device("meta"):
                sizes.append(sum(p.numel() for p in ASRTask.build_model(args).parameters()))
        assert all(config == rest[0] for config in rest)
    least, most = {0.5: (0.5e6, 2e6), 30: (2e6, 9e6), 300: (15e6, 45e6)}[hours]
    assert all(least < size < most for size in sizes), sizes


def test_more_speech_means_fewer_epochs_and_no_fewer_steps():
    words = [recipe.values("x", hours, 16000, "char", 30) for hours in (0.01, 0.3, 0.7, 4, 30, 500)]
    epochs = [found["EPOCHS"] for found in words[:4]]
    assert epochs == sorted(epochs, reverse=True) and epochs[0] == 80 and epochs[3] < 30
    steps = [found["STEPS"] for found in words]
    assert steps == sorted(steps)


@pytest.mark.parametrize(
    "texts, hours, expected",
    [
        (["καλημέρα σας"] * 9, 1, ("char", 10)),
        (["我们今天去北京"] * 9, 300, ("char", 7)),
        (["привет как дела"] * 9, 30, ("char", 11)),  # too little text for 500 pieces
        (ENGLISH, 5, ("char", 27)),
        (ENGLISH, 30, ("bpe", 500)),
    ],
    ids=["greek", "chinese", "russian", "little", "much"],
)
def test_tokens_fit_script_and_amount(texts, hours, expected):
    assert recipe.choose_tokens(texts, hours) == expected


def test_rate_is_the_lower_one_where_more_than_a_few_need_it():
    assert recipe.rate({44100: 5, 16000: 1}) == recipe.rate({48000: 90, 8000: 10}) == 16000
    assert recipe.rate({48000: 5, 8000: 1}) == recipe.rate({11025: 1}) == 8000


# Reading


def read(folder, **options):
    return corpus.read(**{"wavs": folder / "wavs", "text": folder / "text.csv", **options})


@pytest.mark.parametrize("separator", ["\t", ",", " "])
@pytest.mark.parametrize(
    "form", ["{}", "{}.wav", "{}.mp3", "wavs/{}.wav", "./{}.wav", "/elsewhere/wavs/{}.wav", "\\{}"]
)
def test_names_and_separators_are_understood(tmp_path, form, separator):
    simple(tmp_path)
    rows = [(form.format(f"{s}_{i}"), f"WORD, {s}{i}") for s in "abc" for i in range(2)]
    lines(tmp_path / "text.csv", rows, separator)
    found = read(tmp_path, speaker_from="field1")
    assert found.tables["text"] == {f"{s}_{i}": f"WORD, {s}{i}" for s in "abc" for i in range(2)}
    assert found.tables["utt2spk"]["b_1"] == "b"


def test_spreadsheets_quotes_byte_order_mark_and_line_ends_are_understood(tmp_path):
    simple(tmp_path)
    rows = "".join(f'{s}_{i},"say ""{s}"", {i}"\r\n' for s in "abc" for i in range(2))
    (tmp_path / "text.csv").write_bytes(b"\xef\xbb\xbf" + rows.encode())
    assert read(tmp_path, speaker_from="field1").tables["text"]["a_0"] == 'say "a", 0'


def test_text_beside_each_recording_is_read(tmp_path):
    simple(tmp_path)
    for path in (tmp_path / "wavs").iterdir():
        path.with_suffix(".txt").write_text(f"TEXT OF\n{path.stem}\n")
    found = read(tmp_path, text=None, speaker_from="field1")
    assert found.tables["text"]["c_1"] == "TEXT OF c_1"


def test_folders_are_speakers_unless_they_are_sets_or_say_otherwise(tmp_path):
    rows = [(f"{s}/{i}", f"{s} {i}") for s in ("p 1", "p2", "p3") for i in range(2)]
    for name, _ in rows:
        record(tmp_path / "wavs" / f"{name}.flac", rate=16000)
    lines(tmp_path / "text.csv", rows, ",")
    found = read(tmp_path)
    assert found.tables["utt2spk"]["p_1-0"] == "p_1"
    assert set(read(tmp_path, speaker_from="one").tables["utt2spk"].values()) == {"speaker"}
    for name in ("p 1", "p2", "p3"):
        (tmp_path / "wavs" / name).rename(tmp_path / "wavs" / f"train-{name}")
    lines(tmp_path / "text.csv", [(f"train-{name}", words) for name, words in rows], ",")
    with pytest.raises(UserError, match=r"cannot tell who speaks.*--speaker_from directory \(3: "):
        read(tmp_path)


def test_speaker_map_names_files_as_texts_do(tmp_path):
    simple(tmp_path, speakers="abcd")
    speakers = lines(
        tmp_path / "who", [(f"{s}_{i}.wav", f"Ms {s}") for s in "abcd" for i in (0, 1)]
    )
    assert read(tmp_path, speakers=speakers).tables["utt2spk"]["d_0"] == "Ms_d"


def kaldi_dir(folder, segments=False):
    """Relative paths, tabs, no order, no spk2utt."""
    wavs = {f"r{n}": record(folder / f"audio/r{n}.wav", 2, 8000, 1) for n in (2, 1, 3)}
    data = folder / "data/all"
    data.mkdir(parents=True)
    lines(data / "wav.scp", [(name, f"audio/{path.name}") for name, path in wavs.items()])
    utts = [f"{name}-{n}" if segments else name for name in wavs for n in range(1 + segments)]
    lines(data / "text", [(utt, f"words of\t{utt}") for utt in utts])
    lines(data / "utt2spk", [(utt, "s" + utt[1]) for utt in utts])
    if segments:
        lines(data / "segments", [(utt, utt[:2], utt[-1], f"{utt[-1]}.5") for utt in utts])
        lines(data / "utt2spk", [(utt, "s" + utt[1]) for utt in utts])
    else:
        lines(data / "text", [*((utt, f"words of {utt}") for utt in utts), ("r9", "lost")])
        lines(data / "utt2spk", [(utt, f"s{n // 2}") for n, utt in enumerate(utts)])
    return data


def test_kaldi_directory_is_taken_as_it_is(tree, tmp_path):
    kaldi_dir(tmp_path / "it's", segments=True)
    new_recipe.main(["mine", "--data", "it's/data/all", "--nj", "1"])
    directory = tree / "egs2/mine/asr1"
    done = run(directory, "--stop_stage", "1")
    assert done.returncode == 0, done.stderr
    seen = []
    for name in corpus.SETS:
        assert kaldi.validate(directory / "data" / name) == []
        tables = kaldi.read_data_dir(directory / "data" / name)
        assert len(tables["wav.scp"]) == 1 and len(tables["segments"]) == 2
        seen += tables["segments"]
    assert sorted(seen) == [f"r{n}-{m}" for n in (1, 2, 3) for m in (0, 1)]
    assert tables["text"][seen[-1]] == f"words of {seen[-1]}"


def test_kaldi_directories_that_are_divided_stay_so(tmp_path):
    data = kaldi_dir(tmp_path)
    for name, utt in zip(corpus.SETS, ("r3", "r2", "r1"), strict=True):
        (data / name).mkdir()
        for table in ("wav.scp", "text", "utt2spk"):
            (row,) = [r for r in (data / table).read_text().splitlines() if r.startswith(utt)]
            (data / name / table).write_text(row + "\n")
    for table in ("wav.scp", "text", "utt2spk"):
        (data / table).unlink()
    data_prep_corpus.main(["--data", str(data), "--nj", "1", str(tmp_path / "out")])
    assert list(kaldi.read_scp(tmp_path / "out/train/wav.scp")) == ["r3"]
    assert list(kaldi.read_scp(tmp_path / "out/test/wav.scp")) == ["r1"]


# Dividing


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(st.text("abé", min_size=1), st.floats(0.1, 1e5), min_size=3, max_size=20))
def test_sets_have_all_groups_once_and_train_the_largest(seconds):
    sets = corpus.assign(seconds)
    assert sets == corpus.assign(dict(reversed(seconds.items())))
    assert sets.keys() == seconds.keys() and set(sets.values()) == set(corpus.SETS)
    assert any(sets[g] == "train" for g in seconds if seconds[g] == max(seconds.values()))


def test_dev_and_test_get_about_a_tenth_of_many_groups():
    seconds = {str(n): 60.0 for n in range(100)}
    sets = corpus.assign(seconds)
    counts = [list(sets.values()).count(name) for name in corpus.SETS]
    assert counts == [80, 10, 10]


def test_one_speaker_is_divided_by_text(tmp_path):
    rows = [(f"{t}_{i}", f"Sentence {t}{'.' * i}") for t in range(20) for i in range(3)]
    for name, _ in rows:
        record(tmp_path / "wavs" / f"{name}.wav", rate=8000, channels=1)
    lines(tmp_path / "text.csv", rows, ",")
    sets, notes = corpus.prepare(read(tmp_path, speaker_from="one"), tmp_path / "data")
    prompts = [{utt.split("_")[0] for utt in utts} for utts in sets.values()]
    assert len(set.union(*prompts)) == 20 == sum(map(len, prompts))
    assert any(note.startswith("split by text, as 1 speaker is too few") for note in notes)


@pytest.mark.parametrize("n_speaker", [1, 5])
def test_corpus_divided_without_dev_gives_it_a_part_of_train(tmp_path, n_speaker):
    for name, count in (("train", 40), ("test", 3)):
        (tmp_path / "data" / name).mkdir(parents=True)
        utts = [f"{name}{i}" for i in range(count)]
        for utt in utts:
            record(tmp_path / f"wavs/{utt}.wav", rate=8000, channels=1)
        folder = tmp_path / "data" / name
        lines(folder / "wav.scp", [(utt, str(tmp_path / f"wavs/{utt}.wav")) for utt in utts])
        lines(folder / "text", [(utt, f"words of {utt}") for utt in utts])
        lines(folder / "utt2spk", [(u, f"{name}spk{i % n_speaker}") for i, u in enumerate(utts)])
    whole = corpus.read(data=tmp_path / "data")
    sets, notes = corpus.split(whole)
    assert sets["test"] == ["test0", "test1", "test2"]
    assert sorted(sets["train"] + sets["dev"]) == sorted(f"train{i}" for i in range(40))
    of = whole.tables["utt2spk"]
    shared = {of[utt] for utt in sets["train"]} & {of[utt] for utt in sets["dev"]}
    assert len(sets["dev"]) == {1: 4, 5: 8}[n_speaker] and bool(shared) == (n_speaker == 1)
    assert "divided as it came, but for dev, taken from train" in notes


# Bad input: one line, and nothing written


def drop(*names):
    return lambda folder: [(folder / name).unlink() for name in names]


def pipe(folder):
    lines(folder / "data/all/wav.scp", [("r1", "sox audio/r1.wav -t wav - |"), ("r2", "cat x |")])


def two_channels(folder):
    record(folder / "audio/r1.wav", 1, 8000, 2)
    lines(folder / "data/all/reco2file_and_channel", [("r1", "r1", "1")])


DATA = ["--data", "data/all", "--nj", "1"]
BAD = {
    "nothing given": ([], None, "give --wavs DIR with --text FILE, or --data DIR"),
    "both": ([*SIMPLE, "--data", "wavs"], None, "give --wavs DIR with --text FILE, or --data DIR"),
    "no folder": (["--wavs", "none", *SIMPLE[2:]], None, "none: no such directory: --wavs"),
    "no recordings": (
        ["--wavs", "empty", "--text", "text.csv"],
        lambda f: ((f / "empty").mkdir(), (f / "empty/a.M4A").touch()),
        "no recordings (.aif .aiff",
    ),
    "no text": (SIMPLE, drop("text.csv"), "text.csv: cannot be read (No such file"),
    "no text beside": (SIMPLE[:2], None, "no .txt beside any recording: give --text FILE"),
    "other names": (
        SIMPLE,
        lambda f: lines(f / "text.csv", [("x1", "one"), ("x2", "two")]),
        "text.csv: none of its 2 lines begins with the name of a recording (such as a_0.wav)",
    ),
    "texts empty": (
        [*SIMPLE, "--speaker_from", "field1"],
        lambda f: lines(f / "text.csv", [("a_0", ""), ("b_0", " ")], ","),
        "nothing is left: left out, recordings without text: 6 (a_0, a_1",
    ),
    "two texts": (
        SIMPLE,
        lambda f: lines(f / "text.csv", [("a_0", "one"), ("a_0.wav", "two")]),
        "line 2: a_0.wav is there twice, with another value",
    ),
    "one name for two": (
        SIMPLE,
        lambda f: (record(f / "wavs/x/a.wav"), record(f / "wavs/y/a.wav"),
                   lines(f / "text.csv", [("a", "one")])),
        "line 1: a may be x-a, y-a: give the path in its folder",
    ),
    "not utf-8": (
        SIMPLE, lambda f: (f / "text.csv").write_bytes(b"a_0,\xff"), "byte 5 is not UTF-8"
    ),
    "unknown speakers": (
        SIMPLE, None, "give --speakers FILE (lines of an id or file name, a tab or comma, and the "
        "speaker); or --speaker_from field1 (3: a, b, c); if they do not matter, --speaker_from",
    ),
    "utterances for speakers": (
        DATA,
        lambda f: lines(f / "data/all/utt2spk", [(f"r{n}", f"r{n}") for n in (1, 2, 3)]),
        "cannot tell who speaks",
    ),
    "ids that only look the same": (
        DATA,
        lambda f: lines(f / "data/all/text", [("r1\u200b", "one"), ("r2", "two"), ("r3", "three")]),
        "'r1\\u200b' and 'r1' differ only in what does not show",
    ),
    "speaker map with holes": (
        [*SIMPLE, "--speakers", "who"],
        lambda f: lines(f / "who", [("a_0", "a"), ("b_0", "b")]),
        "no speaker for a_1, b_1, c_0, c_1",
    ),
    "speaker map of others": (
        [*SIMPLE, "--speakers", "who"],
        lambda f: lines(f / "who", [("a_7", "a")]),
        "who: none of its 1 lines begins with the name of a recording",
    ),
    "segment too long": (
        DATA,
        lambda f: lines(f / "data/all/segments", [("r1", "r1", "1", "3"), ("r2", "r2", "1", "2")]),
        "segments: r1 ends at 3.0 s, ",
    ),
    "too little": (
        [*SIMPLE, "--speaker_from", "one"],
        lambda f: lines(f / "text.csv", [("a_0", "Yes."), ("b_0", "yes")]),
        "speakers: 1, different texts: 1; train, dev and test need three of either",
    ),
    "damaged audio": (
        [*SIMPLE, "--speaker_from", "field1"],
        lambda f: (f / "wavs/a_0.wav").write_bytes(b"RIFFnonsense"),
        "wavs/a_0.wav: corrupt or no audio file",
    ),
    "all too long": (
        [*SIMPLE, "--speaker_from", "field1"],
        lambda f: [record(f / f"wavs/{s}_{i}.wav", 31, 8000, 1) for s in "abc" for i in (0, 1)],
        "nothing is left: left out, longer than 30 s, cut them and list the pieces in segments: 6",
    ),
    "word of training": (
        [*SIMPLE, "--speaker_from", "field1"],
        lambda f: lines(f / "text.csv", [(f"{s}_0", "one <blank>") for s in "abc"]),
        "train/text: line 1: ",
    ),
    "pipes": (DATA, pipe, "wav.scp: r1 and 1 more is a command: run each of them once"),
    "archive": (
        DATA,
        lambda f: lines(f / "data/all/wav.scp", [("r1", "raw.ark:12")]),
        "wav.scp: r1 is a part of an archive",
    ),
    "two speakers in a file": (DATA, two_channels, "r1 is one channel of "),
    "a file of two recordings": (
        DATA,
        lambda f: (record(f / "x.wav"),
                   lines(f / "data/all/wav.scp", [("r1", "x.wav"), ("r2", "x.wav")])),
        "r1 is one channel of ",
    ),
    "lost audio": (
        DATA,
        drop("audio/r1.wav", "audio/r2.wav", "audio/r3.wav"),
        "wav.scp: r2: no such file: audio/r2.wav, seen from ",
    ),
    "no directory": (["--data", "data"], None, "no wav.scp in it, nor in dev/, test/, train/: "),
    "no transcripts": (DATA, drop("data/all/text"), "text: missing"),
    "unknown rule": (
        [*SIMPLE, "--speaker_from", "prefix"], None, "--speaker_from is one, directory, field1"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_in_one_line_and_nothing_is_written(tree, tmp_path, capsys, case):
    options, spoil, message = BAD[case]
    simple(tmp_path)
    kaldi_dir(tmp_path)
    if spoil:
        spoil(tmp_path)
    with pytest.raises(SystemExit) as ended:
        new_recipe.main(["mine", *options])
    said = capsys.readouterr()
    assert ended.value.code == 1 and said.err.count("\n") == 1 and message in said.err
    assert said.out == "" and written(tree) == ["TEMPLATE"]


@pytest.mark.parametrize("name", ["", "..", "a/b", "-x"])
def test_bad_name_is_refused(tree, tmp_path, capsys, name):
    simple(tmp_path)
    with pytest.raises(SystemExit):
        new_recipe.main([*SIMPLE, "--speaker_from", "field1", "--", name])
    assert capsys.readouterr().err.count("\n") == 1 and written(tree) == ["TEMPLATE"]


def test_recipe_that_is_there_is_never_overwritten(tree, tmp_path, capsys):
    simple(tmp_path)
    command = ["mine", *SIMPLE, "--speaker_from", "field1"]
    new_recipe.main(command)
    (tree / "egs2/mine/asr1/run.sh").write_text("mine")
    capsys.readouterr()
    with pytest.raises(SystemExit):
        new_recipe.main(command)
    said = capsys.readouterr().err
    assert "there already, and no recipe is overwritten" in said and said.count("\n") == 1
    assert (tree / "egs2/mine/asr1/run.sh").read_text() == "mine"


def test_recipe_is_written_whole_or_not_at_all(tree, tmp_path, monkeypatch, capsys):
    simple(tmp_path)
    copied = []

    def fails(source, target):
        copied.append(target)
        if len(copied) == 5:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(recipe.shutil, "copymode", fails)
    with pytest.raises(SystemExit):
        new_recipe.main(["mine", *SIMPLE, "--speaker_from", "field1"])
    assert "egs2/mine: no space left on the disk" in capsys.readouterr().err
    assert len(copied) == 5 and written(tree) == ["TEMPLATE"]


def test_without_a_clone_the_command_says_where_it_works(tmp_path, monkeypatch, capsys):
    simple(tmp_path)
    monkeypatch.setattr(new_recipe, "ROOT", tmp_path)
    with pytest.raises(SystemExit):
        new_recipe.main(["mine", *SIMPLE])
    assert "no clone of the repository" in capsys.readouterr().err


# What a recipe lacks


@pytest.mark.parametrize("name", ["fsdd", "mini_an4", "mini_librispeech", "read_english", "own"])
@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda d: (d / "path.sh").unlink(), "no path.sh in "),
        (lambda d: (d / "local/data.sh").chmod(0o644), "local/data.sh has no run bit: chmod +x "),
        (lambda d: (d / "local/data.sh").unlink(), "no local/data.sh in "),
        (lambda d: (d / "db.sh").unlink(), "no db.sh in "),
    ],
    ids=["path.sh", "run bit", "data.sh", "db.sh"],
)
def test_recipe_without_one_of_its_files_says_so_in_one_line(tree, name, spoil, message):
    if name == "own":
        words = recipe.values("x", 1, 16000, "char", 30)
        directory = recipe.write(tree, name, {"wavs": "/a"}, words)
    else:
        directory = copy_recipe(tree, f"egs2/{name}/asr1")
    if name == "mini_an4" and message.startswith("no db.sh"):
        return  # its corpus is in ESPnet's package: it has none
    spoil(directory)
    done = run(directory, "--stop_stage", "1")
    assert done.returncode != 0 and done.stderr.count("\n") == 1
    assert message in done.stderr, done.stderr
