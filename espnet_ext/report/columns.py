"""The tables of a comparison: a column of the report is one entry here, and nothing elsewhere.

Text, page and ``comparison_table.csv`` are made from ``TABLES``; plots take values and labels from
its columns.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

from espnet_ext.files import KB
from espnet_ext.report.compare import BUDGETS, Comparison, Row, row_name
from espnet_ext.report.schema import KINDS, text
from espnet_ext.scoring.resampling import FEWEST_SPEAKERS

#: stands for the test set in a column that is there once per test set
SET = "{set}"
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


@dataclass(frozen=True)
class Column:
    """A column of a table, of ``comparison_table.csv``, or of both.

    Attributes:
        title: Heading; None where the table leaves it out. ``{set}`` is the test set, ``{frames}``
            the frames of the cache figures.
        value: Keys to the value in a row, from the outside in, as in ``wer.{set}.words``; or a
            function of the row.
        csv: Key in ``comparison_table.csv``; None where that leaves it out. It takes the columns of
            tables with a row per model.
        show: How a table writes the value.
    """

    title: str | None
    value: str | Callable[[Row], Any]
    csv: str | None = None
    show: Callable[[Any], str] = text

    def of(self, row: Row, name: str = "") -> Any:
        """The value, for test set ``name``; None where a row has none."""
        if callable(self.value):
            return self.value(row)
        found: Any = row
        for key in self.value.split("."):
            key = name if key == SET else key
            found = found.get(key) if isinstance(found, dict) else None
        return found

    def heading(self, comparison: Comparison, name: str = "") -> str:
        """The title, for test set ``name``."""
        return str(self.title).replace(SET, name).replace("{frames}", comparison.frames)

    def csv_cells(self, row: Row, name: str) -> dict[str, Any]:
        """What ``comparison_table.csv`` has of it, by key."""
        return {self.csv.replace(SET, name): self.of(row, name)} if self.csv else {}


def interval(pair: Any) -> str:
    """[low, high] as every table shows it."""
    return text(pair) if pair is None else f"[{text(pair[0])}, {text(pair[1])}]"


@dataclass(frozen=True)
class Interval(Column):
    """A column of [low, high], in ``comparison_table.csv`` two."""

    show: Callable[[Any], str] = interval

    def csv_cells(self, row: Row, name: str) -> dict[str, Any]:
        """See ``Column``."""
        low, high = self.of(row, name) or (None, None)
        key = str(self.csv).replace(SET, name)
        return {f"{key}_low": low, f"{key}_high": high}


@dataclass
class Table:
    """A table of the report.

    Attributes:
        title: Heading.
        note: What the reader must know; may be empty.
        columns: From left to right; neighbours that are there per test set stay together.
        rows: What of a comparison has a row in it.
        per_model: Whether that is the models, so that its columns go into
            ``comparison_table.csv`` too.
    """

    title: str
    note: str
    columns: list[Column]
    rows: Callable[[Comparison], Iterable[Row]]
    per_model: bool = False

    def columns_of(self, sets: list[str]) -> list[tuple[Column, str]]:
        """The columns, each with its test set, if it has one."""
        groups = groupby(self.columns, lambda c: isinstance(c.value, str) and SET in c.value)
        return [
            (column, name)
            for per_set, group in [(per_set, list(group)) for per_set, group in groups]
            for name in (sets if per_set else [""])
            for column in group
        ]


def _name_and_reason(row: Row) -> str:
    return row_name(row) + (f": {row['reason']}" if row["status"] == "missing" else "")


def _yes(value: Any) -> str | None:
    return None if value is None else "yes" if value else "NO"


def show_frames(count: Any) -> str:
    """A left context; -1 is all."""
    return "all" if count == -1 else text(count)


def _millions(count: Any) -> str:
    return text(count and round(count / 1e6, 2))


def _kb(count: Any) -> str:
    return text(count and round(count / KB, 4))


def _or_nothing(value: Any) -> str:
    return text(value, missing="")


def _listed(values: Any) -> str:
    return text(values) if values is None else ", ".join(map(str, values))


def _streamed(row: Row) -> str | None:
    found = row["cell"].get("streamed")
    return found and f"{found['same_text']} of {found['utterances']}"


def _error(key: str, name: str) -> Callable[[Row], str | None]:
    """An error of a certificate, which has null where it was not a number."""

    def value(row: Row) -> str | None:
        errors = row["equivalence"].get(key)
        return errors and ("not a number" if errors[name] is None else f"{errors[name]:.1e}")

    return value


MODEL = Column("model", row_name)
CACHE = Column("cache KB, {frames} frames", "kv_cache_kb", "kv_cache_kb")
WER = Column("WER {set}", "wer.{set}.wer", "wer_{set}")
WER_INTERVAL = Interval("95% interval", "wer.{set}.interval_95", "wer_{set}")
WER_DRAWN = Column("drawn", "wer.{set}.drawn", "drawn_{set}")
MS_PER_UTTERANCE = Column("ms / utterance", "inference_time_ms", "inference_time_ms")
MS_PER_CHUNK = Column(
    "ms / chunk, median", "streaming.ms_per_chunk_median", "streaming_ms_per_chunk_median"
)
MS_PER_CHUNK_P95 = Column("p95", "streaming.ms_per_chunk_p95", "streaming_ms_per_chunk_p95")
STREAM = [
    Column("chunk", "stream.chunk_size"),
    Column("left context", "stream.left_context", show=show_frames),
]
STATE_KB = Column("state KB", "stream.total_kb")
DIFFERENCE = [
    Column("difference {set}", "tests.{set}.difference", "difference_{set}"),
    Interval("95% interval", "tests.{set}.interval_95", "difference_{set}"),
    Column("p", "tests.{set}.p", "p_{set}"),
    Column("drawn", "tests.{set}.drawn"),
    Column("compared with", "tests.{set}.baseline"),
    Column("that is", "tests.{set}.verdict", "verdict_{set}"),
]
CELL_WER = Column("WER {set}", "cell.wer.{set}")
CELL_COSTS = {
    "kb": Column("state KB", "cell.kb"),
    "latency_ms": Column("latency ms", "cell.latency_ms"),
}

TABLES = [
    Table(
        "Results",
        "WER in percent, offline, with its bootstrap interval. KB are 1024 bytes: what attention "
        "keeps of a stream with an unlimited left context, read off its tensors, in float32. ms "
        "per utterance: recognising a whole recording. Memory: the peak of that above the loaded "
        "weights. Input cache: the MHA model above it, with the same weights and the same text, "
        "that keeps layer inputs in place of keys and values; its offline figures are that "
        f"model's. {DRAWN}",
        [
            Column(None, row_name, "model"),
            Column(None, "status", "status"),
            Column(None, "encoder", "encoder"),
            Column(None, "attention", "attention"),
            Column(None, "cache_kind", "cache"),
            Column("model", _name_and_reason),
            CACHE,
            Column("MHA / this", "compression_ratio", "compression_ratio"),
            WER,
            WER_INTERVAL,
            WER_DRAWN,
            MS_PER_UTTERANCE,
            Column("memory MB", "memory_mb", "memory_mb"),
            Column("parameters", "parameters", "parameters"),
            Column("training s", "training_seconds", "training_seconds"),
        ],
        lambda comparison: comparison.rows,
        per_model=True,
    ),
    Table(
        "Difference from MHA",
        "WER of the model minus WER of the MHA model that differs in nothing but the attention, in "
        "points; paired bootstrap, 95% interval, two-sided p, each for itself (not corrected for "
        f"their number). {DRAWN}",
        [
            MODEL,
            *DIFFERENCE,
        ],
        lambda comparison: (row for row in comparison.own if row["tests"]),
        per_model=True,
    ),
    Table(
        "Over seeds",
        "Of models that differ in the seed of their training alone: mean and sample standard "
        "deviation of their WER in percent, and each seed's; costs are those of the first. "
        "Differences from MHA are of the seeds "
        "that both have; the interval is Student's, on the bootstrap's standard deviation. With "
        f"few seeds it is wide: what is within luck may be a difference all the same. {DRAWN}",
        [
            MODEL,
            Column("seeds", "seeds", show=_listed),
            CACHE,
            Column("decoding", "view"),
            Column("WER {set}, mean", "spread.{set}.mean"),
            Column("deviation", "spread.{set}.deviation"),
            Column("of each seed", "spread.{set}.values", show=_listed),
            *DIFFERENCE,
        ],
        lambda comparison: comparison.over_seeds,
    ),
    Table(
        "Latency and arithmetic",
        "Streaming: features, encoder and greedy CTC search on packets of one chunk. First token: "
        "the audio of the first chunk with what its features look ahead, and the median chunk's "
        "computing. A model trained without causal convolutions was timed with them in place, "
        "which costs the same. Multiply-adds: of the encoder, per second of audio.",
        [
            MODEL,
            Column("chunk", "streaming.chunk_size"),
            Column("left context", "streaming.left_context", show=show_frames),
            MS_PER_CHUNK,
            MS_PER_CHUNK_P95,
            Column("real-time factor", "streaming.real_time_factor"),
            Column("first token ms", "streaming.first_token_ms.total", "first_token_ms"),
            Column("of which computing", "streaming.first_token_ms.compute"),
            Column("peak MB", "streaming.memory_mb"),
            Column("offline real-time factor", "real_time_factor", "real_time_factor"),
            Column(
                "M multiply-adds / s offline",
                "multiply_adds_per_second.offline",
                "multiply_adds_per_second_offline",
                _millions,
            ),
            Column(
                "streaming",
                "multiply_adds_per_second.streaming",
                "multiply_adds_per_second_streaming",
                _millions,
            ),
        ],
        lambda comparison: comparison.measured,
        per_model=True,
    ),
    Table(
        "Streaming word error rates",
        "Decoded as a live stream. Word delay: median time in the recording from the end of a word "
        "to its appearance in the text, over the right words of a test set that says where its "
        "words end. Confidence error: how far the confidence of words is from the share of right "
        f"ones (expected calibration error). {STATE}",
        [
            MODEL,
            *STREAM,
            STATE_KB,
            Column("WER {set}", "stream_wer.{set}.wer"),
            Column("word delay ms", "stream_wer.{set}.word_delay_ms"),
            Column("confidence error", "stream_wer.{set}.confidence_error"),
        ],
        lambda comparison: comparison.points,
    ),
    Table(
        "Best model for a budget per stream",
        "Of the streaming decodings above, the lowest WER whose whole state fits the budget.",
        [
            Column("budget KB", "budget"),
            Column("test set", "test_set"),
            MODEL,
            *STREAM,
            STATE_KB,
            Column("WER", lambda row: row["stream_wer"][row["test_set"]]["wer"]),
        ],
        lambda comparison: (
            point | {"budget": budget, "test_set": name}
            for (budget, name), point in comparison.winners().items()
            if point
        ),
    ),
    Table(
        "Left context that a budget buys",
        "Encoder frames before a chunk that a stream can keep when its whole state has so many KB; "
        "- where not even the rest of the state fits.",
        [
            MODEL,
            *(
                Column(
                    f"{budget} KB",
                    partial(Comparison.affordable, budget=budget),
                    show=lambda frames: "-" if frames is None else show_frames(frames),
                )
                for budget in BUDGETS
            ),
        ],
        lambda comparison: comparison.measured,
    ),
    Table(
        "Chunk sizes and left contexts",
        "From grid.json of each model: WER in percent by the chunk-masked offline pass, whose text "
        "is a stream's, as the mean over the seeds that have the cell. Latency: of the first "
        "chunk, without computing. Trained: whether the training has drawn such a chunk size and "
        "left context. Front: no other cell has fewer bytes, or less latency, without more errors. "
        f"Streamed: recordings streamed in that cell, with the same text. {STATE}",
        [
            MODEL,
            Column("seeds", "cell.seeds"),
            Column("chunk", "cell.chunk_size"),
            Column("left context", "cell.left_context", show=show_frames),
            Column("trained", lambda row: _yes(row["cell"]["in_trained_range"])),
            *reversed(CELL_COSTS.values()),
            CELL_WER,
            Column("front", "cell.front.{set}", show=lambda names: _or_nothing(_listed(names))),
            Column("streamed", _streamed, show=_or_nothing),
        ],
        lambda comparison: comparison.cells,
    ),
    Table(
        "State ledger",
        f"{STATE} Allocated: with the room that the caches have.",
        [
            MODEL,
            *STREAM,
            *(Column(f"{kind} KB", f"stream.kb.{kind}") for kind in KINDS),
            Column("sum KB", "stream.total_kb"),
            Column("allocated KB", "stream.allocated_kb"),
        ],
        lambda comparison: (
            row | {"stream": stream}
            for row in comparison.measured
            for stream in row["cache"]["streams"]
        ),
    ),
    Table(
        "Decoder caches in a beam search",
        "",
        [
            MODEL,
            *(Column(key, f"decoder_cache.{key}") for key in ("hypotheses", "tokens", "frames")),
            Column("self-attention KB", "decoder_cache.self_attention", show=_kb),
            Column("cross-attention KB", "decoder_cache.src_attention", show=_kb),
        ],
        lambda comparison: (row for row in comparison.own if row.get("decoder_cache")),
    ),
    Table(
        "Streaming equals offline",
        "Largest difference between streaming and the chunk-masked offline pass on real "
        "recordings, in float32 unless said otherwise. In float64, where rounding is far below any "
        "real difference, it decides about equal.",
        [
            MODEL,
            Column(
                "equal", lambda row: _yes((row.get("equivalence") or {}).get("equal")), "equivalent"
            ),
            Column("recordings", "equivalence.utterances"),
            Column("features", _error("max_error", "features")),
            Column("encoder", _error("max_error", "encoder")),
            Column("log probabilities", _error("max_error", "logits")),
            Column("the same in float64", _error("max_error_float64", "logits")),
            Column("same text", lambda row: _yes(row["equivalence"]["text_identical"])),
        ],
        lambda comparison: (row for row in comparison.own if row.get("equivalence")),
        per_model=True,
    ),
    Table(
        "Published baselines",
        "Not measured here. Trained on LibriSpeech train-clean-100, without a language model.",
        [
            Column("published by others", "name"),
            Column("M parameters", "parameters_m", show=_or_nothing),
            Column("WER {set}", "wer.{set}.wer", show=_or_nothing),
            Column("note", "note", show=_or_nothing),
            Column("source", "config"),
        ],
        lambda comparison: comparison.published,
    ),
    Table(
        "Where the numbers come from",
        "Load: how many processes ran on the machine before the timing began. Where it is not near "
        "0, latencies and times include waiting for the others.",
        [
            MODEL,
            Column("directory", "model", "directory"),
            Column("seed", "seed", "seed", _or_nothing),
            Column("config", "config", "config"),
            Column("decoding", "inference"),
            Column("commit", "commit", "commit"),
            Column("device", "device", "device"),
            Column("threads", "threads"),
            Column("load", "load_average"),
            Column("torch", "torch"),
            Column(None, "reason", "reason"),
        ],
        lambda comparison: comparison.own,
        per_model=True,
    ),
]
