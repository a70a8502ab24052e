"""Training in several processes, and what ends it: damage, too few batches, not-a-number."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from espnet2.main_funcs import average_nbest_models as averaging
from espnet2.tasks.asr import ASRTask
from espnet2.train.reporter import Reporter

from espnet_ext.bin import aggregate_stats_dirs
from espnet_ext.errors import UserError
from espnet_ext.jobs import training
from espnet_ext.jobs.progress import TrainingLog

ROOT = Path(__file__).parents[2]
TOKENS = ["<blank>", "<unk>", "A", "B", "C", "<space>", "<sos/eos>"]
# Branchformer: its normalisation does not look at other utterances, as a Conformer's does
CONFIG = {
    "encoder": "kv_branchformer",
    "encoder_conf": {
        "output_size": 16, "attention_heads": 2, "cgmlp_linear_units": 32, "num_blocks": 1,
        "dropout_rate": 0.0, "positional_dropout_rate": 0.0, "attention_dropout_rate": 0.0,
        "rel_pos_type": "latest", "attention": "mla", "attention_conf": {"kv_lora_rank": 8},
    },
    "decoder": "transformer",
    "decoder_conf": {
        "attention_heads": 2, "linear_units": 16, "num_blocks": 1, "dropout_rate": 0.0,
        "positional_dropout_rate": 0.0, "self_attention_dropout_rate": 0.0,
        "src_attention_dropout_rate": 0.0,
    },
    "model_conf": {"ctc_weight": 0.3, "length_normalized_loss": False},
    "normalize": "utterance_mvn", "token_type": "char", "token_list": "tokens.txt",
    "train_data_path_and_name_and_type": [["wav.scp", "speech", "sound"], ["text", "text", "text"]],
    "valid_data_path_and_name_and_type": [["wav.scp", "speech", "sound"], ["text", "text", "text"]],
    "train_shape_file": ["shape"], "valid_shape_file": ["shape"],
    "batch_type": "numel", "batch_bins": 40000, "num_workers": 0, "max_epoch": 3,
    "optim": "adam", "optim_conf": {"lr": 0.01}, "num_att_plot": 0, "use_matplotlib": False,
    "use_tensorboard": False, "ngpu": 0, "best_model_criterion": [["valid", "loss", "min"]],
    "log_interval": 1,
}  # fmt: skip
CONFORMER = {
    "encoder": "kv_conformer",
    "encoder_conf": CONFIG["encoder_conf"] | {"linear_units": 16, "cnn_module_kernel": 3},
}
CONFORMER["encoder_conf"].pop("cgmlp_linear_units")
# Imports ESPnet once, then trains in as many processes as there are command lines, a log for each.
TRAIN = """
import json, multiprocessing, os, sys
from espnet_ext.bin.asr_train import main
def train(words):
    name = words[words.index("--output_dir") + 1]
    os.dup2(os.open(f"{name}.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND), 2)
    main(words)
fork = multiprocessing.get_context("fork")
processes = [fork.Process(target=train, args=(words,)) for words in json.loads(sys.argv[1])]
for process in processes: process.start()
for process in processes: process.join()
print(json.dumps([process.exitcode for process in processes]))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    random = np.random.default_rng(0)
    tables = {"wav.scp": "", "text": "", "shape": ""}
    length = 9600  # of all: features at the end of a shorter one would see its padding
    for number in range(10):
        path = folder / f"{number}.wav"
        soundfile.write(path, 0.1 * random.standard_normal(length), 16000)
        tables["wav.scp"] += f"u{number} {path}\n"
        tables["text"] += f"u{number} {''.join(random.choice(list('ABC'), 3))}\n"
        tables["shape"] += f"u{number} {length}\n"
    for name, content in tables.items():
        (folder / name).write_text(content)
    (folder / "tokens.txt").write_text("".join(f"{token}\n" for token in TOKENS))
    (folder / "train.yaml").write_text(json.dumps(CONFIG))
    for name, bad, encoder in (("nan", np.nan, {"num_workers": 1}), ("loud", 1e30, CONFORMER)):
        samples, _ = soundfile.read(folder / "3.wav")
        samples[5000] = bad
        soundfile.write(folder / f"{name}.wav", samples, 16000, subtype="FLOAT")
        table = tables["wav.scp"].replace("/3.wav", f"/{name}.wav")
        (folder / f"{name}.scp").write_text(table)
        config = CONFIG | encoder
        audio, text = config["train_data_path_and_name_and_type"]
        config["train_data_path_and_name_and_type"] = [[f"{name}.scp", *audio[1:]], text]
        (folder / f"{name}.yaml").write_text(json.dumps(config))
    return folder


def environment(**more):
    path = f"{ROOT}/espnet_ext/jobs:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PYTHONPATH": str(ROOT), "PATH": path, **more}


def losses(folder):
    stats = torch.load(folder / "checkpoint.pth", weights_only=False)["reporter"]["stats"]
    return [(epoch["train"]["loss"], epoch["valid"]["loss"]) for epoch in stats.values()]


# What goes wrong -> options that make it so
FAULTS = {
    "never": ["--accum_grad", "100"],
    "ctc": ["--model_conf", "ctc_weight=1.0", "--best_model_criterion", "valid,acc,max"],
    "patience": ["--model_conf", "ctc_weight=1.0", "--patience", "1"]
    + ["--early_stopping_criterion", "valid", "acc", "max"],
    "misspelt": ["--best_model_criterion", "valid,accuracy,max"],
    "nan": ["--config", "nan.yaml"],
    "loud": ["--config", "loud.yaml"],
}


@pytest.fixture(scope="module")
def trained(data):
    """A training in one process, one in two, and those that end badly, each with its log."""
    split = ["--multiprocessing_distributed", "false", "--dist_backend", "gloo"]
    split += ["--dist_world_size", "2", "--dist_init_method", f"file://{data}/rendezvous"]
    commands = [["--config", "train.yaml", "--output_dir", "one"]]
    for rank in "01":
        commands.append(["--config", "train.yaml", "--output_dir", "two", *split])
        commands[-1] += ["--dist_rank", rank]
    for name, options in FAULTS.items():
        commands.append(["--config", "train.yaml", "--output_dir", name, *options])
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, json.dumps(commands)],
        cwd=data,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    said = {path.stem: path.read_text() for path in data.glob("*.log")}
    codes = [0, 0, 0] + [1] * len(FAULTS)
    assert json.loads(done.stdout.splitlines()[-1]) == codes, said["one"][-1000:]
    return said


