"""A trained model works wherever its files lie together, and one is in the package."""

import re
import shlex
import shutil
import tomllib
from pathlib import Path

import pytest
import soundfile
import torch
import yaml

from espnet_ext.bin import asr_convert, asr_inference, asr_pack, stream
from espnet_ext.errors import UserError
from espnet_ext.evaluate.models import build_encoder, read_model_config
from espnet_ext.packing import unpack
from espnet_ext.pretrained import RECORDING, model_files
from espnet_ext.streaming.speech2text import StreamingSpeech2Text

ROOT = Path(__file__).parents[2]
REFERENCE = RECORDING.with_suffix(".txt").read_text().strip()
README = (ROOT / "README.md").read_text().partition("## Streaming")[2].partition("\n## ")[0]


@pytest.fixture
def moved(tmp_path, monkeypatch):
    """The model of the package somewhere else, and as a training's config names its files."""
    shutil.copytree(RECORDING.parent, tmp_path / "moved")
    path = tmp_path / "moved" / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["normalize_conf"]["stats_file"] = "exp/asr_stats/train/feats_stats.npz"
    path.write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "moved"


def test_command_of_the_readme_prints_the_reference(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    [arguments] = re.findall(r"^    espnet-ext stream *(.*)$", README, re.MULTILINE)
    stream.main(shlex.split(arguments))
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == REFERENCE and len(lines) > 4
    assert all(re.fullmatch(r" +[\d.]+ s +[\d.]+ KB .*", line) for line in lines[:-1])


def test_python_of_the_readme_prints_the_reference(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    [code] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.splitlines()[-1] == REFERENCE


@pytest.mark.parametrize(
    "lost, message",
    [
        ({}, "stats_file: exp/asr_stats/train/feats_stats.npz: no such file here; go to the"),
        ({"token_type": "bpe", "bpemodel": "data/bpe.model"}, "bpemodel: data/bpe.model: no such"),
        ({"token_type": "bpe", "bpemodel": "README.md"}, "the model cannot be built"),
    ],
    ids=["statistics", "token model", "damaged"],
)
def test_model_whose_files_are_lost_is_refused_in_one_line(moved, lost, message, capsys):
    """In its own words before anything is decoded, for live streams and whole recordings."""
    config = yaml.safe_load((moved / "config.yaml").read_text()) | lost
    (moved / "config.yaml").write_text(yaml.safe_dump(config))
    if not lost:
        (moved / "feats_stats.npz").unlink()
    with pytest.raises(SystemExit):
        stream.main(["moved", str(RECORDING)])
    (line,) = capsys.readouterr().err.splitlines()
    assert "moved/config.yaml" in line and message in line
    with pytest.raises(UserError, match=message):
        asr_inference.Speech2Text(**model_files(moved))


def test_moved_model_streams_decodes_and_is_converted(moved):
    samples, _ = soundfile.read(RECORDING, dtype="float32")
    assert StreamingSpeech2Text.from_pretrained("moved").offline(samples).text == REFERENCE
    files = model_files(moved)
    decode = asr_inference.Speech2Text(**files, beam_size=2, ctc_weight=1.0)
    assert decode(samples)[0][0] == REFERENCE
    config = yaml.safe_load((moved / "config.yaml").read_text())
    config["encoder_conf"] |= {"attention": "mha", "attention_conf": {}}
    (moved / "config.yaml").write_text(yaml.safe_dump(config))
    encoder = build_encoder(read_model_config(moved / "config.yaml")).state_dict()
    weights = torch.load(moved / "valid.acc.ave.pth")
    weights = {k: v for k, v in weights.items() if not k.startswith("encoder.")}
    weights |= {f"encoder.{name}": value for name, value in encoder.items()}
    torch.save(weights, moved / "valid.acc.ave.pth")
    arguments = ["--from", "moved", "--output", "mla", "--attention", "mla"]
    asr_convert.main([*arguments, "--attention_conf", "kv_lora_rank=64"])
    source, converted = (
        StreamingSpeech2Text.from_pretrained(name).encode_offline(samples)
        for name in ("moved", "mla")
    )
    assert (source - converted).abs().max() < 1e-4


def test_moved_model_is_packed_and_unpacked(moved, tmp_path):
    files = {f"--{name}": str(path) for name, path in model_files("moved").items()}
    asr_pack.main([*(word for pair in files.items() for word in pair), "--outpath", "a.zip"])
    shutil.rmtree(moved)
    arguments, _ = unpack("a.zip", tmp_path / "unpacked")
    samples, _ = soundfile.read(RECORDING, dtype="float32")
    assert StreamingSpeech2Text(**arguments).offline(samples).text == REFERENCE


def test_model_that_is_not_there_is_refused(tmp_path, capsys):
    with pytest.raises(UserError, match="nowhere: has no config.yaml .*; give the directory"):
        StreamingSpeech2Text.from_pretrained(tmp_path / "nowhere")
    for arguments, message in (
        (["a.wav", "--asr_model_file", "x.pth"], "--asr_train_config"),
        (["--asr_train_config", "config.yaml"], "FILE"),
    ):
        with pytest.raises(SystemExit):
            stream.main(arguments)
        assert message in capsys.readouterr().err


def test_installed_package_has_the_model():
    """Setuptools takes along what the project's file names."""
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packed = {
        path
        for package, patterns in tool["package-data"].items()
        for pattern in patterns
        for path in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    assert {path for path in RECORDING.parent.iterdir() if path.is_file()} <= packed
    licence = (RECORDING.parent / "README.md").read_text()
    assert "CC BY-SA 4.0" in licence and "Free Spoken Digit Dataset" in licence
