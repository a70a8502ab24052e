"""Configurations, checkpoints and places to write that are of no use: one line that names them."""

import copy
import math
import os
import shutil
import subprocess
import sys

import pytest
import torch
import yaml

from commands import errors
from espnet_ext import checkpoint, config
from espnet_ext.bin import (
    asr_certify,
    asr_convert,
    asr_inference,
    asr_inference_streaming,
    asr_profile,
    asr_train,
    lm_train,
    stream,
)
from espnet_ext.checkpoint import load_pretrained, read_state
from espnet_ext.errors import UserError
from espnet_ext.inference import StreamingSpeech2Text
from tiny_model import write_lm

BOMB = "a0: &a0 [1, 2, 3, 4, 5, 6, 7, 8, 9]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)


# the reader


@pytest.mark.parametrize(
    "content,words",
    [
        (BOMB + "encoder: *a11\n", "more than 1000000 values"),
        ("[" * 1000 + "]" * 1000, "nested deeper"),
        ("a: " + "[" * 100000, "nested deeper"),
        ("a: &a [*a]\n", "refers to itself"),
        ("a: *b\n", "refers to itself or to nothing"),
        ("x: " + "y" * 2**24, "larger than 16 MB"),
        ("a: [\n", "is not YAML"),
        ("a: !!python/object/apply:os.system ['touch pwned']\n", "is not YAML"),
        ("a: 2024-13-45\n", "is not YAML"),
        (f"a: {'9' * 5000}\n", "is not YAML"),
        ("a: \0\n", "is not YAML"),
        (b"a: \xff\n", "is not YAML"),
        ("", "must be a mapping of options, 'key: value', got nothing"),
        ("- a\n", "must be a mapping"),
        ("1: a\n", "1 is no name of an option"),
        ("yes: a\n", "true is no name of an option"),
        ("encoder_conf:\n", "encoder_conf: must be a mapping of options, got nothing; give {}"),
        ("encoder_conf: 5\n", "encoder_conf: must be a mapping of options, got 5"),
        ("encoder_conf: {1: 2}\n", "encoder_conf: 1 is no name"),
        ("model_conf: {ctc_weight: .nan}\n", "model_conf.ctc_weight: is not a number"),
    ],
)
def test_what_is_no_configuration_is_refused(tmp_path, content, words):
    path = tmp_path / "x.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as error:
        config.read_config(path)
    assert str(error.value).startswith(f"{path}: ") and words in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_configuration_with_aliases_and_a_byte_order_mark_is_read(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_bytes("\ufeffa: &a {b: [1, 2]}\nc_conf: *a\nd: {<<: *a, e: é}\n".encode())
    want = {"a": {"b": [1, 2]}, "c_conf": {"b": [1, 2]}, "d": {"b": [1, 2], "e": "é"}}
    assert config.read_config(path) == want
    with pytest.raises(UserError, match="cannot be read"):
        config.read_config(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="larger than 16 MB"):
        config.read_config("/dev/zero")


@pytest.mark.parametrize(
    "main,options",
    [
        (asr_train.main, ()),
        (lm_train.main, ()),
        (asr_inference.main, ("--output_dir", "out")),
        (asr_inference_streaming.main, ("--asr_train_config", "c", "--output_dir", "out")),
    ],
)
def test_every_command_refuses_a_wrong_config_option(tmp_path, capsys, monkeypatch, main, options):
    monkeypatch.chdir(tmp_path)
    if options:
        options += ("--data_path_and_name_and_type", "a,speech,sound")
    for content, words in {
        None: "cannot be read",
        BOMB + "x: *a11\n": "has more than 1000000 values",
        "seed: {a: 1}\nngpu: [1]\n": "",
        "- 1": "must be a mapping",
        "nonsense: 1\n": "unknown option nonsense",
        "log_level: 7e7\n": "log_level",
        "encoder_conf: null\n": "encoder_conf",
    }.items():
        path = tmp_path / ("none.yaml" if content is None else "x.yaml")
        if content is not None:
            path.write_text(content)
        status, lines = errors(capsys, main, "--config", path, *options)
        assert status == 1 and len(lines) == 1 and f"{path}: {words}" in lines[0], (words, lines)


def test_values_of_a_training_config_are_checked_as_words_are(tmp_path, capsys):
    path = tmp_path / "x.yaml"
    for content, words in {
        "max_epoch: many": "max_epoch is a whole number, not 'many'",
        "max_epoch: [1]": "max_epoch is a whole number, not [1]",
        "grad_clip: null": "grad_clip is a number, not None",
        "use_amp: 7": "use_amp is true or false, not 7",
        "encoder: kv_confomer": "encoder is one of",
        "batch_type: 3": "batch_type is one of",
        "best_model_criterion: [[valid, acc]]": "best_model_criterion is PATH,NAME,TYPE",
    }.items():
        path.write_text(content)
        status, lines = errors(capsys, asr_train.main, "--config", path)
        assert status == 1 and len(lines) == 1 and f"{path}: {words}" in lines[0], lines
    parser = asr_train.asr_train.get_parser()
    path.write_text("grad_clip: 1e-3\nkeep_nbest_models: 10\nbest_model_criterion: [[a, b, max]]")
    args = parser.parse_args(["--config", str(path), "--encoder_conf", "{a: 1}"])
    assert args.grad_clip == 1e-3 and args.keep_nbest_models == [10]
    assert args.best_model_criterion == [("a", "b", "max")] and args.encoder_conf == {"a": 1}
    with pytest.raises(UserError, match="encoder_conf.*must be interpreted as dict"):
        parser.parse_args(["--encoder_conf", "5"])


# models

DELETE = object()
ILL = (None, "abc", -1, True, [1], {"a": 1}, 10**12, math.inf, DELETE)
#: what stays as good as it was, or is not used
FINE = {
    *[("input_size",), ("model",), ("specaug_conf",), ("model_conf", "ctc_weight")],
    *[("encoder_conf", key) for key in ("left_context", "causal", "dynamic_chunk")],
    *[("encoder_conf", "macaron_style"), ("encoder_conf", "attention_heads")],
    *[("frontend_conf", "win_length"), ("frontend_conf", "fs")],
    ("decoder_conf", "attention_heads"),
}
PLACES = [
    *((k,) for k in ("token_list", "token_type", "frontend", "frontend_conf")),
    *((k,) for k in ("normalize", "normalize_conf", "encoder", "encoder_conf", "decoder")),
    *((k,) for k in ("decoder_conf", "model", "model_conf", "ctc_conf", "specaug_conf")),
    ("input_size",),
    *(("frontend_conf", k) for k in ("fs", "n_fft", "hop_length", "win_length", "n_mels")),
    *(("encoder_conf", k) for k in ("output_size", "attention_heads", "num_blocks", "attention")),
    *(("encoder_conf", k) for k in ("attention_conf", "causal", "chunk_size", "left_context")),
    *(("encoder_conf", k) for k in ("linear_units", "macaron_style", "dynamic_chunk", "new")),
    *(("decoder_conf", k) for k in ("attention_heads", "linear_units", "num_blocks")),
    *(("model_conf", "ctc_weight"), ("normalize_conf", "stats_file")),
]


@pytest.mark.parametrize("place", PLACES, ids=".".join)
def test_ill_value_in_a_model_s_config_is_one_line_or_none(model_dir, tmp_path, place):
    good = yaml.safe_load((model_dir / "config.yaml").read_text())
    path = tmp_path / "config.yaml"
    for value in ILL:
        changed = copy.deepcopy(good)
        inside = changed
        for key in place[:-1]:
            inside = inside[key]
        before = inside.get(place[-1], DELETE)
        if value is DELETE:
            inside.pop(place[-1], None)
        else:
            inside[place[-1]] = value
        path.write_text(yaml.safe_dump(changed))
        try:
            StreamingSpeech2Text(path, model_dir / "model.pth")
        except UserError as error:
            said = str(error)
            assert f"{tmp_path}/" in said or "model.pth: the checkpoint does not fit" in said
            assert "\n" not in said and said.startswith(("/", str(path)))
        else:
            assert place in FINE or value == before or value is DELETE, value


@pytest.mark.parametrize(
    "name,value,words",
    [
        ("encoder_conf", {"output_sise": 32}, "output_sise: ConformerEncoder takes no such option"),
        ("encoder_conf", {"output_size": "32"}, "encoder_conf: output_size: must be int, got '32'"),
        ("encoder_conf", {"num_blocks": 10**6}, "num_blocks: 1000000 is too large for any model"),
        ("frontend_conf", {"hop_length": -1}, "hop_length: must be at least 1, got -1"),
        ("decoder_conf", {"dropout_rate": 2.0}, "dropout_rate: must be 0 to 1, got 2.0"),
        ("encoder", "confomer", "encoder is one of "),
        ("frontend_conf", None, "frontend_conf: must be a mapping of options, got nothing"),
    ],
)
def test_line_names_the_key_the_rule_and_the_value(model_dir, tmp_path, capsys, name, value, words):
    good = yaml.safe_load((model_dir / "config.yaml").read_text())
    good[name] = good[name] | value if isinstance(value, dict) else value
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(good))
    model = ("--asr_train_config", path, "--asr_model_file", model_dir / "model.pth")
    data = ("--data_path_and_name_and_type", f"{tmp_path}/wav.scp,speech,sound")
    (tmp_path / "wav.scp").write_text("a a.wav\n")
    for main, *argv in (
        (stream.main, "a.wav", *model),
        (asr_inference.main, *model, *data, "--output_dir", tmp_path / "out"),
    ):
        status, lines = errors(capsys, main, *argv)
        assert status == 1 and len(lines) == 1
        assert f"{path}: " in lines[0] and words in lines[0], lines


