"""Markers that see every change of what a result was made from, and swaps that lose no result."""

import os
import shutil

import pytest

from espnet_ext import files
from espnet_ext.bin import marker as command
from espnet_ext.data import kaldi
from espnet_ext.errors import UserError
from espnet_ext.jobs import markers


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A data directory ``data`` of three recordings, in the working directory."""
    monkeypatch.chdir(tmp_path)
    names = ("a", "b", "c")
    for name in names:
        (tmp_path / f"{name} 1.wav").write_bytes(name.encode() * 100)
    words = {"text": dict.fromkeys(names, "A"), "utt2spk": dict.fromkeys(names, "s")}
    kaldi.write_data_dir("data", {"wav.scp": {n: f"{n} 1.wav" for n in names}, **words})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "result").write_text("made")
    return tmp_path


def finish(inputs=("data",), options="--fs 16k"):
    work = markers.prepare(options, inputs, ["result"])
    markers.write("out/.done", work)
    assert fits(inputs, options)


def fits(inputs=("data",), options="--fs 16k"):
    return markers.up_to_date("out/.done", markers.prepare(options, inputs, ["result"]))


def replace_audio(path):
    path.write_bytes(b"x" * 100)  # as long as before
    os.utime(path, ns=(0, 1))


CHANGES = {
    "recording": lambda d: replace_audio(d / "b 1.wav"),
    "recording gone": lambda d: (d / "c 1.wav").unlink(),
    "text": lambda d: kaldi.write_scp("data/text", {"a": "B", "b": "A", "c": "A"}),
    "new table": lambda d: kaldi.write_scp("data/utt2speed", dict.fromkeys("abc", "0.9")),
    "table gone": lambda d: (d / "data" / "utt2spk").unlink(),
    "result": lambda d: (d / "out" / "result").write_text("other"),
    "result gone": lambda d: (d / "out" / "result").unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_change_of_any_part_is_seen(data, change):
    finish()
    CHANGES[change](data)
    assert not fits()
    assert markers.changed("out/.done") == ("out/result" if "result" in change else "data")


def test_scp_stands_for_its_recordings(data):
    finish(["data/wav.scp"])
    replace_audio(data / "a 1.wav")
    assert not fits(["data/wav.scp"])


@pytest.mark.parametrize("change", ["recording", "text"])
def test_change_during_the_work_is_seen_afterwards(data, change, capsys):
    arguments = ["check", "out/.done", "--fs 16k", "data", "--", "result"]
    command.main(arguments)
    work = capsys.readouterr().out
    CHANGES[change](data)  # read already, or not: nobody knows
    command.main(["write", "out/.done", work])
    command.main(arguments)
    assert capsys.readouterr().out
    command.main(["write", "out/.done", work := _work(arguments, capsys)])
    command.main(arguments)
    assert work and not capsys.readouterr().out


def _work(arguments, capsys):
    command.main(arguments)
    return capsys.readouterr().out


def test_options_and_the_files_that_they_or_a_yaml_name_count(data):
    (data / "teacher.pth").write_text("1")
    (data / "start.pth").write_text("1")
    (data / "the bias.npz").write_text("1")
    (data / "train.yaml").write_text("model_conf:\n  teacher: teacher.pth\nlr: {a: [0.1]}\n")
    words = ["--init_param", "start.pth:encoder:encoder", "--lr", "0.1"]
    words += ["--init_param", "the bias.npz:ctc"]
    options, inputs = "\n".join(words), ["data", "@train.yaml"]
    finish(inputs, options)
    assert not fits(inputs, options + "\n--max_epoch\n2")
    for name in ("start.pth", "the bias.npz", "teacher.pth", "train.yaml"):
        finish(inputs, options)
        (data / name).write_text("2")
        assert not fits(inputs, options) and markers.changed("out/.done") == name


def test_input_that_is_gone_cannot_be_compared(data):
    """Formatted data may be used without what it was made from, but not beside something else."""
    (data / "tokens.txt").write_text("1")
    finish(["data", "tokens.txt"])
    (data / "data" / "wav.scp").unlink()
    assert not fits(["data", "tokens.txt"]) and markers.changed("out/.done") == ""
    (data / "tokens.txt").write_text("2")
    assert markers.changed("out/.done", ["data"]) == ""
    assert markers.changed("out/.done", ["tokens.txt"]) == "tokens.txt"


def test_no_marker_or_one_of_an_earlier_version_does_not_fit(data):
    assert not fits() and markers.changed("out/.done") == ""
    for content in ("--fs 16k\n1234 5 data/text\n", "", "[]", '{"outputs": 1}'):
        (data / "out" / ".done").write_text(content)
        assert not fits() and markers.changed("out/.done") == ""


def test_work_that_did_not_write_its_result_has_no_marker(data):
    with pytest.raises(UserError, match="out/none: was not written"):
        markers.write("out/.done", markers.prepare("", ["data"], ["result", "none"]))
    assert not (data / "out" / ".done").exists()


def test_training_that_goes_on_with_other_inputs_is_told_so(data, capsys):
    arguments = ["check", "out/.done", "--lr 1", "data", "--", "result"]
    (data / "out" / ".begun").write_text(_work(arguments, capsys))
    command.main(arguments)
    assert "began before" not in capsys.readouterr().err
    replace_audio(data / "a 1.wav")
    command.main(arguments)
    assert "warning: out: its training began before data changed" in capsys.readouterr().err
    command.main(["check", "out/.done", "--lr 2", "--", "result"])
    assert "out: its training began before data changed" in capsys.readouterr().err


class Killed(BaseException):
    """What a process that is killed raises here."""


@pytest.mark.parametrize("exchange", [True, False], ids=["exchanged", "moved"])
@pytest.mark.parametrize("call", range(5))
def test_killed_swap_leaves_the_old_or_the_new_result(tmp_path, monkeypatch, call, exchange):
    directory = tmp_path / "org" / "dev"
    new = markers.beside(directory)
    for folder, content in ((directory, "old"), (new, "new")):
        (folder / "logdir").mkdir(parents=True)
        for name in ("text", "score", "logdir/log"):
            (folder / name).write_text(content)
    calls = 0

    def counted(function):
        def run(*words, **options):
            nonlocal calls
            if calls == call:
                raise Killed
            calls += 1
            return function(*words, **options)

        return run

    with monkeypatch.context() as patch:
        if not exchange:
            patch.setattr(files, "_exchange", lambda *_: False)
        patch.setattr(files, "_exchange", counted(files._exchange))
        patch.setattr(files.os, "replace", counted(os.replace))
        patch.setattr(files.shutil, "rmtree", counted(shutil.rmtree))
        try:
            markers.replace(directory)
            ended = True
        except Killed:
            ended = False
    files.settle(new, directory)
    held = {(directory / name).read_text() for name in ("text", "score", "logdir/log")}
    assert len(held) == 1 and (not ended or held == {"new"})
    assert not ended or not new.parent.exists()
    if held == {"new"}:
        return
    markers.replace(directory)  # the new result has not been lost either
    assert (directory / "text").read_text() == "new" and not new.parent.exists()


def test_swap_needs_no_old_result(tmp_path):
    new = markers.beside(tmp_path / "test")
    new.mkdir(parents=True)
    (new / "text").write_text("new")
    markers.replace(tmp_path / "test")
    assert (tmp_path / "test" / "text").read_text() == "new"
    with pytest.raises(UserError, match="test: cannot be replaced"):
        markers.replace(tmp_path / "test")
    assert (tmp_path / "test" / "text").read_text() == "new"
