"""Attention variants with streaming caches for ESPnet: train, measure, compare, convert, stream.

The stages of a recipe are run.sh's; everything else is a command here.
"""

import sys
from importlib import import_module

from espnet_ext.errors import UserError, cli
from espnet_ext.options import did_you_mean

#: what a command is about -> its name -> its module in espnet_ext.bin
COMMANDS = {
    "a model": {
        "stream": "stream",
        "serve": "serve",
        "decode": "asr_inference_streaming",
        "certify": "asr_certify",
        "profile": "asr_profile",
        "convert": "asr_convert",
        "export": "asr_export",
        "pack": "asr_pack",
        "unpack": "asr_unpack",
        "upload": "asr_upload",
    },
    "many models": {
        "run-all": "run_all",
        "evaluate": "evaluate_all",
        "compare": "asr_compare",
        "grid": "asr_grid",
        "keep": "asr_results",
        "curve": "conversion_curve",
    },
    "recipes and their data": {
        "check": "check_setup",
        "new-recipe": "new_recipe",
        "data download": "data_download",
        "data librispeech": "data_prep_librispeech",
        "data fsdd": "data_prep_fsdd",
        "data read-english": "data_prep_read_english",
        "data corpus": "data_prep_corpus",
        "data combine": "data_combine",
        "data validate": "data_validate",
        "data format": "data_format",
        "data perturb-speed": "data_perturb_speed",
        "data filter": "data_filter",
        "data tokens": "data_tokens",
        "score": "score",
        "results": "score_results",
    },
}
MODULES = {name: module for group in COMMANDS.values() for name, module in group.items()}


def usage(words=()) -> str:
    """What there is, in groups; with words, of the commands that begin with them."""
    begin = " ".join(words)
    lines = ["usage: espnet-ext COMMAND [--help] ...", "", __doc__.strip()]
    for title, group in COMMANDS.items():
        names = [name for name in group if name.startswith(begin)]
        lines += ["", f"{title}:"] if names else []
        for name in names:
            summary = import_module(f"espnet_ext.bin.{group[name]}").__doc__.split("\n")[0]
            lines.append(f"  {name:20}{summary}")
    return "\n".join(lines)


@cli
def main(argv=None):
    """Run a command."""
    words = list(sys.argv[1:] if argv is None else argv)
    sys.argv[0] = "espnet-ext"
    for number in (2, 1):
        name = " ".join(words[:number])
        if name in MODULES:
            sys.argv[0] = f"espnet-ext {name}"
            return import_module(f"espnet_ext.bin.{MODULES[name]}").main(words[number:])
    group = words[:1] if words[:1] not in ([], ["-h"], ["--help"]) else []
    inside = [name for name in MODULES if name.split()[:1] == group]
    if group and (not inside or words[1:2] not in ([], ["-h"], ["--help"])):
        typed = " ".join(words[: 2 if inside else 1])
        near = did_you_mean(typed, MODULES) or ", --help lists them"
        raise UserError(f"no command {typed}{near}")
    print(usage(group))
    return 0 if words else 1
