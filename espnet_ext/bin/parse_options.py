"""Read a bash script's options and print what they are, a line each, for ``printf -v``.

The options of SCRIPT are its lines ``name=default  # kind: help`` between ``# begin options`` and
``# end options``. A kind is a type of ``espnet_ext.options``, the values there are, as in
``bpe|char``, or one of these with a star: a list, whose words may be quoted as in a shell. An
option whose default is empty may be empty. ``--some-name`` and ``--some_name`` are the same.

What is printed is data, and no value has a line end in it: ``name=value`` of the options given; of
every list ``name_list``, to be emptied, then ``name_list[0]=word`` and so on; or, after the help,
``exit``.
"""

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from espnet_ext import options
from espnet_ext.errors import cli

OPTION = re.compile(
    r"(?P<name>[a-z]\w*)=(?P<default>\"[^\"]*\"|\S*)\s+# (?P<kind>\S+): (?P<help>.+)"
)
OPTION_LINES = re.compile(r"^# begin options$(.*?)^# end options$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Option:
    """An option of a script.

    Attributes:
        default: Value when it is not given.
        kind: What a value is, see the module.
        help: What it is for; why, if only one value is known.
    """

    default: str
    kind: str
    help: str

    @property
    def is_list(self):
        """Whether the value is a list of words."""
        return self.kind.endswith("*")

    def words(self, value):
        """The words of a list."""
        return [str(self._item(word)) for word in options.split(value)]

    def value(self, word):
        """The value as the script gets it; ``ArgumentTypeError`` if it is of another kind."""
        if not word and not self.default:
            return word
        if self.is_list:
            return re.sub(r"\s", " ", word) if self.words(word) else ""
        return self._item(word)

    def _item(self, word):
        kind = self.kind.removesuffix("*")
        parse = options.KINDS.get(kind)
        try:
            value = (parse or options.one_of(*kind.split("|")))(word)
        except argparse.ArgumentTypeError as error:
            if kind == "empty" or (parse is None and "|" not in kind):
                raise argparse.ArgumentTypeError(f"{error}: {self.help}") from None
            raise
        if isinstance(value, float):
            return word  # as it was written
        return str(value).lower() if isinstance(value, bool) else str(value)


def declared_options(script):
    """Return ``{name: Option}`` in the order of the script's option block."""
    found = {}
    for line in OPTION_LINES.search(Path(script).read_text(encoding="utf-8"))[1].splitlines():
        if line and not line.startswith("#"):
            match = OPTION.fullmatch(line)
            if match is None:
                raise ValueError(f"{script}: is no 'name=default  # kind: help': {line}")
            found[match["name"]] = Option(match["default"].strip('"'), match["kind"], match["help"])
    return found


def parse(known, argv):
    """Values of the options in ``argv``, of those ``known``; what is wrong is a ``UserError``."""
    parser = options.Parser(add_help=False)
    for name, option in known.items():
        parser.add_argument(f"--{name}", type=option.value, default=argparse.SUPPRESS)
    return vars(parser.parse_args(argv))


@cli
def main(argv=None):
    """Print the assignments for the script and words in ``argv``."""
    script, *words = sys.argv[1:] if argv is None else argv
    sys.argv[0] = script  # errors carry the script's name
    known = declared_options(script)
    if {"-h", "--help"} & set(words):
        print(f"usage: {Path(script).name} [--option value]...", file=sys.stderr)
        # a recipe's run.sh hands its own options on before those of the user: its defaults
        given = parse(known, [word for word in words if word not in ("-h", "--help")])
        for name, option in known.items():
            default = given.get(name, option.default)
            text = option.help + (f" (default: {default})" if default else "")
            print(f"  --{name:24} {text}", file=sys.stderr)
        print("exit")
        return
    values = parse(known, words)
    for name, option in known.items():
        if name in values:
            print(f"{name}={values[name]}")
        if option.is_list:
            print(f"{name}_list")
            for number, word in enumerate(option.words(values.get(name, option.default))):
                print(f"{name}_list[{number}]={word}")


if __name__ == "__main__":
    main()
