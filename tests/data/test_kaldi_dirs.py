"""Kaldi-style tables and directories."""

import subprocess
import sys

import pytest
from espnet2.fileio.read_text import read_2columns_text
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_ext.bin import data_combine, data_filter, data_perturb_speed, data_split, data_validate
from espnet_ext.data import audio, kaldi
from espnet_ext.errors import UserError

utf8 = st.characters(codec="utf-8")
ids = st.text(utf8, min_size=1, max_size=8).filter(lambda s: s.split() == [s])
one_line = st.characters(codec="utf-8", exclude_characters="\n\r")
values = st.text(one_line, max_size=12).map(str.strip)


def make_dir(path, names="ab", speaker="s1", **tables):
    """Write a data directory whose files exist; ``tables`` add to its tables or replace them."""
    path.mkdir(parents=True)
    audio = {name: path / f"{name} 1.flac" for name in names}
    for file in audio.values():
        file.touch()
    kaldi.write_data_dir(
        path,
        {
            "wav.scp": {name: str(file) for name, file in audio.items()},
            "text": {name: f"TEXT OF {name}" for name in names},
            "utt2spk": dict.fromkeys(names, speaker),
            "spk2gender": {speaker: "f"},
            **tables,
        },
    )
    return path


def contents(path):
    """Everything in a directory that is not audio, as bytes."""
    return {p.name: p.read_bytes() for p in path.iterdir() if p.suffix != ".flac"}


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(ids, values, max_size=6))
def test_scp_round_trip_keeps_values_and_sorts_by_bytes(tmp_path_factory, table):
    path = tmp_path_factory.getbasetemp() / "table.scp"
    kaldi.write_scp(path, table)
    assert kaldi.read_scp(path) == table == read_2columns_text(path)
    keys = [line.split()[0].encode() for line in path.read_text("utf-8").split("\n")[:-1]]
    assert keys == sorted(keys)


@settings(deadline=None, max_examples=50)
@given(ids, st.text(st.sampled_from("ab \t\n\r\x0b\x85\u3000"), max_size=5))
def test_scp_writes_only_what_espnet_reads_back(tmp_path_factory, key, value):
    path = tmp_path_factory.getbasetemp() / "refused.scp"
    path.unlink(missing_ok=True)
    try:
        kaldi.write_scp(path, {key: value})
    except UserError as error:
        assert str(path) in str(error) and not path.exists()
    else:
        assert kaldi.read_scp(path) == read_2columns_text(path) == {key: value}


@given(st.integers(1, 300), st.integers(1, 300))
def test_items_at_even_distances_reach_from_the_beginning_to_the_end(size, number):
    chosen = kaldi.at_even_distances(list(range(size)), number)
    assert len(chosen) == min(size, number) and chosen[0] == 0
    steps = {b - a for a, b in zip(chosen, [*chosen[1:], size], strict=True)}
    assert min(steps) >= 1 and max(steps) - min(steps) <= 1


@pytest.mark.parametrize("key", ["", "a b", "a\tb", " a", "a\n"])
def test_scp_refuses_ids_with_spaces(tmp_path, key):
    with pytest.raises(UserError, match="id"):
        kaldi.write_scp(tmp_path / "t", {key: "v"})
    assert list(tmp_path.iterdir()) == []


def test_scp_value_is_the_rest_of_the_line(tmp_path):
    (tmp_path / "wav.scp").write_bytes(b"b  /a dir/x  y.flac \r\na\n")
    assert kaldi.read_scp(tmp_path / "wav.scp") == {"b": "/a dir/x  y.flac", "a": ""}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a 1\nb 2\na 3\n", "line 3 repeats the id a"),
        (b"a 1\n\nb 2\n", "line 2 is blank"),
        (b"a 1\nb \xff\n", "byte 7 is not UTF-8"),
    ],
    ids=["duplicate", "blank", "encoding"],
)
def test_scp_names_file_and_line_of_a_fault(tmp_path, content, message):
    (tmp_path / "text").write_bytes(content)
    with pytest.raises(UserError, match=f"text: {message}"):
        kaldi.read_scp(tmp_path / "text")


def test_write_that_fails_keeps_the_old_file(tmp_path):
    kaldi.write_scp(tmp_path / "t", {"a": "1"})
    with pytest.raises(UserError, match="not UTF-8"):
        kaldi.write_scp(tmp_path / "t", {"a": "\udcff"})
    (tmp_path / "dir").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        kaldi.write_scp(tmp_path / "dir", {"a": "1"})
    assert (tmp_path / "t").read_text() == "a 1\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dir", "t"]


