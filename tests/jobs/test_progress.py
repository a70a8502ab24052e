"""The line about running jobs: what it says of a training, how long it is, how often it comes."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from espnet_ext.jobs import progress

ROOT = Path(__file__).parents[2]
AT = "[vm] 2026-11-26 {} (trainer:310) INFO: "
LOG = [
    "# python3 -m espnet_ext.bin.asr_train --max_epoch 70",
    AT.format("09:59:00,000") + "[train] mini-batch sizes summary: N-batch=400, mean=6.0, min=2",
    AT.format("10:00:00,266") + "1/70epoch started",
    AT.format("10:01:00,266") + "1epoch:train:1-20batch: loss_ctc=9.1, acc=0.125, loss=51.250",
    AT.format("10:20:00,266") + "1epoch results: [train] acc=0.3, loss=40.1, time=20 minutes, "
    "[valid] loss_ctc=90.2, acc=0.350, loss=38.125, time=1.5 seconds, total_count=9",
    AT.format("10:20:00,300") + "2/70epoch started. Estimated time to finish: 23 hours",
    AT.format("10:25:00,266") + "2epoch:train:81-100batch: loss_ctc=9.1, acc=nan, loss=31.250",
]
AFTER = [  # what the line says after so many lines of the log
    "",
    "",
    "epoch 1/70",
    "epoch 1/70, about 23 h 19 min left, batch 20, loss 51.250, acc 0.125",
    "epoch 1/70, about 23 h 00 min left, batch 20, loss 51.250, acc 0.125"
    "; epoch 1: valid loss 38.125, acc 0.350",
    "epoch 2/70, about 23 h 00 min left; epoch 1: valid loss 38.125, acc 0.350",
    "epoch 2/70, about 22 h 55 min left, batch 100, loss 31.250"
    "; epoch 1: valid loss 38.125, acc 0.350",
]


def test_line_follows_the_log_in_whatever_pieces_it_is_written(tmp_path):
    log = progress.TrainingLog(tmp_path / "train.log")
    assert log.read() == ""
    for line, expected in zip(LOG, AFTER, strict=True):
        for piece in (line[: len(line) // 2], line[len(line) // 2 :] + "\n"):
            with open(log.path, "a") as file:
                file.write(piece)
            said = log.read()
        assert said == expected
    log.path.write_text("\n".join(LOG[:3]) + "\n")  # begun anew, as a job that ran out of its node
    assert log.read() == "epoch 1/70"


@pytest.mark.parametrize("batches", [399, 4000], ids=["fewer", "more"])
def test_first_epoch_that_is_no_pass_through_the_data_has_no_time_left(tmp_path, batches):
    """With num_iters_per_epoch: the steps between two lines tell."""
    log = tmp_path / "train.log"
    steps = LOG[3].replace("1-20batch", f"1-{batches // 20 or 1}batch")
    log.write_text("\n".join([*LOG[:3], steps]) + "\n")
    assert "left" not in progress.TrainingLog(log).read()


def test_terminal_shows_a_training_in_one_line_that_never_wraps(tmp_path):
    (tmp_path / "log").write_text("\n".join(LOG) + "\n")
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    command = [sys.executable, "-m", "espnet_ext.bin.run_jobs", "train.log", "bash", "-c"]
    done = subprocess.run(
        [*command, "cat log; sleep 1.5"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=theirs,
    )
    os.close(theirs)
    said = os.read(ours, 10000).decode()
    os.close(ours)
    assert done.returncode == 0 and "\n" not in said
    shown = [part for part in said.split("\r\033[K") if part]
    assert shown[-1] == AFTER[-1][:59]
    assert max(map(len, shown)) <= 59


def test_other_jobs_are_counted_and_a_day_is_no_flood(tmp_path, capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "time", lambda: clock[0])
    line = progress.Progress()
    (tmp_path / "x.log").write_text("".join(f"{text}\n" for text in LOG))
    for clock[0] in range(0, 24 * 3600, 5):
        line.show(3, 2, {}, 1, str(tmp_path / "x.log"))
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("1/3 jobs done, 2 running, 0 failed, 0:00:30 (")
    assert 50 < len(said) < 150
