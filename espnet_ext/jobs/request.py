"""What a recipe asks of a job runner: ``[--opt value]... [JOB=1:N] LOG command...``."""

import re
from argparse import ArgumentTypeError
from dataclasses import dataclass, field

from espnet_ext.errors import UserError
from espnet_ext.options import count

ARRAY = re.compile(r"([A-Za-z_]\w*)=([0-9]{1,9})(?::([0-9]{1,9}))?", re.ASCII)


@dataclass(frozen=True)
class JobRequest:
    """One command, or an array of commands that differ in the job number.

    Attributes:
        log: Path of the log file; holds ``variable`` when the request is an array.
        command: Program and arguments; ``variable`` in any of them becomes the job number, where no
            letter or digit is beside it.
        variable: Name that stands for the job number (``None`` for a single command).
        first: First job number.
        last: Last job number, included.
        options: Every ``--name value`` in front of the log, names with dashes.
    """

    log: str
    command: tuple[str, ...]
    variable: str | None = None
    first: int = 1
    last: int = 1
    options: dict[str, str] = field(default_factory=dict)

    def jobs(self):
        """Return ``(number, log, command)`` of every job, the number put in place."""
        words = [self.parts(word) for word in self.command]
        return [
            (n, str(n).join(self.parts(self.log)), [str(n).join(parts) for parts in words])
            for n in range(self.first, self.last + 1)
        ]

    def count(self, option, default):
        """A numeric option, by its name without leading dashes; ``UserError`` if it is none."""
        text = self.options.get(option, str(default))
        try:
            return count(text)
        except ArgumentTypeError as error:
            raise UserError(f"--{option} {error}") from None

    def parts(self, word):
        """Return what is left of a word between the places of the job number."""
        if self.variable is None:
            return [word]
        return re.split(f"(?<![A-Za-z0-9]){self.variable}(?![A-Za-z0-9])", word)


def parse_request(argv):
    """Read the words after the program's name as ``run.pl`` does.

    Options that a runner does not know stay in ``options`` and do no harm.

    Raises:
        UserError: If the log or the command is missing, the range is not ``1 <= A <= B``, or the
            log of an array does not hold the job variable.
    """
    words, options = list(argv), {}
    while words and words[0].startswith("-"):
        name = words.pop(0).lstrip("-").replace("_", "-")
        if not words:
            raise UserError(f"option --{name} needs a value")
        options["max-jobs-run" if name == "tc" else name] = words.pop(0)
    variable, first, last = None, 1, 1
    if words and (array := ARRAY.fullmatch(words[0])):
        variable, first = array[1], int(array[2])
        last = int(array[3] or first)
        if not 1 <= first <= last:
            raise UserError(f"{words[0]}: a range is {variable}=A:B with 1 <= A <= B")
        words.pop(0)
    if len(words) < 2:
        raise UserError("usage: [--option value]... [JOB=1:N] LOG command [argument]...")
    request = JobRequest(words[0], tuple(words[1:]), variable, first, last, options)
    if variable and len(request.parts(request.log)) == 1:
        raise UserError(f"log '{words[0]}' must hold {variable}, or all jobs write the same file")
    return request