def test_validate_accepts_a_sound_directory(tmp_path, capsys):
    data_validate.main([str(make_dir(tmp_path / "a b"))])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("table", "content", "message"),
    [
        ("text", "b B\na A\n", "text: not sorted"),
        ("text", "a A\n", "text: lacks the id b"),
        ("text", "a A\nb B\nc C\n", "text: alone has the id c"),
        ("text", "a A\na A\nb B\n", "text: line 2 repeats the id a"),
        ("utt2spk", "a s1\nb s2\n", "spk2utt: lacks the id s2"),
        ("utt2spk", "a s1\nb\n", "utt2spk: b has no value"),
        ("spk2utt", "s1 b a\n", "spk2utt: does not list"),
        ("spk2gender", "s1 female\n", "s1 is 'female', not m or f"),
        ("wav.scp", "a /nowhere/a.flac\nb /\n", "a: no such file: /nowhere/a.flac"),
        ("wav.scp", "", "wav.scp: empty"),
        ("segments", "a r 0 1\nb a 0 1\n", "a is cut from r, which wav.scp lacks"),
        ("segments", "a a 1 1\nb b 0 1\n", "segments: a needs"),
        ("segments", "a a 1\nb b 0 1\n", "segments: a needs"),
        ("segments", "a a 0 nan\nb b 0 1\n", "segments: a needs"),
    ],
)
def test_validate_names_the_fault(tmp_path, capsys, table, content, message):
    path = make_dir(tmp_path / "d")
    (path / table).write_text(content)
    with pytest.raises(SystemExit) as end:
        data_validate.main([str(path)])
    assert end.value.code == 1
    assert message in capsys.readouterr().err


NFC, NFD = "caf\u00e9", "cafe\u0301"
UNSEEN = {
    "byte order mark": ("a", "\ufeffa"),
    "form": (NFC, NFD),
    "no width": ("a", "a\u200b"),
    "no width inside": ("ab", "a\u2060b"),
}


def unseen(one, other):
    return f"{min(one, other, key=len)!a}", f"{max(one, other, key=len)!a}", "does not show"


@pytest.mark.parametrize("table", ["text", "utt2spk", "spk2gender", "segments"])
@pytest.mark.parametrize("kind", UNSEEN)
def test_ids_that_only_look_the_same_are_one_line(tmp_path, kind, table):
    one, other = UNSEEN[kind]
    speaker = one if table == "spk2gender" else "s1"
    path = make_dir(tmp_path / "d", [one, "z"], speaker=speaker)
    if table == "segments":
        kaldi.write_scp(path / table, {one: f"{other} 0 1", "z": "z 0 1"})
    else:
        found = kaldi.read_scp(path / table)
        kaldi.write_scp(path / table, {other if i == one else i: v for i, v in found.items()})
    (problem,) = kaldi.validate(path)
    assert str(path / table) in problem and all(word in problem for word in unseen(one, other))


def test_two_ids_of_one_table_that_look_the_same_are_one_line(tmp_path):
    with pytest.raises(UserError, match="does not show"):
        make_dir(tmp_path / "d", [NFC, NFD])


@settings(deadline=None, max_examples=50)
@given(st.lists(ids, max_size=6, unique_by=kaldi.shown))
def test_ids_that_look_different_are_never_called_alike(names):
    assert kaldi.alike(names, names) == ""
    assert all(kaldi.shown(kaldi.shown(name)) == kaldi.shown(name) for name in names)


@pytest.mark.parametrize(
    ("table", "content"),
    [
        ("text", "b B\na A\n"),
        ("text", "a A\n"),
        ("text", "\ufeffa A\nb B\n"),
        ("utt2spk", "a s1\nb s2\n"),
        ("spk2gender", "s1 female\n"),
        ("utt2speed", "a 0.9\nb 9\n"),
        ("wav.scp", "a /nowhere/a.flac\nb /nowhere/b.flac\n"),
        ("segments", "a r 0 1\nb a 0 1\n"),
    ],
)
def test_formatting_refuses_what_validation_refuses_and_in_the_same_words(tmp_path, table, content):
    path = make_dir(tmp_path / "d")
    (path / table).write_text(content)
    problems = kaldi.validate(path)
    with pytest.raises(UserError) as refused:
        audio.format_data_dir(path, tmp_path / "out", 16000)
    assert problems and str(refused.value) == "\n".join(problems)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("table", ["wav.scp", "text", "utt2spk"])
