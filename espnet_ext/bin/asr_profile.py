"""Measure what models keep in memory while they stream, and what they cost.

--measure cache prints one table: bytes of the attention cache,
read off the live tensors, beside the formula. --measure all adds latency, memory, parameters and
multiply-adds, each model in a fresh process. Without --asr_model_file the weights are random.
Exit status 1 if a measured cache differs from its formula.
"""

import argparse
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from espnet_ext.config import read_config
from espnet_ext.data.kaldi import write_atomic
from espnet_ext.errors import UserError, cli
from espnet_ext.options import Parser, context, device, output, positive_int
from espnet_ext.profiling.config import KINDS, describe, read_model_config
from espnet_ext.results import to_json

MIB = 2**20


def get_parser() -> Parser:
    """Options of this command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", nargs="+", required=True, help="YAML of conf/ or of a run")
    parser.add_argument("--measure", choices=("cache", "all"), default="cache")
    parser.add_argument("--asr_model_file", help="checkpoint of the one --config")
    parser.add_argument(
        "--profile_config", help="YAML of the options below, e.g. conf/profile.yaml"
    )
    parser.add_argument(
        "--frames", type=positive_int, default=1000, help="encoder frames [%(default)s]"
    )
    parser.add_argument(
        "--chunk_size", type=positive_int, default=16, help="where a config has none"
    )
    parser.add_argument("--left_contexts", type=context, nargs="+", default=[64], help="-1 is all")
    parser.add_argument(
        "--vocab_size", type=positive_int, default=5000, help="tokens [%(default)s]"
    )
    parser.add_argument(
        "--num_utts", type=positive_int, default=20, help="recordings timed [%(default)s]"
    )
    parser.add_argument(
        "--decoder_tokens", type=positive_int, default=100, help="for the decoder's ledger"
    )
    parser.add_argument("--wav_scp", help="recordings to time; noise without it")
    parser.add_argument("--inference_config", help="YAML of decoding options")
    parser.add_argument("--device", type=device, default="cpu", help="cpu or cuda [%(default)s]")
    parser.add_argument("--output", type=output, help="file for the measurements, JSON lines")
    return parser


def print_table(rows: list[tuple[str, dict, dict]]) -> None:
    """Print the caches of (name, description, cache) rows."""
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
                f"{cache['bytes'] / MIB:.10g} MiB",
                f"{cache['formula_bytes'] / MIB:.10g} MiB",
                f"{cache['mha_bytes'] / cache['bytes']:.4g}x",
            ]
            kept = "all" if stream["left_context"] < 0 else stream["left_context"]
            parts = [*(stream["ledger"][kind] for kind in KINDS), stream["bytes"]]
            kib = [f"{part / 1024:.10g} KiB" for part in parts]
            table.append([*(figures if not number else [""] * 6), str(kept), *kib])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


def measure(args, path) -> dict:
    """One model's measurements; ``--measure all`` wants a fresh process."""
    if args.measure == "all":
        from espnet_ext.profiling.cost import profile

        names = "inference_config frames chunk_size left_contexts num_utts decoder_tokens"
        options = {name: getattr(args, name) for name in names.split()}
        return profile(
            path,
            args.asr_model_file,
            args.wav_scp,
            vocab_size=args.vocab_size,
            device=args.device,
            **options,
        )
    from espnet_ext.profiling.cache import measure_cache

    config = read_model_config(path)
    cache = measure_cache(config, args.frames, args.chunk_size, args.left_contexts)
    return describe(config, path) | {"cache": cache}


def parse(argv):
    """The options in ``argv``, checked; those of ``--profile_config`` are their defaults."""
    parser = get_parser()
    args = parser.parse_args(argv)
    if args.profile_config:
        parser.take_defaults(read_config(args.profile_config), args.profile_config)
        args = parser.parse_args(argv)
    if args.vocab_size < 4:
        raise UserError(f"--vocab_size: must be at least 4, got {args.vocab_size}")
    if args.asr_model_file and len(args.config) > 1:
        raise UserError("--asr_model_file: belongs to one model, give one --config")
    for path in args.config:
        read_model_config(path)
    return args


@cli
def main(argv=None):
    """Run the command line."""
    args = parse(argv)
    if args.measure == "all":
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as fresh:
            results = [fresh.submit(measure, args, path) for path in args.config]
            results = [result.result() for result in results]
    else:
        results = [measure(args, path) for path in args.config]
    return report(results, args.output)


def report(results: list[dict], output=None) -> int:
    """Print the caches, write the file, and return the exit status."""
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
    if output:
        write_atomic(output, "".join(map(to_json, results)).encode())
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
            f"  decoder cache   self {decoder['self_attention'] / 1024:.0f} KiB, cross "
            f"{decoder['src_attention'] / 1024:.0f} KiB ({decoder['hypotheses']} hypotheses, "
            f"{decoder['tokens']} tokens, {decoder['frames']} frames)"
        )


def _memory(memory):
    peak = memory["peak_mb"]
    cuda = "" if memory["cuda_peak_mb"] is None else f", CUDA {memory['cuda_peak_mb']:.0f} MiB"
    return f"peak {'unknown' if peak is None else f'{peak:.0f} MiB'} over the weights{cuda}"


if __name__ == "__main__":
    raise SystemExit(main())
