"""Run the jobs of a request on this machine, a few at a time."""

import contextlib
import functools
import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

from espnet_ext.errors import UserError
from espnet_ext.jobs.progress import Progress
from espnet_ext.processes import die_with_parent

GRACE = 5.0  # seconds between SIGTERM and SIGKILL
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def visible_gpus():
    """Return the devices that jobs may use, as ``CUDA_VISIBLE_DEVICES`` spells them."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        return [device for device in listed.split(",") if device.strip()]
    try:
        found = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    lines = [line for line in found.stdout.splitlines() if line.startswith("GPU ")]
    return [str(i) for i in range(len(lines))]


def run_local(request):
    """Run every job of a ``JobRequest`` and wait for all of them.

    ``--max-jobs-run K`` limits how many run at once (default: the CPUs this process may use).
    With ``--gpu N`` each running job has N devices of its own in ``CUDA_VISIBLE_DEVICES``, and as
    many jobs run at once as the devices allow.

    Returns:
        Logs of the jobs that failed, in the order of the jobs.

    Raises:
        UserError: If there are fewer devices than one job needs, or a log cannot be written.
        KeyboardInterrupt: On SIGINT or SIGTERM, after the jobs have been stopped.
    """
    limit = request.count("max-jobs-run", len(os.sched_getaffinity(0)))
    slots = [None] * max(1, limit)
    if gpu := request.count("gpu", 0):
        devices = visible_gpus()
        if len(devices) < gpu:
            raise UserError(
                f"a job needs {gpu} GPU(s), {len(devices)} found: on the CPU, train with --ngpu 0 "
                "and decode with --gpu_inference false"
            )
        groups = [",".join(devices[i : i + gpu]) for i in range(0, len(devices) - gpu + 1, gpu)]
        slots = groups[: len(slots)]

    waiting, running, failed = request.jobs(), [], {}
    total, progress = len(waiting), Progress()
    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        while waiting or running:
            while waiting and slots:
                with _signals_wait():  # a job that has begun is in the list, to be stopped with it
                    running.append(_Job(*waiting.pop(0), slots.pop(0)))
            time.sleep(0.05)
            for job in [job for job in running if job.poll() is not None]:
                running.remove(job)
                slots.append(job.devices)
                if job.poll() != 0:
                    failed[job.number] = job.log
            done = total - len(waiting) - len(running)
            progress.show(total, len(running), failed, done, running[0].log if running else "")
    finally:
        _stop(running)
        progress.clear()
        signal.signal(signal.SIGTERM, previous)
    return [failed[number] for number in sorted(failed)]


class _Job:
    """A started job: its process, and the log with the header and footer of ``run.pl``."""

    def __init__(self, number, log, command, devices):
        self.number, self.log, self.devices = number, log, devices
        self.started, self.code = time.time(), None
        try:
            Path(log).parent.mkdir(parents=True, exist_ok=True)
            self.file = open(log, "wb", buffering=0)
            self._write(f"# {shlex.join(command)}\n# Started at {time.ctime()}\n#\n")
        except OSError as error:
            raise UserError(f"cannot write the log {log}: {error.strerror}") from error
        environment = dict(os.environ, **({"CUDA_VISIBLE_DEVICES": devices} if devices else {}))
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=self.file,
                stderr=subprocess.STDOUT,
                env=environment,
                process_group=0,
                preexec_fn=functools.partial(_begin, os.getpid()),
            )
        except OSError as error:
            self.process = None
            self._write(f"{command[0]}: {error.strerror}\n")
            self._end(127)

    def poll(self):
        """Return the exit status, or ``None`` while the job runs; close the log at the end."""
        if self.code is None and self.process.poll() is not None:
            self._end(self.process.returncode)
        return self.code

    def kill(self, signum):
        """Send ``signum`` to the job's whole process group."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signum)

    def _end(self, code):
        self.code = code if code >= 0 else 128 - code
        seconds = int(time.time() - self.started)
        with contextlib.suppress(OSError):  # a full disk
            self._write(
                f"# Accounting: time={seconds} threads=1\n"
                f"# Ended (code {self.code}) at {time.ctime()}, elapsed time {seconds} seconds\n"
            )
        self.file.close()

    def _write(self, text):
        self.file.write(text.encode())


@contextlib.contextmanager
def _signals_wait():
    """Put off SIGINT and SIGTERM until the end of the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(runner):
    die_with_parent(runner)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def interrupt(signum, frame):
    """Handle a signal as Ctrl-C is."""
    raise KeyboardInterrupt


def _stop(jobs):
    """End jobs that still run: SIGTERM to each group, then SIGKILL to what is left."""
    for signum in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.time() + GRACE
        for job in jobs:
            job.kill(signum)
        while any(job.poll() is None for job in jobs) and time.time() < deadline:
            time.sleep(0.05)
