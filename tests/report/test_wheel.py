"""The built wheel works by itself: in an environment of its own, far from any clone."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import yaml

from convert.models import CHECKPOINT, write_audio, write_model

ROOT = Path(__file__).parents[2]
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
# every command of a user in one process, as importing PyTorch takes longer than all of them
COMMANDS = """
import importlib, json, sys
import espnet_ext
codes = {}
for module, *argv in json.loads(sys.argv[1]):
    try:
        codes[module] = importlib.import_module(f"espnet_ext.bin.{module}").main(argv) or 0
    except SystemExit as end:
        codes[module] = end.code or 0
print(json.dumps([espnet_ext.__file__, codes]))
"""


def alone():
    """Environment in which no clone is on Python's path."""
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of the files that git would know."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(
        ROOT / "espnet_ext", source / "espnet_ext", ignore=shutil.ignore_patterns("__pycache__")
    )
    subprocess.run([sys.executable, "-c", BUILD, out], cwd=source, check=True, capture_output=True)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="session")
def python(wheel, tmp_path_factory):
    """Python of a fresh environment that has the wheel and borrows what it depends on."""
    venv = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    python = venv / "bin/python"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps"]
    install += ["--no-index", "--disable-pip-version-check", wheel]
    subprocess.run(install, check=True, env=alone())
    (packages,) = venv.glob("lib/python*/site-packages")
    # the .pth files of a directory that a .pth file names, such as this clone's, are not read
    dependencies = Path(sysconfig.get_path("purelib"))
    (packages / "dependencies.pth").write_text(f"{dependencies}\n")
    shutil.copy(dependencies / "distutils-precedence.pth", packages)  # setuptools', for ESPnet
    return python


def test_wheel_has_every_file_of_the_package(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    known = subprocess.run(
        ["git", "ls-files", "-z", "-co", "--exclude-standard", "espnet_ext"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    files = {name for name in known.stdout.split("\0") if name and (ROOT / name).is_file()}
    if known.returncode != 0 or not files:
        pytest.skip("no clone of git to compare with")
    assert not files - names


def test_commands_of_the_wheel_work_outside_a_clone(python, make_run, tmp_path):
    conf = {"attention": "mha", "causal": True, "chunk_size": 8, "left_context": 16}
    model = write_model(tmp_path / "model", "kv_conformer", conf)
    make_run(tmp_path / "exp", "conformer", "mha")
    write_audio(tmp_path / "data", utterances=1)
    empty = tmp_path / "empty"
    empty.mkdir()
    checkpoint = model / CHECKPOINT
    options = ["--asr_train_config", model / "config.yaml", "--asr_model_file", checkpoint]
    commands = [
        ["check_setup"],
        ["stream", tmp_path / "data/u0.wav", *options],
        ["asr_profile", "--config", model / "config.yaml", "--frames", "50"],
        ["asr_certify", *options, "--wav_scp", tmp_path / "data/wav.scp", "--output", "equal.json"],
        ["asr_convert", "--from", model, "--output", "mla", "--attention", "mla"],
        ["asr_compare", "--expdir", tmp_path / "exp", "--encoders", "conformer"],
    ]
    commands[4] += ["--attention_conf", "kv_lora_rank=32"]
    ran = subprocess.run(
        [python, "-W", "ignore", "-c", COMMANDS, json.dumps(commands, default=str)],
        cwd=empty,
        env=alone(),
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    file, codes = json.loads(ran.stdout.splitlines()[-1])
    assert Path(file).is_relative_to(python.parents[1])
    assert codes == {name: 0 for name, *_ in commands}, ran.stdout + ran.stderr
    assert json.loads((empty / "equal.json").read_text())["equal"]
    assert (
        yaml.safe_load((empty / "mla/config.yaml").read_text())["encoder_conf"]["attention"]
        == "mla"
    )
    assert "<h1>" in (empty / "comparison/report.html").read_text()
