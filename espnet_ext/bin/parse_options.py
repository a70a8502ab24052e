"""Read a bash script's options and print the assignments for it to ``eval``.

    options=$(python -m espnet_ext.bin.parse_options SCRIPT "$@") && eval "$options"

The options of SCRIPT are its lines ``name=default  # help`` between ``# begin options`` and
``# end options``. ``--some-name`` and ``--some_name`` are the same. An option whose default is true
or false, or a number, takes nothing else. Other words become the script's positional arguments.
"""

import difflib
import re
import shlex
import sys
from pathlib import Path

from espnet_ext.errors import UserError, cli

OPTION = re.compile(r"(?P<name>[a-z]\w*)=(?P<default>\"[^\"]*\"|\S*)(?:\s+#\s*(?P<help>.*))?")
NUMBER = re.compile(r"\d+(\.\d+)?")
BLOCK = re.compile(r"^# begin options$(.*?)^# end options$", re.MULTILINE | re.DOTALL)


def declared_options(script):
    """Return ``{name: (default, help)}`` in the order of the script's option block."""
    block = BLOCK.search(Path(script).read_text(encoding="utf-8"))
    matches = (OPTION.fullmatch(line.strip()) for line in block[1].splitlines())
    return {m["name"]: (m["default"].strip('"'), m["help"] or "") for m in matches if m}


def parse(known, argv):
    """Sort the words of a command line.

    Args:
        known: Result of ``declared_options``.
        argv: The words.

    Returns:
        tuple[dict[str, str], list[str]]: Values of the options given, and the other words.

    Raises:
        UserError: If an option is unknown, or its value is missing or of another kind.
    """
    values, others, words = {}, [], list(argv)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            others.append(word)
            continue
        option, equals, value = word.partition("=")
        name = option[2:].replace("-", "_")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            raise UserError(f"unknown option {option}: did you mean --{near[0]}?")
        if not equals:
            if not words:
                raise UserError(f"option {option} needs a value")
            value = words.pop(0)
        if known[name][0] in ("true", "false") and value not in ("true", "false"):
            raise UserError(f"option {option} is true or false, not '{value}'")
        if NUMBER.fullmatch(known[name][0]) and not NUMBER.fullmatch(value):
            raise UserError(f"option {option} is a number, not '{value}'")
        values[name] = value
    return values, others


@cli
def main(argv=None):
    """Print the assignments for the script and words in ``argv``."""
    script, *words = sys.argv[1:] if argv is None else argv
    sys.argv[0] = script  # errors carry the script's name
    known = declared_options(script)
    if {"-h", "--help"} & set(words):
        print(f"usage: {Path(script).name} [--option value]...", file=sys.stderr)
        # a recipe's run.sh hands its own options on before those of the user: its defaults
        given, _ = parse(known, [word for word in words if word not in ("-h", "--help")])
        for name, (default, text) in known.items():
            default = given.get(name, default)
            text += f" (default: {default})" if default else ""
            print(f"  --{name:24} {text}", file=sys.stderr)
        print("exit 0")
        return
    values, others = parse(known, words)
    for name, value in values.items():
        print(f"{name}={shlex.quote(value)}")
    print(shlex.join(["set", "--", *others]))


if __name__ == "__main__":
    main()
