"""The scripts around training: what fails is named, what is there is kept, the rest goes on."""

import contextlib
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from espnet_ext.evaluate.driver import Driver, Model, time_left
from espnet_ext.evaluate.evaluation import Settings
from evaluated import mark
from processes import running, wait_for

REPO = Path(__file__).parents[2]

# stands for the recipe, whose training takes minutes: it "trains" by copying a finished model
RUN = """#!/usr/bin/env bash
set -euo pipefail
echo "$*" >> calls
while [ $# -gt 1 ]; do declare "${1#--}=$2"; shift 2; done
name=$(basename "${asr_config:-none}" .yaml)
seed=$(sed -n 's/.*--seed \\([0-9]*\\)$/_seed\\1/p' <<< "${asr_args:-}")
if [ "${print_asr_exp:-}" = true ]; then echo "exp/asr_${name}_raw_word${seed}"; exit; fi
[ "${stop_stage}" = 11 ] || exit 0
[ ! -f wait ] || { sleep 300 & echo $! >> started; wait; }
[ "${name}" != train_asr_conformer_gqa ] || { echo "no luck"; exit 1; }
if [ ! -d "${asr_exp}" ]; then
    cp -rp "RUNS/$(basename "${asr_exp%"${seed}"}")" "${asr_exp}"
    touch "${asr_exp}/1epoch.pth"
fi
"""


SETTINGS = Settings(inference_config="conf/decode_asr.yaml", profile_config="conf/profile.yaml")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, eight_runs):
    """The models as they are below a recipe, measured with its settings."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(eight_runs, folder / "exp")
    (folder / "conf").mkdir()
    (folder / "conf" / "profile.yaml").write_text("{}\n")
    with contextlib.chdir(folder):
        for directory in Path("exp").iterdir():
            mark(directory, SETTINGS)
    return folder / "exp"


@pytest.fixture
def recipe(tmp_path, trained):
    """A repository with one recipe, ``toy``."""
    for name in ("espnet_ext", "local", "conf", "path.sh"):
        (tmp_path / name).symlink_to(REPO / name)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name in ("python", "python3"):
        (tmp_path / ".venv" / "bin" / name).write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        (tmp_path / ".venv" / "bin" / name).chmod(0o755)
    recipe = tmp_path / "egs2" / "toy" / "asr1"
    (recipe / "conf").mkdir(parents=True)
    for path in trained.iterdir():
        name = path.name.removeprefix("asr_").removesuffix("_raw_word")
        (recipe / "conf" / f"{name}.yaml").touch()
    (recipe / "conf" / "profile.yaml").write_text("{}\n")
    (recipe / "run.sh").write_text(RUN.replace("RUNS", str(trained)))
    (recipe / "run.sh").chmod(0o755)
    return recipe


def run(recipe, script, *options):
    return subprocess.run(
        [recipe.parents[2] / "local" / script, "--corpus", "toy", *options],
        capture_output=True,
        text=True,
    )


ARGS = """--asr_args "--a $(touch pwned) b\""""


def test_failed_model_is_named_with_its_log_and_the_others_are_compared(recipe):
    options = ["--encoders", "conformer", "--attentions", "mha gqa nope mla", "--jobs", "2"]
    done = run(recipe, "run_all_baselines.sh", *options, "--run_args", ARGS)
    assert done.returncode == 1, done.stdout + done.stderr
    ends = [line for line in done.stdout.splitlines() if "FAILED" in line][-2:]
    assert "FAILED: conformer gqa: no luck" in ends[0]
    assert str(recipe / "exp/run_all/conformer_gqa.log") in ends[0]
    assert "FAILED: conformer nope: no such file" in ends[1]
    rows = [line for line in done.stdout.splitlines() if ": WER test_clean" in line]
    assert sorted(row.split(":")[0] for row in rows) == ["conformer mha", "conformer mla"]
    assert "4 of 4 after" in done.stdout
    table = (recipe / "comparison" / "comparison_table.csv").read_text().splitlines()
    status = {line.split(",")[0]: line.split(",")[1] for line in table[1:]}
    assert status == {
        "conformer mha": "measured",
        "conformer mha (input cache)": "measured",
        "conformer gqa": "missing",
        "conformer nope": "missing",
        "conformer mla": "measured",
    }
    calls = (recipe / "calls").read_text().splitlines()
    assert all(call.endswith("--asr_args --a $(touch pwned) b") for call in calls)
    assert not list(recipe.rglob("pwned"))
    assert sum("--skip_train true" in call for call in calls) == 2

    measured = recipe / "exp/asr_train_asr_conformer_mla_raw_word/profile.json"
    before = measured.stat().st_mtime_ns
    again = run(
        recipe, "run_all_baselines.sh", "--encoders", "conformer", "--attentions", "mha linear mla"
    )
    assert again.returncode == 0, again.stdout + again.stderr
    assert measured.stat().st_mtime_ns == before
    assert "conformer mla: WER test_clean" in again.stdout
    runs = " ".join(f"exp/asr_train_asr_conformer_{a}_raw_word" for a in ("mha", "linear", "mla"))
    live = f"cd {recipe} && espnet-ext serve {runs} --chunk_size 16 --left_context 64"
    assert again.stdout.splitlines()[-1] == f"Look at them live: {live}"

    # what was only kept is no measure of what is left
    ends = [line.split(" ", 1)[1] for line in again.stdout.splitlines() if " of 3 after " in line]
    assert [end.partition(" of ")[0] for end in ends] == ["1", "2", "3"]
    assert ["left" in end for end in ends] == [False, True, False]


