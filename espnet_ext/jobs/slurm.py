"""Run the jobs of a request on a Slurm cluster: the contract of Kaldi's ``slurm.pl``.

sbatch is called directly. submitit would pickle a Python function, choose the log's name and learn
how a job ended from the accounting database, which not every cluster has; a recipe's job is a
command whose log the recipe names, and a training on several nodes calls srun.
"""

import contextlib
import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

from espnet_ext.data.kaldi import read_lines
from espnet_ext.errors import UserError
from espnet_ext.jobs.local import interrupt
from espnet_ext.jobs.progress import Progress
from espnet_ext.processes import RUN

CONFIG = Path("conf/slurm.conf")
OWN = ("backend", "config", "max-jobs-run")  # options that are not in the config
LOST = re.compile("PREEMPTED|NODE_FAIL|BOOT_FAIL")  # not the job's fault: submitted again
OWN_END = re.compile("COMPLETED|FAILED|GONE")  # there is an exit status, or will be soon
ENDED = re.compile(
    f"{OWN_END.pattern}|{LOST.pattern}|CANCELLED|TIMEOUT|OUT_OF_MEMORY|DEADLINE|REVOKED"
)
RESUBMISSIONS = 3
SETTLE = 10.0  # seconds that a shared file system may take to show a file of another machine
SCRIPT = """\
#!/usr/bin/env bash
cd {directory} || exit 1
export SLURM_KILL_BAD_EXIT=1  # one process of a training that fails ends the others
n=${{SLURM_ARRAY_TASK_ID-}}
rm -f {status}
echo "# Running on $(hostname -s)"
echo "# Started at $(date)"
echo {shown}
{command} < /dev/null
code=$?
echo "# Accounting: time=$SECONDS threads=${{SLURM_CPUS_PER_TASK:-1}}"
echo "# Finished at $(date) with status $code"
echo $code > {status}.tmp && mv {status}.tmp {status}
exit $code
"""
# Reads job ids until "done"; when the pipe ends without it, the driver was killed.
WATCHDOG = 'ids=; while read -r id; do [ "$id" = done ] && exit; ids="$ids $id"; done; scancel $ids'


def read_config(path):
    """Read a file in the format of Kaldi's ``conf/slurm.conf``.

    Lines are ``command WORD...``, ``option NAME=VALUE [WORD]...`` and ``default NAME=VALUE``. The
    VALUE ``*`` of an option stands for any; it replaces ``$0`` in the words.

    Returns:
        The command's words, ``{(name, value): words}``, ``{name: default}``; names with dashes.

    Raises:
        UserError: If the file is not there, or a line is something else.
    """
    command, options, defaults = None, {}, {}
    for number, line in enumerate(read_lines(path), 1):
        kind, *words = line.partition("#")[0].split() or [""]
        name, equals, value = (words or [""])[0].partition("=")
        name = name.replace("_", "-")
        if kind == "command" and words:
            command = words
        elif kind == "option" and equals:
            options[name, value] = words[1:]
        elif kind == "default" and equals:
            defaults[name] = value
        elif kind:
            raise UserError(f"{path}:{number}: '{line}' is no command, option or default line")
    if command is None:
        raise UserError(f"{path}: no line 'command sbatch ...'")
    return command, options, defaults


def sbatch_words(request, path):
    """``sbatch`` and its options, from those of a request and the config at ``path``."""
    words, options, defaults = read_config(path)
    given = {name: value for name, value in request.options.items() if name not in OWN}
    for name, value in (defaults | given).items():
        found = options.get((name, value), options.get((name, "*")))
        if found is None:
            known = ", ".join(sorted({f"--{known}" for known, _ in options}))
            raise UserError(f"{path} has no line for --{name} {value}; it knows {known}")
        words = words + [word.replace("$0", value) for word in found]
    return words


def run_slurm(request):
    """Run every job of ``request`` with sbatch, an array as a job array, and wait for all of them.

    ``--max-jobs-run K`` limits how many of an array run at once, ``--config FILE`` is the config
    (default: ``conf/slurm.conf`` here, else in the repository). Jobs that Slurm lost, to preemption
    or a broken node, are submitted again. When this process ends, however that is, its jobs do.

    Returns:
        Logs of the jobs that failed, in the order of the jobs.

    Raises:
        UserError: If a job cannot be submitted.
        KeyboardInterrupt: On SIGINT or SIGTERM, after the jobs have been cancelled.
    """
    default = CONFIG if CONFIG.exists() else Path(__file__).parents[2] / CONFIG
    submit = sbatch_words(request, request.options.get("config", default))
    array = _Array(request, submit)
    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        array.submit(list(array.waiting))
        array.wait()
    finally:
        array.close()
        signal.signal(signal.SIGTERM, previous)
    return [array.failed[number] for number in sorted(array.failed)]


