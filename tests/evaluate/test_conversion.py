"""The conversion curve: real models and scores through the script, a stand-in for decoding."""

import csv
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from convert.models import CHECKPOINT, write_audio, write_model
from espnet_ext.bin import asr_convert
from espnet_ext.errors import UserError
from espnet_ext.evaluate.conversion import COLUMNS, Curve, _change, _origin, curve_plot

REPO = Path(__file__).parents[2]

# stands for the recipe: the better a model's rank, the fewer words of its hypotheses are wrong
RUN = """#!/usr/bin/env bash
set -euo pipefail
echo "$*" >> calls
while [ $# -gt 1 ]; do declare "${1#--}=$2"; shift 2; done
exec python stand_in.py "${stage:-12}" "${asr_exp}" "${inference_tag:-}" "${init_from:-}"
"""
STAND_IN = """
import shutil, sys, yaml
from pathlib import Path
from espnet_ext.bin.score import main
stage, expdir, tag, init_from = sys.argv[1:]
expdir = Path(expdir)
config = yaml.safe_load(Path(init_from or expdir, "config.yaml").read_text())
if stage == "10":
    shutil.copy(Path(init_from, "CHECKPOINT"), expdir)
    config["init_param"] = [init_from + "/CHECKPOINT"]
    (expdir / "config.yaml").write_text(yaml.safe_dump(config))
else:
    conf = config["encoder_conf"].get("attention_conf") or {}
    wrong = 3 - conf.get("kv_lora_rank", 24) // 8 if not config.get("init_param") else 0
    text = [line.split() for line in Path("dump/raw/dev/text").read_text().splitlines()]
    out = expdir / tag / "dev"
    out.mkdir(parents=True)
    lines = (f"{i} {' '.join(['X'] * wrong + words[wrong:])}\\n" for i, *words in text)
    (out / "text").write_text("".join(lines))
    main(["--ref", "dump/raw/dev/text", "--hyp", str(out / "text"), "--output", str(out),
          "--token_type", "word"])
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A repository with one recipe, ``toy``, and a model that was trained there."""
    root = tmp_path_factory.mktemp("repository")
    for name in ("espnet_ext", "local", "conf", "path.sh"):
        (root / name).symlink_to(REPO / name)
    (root / ".venv").symlink_to(sys.prefix)
    recipe = root / "egs2" / "toy" / "asr1"
    data = write_audio(recipe / "dump/raw/dev", utterances=4, seconds=1)
    calibration = [[str(data / "wav.scp"), "speech", "sound"], ["text", "text", "text"]]
    paths = {"valid_data_path_and_name_and_type": calibration}
    write_model(recipe / "exp/asr_mha", "kv_conformer", **paths)
    (recipe / "run.sh").write_text(RUN)
    (recipe / "run.sh").chmod(0o755)
    (recipe / "stand_in.py").write_text(STAND_IN.replace("CHECKPOINT", CHECKPOINT))
    return recipe


def run(recipe, *options):
    script = [recipe.parents[2] / "local/conversion_curve.sh", "--corpus", "toy"]
    return subprocess.run([*script, *options], capture_output=True, text=True)


