"""Train, decode and measure many models of a recipe, which is the current directory.

Data, training and decoding are stages of ``run.sh``; costs are measured by processes of this one,
and only while none of its trainings runs, for a training beside it makes a model look slow. What is
done is kept, by the stages and by ``evaluate``; a model that fails stops no other.
"""

import os
import signal
import subprocess
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import batched
from pathlib import Path

from espnet_ext.errors import UserError
from espnet_ext.evaluate.evaluation import Settings, evaluate
from espnet_ext.processes import die_with_parent

GRACE = 5.0  # seconds between SIGTERM and SIGKILL


@dataclass
class Model:
    """One model on its way.

    Attributes:
        name: For messages and its log.
        config: YAML that trains it; None for one that is trained.
        options: More options of ``run.sh`` that are this model's own.
        expdir: Its directory; None while it is not known.
        failure: Why it is not trained or not measured, in one line.
    """

    name: str
    config: Path | None = None
    options: tuple[str, ...] = ()
    expdir: Path | None = None
    failure: str | None = None


@dataclass
class Driver:
    """What the models of a recipe share while they are trained, decoded and measured.

    Attributes:
        settings: How each is decoded and measured.
        expdir: Directory of the models; their logs are in ``run_all/`` below it.
        run_args: More options of ``run.sh``, as words.
        jobs: Models that are trained at once.
        announce: Called with a model's results before its streams are decoded.
        say: Called with a line about what happens.
    """

    settings: Settings
    expdir: Path = Path("exp")
    run_args: tuple[str, ...] = ()
    jobs: int = 1
    announce: Callable[[dict], None] = lambda results: None
    say: Callable[[str], None] = print
    seconds: list[float] = field(default_factory=list)  # that models took which were trained now

    def train(self, models: list[Model]) -> None:
        """Train models, ``jobs`` at once, and decode and measure those before the next begin.

        Args:
            models: Their directories and failures are filled in.
        """
        begun, ended = time.time(), 0
        for batch in batched(models, self.jobs):
            started = time.time()
            for number, model in enumerate(batch, ended + 1):
                self.begin(model, f"[{number}/{len(models)}] {model.name}")
            for model in batch:  # one makes what they share, the others find it there
                self.attempt(model, self._prepare)
            self.run(batch, "--stage", 11, "--stop_stage", 11)
            new = [model for model in batch if _trained_since(started, model.expdir)]
            self._decode_and_measure(batch)
            # a model that was trained already says nothing about how long the others take
            self.seconds += [time.time() - started] * len(new)
            ended += len(batch)
            left = time_left(self.seconds, len(models) - ended, self.jobs)
            self.say(f"{ended} of {len(models)} after {_minutes(time.time() - begun)}{left}")

    def evaluate(self, models: Iterable[Model]) -> None:
        """Decode and measure trained models, one after the other."""
        for model in models:
            self.begin(model, f"Evaluating {model.expdir}")
            self._decode_and_measure([model])

    def log(self, model: Model) -> Path:
        """The file that gets what a model's stages and processes print."""
        return self.expdir / "run_all" / f"{model.name.replace(' ', '_')}.log"

    def begin(self, model: Model, title: str) -> None:
        """Say what comes next, and begin its log."""
        log = self.log(model)
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_bytes(b"")
        self.say(f"{title}, log: {log.absolute()}")

    def _command(self, model, *options):
        words = ["--expdir", self.expdir, "--dumpdir", self.settings.dumpdir]
        words += ["--asr_config", model.config] if model.config else []
        words += ["--asr_exp", model.expdir] if model.expdir else []
        return ["./run.sh", *map(str, [*words, *options]), *model.options, *self.run_args]

    def _prepare(self, model):
        """Data, tokens and statistics; and which directory is the model's, to be passed on."""
        if not model.config.is_file():
            raise UserError(f"no such file: {model.config.absolute()}")
        self.run([model], "--stop_stage", 10)
        if not model.failure:
            command = self._command(model, "--print_asr_exp", "true")
            asked = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            model.expdir = Path(asked.stdout.rstrip("\n"))

    def decode(self, models: Iterable[Model]) -> None:
        """Decode models, at once, and score them: stages 12 and 13, which keep what is there."""
        settings = self.settings
        options = ["--inference_tag", settings.inference_tag]
        options += ["--inference_config", settings.inference_config]
        options += ["--inference_asr_model", settings.inference_asr_model]
        kept = ["--skip_data_prep", "true", "--skip_train", "true", "--stop_stage", 13]
        self.run(models, *kept, *options)

    def _decode_and_measure(self, models):
        self.decode(models)
        alone = replace(self.settings, nj=self.settings.nj * len(models))
        for model in models:
            self.attempt(model, self._measure, alone)

    def _measure(self, model, settings):
        evaluate(model.expdir, settings, self.announce, self.log(model))

    def run(self, models: Iterable[Model], *options) -> None:
        """Run stages of the models that have not failed, at once, and wait for all of them.

        What they print is in their logs.
        """
        models = [model for model in models if not model.failure]
        with ExitStack() as stack:
            running = [
                stack.enter_context(_started(self._command(model, *options), self.log(model)))
                for model in models
            ]
            for model, process in zip(models, running, strict=True):
                if process.wait() != 0:
                    self._fail(model, _last_line(self.log(model)))

    def attempt(self, model: Model, function: Callable, *args) -> None:
        """Call a function for a model that has not failed; what it raises is that model's."""
        if model.failure:
            return
        try:
            function(model, *args)
        except UserError as error:
            self._fail(model, str(error))
        except Exception as error:  # a bug, in the measurement of one of them
            with open(self.log(model), "a", encoding="utf-8") as file:
                traceback.print_exc(file=file)
            self._fail(model, repr(error))

    def _fail(self, model, reason):
        model.failure = f"{model.name}: {' '.join(reason.split())} ({self.log(model).absolute()})"
        self.say(f"FAILED: {model.failure}")


@contextmanager
def _started(command, log):
    """A command that runs, with what it starts ended where the block is left before it."""
    with open(log, "ab") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            process_group=0,
            preexec_fn=die_with_parent,
        )
    try:
        yield process
    finally:
        for signum in (signal.SIGTERM, signal.SIGKILL):
            with suppress(subprocess.TimeoutExpired):
                if process.poll() is None:
                    os.killpg(process.pid, signum)
                    process.wait(GRACE)


def _last_line(log):
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "it printed nothing")


def _trained_since(moment, expdir):
    return expdir is not None and any(
        path.stat().st_mtime > moment for path in expdir.glob("*.pth")
    )


def time_left(seconds: list[float], models: int, jobs: int) -> str:
    """What is left for so many models, from what others took; nothing before the first of them."""
    if not seconds or not models:
        return ""
    left = models * sum(seconds) / len(seconds) / min(jobs, models)
    return f", about {_minutes(left)} left"


def _minutes(seconds):
    return f"{int(seconds / 60 + 0.5)} min"
