"""The contract of slurm.pl, with a real Slurm on this machine."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from espnet_ext.errors import UserError
from espnet_ext.jobs import parse_request
from espnet_ext.jobs.slurm import sbatch_words
from processes import wait_for

ROOT = Path(__file__).parents[2]
SLURM_PL = ROOT / "espnet_ext/jobs/slurm.pl"


@pytest.fixture
def environment(slurm):
    path = f"{ROOT}/.venv/bin:{os.environ['PATH']}"
    return {**os.environ, **slurm, "PYTHONPATH": str(ROOT), "PATH": path}


def start(environment, cwd, *words):
    return subprocess.Popen(
        [SLURM_PL, *words], cwd=cwd, env=environment, stderr=subprocess.PIPE, text=True
    )


def run(environment, cwd, *words):
    process = start(environment, cwd, *words)
    _, stderr = process.communicate(timeout=120)
    return process.returncode, stderr


def squeue(environment, *words):
    done = subprocess.run(
        ["squeue", "-h", "-r", *words], env=environment, capture_output=True, text=True
    )
    return done.stdout.split()


def test_array_of_20_runs_throttled_and_a_failing_job_is_reported_with_its_log(
    environment, tmp_path
):
    script = (
        "mkdir -p here; touch here/JOB; ls here | wc -l > n.JOB; sleep 0.1; rm here/JOB; "
        "echo part JOB; [ JOB != 7 ] || { echo no such file JOB; exit 3; }"
    )
    words = ["--name", "decoding", "--max-jobs-run", "3", "--num_threads", "1", "JOB=1:20"]
    code, stderr = run(environment, tmp_path, *words, "logs/x.JOB.log", "bash", "-c", script)
    assert code == 1
    assert "1 of 20 job(s) failed; see logs/x.7.log\n  logs/x.7.log: no such file 7" in stderr
    assert len(list(tmp_path.glob("n.*"))) == 20
    assert max(int(path.read_text()) for path in tmp_path.glob("n.*")) <= 3
    for number in range(1, 21):
        lines = (tmp_path / f"logs/x.{number}.log").read_text().splitlines()
        assert f"part {number}" in lines
        assert lines[-1].endswith(f" with status {3 if number == 7 else 0}")


def test_words_reach_the_command_as_they_are(environment, tmp_path):
    folder = tmp_path / "a folder"
    folder.mkdir()
    word = """ a  'b' "c" $x `y` %j JOB\\"""
    words = ["JOB=4:4", "x.JOB.log", "python3", "-c", "import sys; print(sys.argv[1:])"]
    code, stderr = run(environment, folder, *words, word, "JOBS/x")
    assert code == 0, stderr
    printed = (folder / "x.4.log").read_text().splitlines()
    assert str([word.replace("JOB", "4"), "JOBS/x"]) in printed


def test_single_command_without_a_number(environment, tmp_path):
    code, stderr = run(environment, tmp_path, "--gpu", "0", "x.log", "no-such-program")
    assert code == 1 and "x.log: " in stderr and "no-such-program" in stderr
    assert (tmp_path / "x.log").read_text().rstrip().endswith("with status 127")


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL", "scancel"])
def test_driver_that_ends_takes_its_jobs_along(environment, tmp_path, how):
    name = f"child-{how}"
    words = ["--name", name, "JOB=1:3", "x.JOB.log", "sleep", "300"]
    if how == "scancel":  # the driver is a job itself
        wrapped = f"exec {SLURM_PL} {' '.join(words)}"
        submitted = subprocess.run(
            ["sbatch", "--parsable", "-o", "driver.log", "--wrap", wrapped],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert submitted.returncode == 0, submitted.stderr
        wait_for(lambda: len(squeue(environment, "-n", name, "-t", "R")) > 0)
        subprocess.run(["scancel", submitted.stdout.strip()], env=environment, check=True)
    else:
        driver = start(environment, tmp_path, *words)
        wait_for(lambda: len(squeue(environment, "-n", name, "-t", "R")) > 0)
        driver.terminate() if how == "SIGTERM" else driver.kill()
        assert driver.wait(60) != 0
        driver.stderr.close()
    wait_for(lambda: not squeue(environment, "-n", name))


def test_job_cancelled_by_hand_is_a_failure_that_says_so(environment, tmp_path):
    driver = start(environment, tmp_path, "--name", "victim", "x.log", "sleep", "300")
    wait_for(lambda: squeue(environment, "-n", "victim", "-t", "R"))
    subprocess.run(["scancel", "-n", "victim"], env=environment, check=True)
    _, stderr = driver.communicate(timeout=60)
    assert driver.returncode == 1 and "1 of 1 job(s) failed; see x.log" in stderr
    assert "CANCELLED" in stderr.splitlines()[-1]


def test_requeued_job_runs_again_and_then_counts(environment, tmp_path):
    script = "echo x >> tries; [ $(wc -l < tries) = 2 ] && exit 0; sleep 300"
    driver = start(environment, tmp_path, "--name", "again", "x.log", "bash", "-c", script)
    wait_for((tmp_path / "tries").exists)
    (job,) = set(squeue(environment, "-n", "again", "-o", "%i"))
    subprocess.run(["scontrol", "requeue", job], env=environment, check=True)
    wait_for(lambda: squeue(environment, "-n", "again", "-t", "PD"))
    time.sleep(2)  # its node refuses to start it again in the same second
    subprocess.run(["scontrol", "update", f"jobid={job}", "StartTime=now"], env=environment)
    _, stderr = driver.communicate(timeout=100)
    assert driver.returncode == 0, stderr
    assert (tmp_path / "tries").read_text() == "x\nx\n"


def test_options_become_those_of_sbatch(tmp_path):
    conf = tmp_path / "slurm.conf"
    conf.write_text(
        "command sbatch --requeue  # as in Kaldi\noption num_threads=1\n"
        "option num_threads=* -c $0\noption gpu=0 -p cpu\noption gpu=* -p gpu --gres=gpu:$0\n"
        "default gpu=0\n"
    )

    def words(*given):
        return sbatch_words(parse_request([*given, "x.log", "true"]), conf)

    assert words("--num-threads", "4") == "sbatch --requeue -p cpu -c 4".split()
    assert words("--num_threads", "1", "--gpu", "2", "--max-jobs-run", "3") == (
        "sbatch --requeue -p gpu --gres=gpu:2".split()
    )
    with pytest.raises(UserError, match="no line for --mem 4G; it knows --gpu, --num-threads"):
        words("--mem", "4G")
    conf.write_text("option gpu -p gpu\n")
    with pytest.raises(UserError, match=r"slurm.conf:1: 'option gpu -p gpu' is no command"):
        words()


def test_refused_submission_is_one_line_with_slurms_reason(environment, tmp_path):
    (tmp_path / "slurm.conf").write_text("command sbatch -p nowhere\n")
    code, stderr = run(environment, tmp_path, "--config", "slurm.conf", "x.log", "true")
    assert code == 1 and len(stderr.splitlines()) == 1
    assert "Slurm refuses the job: " in stderr and "nvalid partition" in stderr


def test_without_slurm_the_line_names_the_program(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{ROOT}/.venv/bin:/nowhere"}
    done = subprocess.run(
        ["python", "-m", "espnet_ext.bin.run_jobs", "--backend", "slurm", "x.log", "true"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("cmd_backend=slurm needs it")