def test_anchor_bomb_as_encoder_of_a_conversion_is_refused(tmp_path, capsys):
    (tmp_path / "m").mkdir()
    (tmp_path / "m/config.yaml").write_text(BOMB + "encoder: *a11\n")
    (tmp_path / "m/valid.acc.ave.pth").touch()
    argv = ("--from", tmp_path / "m", "--output", tmp_path / "n", "--attention", "mla")
    status, lines = errors(capsys, asr_convert.main, *argv)
    assert status == 1 and len(lines) == 1 and "m/config.yaml: has more than" in lines[0]
    status, lines = errors(capsys, asr_convert.main, *argv, "--attention_conf", "a=[[")
    assert status == 1 and len(lines) == 1 and "--attention_conf: a: is not YAML" in lines[0]


# checkpoints


def damaged(good):
    """Checkpoints of no use by what is wrong with them: a value to save, or a function of bytes."""
    first = next(iter(good))
    return {
        "list": ([1, 2], "holds a list, not tensors by name"),
        "tensor": (torch.ones(3), "holds a Tensor, not tensors by name"),
        "integer keys": ({1: torch.ones(3)}, "holds 1, which is no name"),
        "number": (good | {first: 3}, f"{first}: is a int, not a tensor"),
        "nothing": ({}, "holds no tensor"),
        "training": ({"model": good, "optimizers": []}, "is a training on its way"),
        "program": ({"a": print}, "other things than tensors"),
        "incomplete": ({k: v for k, v in good.items() if k != first}, f"1 missing ({first})"),
        "renamed": ({f"x{k}": v for k, v in good.items()}, "unexpected (x"),
        "shape": (good | {first: torch.ones(1, 2)}, f"1 of another shape ({first})"),
        "kind": (good | {first: good[first].long()}, f"1 of another kind of number ({first})"),
        "nan": (good | {first: good[first] * math.nan}, "not a number"),
        "cut": (lambda content: content[: len(content) // 2], "no whole checkpoint"),
        "flipped": (flipped, "no whole checkpoint (wrong checksum"),
        "text": (lambda content: b"not weights", "no whole checkpoint"),
        "missing": (None, "no such file"),
    }


def flipped(content):
    at = len(content) // 2
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


CASES = list(damaged({"w": torch.ones(2)}))


def write_case(path, good, case):
    value, words = damaged(good)[case]
    torch.save(good, path)
    if callable(value):
        path.write_bytes(value(path.read_bytes()))
    elif value is None:
        path.unlink()
    else:
        torch.save(value, path)
    return words


@pytest.fixture(scope="module")
def lm_dir(tmp_path_factory):
    """A tiny language model of the ASR model's tokens, as a training run leaves it."""
    return write_lm(tmp_path_factory.mktemp("lm"))


@pytest.mark.parametrize("case", CASES)
def test_every_checkpoint_is_checked_for_damage_and_fit(model_dir, lm_dir, tmp_path, case):
    asr, lm = {"asr_train_config": model_dir / "config.yaml"}, {}
    asr["asr_model_file"] = model_dir / "model.pth"
    for source, key in ((model_dir / "model.pth", "asr"), (lm_dir / "lm.pth", "lm")):
        path = tmp_path / "valid.acc.ave.pth"
        words = write_case(path, torch.load(source, weights_only=True), case)
        if key == "asr":
            with pytest.raises(UserError) as error:
                StreamingSpeech2Text(asr["asr_train_config"], path)
        else:
            lm = {"lm_train_config": lm_dir / "config.yaml", "lm_file": path}
            with pytest.raises(UserError) as error:
                asr_inference.Speech2Text(**{k: str(v) for k, v in (asr | lm).items()})
        assert str(error.value).startswith(f"{path}: ") and words in str(error.value)
    # what a training starts from
    model, _ = checkpoint.StrictASRTask.build_model_from_file(*asr.values())
    words = write_case(path, torch.load(model_dir / "model.pth", weights_only=True), case)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError) as error:
        load_pretrained(str(path), model, False)
    assert str(error.value).startswith(f"{path}: ") and words in str(error.value)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_language_model_must_be_there_and_have_the_model_s_tokens(model_dir, lm_dir, tmp_path):
    asr = {"asr_train_config": str(model_dir / "config.yaml")}
    asr["asr_model_file"] = str(model_dir / "model.pth")
    other = yaml.safe_load((lm_dir / "config.yaml").read_text())
    other["token_list"] = [*reversed(other["token_list"])]
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(other))
    lm = {"lm_train_config": str(lm_dir / "config.yaml"), "lm_file": str(lm_dir / "lm.pth")}
    assert asr_inference.Speech2Text(**asr, **lm).beam_search is not None
    for changed, words in (
        (lm | {"lm_train_config": str(tmp_path / "other.yaml")}, "token_list: differs"),
        ({"lm_train_config": lm["lm_train_config"]}, "a language model needs its checkpoint"),
        ({"lm_file": lm["lm_file"]}, "needs lm_train_config"),
    ):
        with pytest.raises(UserError, match=words):
            asr_inference.Speech2Text(**asr, **changed)


