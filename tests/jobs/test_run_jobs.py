"""The contract of run.pl, with real processes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from espnet_ext.errors import UserError
from espnet_ext.jobs import parse_request
from processes import running, wait_for

ROOT = Path(__file__).parents[2]
RUN = [sys.executable, "-m", "espnet_ext.bin.run_jobs"]


def environment(**more):
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


def run(*words, cwd, **more):
    return subprocess.run(
        [*RUN, *words], cwd=cwd, env=environment(**more), capture_output=True, text=True
    )


def test_array_puts_the_number_into_log_and_command(tmp_path):
    done = run("JOB=2:4", "logs/x.JOB.log", "echo", "part JOB", "a  b'\"$c", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    logs = {path.name: path.read_text().splitlines() for path in (tmp_path / "logs").iterdir()}
    assert sorted(logs) == ["x.2.log", "x.3.log", "x.4.log"]
    for number in "234":
        head, started, blank, output, accounting, ended = logs[f"x.{number}.log"]
        assert head.startswith("# echo 'part") and started.startswith("# Started at ")
        assert blank == "#" and output == f"part {number} a  b'\"$c"
        assert accounting.startswith("# Accounting: time=")
        assert ended.startswith("# Ended (code 0) at ")


def test_number_is_put_into_no_longer_word(tmp_path):
    words = ["JOBS/MYJOB/x.JOB.log", "echo", "JOBS/JOB JOB1 a_JOB_b JOB"]
    done = run("JOB=1:2", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for number in "12":
        log = (tmp_path / f"JOBS/MYJOB/x.{number}.log").read_text()
        assert f"\nJOBS/{number} JOB1 a_{number}_b {number}\n" in log


def test_another_word_leaves_the_first_alone(tmp_path):
    done = run("JOB_=3:3", "JOB/x.JOB_.log", "echo", "JOB JOB_", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "\nJOB 3\n" in (tmp_path / "JOB/x.3.log").read_text()


def test_failing_jobs_are_named_and_the_others_still_run(tmp_path):
    script = "echo no such file JOB; touch ran.JOB; [ $((JOB % 2)) = 1 ]"
    done = run("--max-jobs-run", "1", "JOB=1:5", "x.JOB.log", "bash", "-c", script, cwd=tmp_path)
    assert done.returncode == 1
    assert "2 of 5 job(s) failed; see x.2.log x.4.log" in done.stderr
    assert "x.2.log: no such file 2" in done.stderr
    assert len(list(tmp_path.glob("ran.*"))) == 5
    assert "# Ended (code 1) at" in (tmp_path / "x.4.log").read_text()


def test_command_that_cannot_start_fails_with_its_log(tmp_path):
    done = run("x.log", "./no-such-program", cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "./no-such-program: No such file" in (tmp_path / "x.log").read_text()


def test_job_killed_by_a_signal_fails(tmp_path):
    assert run("x.log", "bash", "-c", "kill -9 $$", cwd=tmp_path).returncode == 1
    assert "# Ended (code 137)" in (tmp_path / "x.log").read_text()


def test_unknown_options_are_ignored(tmp_path):
    done = run("--mem", "3G", "--num_threads", "4", "-l", "q", "x.log", "true", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_max_jobs_run_limits_concurrency(tmp_path):
    script = "mkdir busy && sleep 0.05 && rmdir busy"  # mkdir fails while another job is at it
    words = ["JOB=1:6", "x.JOB.log", "bash", "-c", script]
    assert run("--max-jobs-run", "1", *words, cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(
    "words, message",
    [
        (["JOB=0:3", "x.JOB.log", "true"], "1 <= A <= B"),
        (["JOB=3:1", "x.JOB.log", "true"], "1 <= A <= B"),
        (["JOB=1:3", "x.log", "true"], "must hold JOB"),
        (["JOB=1:3", "JOBS/x.log", "true"], "must hold JOB"),
        (["x.log"], "usage"),
        (["--gpu"], "needs a value"),
    ],
)
def test_request_refuses_impossible_words(words, message):
    with pytest.raises(UserError, match=message):
        parse_request(words)


def test_concurrent_gpu_jobs_have_distinct_devices(tmp_path):
    # every job waits until all three have started: they can only end if they run together
    script = (
        "echo $CUDA_VISIBLE_DEVICES > dev.JOB; "
        "for i in $(seq 600); do set -- dev.*; [ $# = 3 ] && exit 0; sleep 0.05; done; exit 1"
    )
    words = ["--gpu", "1", "--max-jobs-run", "8", "JOB=1:3", "x.JOB.log", "bash", "-c", script]
    done = run(*words, cwd=tmp_path, CUDA_VISIBLE_DEVICES="3,5,7")
    assert done.returncode == 0, done.stderr
    assert sorted(p.read_text().strip() for p in tmp_path.glob("dev.*")) == ["3", "5", "7"]


def test_gpu_jobs_queue_for_whole_sets_of_devices(tmp_path):
    script = "mkdir busy && sleep 0.05 && rmdir busy && [ $CUDA_VISIBLE_DEVICES = 3,5 ]"
    words = ["--gpu", "2", "JOB=1:3", "x.JOB.log", "bash", "-c", script]
    assert run(*words, cwd=tmp_path, CUDA_VISIBLE_DEVICES="3,5,7").returncode == 0


def test_more_gpus_than_there_are_is_refused(tmp_path):
    done = run("--gpu", "1", "x.log", "true", cwd=tmp_path, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 1 and "a job needs 1 GPU(s), 0 found" in done.stderr


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_the_whole_process_group_of_a_job(tmp_path, signum):
    script = "sleep 300 & echo $! > child.tmp; mv child.tmp child; wait"
    runner = subprocess.Popen(
        [*RUN, "x.log", "bash", "-c", script],
        cwd=tmp_path,
        env=environment(),
        stderr=subprocess.DEVNULL,
        # tests that run in the background would hand down that SIGINT is ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    wait_for((tmp_path / "child").exists)
    child = int((tmp_path / "child").read_text())
    runner.send_signal(signum)
    assert runner.wait(30) != 0
    wait_for(lambda: not running(child))


@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")
def test_killed_runner_takes_its_jobs_along(tmp_path):
    runner = subprocess.Popen(
        [*RUN, "x.log", "bash", "-c", "echo $$ > pid.tmp; mv pid.tmp pid; sleep 300 & wait"],
        cwd=tmp_path,
        env=environment(),
    )
    wait_for((tmp_path / "pid").exists)
    runner.kill()
    runner.wait()
    wait_for(lambda: not running(int((tmp_path / "pid").read_text())))


def test_espnet_launcher_accepts_the_runner(tmp_path):
    words = ["--cmd", " ".join(RUN), "--log", "train.log", "--ngpu", "0", "--", "echo", "trained"]
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-m", "espnet_ext.bin.launch", *words],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    assert "trained --ngpu 0 --multiprocessing_distributed True" in (
        (tmp_path / "train.log").read_text()
    )
    assert (tmp_path / "train.1.log").exists()


def test_failed_training_is_one_line(tmp_path):
    words = ["--cmd", " ".join(RUN), "--log", "train.log", "--ngpu", "0", "--", "false"]
    done = subprocess.run(
        [sys.executable, "-m", "espnet_ext.bin.launch", *words],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == "launch: error: training failed, see train.log"