def test_two_processes_follow_the_loss_curve_of_one(data, trained):
    one, two = losses(data / "one"), losses(data / "two")
    assert len(one) == 3 and one[0][0] > 1.1 * one[2][0]  # it does learn
    np.testing.assert_allclose(two, one, rtol=1e-5)


def test_fewer_batches_than_accum_grad_are_refused(data, trained):
    said = "fewer than accum_grad 100: the weights never change; lower accum_grad"
    assert said in trained["never"]
    assert not (data / "never/checkpoint.pth").exists()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            "ctc",
            "epoch 1: valid acc is nan, and best_model_criterion asks for it, .*"
            r"ask for valid cer_ctc min or valid loss min, .*\[\[valid, cer_ctc, min\]\], "
            "and then --inference_asr_model valid.cer_ctc.ave.pth",
        ),
        ("patience", "epoch 1: valid acc is nan, and early_stopping_criterion asks for it"),
        ("misspelt", "epoch 1: valid accuracy is not measured, .* ask for valid acc max or"),
        ("nan", "^asr_train: error: the utterance u3: speech is infinite or not a number"),
        (
            "loud",
            r"epoch 1: encoder.encoders.0.conv_module.norm.running_mean \(and 1 more\) is "
            "infinite or not a number: .*half precision",
        ),
    ],
)
def test_training_that_cannot_end_well_stops_in_its_first_epoch(data, trained, fault, message):
    last = trained[fault].splitlines()[-1]
    assert re.search(message, last.replace("-c: error", "asr_train: error")), last
    assert "Traceback" not in trained[fault]
    assert not list((data / fault).glob("*.pth"))


def test_loss_of_a_training_recovers_though_a_buffer_does_not(trained):
    """Why the buffers are looked at: of the epoch's batches only one has a bad loss."""
    values = re.findall(r"1epoch:train:.*[ ,]loss=([^,\s]+)", trained["loud"])
    assert len(values) == 2 and sum(value == "nan" for value in values) == 1


def test_progress_reads_the_log_of_a_training(data, trained):
    _, _, (_, valid) = losses(data / "one")
    line = TrainingLog(data / "one.log").read()
    assert re.fullmatch(
        rf"epoch 3/3, about \d+ (s|min) left, batch 2, loss [\d.]+, acc [\d.]+"
        rf"; epoch 3: valid loss {valid:.3f}, acc [\d.]+",
        line,
    ), line
    assert "epoch 1/3" in TrainingLog(data / "ctc.log").read()


