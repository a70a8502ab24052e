"""Every option of every command with words that are no value, and every place that it writes."""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bad_inputs.good import COMMANDS
from bad_inputs.outcome import run
from bad_inputs.test_commands import LINES, SLOW, folder, restore  # noqa: F401
from espnet_ext import cli, options
from espnet_ext.errors import UserError

#: types whose values are not files, nor words that only the command understands
VALUES = {
    *(options.positive_int, options.count, options.context, options.finite, options.positive),
    *(options.non_negative, options.packet_length, options.probability, options.boolean),
    *(options.rate, options.device, options.repository, options.name),
}
#: options that lines may leave out: words, and what is EXPDIR too, which the line of stream has
OTHERS = {
    *("server", "host", "port", "token", "allowed_origins"),
    *(
        "seeds",
        "run_args",
        "finetune_args",
        "finetune",
        "inference_tag",
        "encoders",
        "attentions",
        "models",
    ),
    *(
        "asr_train_config",
        "asr_model_file",
        "audio_format",
        "bpe_nlsyms",
        "ranks",
        "groups",
        "budgets",
    ),
}
WORDS = ["", " ", "nan", "-1", "1e999", "9" * 5000, "é\u0301", "١٢", "[", "'", "../x", "-", "@x"]
WORDS += ["--", "\0", "\ud800", "a\nb", "/", "x" * 300, "0", "None"]


class Caught(BaseException):
    """The parser of a command, before it reads words."""


def parser_of(name):
    def parse_args(parser, args=None, namespace=None):
        raise Caught(parser)

    with mock.patch.object(options.Parser, "parse_args", parse_args):
        try:
            cli.main(name.split())
        except Caught as caught:
            return caught.args[0]


def actions(name):
    return [a for a in parser_of(name)._actions if not isinstance(a, argparse._HelpAction)]


TYPES = {a.type or options.text for name in COMMANDS for a in actions(name) if a.nargs != 0}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_that_takes_a_file_is_in_a_good_line(name):
    words = " ".join(COMMANDS[name]).split()
    for action in actions(name):
        if action.type in VALUES or action.choices or action.dest in OTHERS or action.nargs == 0:
            continue
        if action.option_strings:
            assert set(action.option_strings) & set(words), action.dest


@settings(deadline=None)
@given(st.sampled_from(WORDS) | st.text(max_size=20))
def test_type_of_an_option_takes_a_word_or_says_why_not(word):
    for kind in TYPES:
        try:
            kind(word)
        except (argparse.ArgumentTypeError, UserError) as error:
            assert str(error)  # it is cut where it is printed


def some(words, number):
    """Some words, others for each number, so that every word is tried somewhere."""
    step = 1 if "BAD_INPUTS" in os.environ else len(words)
    return [word for n, word in enumerate(words) if n % step == number % step]


@pytest.mark.parametrize("name,line", [pair for pair in LINES if pair[0] not in SLOW])
def test_word_that_is_no_value_is_a_result_or_one_line(folder, name, line):  # noqa: F811
    for number, action in enumerate(actions(name)):
        if not action.option_strings or action.type in VALUES or action.choices:
            continue
        for word in some(WORDS, number):
            run([*name.split(), *line.split(), action.option_strings[0], word]).must_be_clear()
            restore(folder)


PLACES = ["keys/new", "/proc/nobody/new", "audio", "keys", "x" * 300, "a/" * 2100, "/dev/full"]


@pytest.mark.parametrize("name,line", [pair for pair in LINES if " new" in f" {pair[1]}"])
def test_place_that_cannot_be_written_is_one_line(folder, name, line):  # noqa: F811
    for place in PLACES[:2] if name in SLOW else PLACES:
        words = [place if word.startswith("new") else word for word in line.split()]
        outcome = run([*name.split(), *words])
        outcome.must_be_clear()
        if place in PLACES[:2]:
            assert outcome.status, outcome
            assert place in outcome.err, outcome
        if outcome.status:
            assert Path("keys").read_text() == "s1-u1\n"
        restore(folder)


def test_command_without_words_is_one_line(folder):  # noqa: F811
    for name in COMMANDS:
        # these need none, and serve does not end
        if name not in ("check", "stream", "run-all", "compare", "evaluate", "serve"):
            run(name.split()).must_refuse()


# what surrounds a process


def shell(words, folder):  # noqa: F811
    command = f"{sys.executable} -m espnet_ext {words}"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], cwd=folder, capture_output=True, text=True
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ("data validate dump/raw/test <&- 2>&1", 0, ""),
        ("results exp/asr_train_asr_conformer_mla >&-", 1, "standard output is closed"),
        ("--help > /dev/full", 1, "no space left"),
        ("data validate nowhere 2>&-", 1, ""),
    ],
)
def test_closed_and_full_streams_are_one_line_or_none(good, words, status, said):
    done = shell(words, good)
    assert done.returncode == status and said in done.stderr, done
    assert done.stderr.count("\n") == bool(said)
