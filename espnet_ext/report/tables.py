"""The sections of a comparison: made once, written as CSV, as text and as a page."""

import textwrap
from dataclasses import dataclass

from espnet_ext.errors import printable
from espnet_ext.report.compare import BUDGETS, Comparison, row_name
from espnet_ext.report.schema import KINDS, csv_text, text
from espnet_ext.scoring.resampling import FEWEST_SPEAKERS

#: what ``drawn`` says, for every table with an interval
DRAWN = (
    "Drawn: what the bootstrap draws with replacement, speakers with all that they say, or "
    f"utterances where a test set has fewer than {FEWEST_SPEAKERS} speakers (such an interval "
    "speaks of these speakers only)."
)

STATE = (
    "State: the most that a stream keeps between two packets, once its left context is full: "
    "caches and convolutions, the features of a chunk that is not complete, and the samples in the "
    "front end."
)


@dataclass
class Section:
    """A table with its heading.

    Attributes:
        title: Heading.
        note: What the reader must know; may be empty.
        header: Titles of the columns.
        rows: Cells as shown.
    """

    title: str
    note: str
    header: list[str]
    rows: list[list[str]]


def _get(row, *keys):
    """A value deep inside a row, None where the way to it ends."""
    for key in keys:
        row = row.get(key) if isinstance(row, dict) else None
    return row


def _interval(pair):
    return None if pair is None else f"[{text(pair[0])}, {text(pair[1])}]"


def _equal(certificate):
    if certificate is None:
        return None
    return "yes" if certificate["equal"] else "NO"


def _left(frames):
    return "all" if frames == -1 else text(frames)


def comparison_csv(comparison: Comparison) -> str:
    """The wide table: a line per row, empty cells where a value is missing."""
    lines = []
    for row in comparison.rows:
        statistics = [comparison.statistics.get((row.get("model"), s)) for s in comparison.sets]
        line = {
            "model": row_name(row),
            "status": row["status"],
            "encoder": row["encoder"],
            "attention": row["attention"],
            "cache": row.get("cache_kind"),
            "kv_cache_kb": row.get("kv_cache_kb"),
            "compression_ratio": row.get("compression_ratio"),
        }
        for name, test in zip(comparison.sets, statistics, strict=True):
            wer = _get(row, "wer", name) or {}
            line[f"wer_{name}"] = wer.get("wer")
            line[f"wer_{name}_low"], line[f"wer_{name}_high"] = wer.get("interval_95", [None] * 2)
            line[f"drawn_{name}"] = wer.get("drawn")
            test = test or {}
            line[f"difference_{name}"] = test.get("difference")
            low, high = test.get("interval_95", [None] * 2)
            line[f"difference_{name}_low"], line[f"difference_{name}_high"] = low, high
            line[f"p_{name}"] = test.get("p")
        for key in ("inference_time_ms", "real_time_factor", "memory_mb", "parameters"):
            line[key] = row.get(key)
        for key in ("ms_per_chunk_median", "ms_per_chunk_p95"):
            line[f"streaming_{key}"] = _get(row, "streaming", key)
        line["first_token_ms"] = _get(row, "streaming", "first_token_ms", "total")
        for key in ("offline", "streaming"):
            line[f"multiply_adds_per_second_{key}"] = _get(row, "multiply_adds_per_second", key)
        line["training_seconds"] = row.get("training_seconds")
        line["equivalent"] = _equal(row.get("equivalence"))
        for key in ("config", "commit", "device"):
            line[key] = row.get(key)
        line["directory"], line["reason"] = row.get("model"), row.get("reason")
        lines.append(line)
    for row in comparison.published:
        line = {"model": row["name"], "status": "published", "config": row["source"]}
        line |= {f"wer_{s}": row["wer"].get(s) for s in comparison.published_sets}
        lines.append(line)
    return csv_text(list(lines[0]), lines)


def sections(comparison: Comparison) -> list[Section]:
    """Every table of the report that has something to show, the most important one first."""
    made = [
        _results(comparison),
        _statistics(comparison),
        _latency(comparison),
        _streaming(comparison),
        _budgets(comparison),
        _affordable(comparison),
        _ledger(comparison),
        _decoder(comparison),
        _equivalence(comparison),
        _published(comparison),
        _origin(comparison),
    ]
    return [section for section in made if section.rows]


def _measured(comparison):
    return [row for row in comparison.rows if row["status"] == "measured"]


def _own(comparison):
    return [row for row in _measured(comparison) if row["cache_kind"] != "input"]


