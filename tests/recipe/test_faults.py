"""Full disks, damaged checkpoints, divergence, two runs at once, Ctrl-C: one line, nothing lost."""

import os
import signal
import subprocess
import zipfile

import pytest
import torch

from copies import copy_mini_an4, descendants, kill_when, run
from disks import small_disk
from processes import running, wait_for

NO_SPACE = "no space left on the disk"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    recipe = copy_mini_an4(tmp_path_factory.mktemp("faults"))
    done = run(recipe, "--stop-stage", "10")
    assert done.returncode == 0, done.stdout + done.stderr
    return recipe


def failed(recipe, *options):
    """Run the recipe, which fails without a traceback; return what it said."""
    done = run(recipe, *options)
    assert done.returncode != 0
    assert "Traceback" not in done.stdout + done.stderr
    return done.stderr


def epoch(checkpoint):
    return torch.load(checkpoint, weights_only=False)["reporter"]["epoch"]


def test_full_disk_in_stage_3_is_one_line_and_the_rerun_goes_on(recipe, tmp_path):
    with small_disk(tmp_path / "disk", 160) as disk:
        options = ["--stage", "3", "--stop-stage", "3", "--dumpdir", str(disk.path / "dump")]
        said = failed(recipe, *options)
        assert said.count(NO_SPACE) == 1 and len(said.splitlines()) == 1
        written = disk.path / "dump/raw/org/train_nodev_sp"
        assert list(written.glob("data/*.flac")) and not (written / "wav.scp").exists()
        disk.size(4096)
        done = run(recipe, *options)
        assert done.returncode == 0, done.stderr
        lines = (written / "wav.scp").read_text().splitlines()
        assert len(lines) == 12 and len(list(written.glob("data/*"))) == 12


def test_full_disk_and_a_corrupt_checkpoint_lose_no_finished_epoch(recipe, tmp_path):
    with small_disk(tmp_path / "disk", 3600) as disk:
        model = disk.path / "model"
        options = ["--asr_exp", str(model), "--asr_args", "--max_epoch 3", "--inference_nj", "1"]
        said = failed(recipe, *options, "--stage", "11")
        assert NO_SPACE in said and "train.log" in said
        checkpoint = model / "checkpoint.pth"
        assert epoch(checkpoint) == 2 and epoch(model / "checkpoint.previous.pth") == 1
        for path in model.glob("*.pth"):
            with zipfile.ZipFile(path) as archive:
                assert archive.testzip() is None
        assert not list(model.glob("*.tmp"))

        disk.size(16384)
        content = bytearray(checkpoint.read_bytes())
        content[len(content) // 2] ^= 1
        checkpoint.write_bytes(content)
        done = run(recipe, *options, "--stage", "11", "--stop-stage", "11")
        assert done.returncode == 0, done.stdout + done.stderr
        log = (model / "train.log").read_text()
        assert f"{checkpoint} is corrupt (wrong checksum of " in log
        assert "goes on from" in log and "checkpoint.previous.pth, the last good checkpoint" in log
        assert "2/3epoch started" in log and "1/3epoch started" not in log
        assert epoch(checkpoint) == 3 and (model / "checkpoint.pth.corrupt").exists()

        disk.leave(16)
        said = failed(recipe, *options, "--stage", "12")
        assert NO_SPACE in said, said
        (disk.path / "filler").unlink()
        done = run(recipe, *options, "--stage", "12", "--stop-stage", "12")
        assert done.returncode == 0, done.stdout + done.stderr
        (text,) = model.glob("decode_*/test/text")
        assert len(text.read_text().splitlines()) == 2

        averaged = (model / "valid.acc.ave.pth").resolve()
        averaged.write_bytes(averaged.read_bytes()[:1000])
        said = failed(recipe, *options, "--stage", "12")
        assert "valid.acc.ave.pth: no whole checkpoint (File is not a zip file)" in said


def test_loss_that_is_not_a_number_stops_with_advice_and_keeps_the_epoch_before(recipe):
    options = ["--asr_exp", "exp/diverged", "--asr_args"]
    # on the front end whose statistics the recipe has
    options += ["--optim_conf lr=1.0e+30 --max_epoch 4 --frontend default"]
    # no BatchNorm: its running mean would end the first epoch
    options += ["--asr_config", "conf/train_asr_branchformer_gqa.yaml"]
    said = failed(recipe, *options, "--stage", "11")
    assert "epoch 2: the loss or its gradient is infinite or not a number" in said
    assert "lower optim_conf lr" in said
    assert epoch(recipe / "exp/diverged/checkpoint.pth") == 1


def test_killed_stage_1_leaves_nothing_that_works_and_the_next_run_begins_at_once(tmp_path):
    recipe = copy_mini_an4(tmp_path)
    script = recipe / "local/data.sh"
    whole = script.read_text()
    script.write_text("#!/bin/sh\ntouch begun\nsleep 600\ntouch ended\n")
    kill_when(recipe, (recipe / "begun").exists, "--stop-stage", "1")
    script.write_text(whole)
    done = run(recipe, "--stop-stage", "1")
    assert done.returncode == 0, done.stderr
    assert not (recipe / "ended").exists() and (recipe / "data/.done").exists()


def test_lock_that_cannot_be_opened_stops_the_run(tmp_path):
    recipe = copy_mini_an4(tmp_path)
    (recipe / "data/.lock").mkdir(parents=True)
    (said,) = failed(recipe, "--stop-stage", "1").splitlines()
    assert "error: data/.lock cannot be opened" in said
    assert sorted(path.name for path in (recipe / "data").iterdir()) == [".lock"]


def test_second_run_is_refused_and_ctrl_c_ends_the_first_with_all_its_jobs(recipe):
    options = ["--asr_exp", "exp/locked", "--stage", "11"]
    log = recipe / "exp/locked/train.log"
    first = subprocess.Popen(
        [recipe / "run.sh", *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in background
    )
    wait_for(log.exists, 60)
    said = failed(recipe, *options)
    assert said.splitlines()[-1].endswith(
        f"another run works in exp/locked (process {first.pid} on {os.uname().nodename}): "
        "wait for it or stop it"
    )
    children = descendants(first.pid)
    assert len(children) >= 3  # launcher, runner, training
    os.killpg(first.pid, signal.SIGINT)  # as the terminal does
    assert first.wait(60) != 0
    wait_for(lambda: not any(running(pid) for pid in children))
    with open(recipe / "exp/locked/.lock") as lock:
        assert subprocess.run(["flock", "-n", "0"], stdin=lock).returncode == 0
