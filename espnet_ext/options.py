"""Types of options: what a value may be is declared with the option, in Python and in bash alike.

A type turns a word into a value, or raises ``argparse.ArgumentTypeError`` with a sentence about the
word, such as "is a number, not 'many'". ``KINDS`` names those that a script's option block may use.
"""

import argparse
import dataclasses
import difflib
import math
import re
import shlex
import sys
import tempfile
import unicodedata
from pathlib import Path

from espnet_ext.errors import UserError, about

NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
WHOLE = re.compile(r"[+-]?[0-9]{1,99}")
LARGEST = 2**31 - 1  # also for programs that count in 32 bits


def _wrong(rule, word):
    return argparse.ArgumentTypeError(f"is {rule}, not {word!r}")


def _whole(least, rule, most=LARGEST):
    def parse(word):
        if not NUMBER.fullmatch(word):
            raise _wrong("a number", word)
        if not WHOLE.fullmatch(word) or not least <= int(word) <= most:
            raise _wrong(rule, word)
        return int(word)

    return parse


def _real(rule, holds):
    def parse(word):
        if not NUMBER.fullmatch(word):
            raise _wrong("a number", word)
        value = float(word)
        if not math.isfinite(value) or not holds(value):
            raise _wrong(rule, word)
        return value

    return parse


positive_int = _whole(1, "a whole number of at least 1")
count = _whole(0, "a whole number of at least 0")
context = _whole(-1, "a whole number of at least -1, which is all")
port = _whole(0, "a port, 0 to 65535", 65535)
finite = _real("a finite number", lambda value: True)
positive = _real("a finite number above 0", lambda value: value > 0)
non_negative = _real("a finite number of at least 0", lambda value: value >= 0)
packet_length = _real(
    "a number of milliseconds above 0, 3600000 at most", lambda value: 0 < value <= 3_600_000
)
probability = _real("a number from 0 to 1", lambda value: 0 <= value <= 1)


def boolean(word):
    """``true`` or ``false``, also as Python writes them."""
    if word.lower() not in ("true", "false"):
        raise _wrong("true or false", word)
    return word.lower() == "true"


def text(word):
    """Any characters but control characters, which no file format here can hold."""
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in word):
        raise _wrong("text without control characters, in UTF-8", word)
    return word


def path(word):
    """A file or directory; one that begins with a dash is no option, with @ no list of them."""
    if not text(word):
        raise argparse.ArgumentTypeError("is a path, not empty")
    return f"./{word}" if word[0] in "-@" else word


def writable(path):
    """Refuse a file or directory to write where nothing can be written, before any work."""
    made = Path(path)
    try:
        if made.exists() and not made.is_file() and not made.is_dir():
            raise UserError(f"{path}: cannot be written: it is a device or a pipe, no file")
        while not made.is_dir():
            if made.exists() and made != Path(path):
                raise UserError(f"{path}: cannot be written: {made} is no directory")
            made = made.parent
        with tempfile.TemporaryFile(dir=made):
            pass
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {made}: {error.strerror}") from None


def output(word):
    """A file or directory to write, where that is possible."""
    word = path(word)
    try:
        writable(word)
    except UserError as error:
        raise argparse.ArgumentTypeError(f"is {error}") from None
    return word


def name(word):
    """A name of data, models or files, which is one part of a path: whatever a file may be called.

    Refused are ``/``, control characters and a leading ``-`` or ``.``, with it ``..``.
    """
    if not text(word) or "/" in word or word[0] in "-.":
        raise _wrong("a name without '/' and without '-' or '.' in front", word)
    return word


def rate(word):
    """A sampling rate such as 16000 or 16k, as text."""
    from espnet_ext.audio import parse_rate

    try:
        parse_rate(word)
    except UserError:
        raise _wrong("a sampling rate in Hz or kHz, as in 16000 or 16k", word) from None
    return word


def device(word):
    """A device as PyTorch names it."""
    if not re.fullmatch("cpu|cuda(:[0-9]+)?", word):
        raise _wrong("cpu, cuda or cuda:N", word)
    return word


