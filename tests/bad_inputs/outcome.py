"""Run a command in this process, and look at how it ends."""

import contextlib
import io
import logging
import os
import signal
import sys
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from espnet_ext import cli

SECONDS = 120  # what takes longer hangs
LONGEST = 2000  # characters of a line that a person reads


class Hang(BaseException):
    """A command that does not end."""


@dataclass
class Outcome:
    """How a command ended: its status, what it printed, and that in lines of errors."""

    words: list
    status: int
    out: str
    err: str

    @property
    def errors(self):
        return [line for line in self.err.splitlines() if ": error: " in line]

    def must_work(self):
        assert self.status == 0, self
        return self

    def must_refuse(self, *said):
        """One line that says all this, and a status that is not 0."""
        self.must_be_clear()
        assert self.status != 0, f"not refused: {self}"
        for words in said:
            assert words in self.err + self.out, f"{words!r} is not said: {self}"

    def must_be_clear(self):
        """A result, or one line."""
        assert "Traceback" not in self.err + self.out, self
        if self.status == 0:
            assert not self.errors, self
            return
        if self.errors:
            (line,) = self.errors
            assert len(line) < LONGEST, line[:LONGEST]
        elif self.words[0] in ("run-all", "evaluate", "curve"):  # a model failed, others went on
            assert self.status == 1 and "FAILED: " in self.out, self
        else:  # what was measured is not as it should be, and the result says that
            assert self.status == 1 and self.words[0] in ("certify", "profile", "check"), self


class Here:
    """Stands for a pool of fresh processes, each of which needs seconds to begin."""

    def submit(self, function, *args, **options):
        done = Future()
        try:
            done.set_result(function(*args, **options))
        except Exception as error:
            done.set_exception(error)
        return done


def run(words):
    """Run ``espnet-ext`` with these words in the current directory."""
    out, err = io.StringIO(), io.StringIO()

    def hang(*_):
        raise Hang(words)

    here, before, status = os.getcwd(), signal.signal(signal.SIGALRM, hang), 0
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    signal.alarm(SECONDS)
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        _own_log(),
        contextlib.chdir(here),
        mock.patch.object(sys, "argv", ["espnet-ext"]),
        mock.patch("espnet_ext.evaluate.process.workers", lambda *_, **__: _lent(Here())),
        mock.patch("espnet_ext.evaluate.evaluation.workers", lambda *_, **__: _lent(Here())),
        mock.patch("espnet_ext.bin.new_recipe.ROOT", Path(here)),
        mock.patch.dict("espnet_ext.data.fsdd.STRINGS", train=3, dev=3, test=3),
    ):
        try:
            status = cli.main(words) or 0
        except SystemExit as end:
            status = end.code or 0
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)
            for number, handler in handlers.items():
                signal.signal(number, handler)
    return Outcome(words, int(status), out.getvalue(), err.getvalue())


@contextlib.contextmanager
def _own_log():
    """A log as a process begins with; what the command sets up is for the block alone."""
    root = logging.root
    level, handlers = root.level, root.handlers[:]
    root.setLevel(logging.WARNING)
    root.handlers.clear()
    try:
        yield
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers


@contextlib.contextmanager
def _lent(value):
    yield value


def files(folder="."):
    """What tells the files below a directory from others: size and time of change, by name."""
    found = {}
    for path, _, names in os.walk(folder):
        for name in names:
            stat, own = os.lstat(one := os.path.join(path, name)), os.path.relpath(one, folder)
            if not os.path.islink(one):
                found[own] = stat.st_size, stat.st_mtime_ns
    return found