class _Array:
    """The submitted jobs of one request."""

    def __init__(self, request, submit):
        self.request, self.words = request, submit
        self.throttle = request.count("max-jobs-run", 0)
        self.waiting = {number: log for number, log, _ in request.jobs()}  # not known to have ended
        self.total = len(self.waiting)
        self.failed, self.ids, self.lost = {}, {}, {}
        self.ended = {}  # number -> when Slurm was first seen to say so
        log = Path(request.log).absolute()
        self.folder = log.parent / "q"
        self.script = self.folder / f"{log.name}.sh"
        self.status = self.folder / f"{log.name}.status"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.script.write_text(self._script(), encoding="utf-8")
            for number, log in self.waiting.items():
                Path(log).unlink(missing_ok=True)
                self._status(number).unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"{error.filename}: cannot be written ({error.strerror})") from error
        # Inside a job of Slurm, that job's own variables would set options of the new ones. A run
        # that ends may not end the watchdog: it cancels the jobs.
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("SLURM_", RUN)) or name == "SLURM_CONF"
        }
        self.watchdog = subprocess.Popen(
            ["/bin/sh", "-c", WATCHDOG],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=self.environment,
            start_new_session=True,
            text=True,
        )

    def submit(self, numbers):
        """Submit jobs by their numbers."""
        log = "%a".join(part.replace("%", "%%") for part in self.request.parts(self.request.log))
        words = [*self.words, "--parsable", "--open-mode=append"]
        if self.request.variable:
            limit = f"%{self.throttle}" if self.throttle else ""
            words.append(f"--array={','.join(map(str, numbers))}{limit}")
        done = self._call(*words, f"--output={log}", str(self.script))
        if done.returncode != 0:
            reason = (done.stderr.strip() or "no message").splitlines()[-1]
            raise UserError(f"Slurm refuses the job: {reason} ({shlex.join(words)})")
        job = done.stdout.strip().split(";")[0]
        self.ids |= dict.fromkeys(numbers, job)
        self.watchdog.stdin.write(f"{job}\n")
        self.watchdog.stdin.flush()

    def wait(self):
        """Wait until every job has ended."""
        progress, started, asked = Progress(), time.time(), time.time()
        states = {}
        while self.waiting:
            pause = min(5.0, 0.2 + (time.time() - started) / 60)
            time.sleep(pause)
            codes = {number: self._code(number) for number in self.waiting}
            for number in [number for number, code in codes.items() if code == 0]:
                del self.waiting[number]
            if any(codes.values()) or time.time() - asked > 5 * pause:
                asked, states = time.time(), self._states()
                self._settle(states)
            running = sum(state == "RUNNING" for state in states.values())
            done = self.total - len(self.waiting)
            progress.show(self.total, running, self.failed, done, self.request.log)
        progress.clear()

    def close(self):
        """Cancel what has not ended, and wait a little for it."""
        jobs = {self.ids[number] for number in self.waiting if number in self.ids}
        if jobs:
            self._call("scancel", *jobs)
            deadline = time.time() + SETTLE
            while time.time() < deadline and not all(map(ENDED.match, self._states().values())):
                time.sleep(0.2)
        with contextlib.suppress(BrokenPipeError):
            self.watchdog.communicate("done\n")

    def _settle(self, states):
        """Sort out the jobs that ended badly, by what Slurm says of them."""
        resubmit, now = [], time.time()
        for number in list(self.waiting):
            state, code = states.get(number, "GONE"), self._code(number)
            if LOST.match(state) and self.lost.get(number, 0) < RESUBMISSIONS:
                self.lost[number] = self.lost.get(number, 0) + 1
                resubmit.append(number)
            elif code == 0 or not ENDED.match(state):
                self.ended.pop(number, None)  # waits, runs, or will run again
            elif code:
                self.failed[number] = self.waiting.pop(number)
            elif not OWN_END.match(state) or now - self.ended.setdefault(number, now) > SETTLE:
                self.failed[number] = log = self.waiting.pop(number)
                with open(log, "a", encoding="utf-8") as file:
                    file.write(f"Slurm: job {self.ids[number]} ended as {state}\n")
        if resubmit:
            self.submit(resubmit)

    def _states(self):
        """Return the state of each waiting job that Slurm knows; all pending if it is mute."""
        jobs = ",".join({self.ids[number] for number in self.waiting})
        done = self._call("squeue", "-h", "-r", "-t", "all", "-j", jobs, "-o", "%F %K %T")
        if done.returncode != 0 and "Invalid job id" not in done.stderr:
            return dict.fromkeys(self.waiting, "PENDING")
        states = {}
        for job, task, state in map(str.split, done.stdout.splitlines()):
            number = int(task) if self.request.variable else self.request.first
            if self.ids.get(number) == job:
                states[number] = state
        return states

    def _call(self, *words):
        try:
            return subprocess.run(words, capture_output=True, text=True, env=self.environment)
        except OSError as error:
            raise UserError(f"{words[0]}: {error.strerror}; cmd_backend=slurm needs it") from error

    def _script(self):
        quoted = [self._quote(word) for word in self.request.command]
        suffix = ".$n" if self.request.variable else ""
        return SCRIPT.format(
            directory=shlex.quote(os.getcwd()),
            status=f"{shlex.quote(str(self.status))}{suffix}",
            shown=f"'# '{self._quote(shlex.join(self.request.command))}",
            command=" ".join(quoted),
        )

    def _quote(self, word):
        """Quote a word for bash, the job variable becoming ``$n``."""
        return '"$n"'.join(shlex.quote(part) for part in self.request.parts(word))

    def _status(self, number):
        return Path(f"{self.status}.{number}" if self.request.variable else self.status)

    def _code(self, number):
        """Return the exit status that a job left, or ``None``."""
        try:
            return int(self._status(number).read_text())
        except (FileNotFoundError, ValueError):
            return None
