"""The plots, readable in grey: hatches and marker shapes say what colours say."""

import io
from collections.abc import Callable
from typing import Any

import matplotlib

from espnet_ext.report.columns import (
    CACHE,
    CELL_COSTS,
    CELL_WER,
    MS_PER_CHUNK,
    MS_PER_CHUNK_P95,
    MS_PER_UTTERANCE,
    STATE_KB,
    WER,
    WER_DRAWN,
    WER_INTERVAL,
    Column,
    show_frames,
)
from espnet_ext.report.compare import COSTS, Comparison, Row, row_name
from espnet_ext.report.schema import KINDS

matplotlib.use("Agg")
matplotlib.rcParams["text.parse_math"] = False  # a $ in a name is a $
from matplotlib import pyplot  # noqa: E402
from matplotlib.ticker import NullFormatter  # noqa: E402

# lightness falls from entry to entry, so the order survives a copier
COLOURS = ("#f0e442", "#56b4e9", "#009e73", "#d55e00", "#332288", "#999999", "#ddcc77", "#117733")
HATCHES = ("", "//", "..", "xx", "\\\\", "++", "oo", "--")
MARKERS = "osD^vPX*"


def _styles(rows: list[Row]) -> dict[str, tuple[str, str, str]]:
    """Attention (input cache apart) to colour, hatch and marker."""
    kinds = list(dict.fromkeys(_kind(row) for row in rows))
    return {
        kind: (COLOURS[i % len(COLOURS)], HATCHES[i % len(HATCHES)], MARKERS[i % len(MARKERS)])
        for i, kind in enumerate(kinds)
    }


def _kind(row: Row) -> str:
    return row["attention"] + (" (input cache)" if row["cache_kind"] == "input" else "")