def _results(comparison):
    frames = sorted({row["cache"]["frames"] for row in _measured(comparison)})
    header = ["model", f"cache KB, {'/'.join(map(str, frames)) or 'all'} frames", "MHA / this"]
    columns = ("WER {}", "95% interval", "drawn")
    header += [column.format(name) for name in comparison.sets for column in columns]
    header += ["ms / utterance", "memory MB", "parameters", "training s"]
    rows = []
    for row in comparison.rows:
        name = row_name(row) + (f": {row['reason']}" if row["status"] == "missing" else "")
        cells = [name, text(row.get("kv_cache_kb")), text(row.get("compression_ratio"))]
        for dataset in comparison.sets:
            wer = _get(row, "wer", dataset)
            cells += [text(_get(wer, "wer")), text(_interval(_get(wer, "interval_95")))]
            cells += [text(_get(wer, "drawn"))]
        keys = ("inference_time_ms", "memory_mb", "parameters", "training_seconds")
        rows.append([*cells, *(text(row.get(key)) for key in keys)])
    note = (
        "WER in percent, offline, with its bootstrap interval. KB are 1024 bytes: what attention "
        "keeps of a stream with an unlimited left context, read off its tensors, in float32. ms "
        "per utterance: recognising a whole recording. Memory: the peak of that above the loaded "
        "weights. Input cache: the MHA model above it, with the same weights and the same text, "
        "that keeps layer inputs in place of keys and values; its offline figures are that "
        f"model's. {DRAWN}"
    )
    return Section("Results", note, header, rows)


def _statistics(comparison):
    rows = [
        [
            row_name(row),
            name,
            text(test["difference"]),
            _interval(test["interval_95"]),
            text(test["p"]),
            test["drawn"],
            test["baseline"],
        ]
        for row in _own(comparison)
        for name in comparison.sets
        if (test := comparison.statistics.get((row["model"], name)))
    ]
    note = (
        "WER of the model minus WER of the MHA model that differs in nothing but the attention, in "
        "points; paired bootstrap, 95% interval, two-sided p, each for itself (not corrected for "
        f"their number). {DRAWN}"
    )
    header = ["model", "test set", "difference", "95% interval", "p", "drawn", "compared with"]
    return Section("Difference from MHA", note, header, rows)


def _latency(comparison):
    header = ["model", "chunk", "left context", "ms / chunk, median", "p95", "real-time factor"]
    header += ["first token ms", "of which computing", "peak MB", "offline real-time factor"]
    header += ["M multiply-adds / s offline", "streaming"]
    rows = []
    for row in _measured(comparison):
        stream = row["streaming"] or {}
        adds = row["multiply_adds_per_second"]
        timed = ("ms_per_chunk_median", "ms_per_chunk_p95", "real_time_factor")
        rows.append(
            [
                row_name(row),
                text(stream.get("chunk_size")),
                text(stream.get("left_context") and _left(stream["left_context"])),
                *(text(stream.get(key)) for key in timed),
                text(_get(stream, "first_token_ms", "total")),
                text(_get(stream, "first_token_ms", "compute")),
                text(stream.get("memory_mb")),
                text(row["real_time_factor"]),
                *(text(round(adds[key] / 1e6, 2)) for key in ("offline", "streaming")),
            ]
        )
    note = (
        "Streaming: features, encoder and greedy CTC search on packets of one chunk. First token: "
        "the audio of the first chunk with what its features look ahead, and the median chunk's "
        "computing. A model trained without causal convolutions was timed with them in place, "
        "which costs the same. Multiply-adds: of the encoder, per second of audio."
    )
    return Section("Latency and arithmetic", note, header, rows)


def _streaming(comparison):
    header = ["model", "chunk", "left context", "state KB"]
    header += [f"WER {name}" for name in comparison.sets]
    rows = [
        [
            row_name(row),
            text(stream["chunk_size"]),
            _left(stream["left_context"]),
            text(stream["total_kb"]),
            *(text(_get(wer, name, "wer")) for name in comparison.sets),
        ]
        for row, stream, wer in comparison.points()
    ]
    note = f"Decoded as a live stream. {STATE}"
    return Section("Streaming word error rates", note, header, rows)


def _budgets(comparison):
    winners = comparison.winners()
    rows = []
    for budget in BUDGETS:
        for name in comparison.sets:
            point = winners[budget, name]
            if point:
                row, stream, wer = point
                cells = [row_name(row), text(stream["chunk_size"]), _left(stream["left_context"])]
                cells += [text(stream["total_kb"]), text(wer[name]["wer"])]
                rows.append([text(budget), name, *cells])
    note = "Of the streaming decodings above, the lowest WER whose whole state fits the budget."
    header = ["budget KB", "test set", "model", "chunk", "left context", "state KB", "WER"]
    return Section("Best model for a budget per stream", note, header, rows)