def repository(word):
    """OWNER/NAME on the hub."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", word, re.ASCII):
        raise _wrong("OWNER/NAME", word)
    return word


def empty(word):
    """Nothing: an option that other software has."""
    if word:
        raise _wrong("empty here", word)
    return word


def data_triple(word):
    """ESPnet's PATH,NAME,TYPE, with a path that may hold commas."""
    parts = text(word).rsplit(",", 2)
    if len(parts) != 3 or not all(parts):
        raise _wrong("PATH,NAME,TYPE", word)
    return tuple(parts)


def one_of(*values):
    """A type whose values are these words; of one alone, the option's help says why."""

    def parse(word):
        if word not in values:
            raise _wrong(" or ".join(filter(None, [", ".join(values[:-1]), values[-1]])), word)
        return word

    return parse


#: of options of ESPnet's decoding, which are Python's own types there
DECODING = {
    "output_dir": output,
    "ngpu": count,
    "num_workers": count,
    "batch_size": positive_int,
    "nbest": positive_int,
    "beam_size": positive_int,
    "ctc_weight": probability,
    "ctc_window_margin": count,
    "lm_weight": finite,
    "ngram_weight": finite,
    "penalty": finite,
    "maxlenratio": finite,
    "minlenratio": non_negative,
}


def declare(parser, types=DECODING):
    """Give options of another package's parser types of this module, and errors in one line."""
    parser.error = usage_error
    for action in parser._actions:
        action.type = types.get(action.dest, action.type)


def usage_error(message):
    """Raise what a parser has to say about a command line as ``UserError``."""
    message = str(message).replace(": expected one argument", ": needs a value")
    message = re.sub(r"^argument ([^:]*): (?=is |has |needs )", r"\1 ", message)
    raise UserError(" ".join(message.split()))


def take_defaults(parser, values, source):
    """Make the values of a file (``source``) the defaults, after the checks of a command line."""
    known = {action.dest: action for action in parser._actions if action.dest != "help"}
    with about(source):
        for key in values:
            if key not in known:
                raise UserError(f"unknown option {key}{did_you_mean(str(key), known)}")
        parser.set_defaults(**{key: checked(known[key], value) for key, value in values.items()})


def checked(action, value):
    """A value of a file, after what an option's parser asks of a word; see ``take_defaults``."""
    several = action.nargs not in (None, 0, "?") or isinstance(action, argparse._AppendAction)
    try:
        if action.dest == "token_list" and isinstance(value, list):
            return [_item(action, token) for token in value]
        if several:
            values = value if isinstance(value, (list, tuple)) else [value]
            return [_item(action, item) for item in values]
        return _item(action, value)
    except argparse.ArgumentTypeError as error:
        raise UserError(f"{action.dest} {error}") from None


#: what the types of another package's parser ask for
RULES = {
    "int": "a whole number",
    "float": "a number",
    "str2bool": "true or false",
    "int_or_none": "a whole number or null",
    "float_or_none": "a number or null",
    "str2triple_str": "three words with commas between",
}


def _item(action, value):
    kind = action.type or text
    if action.nargs == 0:
        kind = boolean
    elif action.dest.endswith("_conf"):
        if isinstance(value, dict) or value is action.default is None:
            return value
        raise _wrong("a mapping of options", value)
    if value is None and (action.default is None or action.dest == "frontend"):
        return None  # a model without a front end reads features
    # null is a word to ESPnet's types, and a triple is written with commas
    word = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    try:
        made = kind("none" if value is None else word)
        if isinstance(value, dict) or (value is None and made is not None):
            raise ValueError
        if isinstance(value, (list, tuple)) and not isinstance(made, tuple):
            raise ValueError
    except argparse.ArgumentTypeError:
        if value is None:
            raise argparse.ArgumentTypeError("has no value; leave it out or give one") from None
        raise
    except Exception:  # of another package's type
        rule = RULES.get(getattr(kind, "__name__", ""), "another kind of value")
        raise _wrong(rule, value) from None
    if action.choices is not None and made not in action.choices:
        raise _wrong(f"one of {', '.join(map(str, action.choices))}", value)
    return made


