"""Convert a model to a sweep of ranks and groups, and lay WER against bytes of the cache.

Each conversion is decoded as it is and, where asked for, after fine-tuning. Writes, into --output,
curve.csv, a plot curve_<test set>.png per test set, and report.html. Run it again after a stop or
a failure: what is done is kept. One model's failure does not stop the others.
"""

from pathlib import Path

from espnet_ext import model_options as shared
from espnet_ext.bin.evaluate_all import in_recipe, report_failures, say, settings
from espnet_ext.errors import UserError, cli
from espnet_ext.options import Parser, listed, maybe, name, output, path, positive, positive_int


@cli
def main(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument("model", nargs="?", type=path, metavar="EXPDIR", help="model to convert")
    parser.option("model", path, help="in place of EXPDIR: the same", dest="source")
    parser.option("ranks", listed(positive_int), "512 256 128 64 32", "kv_lora_rank of MLA")
    parser.option("groups", listed(positive_int), "4 2 1", "n_kv_head of GQA")
    parser.option("budgets", listed(positive), [], "KB of 1000 frames for MLA with ranks per layer")
    parser.option(
        "calibration_scp",
        maybe(path),
        help="recordings of the activation-aware conversions [those of the validation set]",
    )
    parser.option("num_utts", positive_int, 50, "how many of them")
    parser.option(
        "finetune",
        listed(name),
        [],
        'which to fine-tune too, e.g. "mla_64_aware gqa_1_similar", or all of them; source is the '
        "model to convert, which says what more training is worth by itself",
    )
    parser.option(
        "scratch", listed(path), [], "models trained without a conversion, to stand beside them"
    )
    parser.option(
        "finetune_config", maybe(path), help="schedule [the repository's finetune_asr.yaml]"
    )
    parser.option(
        "finetune_args", default="", help='more options of the training, e.g. "--max_epoch 1"'
    )
    parser.option(
        "inference_tag", maybe(name), help="directory of the decoding [of inference_config]"
    )
    parser.option("output", output, "conversion", "table, plots and page")
    shared.add_recipe(parser)
    parser.set_defaults(expdir=None)
    args = parser.parse_args(argv)
    if bool(args.model) == bool(args.source):
        raise UserError("give EXPDIR, the model to convert")
    in_recipe(args)
    from espnet_ext.config import read_config
    from espnet_ext.evaluate.conversion import Curve, write_curve
    from espnet_ext.evaluate.driver import Driver
    from espnet_ext.evaluate.sweep import calibration_recordings, requests, sweep

    source = Path(args.model or args.source)
    read_config(source / "config.yaml")
    scp = args.calibration_scp or calibration_recordings(source)
    requested = requests(args.ranks, args.budgets, args.groups, scp, args.num_utts)
    options = ["--asr_args", args.finetune_args]
    if args.finetune_config:
        options += ["--finetune_config", args.finetune_config]
    expdir = Path(args.expdir or f"{source}_converted")
    args.inference_tag = args.inference_tag or Path(args.inference_config).stem
    driver = Driver(settings(args), source.parent, tuple(args.run_args), say=say)
    scratch = [Path(model) for model in args.scratch]
    models = sweep(driver, source, expdir, requested, args.finetune, options, scratch)
    found = Curve(source, args.inference_tag, args.inference_asr_model, args.dumpdir)
    rows = found.rows(source)
    for model in models:
        driver.attempt(
            model, lambda model: rows.extend(found.rows(model.expdir, model.expdir in scratch))
        )
    print(write_curve(args.output, source, rows), end="")
    print(f"All of it with plots: {Path(args.output) / 'report.html'}")
    return report_failures(models)


if __name__ == "__main__":
    raise SystemExit(main())
