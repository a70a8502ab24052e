"""Measure what models keep in memory while they stream, and what they cost.

One table: bytes of the attention cache, read off the live tensors, beside the formula. --measure
all adds latency, memory, parameters and multiply-adds, each model in a fresh process. A YAML alone
has random weights, which need as many bytes and as much time. Exit status 1 if a measured cache
differs from its formula.
"""

from pathlib import Path

from espnet_ext import model_options as shared
from espnet_ext.config import parse_with_file
from espnet_ext.errors import UserError, about, cli
from espnet_ext.files import write_atomic
from espnet_ext.options import Parser, output, path
from espnet_ext.results import to_json


@cli
def main(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument(
        "models",
        nargs="*",
        type=path,
        metavar="EXPDIR|YAML",
        help="directory of a trained or unpacked model, or a configuration for random weights",
    )
    shared.add_checkpoint(parser)
    parser.add_argument(
        "--asr_train_config", "--config", type=path, nargs="+", default=[], help="the same YAML"
    )
    parser.option("asr_model_file", path, help="checkpoint of the one YAML")
    parser.option("measure", default="cache", choices=("cache", "all"))
    parser.option("profile_config", help="YAML of options, e.g. conf/profile.yaml")
    shared.add_costs(parser)
    shared.add_device(parser)
    parser.option("output", output, help="file for the measurements, one JSON object per line")
    args = parse_with_file(parser, argv, "profile_config")
    models = find_models(args)
    from espnet_ext.evaluate.models import read_model_config

    for config, _ in models:
        read_model_config(config)
    results = measure_all(models, args) if args.measure == "all" else measure_caches(models, args)
    from espnet_ext.report.profiles import profile_report

    print(profile_report(results), end="")
    if args.output:
        write_atomic(args.output, "".join(map(to_json, results)).encode())
    return int(any(result["cache"]["differences"] for result in results))


def find_models(args) -> list[tuple]:
    """Config and checkpoint, or None for random weights, of every model that is named."""
    checkpoint = args.inference_asr_model
    found = [
        shared.find_model(model, checkpoint)
        if Path(model).is_dir()
        else (model, args.asr_model_file)
        for model in args.asr_train_config + args.models
    ]
    if not found:
        raise UserError("give EXPDIR of a model, or the YAML of one")
    if args.asr_model_file and len(found) > 1:
        raise UserError("--asr_model_file: belongs to one model, give one --config")
    return found


def measure_caches(models, args) -> list[dict]:
    """The caches of every model."""
    from espnet_ext.evaluate.cache import measure_cache
    from espnet_ext.evaluate.models import describe, read_model_config

    results = []
    for file, _ in models:
        config = read_model_config(file)
        with about(file):
            cache = measure_cache(config, args.frames, args.chunk_size, args.left_contexts)
        results.append(describe(config, file) | {"cache": cache})
    return results


def measure_all(models, args) -> list[dict]:
    """Caches and costs of every model, each in a fresh process."""
    from espnet_ext.evaluate.cost import profile
    from espnet_ext.evaluate.process import workers

    names = "wav_scp inference_config frames chunk_size left_contexts num_utts decoder_tokens"
    names += " vocab_size device threads"
    options = {name: getattr(args, name) for name in names.split()}
    with workers(1, max_tasks_per_child=1) as fresh:
        jobs = [fresh.submit(profile, *files, **options) for files in models]
        return [job.result() for job in jobs]


if __name__ == "__main__":
    raise SystemExit(main())
