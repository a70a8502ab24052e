"""Types of options: what they take, what they refuse, and that no option is without one."""

import argparse
import re
import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from espnet_ext import options
from espnet_ext.bin.parse_options import Option, declared_options
from espnet_ext.errors import UserError, printable

ROOT = Path(__file__).parents[1]
SCRIPTS = [
    path
    for path in [*ROOT.glob("local/*.sh"), *ROOT.glob("egs2/*/asr1/*.sh")]
    if "# begin options" in path.read_text()
]
ODD = ["nan", "inf", "-inf", "1e999", "", " 1", "1_0", "٣", "0x1", "1,5", "many"]


@pytest.mark.parametrize("kind", ["positive_int", "count", "context"])
def test_whole_numbers_are_whole_and_in_range(kind):
    parse = getattr(options, kind)
    least = {"positive_int": 1, "count": 0, "context": -1}[kind]
    assert parse(str(least)) == least and parse("08") == 8
    for word in [*ODD, str(least - 1), "1.5", "1.0", "1e3", str(2**31)]:
        with pytest.raises(argparse.ArgumentTypeError):
            parse(word)


@pytest.mark.parametrize("kind", ["finite", "positive", "non_negative", "probability"])
def test_real_numbers_are_finite_and_in_range(kind):
    parse = getattr(options, kind)
    assert parse("1") == 1 and parse("5e-1") == parse(".5") == 0.5
    out = {"finite": [], "positive": ["0"], "non_negative": ["-.1"], "probability": ["-1", "1.01"]}
    for word in [*ODD, *out[kind]]:
        with pytest.raises(argparse.ArgumentTypeError):
            parse(word)


@pytest.mark.parametrize(
    "word", ["x out.log sh -c 'a'", "$HOME", "a..b", "a;b", '"', "JOB", "日本 語", "*", "a-", "\\"]
)
def test_names_may_be_anything_that_a_file_may_be_called(word):
    assert options.name(word) == word


@pytest.mark.parametrize("word", ["", ".", "..", ".x", "-x", "a/b", "/", "../x", "a\nb", "\x1b[m"])
def test_names_that_are_no_part_of_a_path_are_refused(word):
    with pytest.raises(argparse.ArgumentTypeError):
        options.name(word)


@given(st.text())
def test_name_that_is_taken_stays_in_its_directory(word):
    try:
        taken = options.name(word)
    except argparse.ArgumentTypeError:
        return
    path = Path("exp", taken)
    assert path.parent == Path("exp") and path.name == word and not path.name.startswith(".")


def test_booleans_reach_bash_as_its_commands():
    option = Option("false", "boolean", "x")
    assert [option.value(word) for word in ("true", "False")] == ["true", "false"]
    with pytest.raises(argparse.ArgumentTypeError):
        option.value("yes")


def test_path_with_a_dash_in_front_is_no_option():
    assert options.path("-x/y") == "./-x/y" and options.path("@x") == "./@x"
    assert options.path("../a b") == "../a b"


def test_data_triple_splits_off_the_last_two():
    assert options.data_triple("a,b/wav.scp,speech,sound") == ("a,b/wav.scp", "speech", "sound")
    with pytest.raises(argparse.ArgumentTypeError):
        options.data_triple("wav.scp,speech")


@given(st.lists(st.text(alphabet="ab '\"$`\\*{}", max_size=5)))
def test_words_of_a_list_are_split_as_a_shell_quotes_them(words):
    assert options.split(shlex.join(words)) == words


def test_suggestion_is_near_or_there_is_none():
    known = ["asr_config", "stop_stage"]
    assert options.did_you_mean("asr_cofig", known, "--") == ": did you mean --asr_config?"
    assert options.did_you_mean("xyzzy", known) == ""


@pytest.mark.parametrize("kind", [int, float, str])
def test_parser_refuses_the_types_of_python(kind):
    parser = options.Parser()
    parser.add_argument("--seconds", type=kind)
    with pytest.raises(TypeError, match="seconds: give it a type of espnet_ext.options"):
        parser.parse_args([])


def test_parser_says_in_one_line_what_is_wrong():
    parser = options.Parser(prog="x")
    parser.add_argument("--seconds", type=options.positive)
    parser.add_argument("--file")
    with pytest.raises(UserError, match="^--seconds is a number, not 'nan'$"):
        parser.parse_args(["--seconds", "nan"])
    with pytest.raises(UserError, match="--file is text without control characters"):
        parser.parse_args(["--file", "a\nb"])
    with pytest.raises(UserError, match="^--file needs a value$"):
        parser.parse_args(["--file"])


def test_help_shows_what_a_value_is_and_its_default():
    parser = options.Parser(prog="x")
    parser.option("fast", options.boolean, False, "no waiting")
    parser.option("sizes", options.context, [16, -1], "frames", nargs="+")
    parser.option("kind", default="a", choices=("a", "b"))
    words = " ".join(parser.format_help().split())
    for said in (
        "--fast true|false no waiting [false]",
        "--sizes N [N ...] frames [16 -1]",
        "--kind {a,b} [a]",
    ):
        assert said in words


def test_defaults_of_a_file_are_checked_as_words_are():
    parser = options.Parser()
    parser.add_argument("--seconds", type=options.positive, nargs="+")
    parser.add_argument("--fast", type=options.boolean)
    options.take_defaults(parser, {"seconds": [1, 2.5], "fast": True}, "x.yaml")
    args = parser.parse_args([])
    assert args.seconds == [1, 2.5] and args.fast is True
    for values, said in [
        ({"seconds": [float("nan")]}, "x.yaml: seconds is a number, not 'nan'"),
        ({"fast": "yes"}, "x.yaml: fast is true or false, not 'yes'"),
        ({"secnds": 1}, r"x.yaml: unknown option secnds: did you mean seconds\?"),
    ]:
        with pytest.raises(UserError, match=said):
            options.take_defaults(parser, values, "x.yaml")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_options_of_scripts_have_kinds_that_take_their_defaults(script):
    declared = declared_options(script)
    assert declared
    for option in declared.values():
        kind = option.kind.removesuffix("*")
        assert kind in options.KINDS or not re.search(r"int|float|number|str", kind)
        assert option.value(option.default) == option.default


def test_every_command_parses_with_the_checked_parser():
    for path in [*ROOT.glob("espnet_ext/**/*.py"), *ROOT.glob("local/*.py")]:
        if path.name != "options.py":
            source = path.read_text()
            assert "ArgumentParser(" not in source, path
            assert not re.search(r"\btype=(int|float|str|str2bool)\b", source), path


def test_printable_text_gives_a_terminal_no_orders():
    assert printable("\x1b[2Ja\tb\né") == "\\x1b[2Ja\\tb\né"
