"""One way in: every command is there, says what it is for, and is quick to say it."""

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from espnet_ext.cli import COMMANDS, MODULES, main, usage

ROOT = Path(__file__).parents[1]
#: what takes long to import; none of it may be needed to print a help text
HEAVY = "torch espnet2 numpy scipy jiwer soundfile sentencepiece matplotlib huggingface_hub".split()
#: of bin/, what stages of run.sh start, and what is ESPnet's own command
STAGES = {
    *("aggregate_stats_dirs", "asr_inference", "asr_init_from", "asr_train", "data_split"),
    *("launch", "lm_calc_perplexity", "lm_train", "marker", "parse_options", "run_jobs"),
    *("asr_evaluate",),  # what evaluate does after decoding
}


def test_every_module_is_a_command_or_a_job_of_a_stage():
    modules = {path.stem for path in (ROOT / "espnet_ext/bin").glob("[a-z]*.py")}
    assert modules == STAGES | set(MODULES.values())
    assert len(set(MODULES.values())) == len(MODULES) == sum(map(len, COMMANDS.values()))


def test_help_imports_nothing_heavy():
    """Of the table and of every command in it, in one process: what one imports, all have."""
    script = """
import contextlib, io, sys
from espnet_ext.cli import MODULES, main
for name in ["", *MODULES]:
    said = io.StringIO()
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(said):
        main([*name.split(), "--help"])
    assert said.getvalue().startswith(f"usage: espnet-ext {name or 'COMMAND'} "), said.getvalue()
    print(name, *(module for module in heavy if module in sys.modules))
"""
    command = [sys.executable, "-c", f"heavy = {HEAVY}{script}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [line.strip() for line in done.stdout.splitlines()] == ["", *MODULES]


def test_usage_lists_every_command_with_a_sentence():
    lines = usage().splitlines()
    for name, module in MODULES.items():
        (line,) = [line for line in lines if re.match(rf"  {name}  ", line)]
        summary = import_module(f"espnet_ext.bin.{module}").__doc__.splitlines()[0]
        assert line.endswith(f"  {summary}") and summary[-1] in ".?"
    assert "\n  data tokens " in usage(["data"]) and "\n  stream " not in usage(["data"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["strem"], "espnet-ext: error: no command strem: did you mean stream?"),
        (["data", "valdate", "x"], "no command data valdate: did you mean data validate?"),
        (["xyzzy", "--help"], "no command xyzzy, --help lists them"),
        (["stream", "--chunk", "1"], "espnet-ext stream: error: unknown option --chunk"),
        (["profile"], "espnet-ext profile: error: give EXPDIR of a model"),
        (
            ["certify", "--wav_scp", "a", "--output", "b"],
            "give EXPDIR, or --asr_train_config with --asr_model_file",
        ),
        (["data", "combine", "a"], "espnet-ext data combine: error: the following arguments"),
    ],
)
def test_wrong_command_line_is_one_clear_line(words, said, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["espnet-ext"])
    with pytest.raises(SystemExit) as end:
        main(words)
    error = capsys.readouterr().err
    assert end.value.code == 1 and said in error and error.count("\n") == 1


def test_console_script_and_module_are_the_same_way_in():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"espnet-ext": "espnet_ext.cli:main"}
    command = [sys.executable, "-m", "espnet_ext"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1 and done.stdout.startswith("usage: espnet-ext COMMAND")


def test_names_of_commands_in_documents_are_in_the_table():
    pages = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("egs2/*/asr1/*.md")]
    named = set()
    for path in pages:
        found = re.findall(r"(?:^|[\s`|])espnet-ext ((?:data )?[a-z][a-z-]*)", path.read_text())
        for words in found:
            assert words in MODULES or words == "data", f"{path}: espnet-ext {words}"
            named.add(words)
    assert len(named) > 10