def test_parts_of_a_checkpoint_are_taken_or_named(model_dir):
    path = model_dir / "model.pth"
    state = read_state(path)
    model, _ = checkpoint.StrictASRTask.build_model_from_file(model_dir / "config.yaml")

    def filled():
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(0.25)
        return model

    def equal(part):
        found = filled_state()
        return {n for n in state if n.startswith(part) and torch.equal(found[n], state[n])}

    def filled_state():
        return model.state_dict()

    load_pretrained(f"{path}:encoder:encoder", filled(), False)
    encoder = {n for n in state if n.startswith("encoder.")}
    assert equal("encoder.") == encoder and not equal("decoder.output_layer")
    load_pretrained(f"{path}:::decoder", filled(), False)
    assert equal("encoder.") == encoder and not equal("decoder.output_layer")
    for asked, words in (
        (f"{path}:encodr:encoder", "has nothing of encodr; it has ctc, decoder, encoder"),
        (f"{path}:encoder:encodr", "the model to train has no part encodr"),
        (f"{path}:encoder:decoder", "does not fit"),
    ):
        with pytest.raises(UserError, match=words):
            load_pretrained(asked, model, False)


# places to write, and what surrounds a process


@pytest.mark.parametrize("main", [asr_certify, asr_inference_streaming, asr_inference, asr_profile])
def test_output_that_cannot_be_written_is_refused_before_any_work(tmp_path, capsys, main):
    (tmp_path / "file").write_text("")
    out = {"asr_certify": "--output", "asr_profile": "--output"}
    option = out.get(main.__name__.rpartition(".")[2], "--output_dir")
    for place in (tmp_path / "file/below/x", "/proc/nobody/x"):
        status, lines = errors(capsys, main.main, option, place)
        assert status == 1 and len(lines) == 1
        assert option in lines[0] and f"{place}: cannot be written" in lines[0]
    assert os.listdir(tmp_path) == ["file"]


