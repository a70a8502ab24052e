"""Convert a model to a sweep of ranks and groups, and lay WER against bytes of the cache.

Each conversion is decoded as it is and, where asked for, after fine-tuning. Writes, into --output,
curve.csv, a plot curve_<test set>.png per test set, and report.html. Run it again after a stop:
what is done is kept.
"""

from dataclasses import replace
from pathlib import Path

from espnet_ext import model_options as shared
from espnet_ext.bin.evaluate_all import in_recipe, say, settings
from espnet_ext.errors import UserError, cli
from espnet_ext.options import Parser, listed, maybe, name, path, positive, positive_int


@cli
def main(argv=None):
    """Run the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("model", nargs="?", type=path, metavar="EXPDIR", help="model to convert")
    parser.add_argument("--model", dest="source", type=path, help="in place of EXPDIR: the same")
    parser.add_argument(
        "--ranks",
        type=listed(positive_int),
        default="512 256 128 64 32",
        help="kv_lora_rank of MLA [%(default)s]",
    )
    parser.add_argument(
        "--groups",
        type=listed(positive_int),
        default="4 2 1",
        help="n_kv_head of GQA [%(default)s]",
    )
    parser.add_argument(
        "--budgets",
        type=listed(positive),
        default=[],
        help="KB of 1000 frames for MLA with ranks per layer",
    )
    parser.add_argument(
        "--calibration_scp",
        type=maybe(path),
        help="recordings of the activation-aware conversions [those of the validation set]",
    )
    parser.add_argument(
        "--num_utts", type=positive_int, default=50, help="how many of them [%(default)s]"
    )
    parser.add_argument(
        "--finetune",
        type=listed(name),
        default=[],
        help='which to fine-tune too, e.g. "mla_64_aware gqa_1_similar", or all',
    )
    parser.add_argument(
        "--finetune_config", type=maybe(path), help="schedule [the repository's finetune_asr.yaml]"
    )
    parser.add_argument(
        "--finetune_args", default="", help='more options of the training, e.g. "--max_epoch 1"'
    )
    parser.add_argument(
        "--inference_tag", type=maybe(name), help="directory of the decoding [of inference_config]"
    )
    parser.add_argument(
        "--output", type=path, default="conversion", help="table, plots and page [%(default)s]"
    )
    shared.add_recipe(parser)
    parser.set_defaults(expdir=None)
    args = parser.parse_args(argv)
    if bool(args.model) == bool(args.source):
        raise UserError("give EXPDIR, the model to convert")
    in_recipe(args)
    from espnet_ext.config import read_yaml
    from espnet_ext.evaluate.conversion import write_curve
    from espnet_ext.evaluate.driver import Driver
    from espnet_ext.evaluate.sweep import calibration_recordings, requests, sweep

    source = Path(args.model or args.source)
    read_yaml(source / "config.yaml")
    scp = args.calibration_scp or calibration_recordings(source)
    requested = requests(args.ranks, args.budgets, args.groups, scp, args.num_utts)
    options = ["--asr_args", args.finetune_args]
    if args.finetune_config:
        options += ["--finetune_config", args.finetune_config]
    expdir = Path(args.expdir or f"{source}_converted")
    tag = args.inference_tag or Path(args.inference_config).stem
    chosen = replace(settings(args), inference_tag=tag)
    driver = Driver(chosen, source.parent, tuple(args.run_args), say=say)
    models = sweep(driver, source, expdir, requested, args.finetune, options)
    checkpoint = chosen.inference_asr_model
    print(write_curve(args.output, source, models, tag, checkpoint, args.dumpdir), end="")
    print(f"All of it with plots: {Path(args.output) / 'report.html'}")


if __name__ == "__main__":
    main()
