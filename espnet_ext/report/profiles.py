"""What was measured of models, as text; see ``espnet_ext.evaluate.cost.profile``."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from espnet_ext.files import KB, MB
from espnet_ext.report.schema import KINDS
from espnet_ext.report.tables import text_table

CACHE = ("model", "attention", "B/frame", "measured, {frames} frames", "formula", "MHA/this")


def profile_report(results: list[dict[str, Any]]) -> str:
    """A table of caches, the costs of the models whose costs were measured, and what is wrong."""
    named = [(_name(result["config"]), result) for result in results]
    frames = results[0]["cache"]["frames"]
    header = [title.format(frames=frames) for title in CACHE]
    header += ["left context", *KINDS, "whole state"]
    rows = [row for name, result in named for row in _rows(name, result)]
    return text_table(header, rows) + "".join(f"{note}\n" for note in _notes(named))


def _name(config: str) -> str:
    """The name of a YAML of conf/, or of the directory of a run."""
    path = Path(config)
    name = path.parent.name if path.name == "config.yaml" else path.stem
    return name.removeprefix("asr_").removeprefix("train_asr_")


def _rows(name: str, result: dict[str, Any]) -> Iterator[list[str]]:
    """A row for each left context; the first has what they share."""
    cache = result["cache"]
    shared = [
        name,
        result["attention"],
        str(cache["bytes_per_frame"]),
        f"{cache['bytes'] / MB:.10g} MB",
        f"{cache['formula_bytes'] / MB:.10g} MB",
        f"{cache['mha_bytes'] / cache['bytes']:.4g}x",
    ]
    for stream in cache["streams"]:
        kept = "all" if stream["left_context"] < 0 else str(stream["left_context"])
        parts = [*(stream["ledger"][kind] for kind in KINDS), stream["bytes"]]
        yield [*shared, kept, *(f"{part / KB:.10g} KB" for part in parts)]
        shared = [""] * len(shared)


def _notes(named: list[tuple[str, dict[str, Any]]]) -> Iterator[str]:
    if any(result["cache"]["rebuilt_causal"] for _, result in named):
        yield (
            "Configs that are not causal cannot stream: their siblings with causal: true, which "
            "have the same weights and caches, were measured."
        )
    for name, result in named:
        if reason := result["cache"]["frontend_missing"]:
            yield f"{name}: a front end is not counted: {reason}"
        if "offline" in result:
            yield from _costs(name, result)
    for name, result in named:
        for difference in result["cache"]["differences"]:
            yield f"measured cache differs from the formula: {name}: {difference}"


def _costs(name: str, result: dict[str, Any]) -> Iterator[str]:
    """Latency, memory and arithmetic of one model."""
    offline, streaming = result["offline"], result["streaming"]
    yield f"{name}, {result['device']}, {result['threads']} thread(s)"
    sizes = ", ".join(f"{k} {n / 1e6:.2f} M" for k, n in result["parameters"].items())
    yield f"  parameters      {sizes}"
    yield (
        f"  offline         {offline['ms_per_utterance']:.1f} ms per utterance, real-time factor "
        f"{offline['real_time_factor']:.3f}, {_memory(offline['memory'])}"
    )
    if streaming:
        token = {key: f"{ms:.1f}" for key, ms in streaming["first_token_ms"].items()}
        yield (
            f"  streaming       {streaming['ms_per_chunk_median']:.1f} ms per chunk (median), "
            f"{streaming['ms_per_chunk_p95']:.1f} (p95), real-time factor "
            f"{streaming['real_time_factor']:.3f}, {_memory(streaming['memory'])}"
        )
        yield (
            f"  first token     {token['total']} ms after speech begins: chunk {token['chunk']} "
            f"+ look-ahead {token['lookahead']} + computing {token['compute']}"
        )
    else:
        yield f"  streaming       not measured: {result['streaming_missing']}"
    adds = result["multiply_adds"]
    yield (
        f"  multiply-adds   {adds['offline'] / 1e6:.1f} M offline, {adds['streaming'] / 1e6:.1f} M "
        "streaming, per second of audio (encoder)"
    )
    if decoder := result["decoder"]:
        yield (
            f"  decoder cache   self {decoder['self_attention'] / KB:.0f} KB, cross "
            f"{decoder['src_attention'] / KB:.0f} KB ({decoder['hypotheses']} hypotheses, "
            f"{decoder['tokens']} tokens, {decoder['frames']} frames)"
        )


def _memory(memory: dict[str, float | None]) -> str:
    peak, cuda = memory["peak_mb"], memory["cuda_peak_mb"]
    on_device = "" if cuda is None else f", CUDA {cuda:.0f} MB"
    return f"peak {'unknown' if peak is None else f'{peak:.0f} MB'} over the weights{on_device}"