def command(*words, **options):
    code = (
        "import sys; from espnet_ext.errors import cli\n"
        "import espnet_ext.errors\n"
        "@cli\ndef main(argv=None):\n    exec(sys.argv[1])\nmain()\n"
    )
    argv = [*options.pop("before", ()), sys.executable, "-c", code, *words]
    return subprocess.run(argv, stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.parametrize(
    "code,words",
    [
        ("open('/proc/nobody')", "/proc/nobody: No such file or directory; look at"),
        ("open('/etc/passwd/x')", "/etc/passwd/x: Not a directory; look at"),
        ("print('a' * 10**6)", "no space left"),
    ],
)
def test_what_the_machine_refuses_is_one_line(code, words):
    with open("/dev/full", "w") as full:
        done = command(code, stdout=full)
    assert done.returncode == 1 and words in done.stderr and done.stderr.count("\n") == 1


def test_bug_keeps_its_traceback():
    done = command("raise OSError('odd')", stdout=subprocess.DEVNULL)
    assert done.returncode == 1 and "Traceback" in done.stderr


def test_closed_standard_output_is_refused_and_a_closed_reader_is_no_fault():
    shell = 'exec "$@" >&-'
    done = command("print(1)", before=["bash", "-c", shell, "bash"])
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "standard output is closed" in done.stderr
    reader, writer = os.pipe()
    os.close(reader)
    done = command("print('a' * 10**6)", stdout=writer)
    os.close(writer)
    assert done.returncode == 141 and not done.stderr


def test_unusable_shared_memory_is_one_line():
    shell = 'mount -t tmpfs -o ro none /dev/shm && exec "$@"'
    if (
        not shutil.which("unshare")
        or subprocess.run(
            ["unshare", "-m", "bash", "-c", shell, "bash", "true"], stderr=subprocess.DEVNULL
        ).returncode
    ):
        pytest.skip("needs the right to mount")
    code = "import multiprocessing; multiprocessing.Lock()"
    before = ["unshare", "-m", "bash", "-c", shell, "bash"]
    done = command(code, before=before, stdout=subprocess.DEVNULL)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert "/dev/shm: shared memory cannot be used (Read-only file system)" in done.stderr
