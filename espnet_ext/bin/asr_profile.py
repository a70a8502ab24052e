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
from espnet_ext.files import KB, MB, write_atomic
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
    wrong = show(results)
    if args.output:
        write_atomic(args.output, "".join(map(to_json, results)).encode())
    return wrong


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


def print_table(rows: list[tuple[str, dict, dict]]) -> None:
    """Print the caches of (name, description, cache) rows."""
    from espnet_ext.report.schema import KINDS

    frames = rows[0][2]["frames"]
    titles = ["model", "attention", "B/frame", f"measured, {frames} frames", "formula", "MHA/this"]
    titles += ["left context", *KINDS, "whole state"]
    table = [titles]
    for name, description, cache in rows:
        for number, stream in enumerate(cache["streams"]):
            figures = [
                name,
                description["attention"],
                str(cache["bytes_per_frame"]),
                f"{cache['bytes'] / MB:.10g} MB",
                f"{cache['formula_bytes'] / MB:.10g} MB",
                f"{cache['mha_bytes'] / cache['bytes']:.4g}x",
            ]
            kept = "all" if stream["left_context"] < 0 else stream["left_context"]
            parts = [*(stream["ledger"][kind] for kind in KINDS), stream["bytes"]]
            kb = [f"{part / KB:.10g} KB" for part in parts]
            table.append([*(figures if not number else [""] * 6), str(kept), *kb])
    from espnet_ext.report.tables import text_table

    print(text_table(table[0], table[1:]), end="")


def show(results: list[dict]) -> int:
    """Print the measurements and return the exit status."""
    names = [model_name(result["config"]) for result in results]
    print_table([(name, r, r["cache"]) for name, r in zip(names, results, strict=True)])
    if any(result["cache"]["rebuilt_causal"] for result in results):
        print(
            "Configs that are not causal cannot stream: their siblings with causal: true, which "
            "have the same weights and caches, were measured."
        )
    for name, result in zip(names, results, strict=True):
        if reason := result["cache"]["frontend_missing"]:
            print(f"{name}: a front end is not counted: {reason}")
        if "offline" in result:
            print_cost(name, result)
    wrong = 0
    for name, result in zip(names, results, strict=True):
        for difference in result["cache"]["differences"]:
            print(f"measured cache differs from the formula: {name}: {difference}")
            wrong = 1
    return wrong


def model_name(config) -> str:
    """The name of a YAML of conf/, or of the directory of a run."""
    path = Path(config)
    name = path.parent.name if path.name == "config.yaml" else path.stem
    return name.removeprefix("asr_").removeprefix("train_asr_")


def print_cost(name: str, result: dict) -> None:
    """Print latency, memory and arithmetic of one model."""
    offline, streaming = result["offline"], result["streaming"]
    print(f"{name}, {result['device']}, {result['threads']} thread(s)")
    sizes = ", ".join(f"{k} {n / 1e6:.2f} M" for k, n in result["parameters"].items())
    print(f"  parameters      {sizes}")
    print(
        f"  offline         {offline['ms_per_utterance']:.1f} ms per utterance, real-time factor "
        f"{offline['real_time_factor']:.3f}, {_memory(offline['memory'])}"
    )
    if streaming:
        token = {key: f"{ms:.1f}" for key, ms in streaming["first_token_ms"].items()}
        print(
            f"  streaming       {streaming['ms_per_chunk_median']:.1f} ms per chunk (median), "
            f"{streaming['ms_per_chunk_p95']:.1f} (p95), real-time factor "
            f"{streaming['real_time_factor']:.3f}, {_memory(streaming['memory'])}"
        )
        print(
            f"  first token     {token['total']} ms after speech begins: chunk {token['chunk']} "
            f"+ look-ahead {token['lookahead']} + computing {token['compute']}"
        )
    else:
        print(f"  streaming       not measured: {result['streaming_missing']}")
    adds = result["multiply_adds"]
    print(
        f"  multiply-adds   {adds['offline'] / 1e6:.1f} M offline, {adds['streaming'] / 1e6:.1f} M "
        "streaming, per second of audio (encoder)"
    )
    if decoder := result["decoder"]:
        print(
            f"  decoder cache   self {decoder['self_attention'] / KB:.0f} KB, cross "
            f"{decoder['src_attention'] / KB:.0f} KB ({decoder['hypotheses']} hypotheses, "
            f"{decoder['tokens']} tokens, {decoder['frames']} frames)"
        )


def _memory(memory):
    peak = memory["peak_mb"]
    cuda = "" if memory["cuda_peak_mb"] is None else f", CUDA {memory['cuda_peak_mb']:.0f} MB"
    return f"peak {'unknown' if peak is None else f'{peak:.0f} MB'} over the weights{cuda}"


if __name__ == "__main__":
    raise SystemExit(main())