def test_a_model_is_trained_per_seed_and_the_options_of_all_stay(recipe):
    """One whose training fails: what was asked of it is what counts."""
    options = ["--encoders", "conformer", "--attentions", "gqa", "--seeds", "1 2"]
    run_args = "--asr_args '--max_epoch 3' --nj 2"
    done = run(recipe, "run_all_baselines.sh", *options, "--run_args", run_args)
    calls = (recipe / "calls").read_text().splitlines()
    for seed in (1, 2):
        own = [call for call in calls if f"--asr_args --max_epoch 3 --seed {seed} --nj 2" in call]
        assert len(own) == len(calls) / 2
        directory = f"--asr_exp exp/asr_train_asr_conformer_gqa_raw_word_seed{seed} "
        assert any(directory in call for call in own)
        assert f"FAILED: conformer gqa seed {seed}: no luck" in done.stdout
        assert (recipe / f"exp/run_all/conformer_gqa_seed_{seed}.log").is_file()
    refused = run(recipe, "run_all_baselines.sh", *options, "--run_args", "--asr_args '--seed 3'")
    assert refused.returncode == 1 and "has a --seed as well" in refused.stderr


@pytest.mark.parametrize(
    ("jobs", "trained", "models", "text"),
    [
        (1, [600, 300], 6, ", about 45 min left"),
        (2, [600, 300], 6, ", about 23 min left"),
        (4, [600], 2, ", about 10 min left"),
        (1, [], 7, ""),
        (1, [600], 0, ""),
    ],
)
def test_time_left_is_that_of_models_trained_in_this_run(jobs, trained, models, text):
    assert time_left(trained, models, jobs) == text


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_every_model(recipe, signum):
    (recipe / "wait").touch()
    script = recipe.parents[2] / "local" / "run_all_baselines.sh"
    options = ["--corpus", "toy", "--encoders", "conformer", "--jobs", "2"]
    process = subprocess.Popen(
        [script, *options],
        stdout=subprocess.DEVNULL,
        # a test that itself runs in the background would hand down that SIGINT is ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    started = recipe / "started"
    wait_for(lambda: started.exists() and started.read_text().count("\n") == 2)
    process.send_signal(signum)
    assert process.wait(30) == 128 + signum
    wait_for(lambda: not any(running(int(pid)) for pid in started.read_text().split()))


@pytest.mark.parametrize("script", ["run_all_baselines.sh", "evaluate_all.sh"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--corpus", "nope"], "no "),
        (["--atentions", "mha"], "unknown option --atentions"),
    ],
)
def test_wrong_option_is_one_clear_line(recipe, script, options, message):
    done = run(recipe, script, *options)
    assert done.returncode == 1
    assert message in done.stderr and done.stderr.count("\n") == 1
    assert not (recipe / "calls").exists()


def test_evaluation_without_a_model_says_so(recipe):
    done = run(recipe, "evaluate_all.sh")
    assert done.returncode == 1 and "train a model first" in done.stderr


def test_costs_are_measured_while_nothing_trains(recipe, monkeypatch):
    """Each measurement looks for trainings that have begun and not ended."""
    run = recipe / "run.sh"
    training = 'touch "training_${name}"; sleep 0.3; rm "training_${name}"'
    run.write_text(run.read_text().replace("[ ! -f wait ]", f"{training}\n[ ! -f wait ]"))
    monkeypatch.chdir(recipe)
    measured, said = [], []

    def announce(results):
        assert not list(recipe.glob("training_*"))
        measured.append(results["model"])

    names = [f"conformer {attention}" for attention in ("mha", "mla", "linear")]
    models = [
        Model(name, Path(f"conf/train_asr_{name.replace(' ', '_')}.yaml"), ("--seed", "1"))
        for name in names
    ]
    Driver(SETTINGS, jobs=2, announce=announce, say=said.append).train(models)
    assert not any(model.failure for model in models), said
    assert measured == [model.expdir.name for model in models]
    assert measured[0] == "asr_train_asr_conformer_mha_raw_word"
    calls = (recipe / "calls").read_text().splitlines()
    assert all(call.endswith("--seed 1") for call in calls)
    for model in models:  # one of them said where it goes, the others were told
        own = [call for call in calls if f"--asr_exp {model.expdir} " in call]
        assert [re.search("--stop_stage ([0-9]+)", call)[1] for call in own] == ["11", "13"]


def test_measurement_that_ends_in_a_bug_is_one_model_s_failure(recipe, monkeypatch):
    monkeypatch.chdir(recipe)
    said = []

    def announce(results):
        if results["attention"] == "mha":
            raise ZeroDivisionError("a bug")

    models = [
        Model(f"conformer {name}", Path(f"conf/train_asr_conformer_{name}.yaml"))
        for name in ("mha", "mla")
    ]
    driver = Driver(SETTINGS, announce=announce, say=said.append)
    driver.train(models)
    assert [bool(model.failure) for model in models] == [True, False]
    assert "a bug" in models[0].failure and str(driver.log(models[0])) in models[0].failure
    assert "Traceback" in driver.log(models[0]).read_text()