def test_resumed_training_and_average_refuse_what_is_not_finite(
    data, trained, tmp_path, monkeypatch
):
    states = torch.load(data / "one/checkpoint.pth")
    weight = next(iter(states["model"]))
    states["model"][weight] = torch.full_like(states["model"][weight], torch.inf)
    options = SimpleNamespace(
        best_model_criterion=[("valid", "loss", "min")], patience=None, no_forward_run=False
    )
    torch.save(states, tmp_path / "checkpoint.pth")
    with pytest.raises(UserError, match=f"checkpoint.pth: {weight} is infinite"):
        training.complete_epoch(tmp_path / "checkpoint.pth", options)

    reporter = Reporter()
    reporter.load_state_dict(states["reporter"])
    for epoch in (1, 2, 3):
        (tmp_path / f"{epoch}epoch.pth").write_bytes((data / f"one/{epoch}epoch.pth").read_bytes())
    torch.save(states["model"], tmp_path / "2epoch.pth")
    monkeypatch.setattr(averaging, "safe_torch_load", training._sound(averaging.safe_torch_load))
    with pytest.raises(UserError, match=f"2epoch.pth: {weight} is infinite .*cannot be averaged"):
        averaging.average_nbest_models(tmp_path, reporter, options.best_model_criterion, nbest=[3])
    assert not list(tmp_path.glob("*ave*"))


@pytest.mark.parametrize("key", ["sum", "sum_square"])
def test_statistics_that_are_not_finite_are_refused(tmp_path, capsys, key):
    (tmp_path / "stats.1/train").mkdir(parents=True)
    statistics = {"count": np.array(4), "sum": np.ones(3), "sum_square": np.ones(3)}
    statistics[key][1] = np.nan
    np.savez(tmp_path / "stats.1/train/feats_stats.npz", **statistics)
    words = ["--input_dir", tmp_path / "stats.1", "--output_dir", tmp_path, "--token_list", "x"]
    with pytest.raises(SystemExit):
        aggregate_stats_dirs.main([*map(str, words), "--token_type", "char"])
    said = capsys.readouterr().err
    assert f"{tmp_path}/stats.1/train/feats_stats.npz: {key} is infinite or not a number" in said
    assert not (tmp_path / "train").exists()


def test_text_of_any_white_space_is_tokens_of_the_list(data):
    """A language model's text comes from anywhere, past the stages that write data directories."""
    task = type("Task", (ASRTask,), {})  # its own, so that other tests see ESPnet's
    training.guard_data(task)
    options = ["--token_type", "char", "--token_list", str(data / "tokens.txt")]
    args = task.get_parser().parse_args([*options, "--output_dir", "x"])
    parts = task.build_preprocess_fn(args, train=True)("u", {"text": " A\u00a0\tB  C\u3000"})
    assert parts["text"].tolist() == [
        TOKENS.index(t) for t in ("A", "<space>", "B", "<space>", "C")
    ]


def test_two_nodes_through_the_launcher_and_slurm_do_too(data, trained, slurm):
    words = ["--cmd", "slurm.pl --name nodes", "--log", "slurm/train.log", "--ngpu", "0"]
    words += ["--num_nodes", "2", "--init_file_prefix", "slurm/.dist_init_", "--", "python"]
    words += ["-m", "espnet_ext.bin.asr_train", "--config", "train.yaml", "--output_dir", "slurm"]
    done = subprocess.run(
        [sys.executable, "-m", "espnet_ext.bin.launch", *words],
        cwd=data,
        env=environment(**slurm),
        capture_output=True,
        text=True,
    )
    log = (data / "slurm/train.log").read_text()
    assert done.returncode == 0, done.stderr + log[-3000:]
    assert ":0/2]" in log  # rank 0 of 2
    np.testing.assert_allclose(losses(data / "slurm"), losses(data / "one"), rtol=1e-5)


def test_newest_whole_checkpoint_is_restored_and_damaged_ones_are_set_aside(tmp_path, caplog):
    from espnet_ext.jobs.training import restore_checkpoint

    newest, previous = tmp_path / "checkpoint.pth", tmp_path / "checkpoint.previous.pth"
    assert not restore_checkpoint(tmp_path)
    for epoch, path in ((2, newest), (1, previous)):
        torch.save({"epoch": epoch, "weights": torch.zeros(1000)}, path)
    assert restore_checkpoint(tmp_path) and torch.load(newest)["epoch"] == 2
    assert previous.exists()

    newest.write_bytes(newest.read_bytes()[:-100])  # as a copy that was cut off
    assert restore_checkpoint(tmp_path) and torch.load(newest)["epoch"] == 1
    assert f"{newest} is corrupt" in caplog.text and not previous.exists()
    assert (tmp_path / "checkpoint.pth.corrupt").exists()

    newest.rename(previous)  # killed between two renames
    assert restore_checkpoint(tmp_path) and torch.load(newest)["epoch"] == 1

    newest.write_bytes(bytes(5000))
    with pytest.raises(UserError, match="checkpoint.pth: corrupt, and no whole checkpoint is left"):
        restore_checkpoint(tmp_path)
