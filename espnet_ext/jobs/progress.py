"""How far jobs are: one line that is rewritten on a terminal, and now and then a new one elsewhere.

Of a training, the line says what its own log does, so that it is the same wherever the job runs.
"""

import os
import re
import sys
import time
from datetime import datetime

PAUSE = 0.5  # seconds between two lines on a terminal
LINES = 30.0  # elsewhere, at first
SHARE = 0.05  # and later this share of the time passed: 60 lines in an hour, 120 in a day
TIME = re.compile(r"\] (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d+ \(")
BATCHES = re.compile(r"\[train\] mini-batch sizes summary: N-batch=(\d+)")
STARTED = re.compile(r"\b(\d+)/(\d+)epoch started(.)?")
STEPS = re.compile(r"\b\d+epoch:train:(\d+)-(\d+)batch: (.*)")
RESULTS = re.compile(r"\b(\d+)epoch results: .*\[valid\] (.*)")


class TrainingLog:
    """What the log of a training by ESPnet says so far.

    Args:
        path: The log; it may not be there yet, and may begin anew.
    """

    def __init__(self, path):
        self.path = path
        self._begin()

    def _begin(self):
        self.offset, self.rest = 0, b""
        self.time = self.batches = self.epoch = self.first = None
        self.whole = None  # seconds that an epoch takes
        self.batch = 0
        self.measured = self.valid = ""

    def read(self):
        """Read what was added since; return a line about it, empty before the first epoch."""
        try:
            with open(self.path, "rb") as file:
                if os.fstat(file.fileno()).st_size < self.offset:
                    self._begin()
                file.seek(self.offset)
                content = file.read()
        except OSError:
            return ""
        self.offset += len(content)
        *lines, self.rest = (self.rest + content).split(b"\n")
        for line in lines:
            self._take(line.decode(errors="replace"))
        return self._status()

    def _take(self, line):
        if found := TIME.search(line):
            self.time = datetime.fromisoformat(found[1])
        if found := BATCHES.search(line):
            self.batches = int(found[1])
        elif (found := STARTED.search(line)) and self.time:
            self.epoch, self.last, self.started = int(found[1]), int(found[2]), self.time
            self.batch, self.measured = 0, ""
            if not found[3] or not self.first:  # ESPnet estimates from a run's second epoch on
                self.first, self.whole = (self.epoch, self.time), None
            else:
                epoch, time = self.first
                self.whole = (self.time - time).total_seconds() / (self.epoch - epoch)
        elif (found := STEPS.search(line)) and self.epoch:
            begin, self.batch, self.measured = int(found[1]), int(found[2]), _measured(found[3])
            if self.epoch == self.first[0] and self.batches:
                # how often ESPnet says so tells whether an epoch goes through all batches
                through = self.batch - begin + 1 == max(self.batches // 20, 10)
                self.whole = self._passed() * self.batches / self.batch if through else None
        elif (found := RESULTS.search(line)) and self.epoch:
            self.valid = f"; epoch {found[1]}: valid {_measured(found[2])}"
            if self.epoch == self.first[0]:
                self.whole = self._passed()

    def _passed(self):
        return (self.time - self.started).total_seconds()

    def _status(self):
        if self.epoch is None:
            return ""
        parts = [f"epoch {self.epoch}/{self.last}"]
        if self.whole is not None:  # by the speed so far
            left = max(self.whole - self._passed(), 0) + self.whole * (self.last - self.epoch)
            parts.append(f"about {_duration(left)} left")
        if self.batch:
            parts.append(f"batch {self.batch}")
        if self.measured:
            parts.append(self.measured)
        return ", ".join(parts) + self.valid


def _measured(text):
    """Pick loss and accuracy, where they are numbers, from ``name=value, ...``."""
    found = re.findall(r"(?<!\w)(loss|acc)=([^,\s]+)", text)
    return ", ".join(f"{name} {value}" for name, value in sorted(found)[::-1] if value != "nan")


def _duration(seconds):
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{round(seconds)} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


class Progress:
    """The line about the jobs of a request."""

    def __init__(self):
        self.terminal = sys.stderr.isatty()
        self.started = self.shown = time.time()
        self.training = None

    def show(self, total, running, failed, done, log):
        """Show how many jobs there are, run, failed and have ended, and a log to look into.

        Of a single job that trains, epoch, loss, accuracy and the time left are shown instead.
        """
        now = time.time()
        pause = PAUSE if self.terminal else max(LINES, SHARE * (now - self.started))
        if now - self.shown < pause or not running:
            return
        self.shown = now
        hours, seconds = divmod(int(now - self.started), 3600)
        text = ""
        if total == 1:
            self.training = self.training or TrainingLog(log)
            text = self.training.read()
        if not text:
            text = f"{done}/{total} jobs done, {running} running, {len(failed)} failed"
        text = f"{text}, {hours}:{seconds // 60:02}:{seconds % 60:02} ({log})"
        if self.terminal:  # a line that wraps could not be rewritten
            width = os.get_terminal_size(sys.stderr.fileno()).columns or 80
            text = f"\r\033[K{text[: width - 1]}"
        print(text, end="" if self.terminal else "\n", file=sys.stderr, flush=True)

    def clear(self):
        """Remove the line from a terminal."""
        if self.terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
