"""Training in several processes, and what it does with damaged checkpoints and too few batches."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from espnet_ext.errors import UserError

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
}  # fmt: skip
# Imports ESPnet once, then trains in as many processes as there are command lines.
TRAIN = """
import json, multiprocessing, sys
from espnet_ext.bin.asr_train import main
fork = multiprocessing.get_context("fork")
processes = [fork.Process(target=main, args=(words,)) for words in json.loads(sys.argv[1])]
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
    return folder


def environment(**more):
    path = f"{ROOT}/espnet_ext/jobs:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PYTHONPATH": str(ROOT), "PATH": path, **more}


def losses(folder):
    stats = torch.load(folder / "checkpoint.pth", weights_only=False)["reporter"]["stats"]
    return [(epoch["train"]["loss"], epoch["valid"]["loss"]) for epoch in stats.values()]


@pytest.fixture(scope="module")
def trained(data):
    """A training in one process, one in two, and one that has too few batches: what they said."""
    split = ["--multiprocessing_distributed", "false", "--dist_backend", "gloo"]
    split += ["--dist_world_size", "2", "--dist_init_method", f"file://{data}/rendezvous"]
    commands = [["--config", "train.yaml", "--output_dir", "one"]]
    for rank in "01":
        commands.append(["--config", "train.yaml", "--output_dir", "two", *split])
        commands[-1] += ["--dist_rank", rank]
    commands.append([*commands[0][:3], "never", "--accum_grad", "100"])
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, json.dumps(commands)],
        cwd=data,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[-1] == "[0, 0, 0, 1]", done.stderr[-3000:]
    return done.stderr


def test_two_processes_follow_the_loss_curve_of_one(data, trained):
    one, two = losses(data / "one"), losses(data / "two")
    assert len(one) == 3 and one[0][0] > 1.1 * one[2][0]  # it does learn
    np.testing.assert_allclose(two, one, rtol=1e-5)


def test_fewer_batches_than_accum_grad_are_refused(data, trained):
    assert "fewer than accum_grad 100: the weights never change; lower accum_grad" in trained
    assert not (data / "never/checkpoint.pth").exists()


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