def test_validate_names_a_missing_table(tmp_path, table):
    path = make_dir(tmp_path / "d")
    (path / table).unlink()
    (problem,) = kaldi.validate(path)
    assert table in problem


def test_written_directory_is_sound_or_untouched(tmp_path):
    path = make_dir(tmp_path / "d")
    before = contents(path)
    tables = kaldi.read_data_dir(path)
    with pytest.raises(UserError, match="lacks the id b"):
        kaldi.write_data_dir(path, tables | {"text": {"a": "A"}})
    assert contents(path) == before


def test_rewritten_directory_drops_tables_of_the_earlier_run(tmp_path):
    path = make_dir(tmp_path / "d", utt2num_samples={"a": "1", "b": "2"})
    (path / "note").write_text("kept")
    kaldi.write_data_dir(path, {name: kaldi.read_data_dir(path)[name] for name in kaldi.REQUIRED})
    assert sorted(contents(path)) == ["note", "spk2utt", "text", "utt2spk", "wav.scp"]


def test_perturb_then_combine_gives_every_utterance_its_speed(tmp_path):
    path = make_dir(tmp_path / "d")
    for factor in ("0.9", "1.1"):
        data_perturb_speed.main(["--factor", factor, str(path), f"{path}_sp{factor}"])
    out = tmp_path / "d_sp"
    data_combine.main([str(out), str(path), f"{path}_sp0.9", f"{path}_sp1.1"])
    assert kaldi.validate(out) == []
    tables = kaldi.read_data_dir(out)
    assert tables["utt2speed"] == {
        "a": "1.0",
        "b": "1.0",
        "sp0.9-a": "0.9",
        "sp0.9-b": "0.9",
        "sp1.1-a": "1.1",
        "sp1.1-b": "1.1",
    }
    assert tables["utt2spk"]["sp0.9-a"] == "sp0.9-s1"
    assert tables["spk2gender"] == {"s1": "f", "sp0.9-s1": "f", "sp1.1-s1": "f"}
    assert tables["text"]["sp1.1-b"] == "TEXT OF b"
    assert tables["wav.scp"]["sp1.1-b"] == tables["wav.scp"]["b"]
    assert (out / "spk2utt").read_text().split("\n")[0] == "s1 a b"
    first = contents(out)
    data_combine.main([str(out), str(path), f"{path}_sp0.9", f"{path}_sp1.1"])
    assert contents(out) == first


@pytest.mark.parametrize("factor", ["0", "0.49", "2.01", "-1", "x", "0.905", "9/10", "nan", ""])
def test_perturb_refuses_impossible_factors(tmp_path, factor):
    tables = kaldi.read_data_dir(make_dir(tmp_path / "d"))
    with pytest.raises(UserError, match="factor"):
        kaldi.perturb_speed(tables, factor)


def test_perturb_refuses_a_second_time(tmp_path):
    tables = kaldi.read_data_dir(make_dir(tmp_path / "d"))
    with pytest.raises(UserError, match="already"):
        kaldi.perturb_speed(kaldi.perturb_speed(tables, "0.9"), "0.9")


def test_combine_refuses_duplicates_and_contradictions(tmp_path, capsys):
    a, b = make_dir(tmp_path / "a", "ab"), make_dir(tmp_path / "b", "bc")
    c = make_dir(tmp_path / "c", "d", spk2gender={"s1": "m"})
    segments = {"e": "e 0 1"}
    d = make_dir(tmp_path / "d", "e", segments=segments)
    for inputs, message in (
        ((a, b), f"{b}: the utterance b is in {a} too"),
        ((a, a), "the utterance a is in"),
        ((a, c), f"{c}/spk2gender: s1 is 'm', elsewhere 'f'"),
        ((a, d), "only some directories have segments"),
        ((a, tmp_path / "none"), "no data directory"),
    ):
        with pytest.raises(SystemExit):
            data_combine.main([str(tmp_path / "out"), *map(str, inputs)])
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_filter_bounds_are_strict_and_empty_text_goes(tmp_path, capsys):
    lengths = {"a": 800, "b": 801, "c": 239999, "d": 240000, "e": 5000}
    text = dict.fromkeys(lengths, "X") | {"e": ""}
    path = make_dir(
        tmp_path / "org",
        lengths,
        utt2num_samples={utt: str(n) for utt, n in lengths.items()},
        text=text,
        feats_type={"raw": ""},
        audio_format={"flac": ""},
    )
    out = tmp_path / "out"
    data_filter.main(
        ["--fs", "8k", "--min_wav_duration", "0.1", "--max_wav_duration", "30", str(path), str(out)]
    )
    assert kaldi.validate(out) == []
    assert list(kaldi.read_data_dir(out)["text"]) == ["b", "c"]
    assert (out / "feats_type").read_text() == "raw\n"
    assert "2 utterances kept" in (report := capsys.readouterr().err)
    assert "1 without text, 1 too short, 1 too long" in report