KINDS = {
    kind.__name__: kind for kind in (boolean, text, path, name, rate, device, repository, empty)
} | {
    "positive_int": positive_int,
    "count": count,
    "positive": positive,
    "non_negative": non_negative,
    "probability": probability,
}


#: how help shows a value, where the option's name does not
SHOWN = {boolean: "true|false", path: "PATH", output: "PATH", name: "NAME"}
SHOWN |= dict.fromkeys((positive_int, count, context, port), "N")
SHOWN |= dict.fromkeys((finite, positive, non_negative, packet_length, probability), "X")


def split(words):
    """Words of a list in one string; quotes group as in a shell, and nothing is expanded."""
    try:
        return shlex.split(words)
    except ValueError:
        raise argparse.ArgumentTypeError(f"has a quote without its end: {words!r}") from None


def listed(kind):
    """A type of words in one string, each of a kind; quotes group as in a shell."""
    return lambda words: [kind(word) for word in split(words)]


def maybe(kind):
    """A type whose value may be empty too, which is None."""
    return lambda word: kind(word) if word else None


def chosen(args, kind):
    """The values of options that a dataclass has fields of the same names for."""
    names = (field.name for field in dataclasses.fields(kind))
    return {name: getattr(args, name) for name in names if hasattr(args, name)}


def did_you_mean(word, known, prefix=""):
    """Return ": did you mean ...?" where one of the known words is near, else nothing."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f": did you mean {prefix}{near[0]}?" if near else ""


class Parser(argparse.ArgumentParser):
    """An ``ArgumentParser`` whose values are checked by the types of this module.

    Without a type, an option is ``text``; Python's own types, which take nan and -5 as well, are
    refused. Options and other words come in any order, ``--some-name`` is ``--some_name``, and the
    word after an option that takes one is its value, also where it begins with a dash.
    """

    def __init__(self, formatter_class=argparse.RawDescriptionHelpFormatter, **options):
        super().__init__(formatter_class=formatter_class, allow_abbrev=False, **options)

    def option(self, name, kind=text, default=None, help=None, **more):
        """Add ``--name``, whose help shows the default."""
        if isinstance(default, bool):
            help = f"{help or ''} [{str(default).lower()}]".strip()
        elif isinstance(default, (int, float, str, list)) and default not in ("", []):
            shown = " ".join(map(str, default)) if isinstance(default, list) else default
            help = f"{help or ''} [{shown}]".strip()
        if "choices" not in more:
            more.setdefault("metavar", SHOWN.get(kind))
        self.add_argument(f"--{name}", type=kind, default=default, help=help, **more)

    def parse_args(self, args=None, namespace=None):
        """See ``argparse.ArgumentParser``."""
        for action in self._actions:
            if action.type in (int, float, complex, bool, str):
                raise TypeError(f"{action.dest}: give it a type of espnet_ext.options")
            if action.type is None and action.nargs != 0:
                action.type = text
        words = self._spelled(sys.argv[1:] if args is None else map(str, args))
        found, others = self.parse_known_intermixed_args(words, namespace)
        known = self._option_string_actions
        for option in (word.partition("=")[0] for word in others if word.startswith("--")):
            hint = did_you_mean(option, known) or ", --help lists them"
            usage_error(f"unknown option {option}{hint}")
        if others:
            usage_error(f"{others[0]!r} is one word too many, see --help")
        return found

    def _spelled(self, words):
        """Words as argparse takes them for what they are: ``--option=value``."""
        known, spelled, words = self._option_string_actions, [], list(words)
        while words:
            word = words.pop(0)
            option, equals, value = word.partition("=")
            if option.startswith("--") and option not in known:
                option = f"--{option[2:].replace('-', '_')}"
            if action := known.get(option):
                word = option + equals + value
                if not equals and action.nargs is None and words and words[0] not in known:
                    word = f"{option}={words.pop(0)}"
            spelled.append(word)
        return spelled

    def error(self, message):
        """Raise ``UserError``, which ends a command line in one line."""
        usage_error(message)