def test_curve_has_a_row_for_every_conversion(recipe, monkeypatch):
    monkeypatch.chdir(recipe)
    # what is there is kept, and quicker to make here than in a process each
    aware = ["--calibration_scp", "dump/raw/dev/wav.scp"]
    for name, words in {
        "mla_16_plain": ["mla", "--attention_conf", "kv_lora_rank=16"],
        "mla_16_aware": ["mla", "--attention_conf", "kv_lora_rank=16", *aware],
        "mla_8_plain": ["mla", "--attention_conf", "kv_lora_rank=8"],
        "gqa_2": ["gqa", "--attention_conf", "n_kv_head=2"],
        "gqa_2_similar": ["gqa", "--attention_conf", "n_kv_head=2", "--grouping=similar", *aware],
    }.items():
        output = ["--output", f"exp/asr_mha_converted/asr_{name}", "--attention"]
        asr_convert.main(["--from", "exp/asr_mha", *output, *words])
    options = ["--model", "exp/asr_mha", "--ranks", "16 8", "--groups", "2"]
    options += ["--finetune", "mla_8_aware source", "--run_args", "--nj '3'", "--budgets", "64"]
    write_model(recipe / "exp/asr_alone", "kv_conformer", {"attention": "linear"})
    options += ["--scratch", "exp/asr_alone"]
    broken = shutil.copytree(
        "exp/asr_mha_converted/asr_mla_8_plain", "exp/asr_mha_converted/asr_mla_64kb_aware"
    )
    Path(broken, CHECKPOINT).write_bytes(Path(broken, CHECKPOINT).read_bytes()[:-99])
    done = run(recipe, *options)
    assert done.returncode == 1, done.stdout + done.stderr
    last = done.stdout.splitlines()[-1]  # what fails stops no other
    assert "FAILED: mla_64kb_aware: " in last and f"{CHECKPOINT}: no whole checkpoint" in last
    with open(recipe / "conversion/curve.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(row["model"], row["method"], row["training"]) for row in rows] == [
        ("asr_mha", "mha (source)", "source"),
        ("asr_alone", "linear", "from scratch"),
        ("asr_source_tuned", "mha (source)", "fine-tuned"),
        ("asr_mla_16_plain", "mla, plain", "zero-shot"),
        ("asr_mla_16_aware", "mla, activation-aware", "zero-shot"),
        ("asr_mla_8_plain", "mla, plain", "zero-shot"),
        ("asr_mla_8_aware", "mla, activation-aware", "zero-shot"),
        ("asr_mla_8_aware_tuned", "mla, activation-aware", "fine-tuned"),
        ("asr_gqa_2", "gqa, neighbouring heads", "zero-shot"),
        ("asr_gqa_2_similar", "gqa, similar heads, activation-aware", "zero-shot"),
    ]
    assert float(rows[1]["difference"]) == 0 and rows[1]["change"] == ""
    assert float(rows[2]["change"]) == 0, "the stand-in for training changes nothing"
    rows = [rows[0], *rows[3:]]
    assert [row["wer"] for row in rows[:6]] == ["0.0", "25.0", "25.0", "50.0", "50.0", "0.0"]
    kb = 2 * 4 * 1000 / 1024  # of one value per frame and layer
    assert [float(row["kb"]) for row in rows] == [
        round(values * kb, 4) for values in (64, 16, 16, 8, 8, 8, 32, 32)
    ]
    change = [float(row["change"]) for row in rows[1:]]
    assert 0 < change[1] < change[0] < change[2]  # rank 16 aware, plain, rank 8 plain
    assert change[3] == change[4], "the stand-in for training changes nothing"
    assert float(rows[3]["difference"]) == 50 and rows[0]["difference"] == ""
    page = (recipe / "conversion/report.html").read_text()
    assert all(f">{row['model']}<" in page for row in rows) and "data:image/png" in page
    calls = (recipe / "calls").read_text().splitlines()
    assert len(calls) == 13 and all(call.endswith("--nj 3") for call in calls)
    # a test set that the source was not decoded on has nothing to be compared with
    (scored,) = Path("exp/asr_alone").glob("*/dev")
    shutil.copytree(scored, scored.with_name("other"))
    curve = Curve("exp/asr_mha", scored.parent.name, num_utts=1)
    assert [row["test_set"] for row in curve.rows("exp/asr_alone", scratch=True)] == ["dev"]


@pytest.mark.parametrize(
    "options, message",
    [
        (["--model", "exp/asr_none"], "exp/asr_none/config.yaml"),
        (["--modle", "x"], "did you mean --model?"),
    ],
)
def test_wrong_option_is_one_clear_line(recipe, options, message):
    done = run(recipe, *options)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if "error" in line]
    assert message in line and "Traceback" not in done.stderr


def test_model_of_another_source_is_refused(recipe, monkeypatch):
    monkeypatch.chdir(recipe)
    other = Path("exp/asr_other")
    other.mkdir()
    config = yaml.safe_load(Path("exp/asr_mha/config.yaml").read_text())
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    torch.save({}, other / CHECKPOINT)
    for conversion, message in [
        (None, "neither written by asr_convert nor fine-tuned"),
        (
            {"source": "exp/asr_third", "checkpoint": CHECKPOINT},
            "was converted from exp/asr_third, not exp/asr_mha",
        ),
    ]:
        if conversion:
            (other / "conversion.json").write_text(json.dumps(conversion))
        with pytest.raises(UserError, match=message):
            _origin(other, Path("exp/asr_mha"))


def test_plot_of_a_source_whose_conversions_all_failed_is_one(tmp_path):
    row = dict.fromkeys(COLUMNS) | {"method": "mha (source)", "training": "source", "kb": 3.0}
    row |= {"test_set": "test", "wer": 5.0, "wer_low": 4.0, "wer_high": 6.0, "drawn": "utterances"}
    scratch = row | {"method": "mla", "training": "from scratch", "conf": "4"}
    for rows in ([row], [row, scratch]):
        assert curve_plot(rows, "test").startswith(b"\x89PNG")


def test_change_of_outputs_is_a_number_or_missing():
    ones, none = torch.ones(3, 2), torch.zeros(0, 2)
    assert _change([2 * ones, none], [ones, none]) == 1
    assert _change([none], [none]) is None
    for spoilt in ([ones * math.nan], [ones * math.inf]):
        with pytest.raises(UserError, match="not a number"):
            _change(spoilt, [ones])
