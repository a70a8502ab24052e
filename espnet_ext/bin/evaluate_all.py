"""Decode, score and measure trained models, offline and as streams.

Writes evaluation_results.json into the directory of each; docs/report.md says what is in it. What
is there of the same model, settings and data is kept.
"""

import os
import signal
import sys
import time
from pathlib import Path

from espnet_ext import model_options as shared
from espnet_ext.bin.asr_evaluate import announce
from espnet_ext.errors import UserError, cli
from espnet_ext.options import Parser, chosen, listed, path

ROOT = Path(__file__).absolute().parents[2]


def in_recipe(args):
    """Go to the recipe's directory, find there what no option says; on a signal, end in order."""
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, lambda number, frame: sys.exit(128 + number))
    root = Path.cwd() if Path("run.sh").is_file() else ROOT
    if args.corpus:
        own = args.corpus.startswith("librispeech")
        root = ROOT if own else ROOT / "egs2" / args.corpus / "asr1"
    if not (root / "run.sh").is_file():
        raise UserError(f"--corpus: no {root}/run.sh; name a recipe of egs2, or go to one")
    os.chdir(root)
    if not args.profile_config:
        own = Path("conf/profile.yaml")
        args.profile_config = str(own if own.is_file() else ROOT / own)


def settings(args):
    """The options as ``evaluate`` takes them."""
    from espnet_ext.evaluate.evaluation import Settings

    decoding, checkpoint = Path(args.inference_config), Path(args.inference_asr_model)
    tag = f"{decoding.stem}_asr_model_{checkpoint.stem}"
    return Settings(**{"inference_tag": tag} | chosen(args, Settings))


def say(message):
    """Print a line with the time."""
    print(time.strftime("%Y-%m-%dT%H:%M:%S"), message, flush=True)


def report_failures(models):
    """Name the models that failed; returns the exit status."""
    failures = [model.failure for model in models if model.failure]
    for failure in failures:
        say(f"FAILED: {failure}")
    return 1 if failures else 0


@cli
def main(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument(
        "expdirs", nargs="*", type=path, metavar="EXPDIR", help="models [all that are trained]"
    )
    parser.option("models", listed(path), [], "the same in one word")
    shared.add_recipe(parser)
    args = parser.parse_args(argv)
    in_recipe(args)
    expdirs = [Path(model) for model in args.expdirs + args.models]
    if not expdirs:
        found = sorted(Path(args.expdir).glob(f"asr_*/{args.inference_asr_model}"))
        expdirs = [path.parent for path in found]
    if not expdirs:
        missing = Path(args.expdir, "asr_*", args.inference_asr_model).absolute()
        raise UserError(f"no {missing}: train a model first")
    from espnet_ext.evaluate.driver import Driver, Model

    models = [Model(expdir.name, expdir=expdir) for expdir in expdirs]
    paths = Path(args.expdir), tuple(args.run_args)
    Driver(settings(args), *paths, announce=announce, say=say).evaluate(models)
    return report_failures(models)


if __name__ == "__main__":
    raise SystemExit(main())