def test_filter_keeps_ids_that_every_table_has(tmp_path):
    path = make_dir(tmp_path / "org", "abcd", utt2num_samples=dict.fromkeys("abcd", "9"))
    for table, line in (("text", "a"), ("utt2spk", "b"), ("utt2num_samples", "c")):
        lines = (path / table).read_text().splitlines(keepends=True)
        (path / table).write_text("".join(x for x in lines if not x.startswith(line)))
    kept, dropped = kaldi.filter_by_length(kaldi.read_data_dir(path), 1, 10)
    assert [*kept["wav.scp"]] == ["d"] and dropped["not in every table"] == 3


def test_filter_that_leaves_nothing_is_refused(tmp_path, capsys):
    path = make_dir(tmp_path / "org", utt2num_samples={"a": "100", "b": "100"})
    with pytest.raises(SystemExit):
        data_filter.main([str(path), str(tmp_path / "out")])
    assert f"{path}: no utterance is left: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 12), st.lists(st.sampled_from(["a 1", "b x y", "c"]), min_size=1, max_size=9))
def test_split_parts_are_even_and_join_to_the_file(tmp_path_factory, num, lines):
    base = tmp_path_factory.mktemp("split")
    (base / "keys").write_text("".join(f"{line}\n" for line in lines))
    parts = kaldi.split_lines(base / "keys", num, base / "k", "scp")
    assert parts == min(num, len(lines))
    texts = [(base / f"k.{n}.scp").read_text() for n in range(1, parts + 1)]
    assert "".join(texts) == (base / "keys").read_text()
    sizes = [text.count("\n") for text in texts]
    assert max(sizes) - min(sizes) <= 1 and min(sizes) >= 1


def test_split_removes_parts_of_a_larger_earlier_run(tmp_path, capsys):
    (tmp_path / "keys.scp").write_text("a\nb\nc\n")
    for num in (3, 2):
        data_split.main(
            ["--num", str(num), str(tmp_path / "keys.scp"), str(tmp_path / "keys"), "scp"]
        )
    assert capsys.readouterr().out == "3\n2\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["keys.1.scp", "keys.2.scp", "keys.scp"]
    (tmp_path / "empty").touch()
    with pytest.raises(UserError, match="no lines"):
        kaldi.split_lines(tmp_path / "empty", 2, tmp_path / "x", "scp")
    with pytest.raises(UserError, match="at least 1"):
        kaldi.split_lines(tmp_path / "keys.scp", 0, tmp_path / "x", "scp")


def test_full_disk_is_named_and_leaves_no_file(tmp_path):
    path = tmp_path / "out" / "text"
    code = (
        "import resource, signal; from espnet_ext.data.kaldi import write_scp;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100));"
        f"write_scp({str(path)!r}, {{str(n): 'x' * 50 for n in range(9)}})"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert f"{path}: cannot be written (File too large)" in run.stderr
    assert list(path.parent.iterdir()) == []


def test_full_disk_leaves_a_directory_as_it_was(tmp_path):
    path = make_dir(tmp_path / "d")
    before = contents(path)
    code = (
        "import resource, signal; from espnet_ext.data.kaldi import read_data_dir, write_data_dir;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500));"
        f"tables = read_data_dir({str(path)!r});"
        "tables['wav.scp'] = {utt: 'x' * 400 for utt in tables['wav.scp']};"  # written last
        "tables['text'] = {utt: 'OTHER' for utt in tables['text']};"
        f"write_data_dir({str(path)!r}, tables)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert f"{path / 'wav.scp'}: cannot be written (File too large)" in run.stderr
    assert contents(path) == before


def test_commands_and_archives_in_wav_scp_are_one_line_each(tmp_path):
    make_dir(tmp_path / "d", "abc")
    kaldi.write_scp(
        tmp_path / "d/wav.scp", {"a": "sph2pipe -f wav a.sph |", "b": "cat b |", "c": "x.ark:12"}
    )
    command, archive = kaldi.validate(tmp_path / "d")
    assert command.startswith(f"{tmp_path}/d/wav.scp: a and 1 more is a command: run each")
    assert archive.startswith(f"{tmp_path}/d/wav.scp: c is a part of an archive: write each")