def png(figure: Any) -> bytes:
    """The figure as PNG; it is closed."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
    pyplot.close(figure)
    return buffer.getvalue()


def _bars(
    axes: Any, comparison: Comparison, rows: list[Row], column: Column, tail: Column | None = None
) -> None:
    """Horizontal bars of a column, the first row on top, each with its value; lines to ``tail``."""
    values = [column.of(row) for row in rows]
    styles = [_styles(comparison.measured)[_kind(row)] for row in rows]
    bars = axes.barh(
        [row_name(row) for row in rows],
        values,
        color=[colour for colour, _, _ in styles],
        hatch=[hatch for _, hatch, _ in styles],
        edgecolor="black",
        xerr=tail and [[0] * len(rows), [tail.of(r) - column.of(r) for r in rows]],
        capsize=3,
    )
    axes.bar_label(bars, fmt="{:.4g}", padding=4)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel(column.heading(comparison))
    _log_if_wide(axes, values)


def plain_numbers(axis: Any) -> None:
    """Label a logarithmic axis without mathematics."""
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(NullFormatter())


def _log_if_wide(axes: Any, values: list[float]) -> None:
    if values and min(values) > 0 and max(values) > 10 * min(values):
        axes.set_xscale("log")
        plain_numbers(axes.xaxis)


def cache_comparison(comparison: Comparison) -> bytes:
    """PNG of the attention caches and of whole states with a finite left context."""
    rows = comparison.measured
    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(12, 1.4 + 0.4 * len(rows)), sharey=True, constrained_layout=True
    )
    _bars(left, comparison, rows, CACHE)
    left.set_title("attention cache, unlimited left context")
    streams = [row["cache"]["streams"][-1] for row in rows]
    begun = [0.0] * len(rows)
    for kind, shade in zip(KINDS, ("0.25", "0.5", "0.75", "1"), strict=True):
        widths = [stream["kb"][kind] for stream in streams]
        bars = right.barh(
            range(len(rows)), widths, left=begun, color=shade, edgecolor="black", label=kind
        )
        begun = [a + b for a, b in zip(begun, widths, strict=True)]
    labels = [f"{s['total_kb']:.4g} (left {show_frames(s['left_context'])})" for s in streams]
    right.bar_label(bars, labels, padding=4)
    right.margins(x=0.3)
    right.set_xlabel(STATE_KB.title)
    right.set_title("whole state of a stream, at its most")
    figure.legend(loc="outside lower right", ncols=len(KINDS))
    return png(figure)


def wer_vs_cache(comparison: Comparison) -> bytes:
    """PNG of WER with its interval against cache, a panel per test set."""
    styles = _styles(comparison.measured)
    encoders = list(dict.fromkeys(row["encoder"] for row in comparison.measured))
    sets = comparison.sets
    figure, panels = pyplot.subplots(
        1, len(sets), figsize=(max(6.5, 5 * len(sets)), 4.8), squeeze=False, constrained_layout=True
    )
    for axes, name in zip(panels[0], sets, strict=True):
        rows = [row for row in comparison.measured if name in row["wer"]]
        for row in rows:
            colour, _, marker = styles[_kind(row)]
            wer, (low, high) = WER.of(row, name), WER_INTERVAL.of(row, name)
            axes.errorbar(
                CACHE.of(row),
                wer,
                [[max(0, wer - low)], [max(0, high - wer)]],
                fmt=marker,
                markersize=10,
                markerfacecolor=colour,
                markeredgecolor="black",
                # an outer ring tells the second encoder, a thick one the third
                markeredgewidth=1 + 1.5 * encoders.index(row["encoder"]),
                ecolor="0.4",
                capsize=3,
                label=row_name(row),
            )
        _log_if_wide(axes, [CACHE.of(row) for row in rows])
        units = "/".join(sorted({WER_DRAWN.of(row, name) for row in rows}))
        axes.set_title(f"{WER_INTERVAL.title}, {units} drawn")
        axes.set_xlabel(CACHE.heading(comparison))
        axes.set_ylabel(f"{WER.heading(comparison, name)}, %")
        axes.grid(alpha=0.3)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
    return png(figure)


def inference_time_comparison(comparison: Comparison) -> bytes:
    """PNG of offline time per utterance and of streaming time per chunk (bar to p95)."""
    offline = comparison.own
    streams = [row for row in comparison.measured if row["streaming"]]
    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(13, 1.4 + 0.4 * max(len(offline), len(streams))), constrained_layout=True
    )
    _bars(left, comparison, offline, MS_PER_UTTERANCE)
    left.set_title("offline")
    _bars(right, comparison, streams, MS_PER_CHUNK, MS_PER_CHUNK_P95)
    right.set_title("streaming, line to p95")
    return png(figure)


def wer_over_costs(comparison: Comparison) -> bytes:
    """PNG of ``draw_cells``; nothing where no model has a grid.json."""
    return draw_cells(comparison.cells, comparison.sets) if comparison.cells else b""


def draw_cells(cells: list[Row], sets: list[str]) -> bytes:
    """PNG of WER over bytes and over latency with the Pareto fronts, two panels per test set.

    Args:
        cells: From ``grid_cells``.
        sets: Test sets.
    """
    styles = _styles(cells)
    encoders = list(dict.fromkeys(row["encoder"] for row in cells))
    figure, panels = pyplot.subplots(
        len(sets), 2, figsize=(12, 4.8 * len(sets)), squeeze=False, constrained_layout=True
    )
    for name, row_of_panels in zip(sets, panels, strict=True):
        rows = [row for row in cells if CELL_WER.of(row, name) is not None]
        for axes, (cost, title) in zip(row_of_panels, COSTS.items(), strict=True):
            for row in rows:
                colour, _, marker = styles[_kind(row)]
                trained = row["cell"]["in_trained_range"]
                axes.plot(
                    CELL_COSTS[cost].of(row),
                    CELL_WER.of(row, name),
                    marker,
                    markersize=7,
                    markerfacecolor=colour if trained else "none",
                    markeredgecolor="black",
                    markeredgewidth=0.8 + encoders.index(row["encoder"]),
                    label=row_name(row) if trained else None,
                )
            front = sorted(
                (CELL_COSTS[cost].of(row), CELL_WER.of(row, name))
                for row in rows
                if title in row["cell"]["front"][name]
            )
            axes.step(*zip(*front, strict=True), "--", where="post", color="0.3", zorder=0)
            axes.set_xscale("log")
            plain_numbers(axes.xaxis)
            if len(ticks := {CELL_COSTS[cost].of(row) for row in rows}) < 7:
                axes.set_xticks(sorted(ticks))
            axes.set_xlabel(f"{CELL_COSTS[cost].title}, logarithmic")
            axes.set_ylabel(f"{str(CELL_WER.title).replace('{set}', name)}, %")
            axes.set_title(f"over {title}; hollow: not of the training; dashed: Pareto front")
            axes.grid(alpha=0.3)
    handles, labels = panels[0][0].get_legend_handles_labels()
    named = dict(zip(labels, handles, strict=True))
    figure.legend(named.values(), named, loc="outside lower center", ncols=4, fontsize=8)
    return png(figure)


#: file name -> function that draws it, or returns nothing
PLOTS: dict[str, Callable[[Comparison], bytes]] = {
    "cache_comparison.png": cache_comparison,
    "wer_vs_cache.png": wer_vs_cache,
    "inference_time_comparison.png": inference_time_comparison,
    "wer_over_costs.png": wer_over_costs,
}
