"""Train, decode, score and measure every encoder with every attention, and compare them.

Run it again after a stop or a failure: what is done is kept. One model's failure does not stop the
others. --run_args gives more options to run.sh, e.g. "--ngpu 2 --asr_args '--max_epoch 30'".
"""

import os
import shlex
from pathlib import Path

from espnet_ext import model_options as shared
from espnet_ext.bin.asr_compare import add_expected, compare
from espnet_ext.bin.evaluate_all import announce, in_recipe, report_failures, say, settings
from espnet_ext.config import read_config
from espnet_ext.errors import UserError, cli
from espnet_ext.options import Parser, count, listed, maybe, output, path, positive_int


@cli
def main(argv=None):
    parser = Parser(description=__doc__)
    add_expected(parser)
    parser.option(
        "conf_dir",
        maybe(path),
        help="holds train_asr_<encoder>_<attention>.yaml [conf/tuning, or conf without one]",
    )
    parser.option("comparison", output, "comparison", "tables, plots, page")
    parser.option("jobs", positive_int, 1, "models trained at once")
    parser.option("seeds", listed(count), help='of a training each, e.g. "1 2 3 4" [the YAML\'s]')
    shared.add_recipe(parser)
    args = parser.parse_args(argv)
    in_recipe(args)
    from espnet_ext.evaluate.driver import Driver, Model

    folder = Path(args.conf_dir or ("conf/tuning" if Path("conf/tuning").is_dir() else "conf"))
    attentions = args.attentions
    if attentions is None:
        from espnet_ext.attention import ATTENTIONS

        attentions = [n for n in ATTENTIONS if any(folder.glob(f"train_asr_*_{n}.yaml"))]
    words = list(args.run_args)
    trainings = {"": ()}  # what is added to a model's name, and its own options of run.sh
    if args.seeds:
        asr_args = ""
        if "--asr_args" in words[:-1]:
            at = words.index("--asr_args")
            _, asr_args = words[at : at + 2]
            del words[at : at + 2]
        if "--seed" in asr_args:
            raise UserError("--seeds: --run_args has a --seed as well; give one of them")
        trainings = {
            f" seed {n}": ("--asr_args", f"{asr_args} --seed {n}".strip()) for n in args.seeds
        }
    models = [
        Model(f"{encoder} {attention}{own}", folder / f"train_asr_{encoder}_{attention}.yaml", more)
        for own, more in trainings.items()
        for encoder in args.encoders
        for attention in attentions
    ]
    paths = Path(args.expdir), tuple(words)
    Driver(settings(args), *paths, args.jobs, announce, say).train(models)
    compare(args.expdir, args.comparison, args.encoders, attentions)
    if streaming := [str(model.expdir) for model in models if _streams(model)]:
        command = ["espnet-ext", "serve", *streaming[:4]]
        command += ["--chunk_size", "16", "--left_context", "64"]
        print(f"Look at them live: cd {shlex.quote(os.getcwd())} && {shlex.join(command)}")
    return report_failures(models)


def _streams(model):
    """Whether a model is there that can stream."""
    config = model.expdir and model.expdir / "config.yaml"
    if model.failure or not config or not config.is_file():
        return False
    return bool(read_config(config).get("encoder_conf", {}).get("causal"))


if __name__ == "__main__":
    raise SystemExit(main())