def _affordable(comparison):
    rows = [
        [row_name(row), *(_room(comparison.affordable(row, budget)) for budget in BUDGETS)]
        for row in _measured(comparison)
    ]
    note = (
        "Encoder frames before a chunk that a stream can keep when its whole state has so many KB; "
        "- where not even the rest of the state fits."
    )
    header = ["model", *(f"{budget} KB" for budget in BUDGETS)]
    return Section("Left context that a budget buys", note, header, rows)


def _room(frames):
    return "-" if frames is None else _left(frames)


def _ledger(comparison):
    rows = [
        [
            row_name(row),
            text(stream["chunk_size"]),
            _left(stream["left_context"]),
            *(text(stream["kb"][kind]) for kind in KINDS),
            text(stream["total_kb"]),
            text(stream["allocated_kb"]),
        ]
        for row in _measured(comparison)
        for stream in row["cache"]["streams"]
    ]
    header = ["model", "chunk", "left context", *(f"{kind} KB" for kind in KINDS)]
    note = f"{STATE} Allocated: with the room that the caches have."
    return Section("State ledger", note, [*header, "sum KB", "allocated KB"], rows)


def _decoder(comparison):
    rows = [
        [
            row_name(row),
            *(text(row["decoder_cache"][key]) for key in ("hypotheses", "tokens", "frames")),
            *(
                text(round(row["decoder_cache"][f"{key}_attention"] / 1024, 4))
                for key in ("self", "src")
            ),
        ]
        for row in _own(comparison)
        if row.get("decoder_cache")
    ]
    header = ["model", "hypotheses", "tokens", "frames", "self-attention KB", "cross-attention KB"]
    return Section("Decoder caches in a beam search", "", header, rows)


def _error(error):
    return "not a number" if error is None else f"{error:.1e}"


def _equivalence(comparison):
    rows = []
    for row in _own(comparison):
        if certificate := row.get("equivalence"):
            worst, exact = certificate["max_error"], certificate.get("max_error_float64")
            cells = [_equal(certificate), text(certificate["utterances"])]
            cells += [_error(worst[key]) for key in ("features", "encoder", "logits")]
            cells += [_error(exact["logits"]) if exact else "missing"]
            cells += ["yes" if certificate["text_identical"] else "NO"]
            rows.append([row_name(row), *cells])
    header = [
        "model",
        "equal",
        "recordings",
        "features",
        "encoder",
        "log probabilities",
        "the same in float64",
        "same text",
    ]
    note = (
        "Largest difference between streaming and the chunk-masked offline pass on real "
        "recordings, in float32 unless said otherwise. In float64, where rounding is far below any "
        "real difference, it decides about equal."
    )
    return Section("Streaming equals offline", note, header, rows)


def _published(comparison):
    rows = [
        [
            row["name"],
            text(row.get("parameters_m"), missing=""),
            *(text(row["wer"].get(name), missing="") for name in comparison.published_sets),
            row.get("note", ""),
            row["source"],
        ]
        for row in comparison.published
    ]
    header = ["published by others", "M parameters"]
    header += [*(f"WER {name}" for name in comparison.published_sets), "note", "source"]
    note = "Not measured here. Trained on LibriSpeech train-clean-100, without a language model."
    return Section("Published baselines", note, header, rows)


def _origin(comparison):
    keys = ("model", "config", "inference", "commit", "device", "threads", "load_average", "torch")
    rows = [[row_name(row), *(text(row.get(key)) for key in keys)] for row in _own(comparison)]
    header = ["model", "directory", "config", "decoding", "commit", "device", "threads", "load"]
    note = (
        "Load: how many processes ran on the machine before the timing began. Where it is not near "
        "0, latencies and times include waiting for the others."
    )
    return Section("Where the numbers come from", note, [*header, "torch"], rows)


def summary_report(comparison: Comparison) -> str:
    """All sections as plain text."""
    parts = ["COMPARISON\n"]
    if comparison.notes:
        parts.append("\n".join(f"NOTE: {note}" for note in comparison.notes) + "\n")
    for section in sections(comparison):
        parts.append(f"{section.title}\n{'=' * len(section.title)}\n")
        if section.note:
            parts.append(textwrap.fill(section.note, 100) + "\n")
        table = [section.header, *section.rows]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        table.insert(1, ["-" * width for width in widths])
        lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in table)
        parts.append("\n".join(lines) + "\n")
    return printable("\n".join(parts))
