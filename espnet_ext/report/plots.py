"""The three plots, readable in grey: hatches and marker shapes say what colours say."""

import io

import matplotlib

from espnet_ext.report.compare import row_name
from espnet_ext.report.schema import KINDS

matplotlib.use("Agg")
matplotlib.rcParams["text.parse_math"] = False  # a $ in a name is a $
from matplotlib import pyplot  # noqa: E402
from matplotlib.ticker import NullFormatter  # noqa: E402

# lightness falls from entry to entry, so the order survives a copier
COLOURS = ("#f0e442", "#56b4e9", "#009e73", "#d55e00", "#332288", "#999999", "#ddcc77", "#117733")
HATCHES = ("", "//", "..", "xx", "\\\\", "++", "oo", "--")
MARKERS = "osD^vPX*"


def _measured(comparison):
    return [row for row in comparison.rows if row["status"] == "measured"]


def _styles(comparison):
    """Attention (input cache apart) to colour, hatch and marker."""
    kinds = list(dict.fromkeys(_kind(row) for row in _measured(comparison)))
    return {
        kind: (COLOURS[i % len(COLOURS)], HATCHES[i % len(HATCHES)], MARKERS[i % len(MARKERS)])
        for i, kind in enumerate(kinds)
    }


def _kind(row):
    return row["attention"] + (" (input cache)" if row["cache_kind"] == "input" else "")


def png(figure) -> bytes:
    """The figure as PNG; it is closed."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
    pyplot.close(figure)
    return buffer.getvalue()


def _bars(axes, rows, values, styles, errors=None, digits=4):
    """Horizontal bars, the first row on top, each with its value."""
    for y, (row, value) in enumerate(zip(rows, values, strict=True)):
        colour, hatch, _ = styles[_kind(row)]
        error = None if errors is None else [[0], [errors[y]]]
        axes.barh(y, value, color=colour, hatch=hatch, edgecolor="black", xerr=error, capsize=3)
        end = value + (errors[y] if errors else 0)
        axes.annotate(
            f"{value:.{digits}g}", (end, y), (4, 0), textcoords="offset points", va="center"
        )
    axes.set_yticks(range(len(rows)), [row_name(row) for row in rows])
    axes.invert_yaxis()
    axes.margins(x=0.15)


def plain_numbers(axis):
    """Label a logarithmic axis without mathematics."""
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(NullFormatter())


def _log_if_wide(axes, values):
    if min(values) > 0 and max(values) > 10 * min(values):
        axes.set_xscale("log")
        plain_numbers(axes.xaxis)


def cache_comparison(comparison) -> bytes:
    """PNG of the attention caches and of whole states with a finite left context."""
    rows, styles = _measured(comparison), _styles(comparison)
    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(12, 1.4 + 0.4 * len(rows)), sharey=True, constrained_layout=True
    )
    values = [row["kv_cache_kb"] for row in rows]
    _bars(left, rows, values, styles)
    _log_if_wide(left, values)
    frames = "/".join(map(str, sorted({row["cache"]["frames"] for row in rows})))
    left.set_xlabel("KB")
    left.set_title(f"attention cache after {frames} frames")
    streams = [row["cache"]["streams"][-1] for row in rows]
    begun = [0.0] * len(rows)
    for kind, shade in zip(KINDS, ("0.25", "0.5", "0.75", "1"), strict=True):
        widths = [stream["kb"][kind] for stream in streams]
        right.barh(range(len(rows)), widths, left=begun, color=shade, edgecolor="black", label=kind)
        begun = [a + b for a, b in zip(begun, widths, strict=True)]
    for y, stream in enumerate(streams):
        kept = "all" if stream["left_context"] < 0 else stream["left_context"]
        right.annotate(
            f"{stream['total_kb']:.4g} (left {kept})",
            (stream["total_kb"], y),
            (4, 0),
            textcoords="offset points",
            va="center",
        )
    right.margins(x=0.3)
    right.set_xlabel("KB")
    right.set_title("whole state of a stream, at its most")
    right.legend(loc="lower right")
    return png(figure)


def wer_vs_cache(comparison) -> bytes:
    """PNG of WER with its interval against cache, a panel per test set."""
    rows, styles = _measured(comparison), _styles(comparison)
    encoders = list(dict.fromkeys(row["encoder"] for row in rows))
    sets = comparison.sets
    figure, panels = pyplot.subplots(
        1, len(sets), figsize=(max(6.5, 5 * len(sets)), 4.8), squeeze=False, constrained_layout=True
    )
    for axes, name in zip(panels[0], sets, strict=True):
        for row in rows:
            if name not in row["wer"]:
                continue
            wer = row["wer"][name]
            colour, _, marker = styles[_kind(row)]
            low, high = wer["interval_95"]
            # an outer ring tells the second encoder, a thick one the third
            width = 1 + 1.5 * encoders.index(row["encoder"])
            axes.errorbar(
                row["kv_cache_kb"],
                wer["wer"],
                [[max(0, wer["wer"] - low)], [max(0, high - wer["wer"])]],
                fmt=marker,
                markersize=10,
                markerfacecolor=colour,
                markeredgecolor="black",
                markeredgewidth=width,
                ecolor="0.4",
                capsize=3,
                label=row_name(row),
            )
        values = [row["kv_cache_kb"] for row in rows if name in row["wer"]]
        _log_if_wide(axes, values)
        drawn = "/".join(sorted({row["wer"][name]["drawn"] for row in rows if name in row["wer"]}))
        axes.set_title(f"{name}; 95% interval, {drawn} drawn")
        axes.set_xlabel("attention cache, KB")
        axes.set_ylabel("WER, %")
        axes.grid(alpha=0.3)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
    return png(figure)


def inference_time_comparison(comparison) -> bytes:
    """PNG of offline time per utterance and of streaming time per chunk (bar to p95)."""
    styles = _styles(comparison)
    offline = [row for row in _measured(comparison) if row["cache_kind"] != "input"]
    streams = [row for row in _measured(comparison) if row["streaming"]]
    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(13, 1.4 + 0.4 * max(len(offline), len(streams))), constrained_layout=True
    )
    values = [row["inference_time_ms"] for row in offline]
    _bars(left, offline, values, styles)
    _log_if_wide(left, values)
    left.set_xlabel("ms")
    left.set_title("offline, per utterance")
    if streams:
        medians = [row["streaming"]["ms_per_chunk_median"] for row in streams]
        tails = [
            row["streaming"]["ms_per_chunk_p95"] - m
            for row, m in zip(streams, medians, strict=True)
        ]
        _bars(right, streams, medians, styles, tails)
        _log_if_wide(right, medians)
    right.set_xlabel("ms")
    right.set_title("streaming, per chunk: median, line to p95")
    return png(figure)


#: file name -> function that draws it
PLOTS = {
    "cache_comparison.png": cache_comparison,
    "wer_vs_cache.png": wer_vs_cache,
    "inference_time_comparison.png": inference_time_comparison,
}
