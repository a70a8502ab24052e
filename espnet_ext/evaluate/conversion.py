"""What each rank and each group costs: a model and its conversions, zero-shot and fine-tuned."""

from pathlib import Path

from espnet_ext.attention import ATTENTIONS, attention_label, layer_attentions
from espnet_ext.attention.registry import conversion_options, options_of
from espnet_ext.convert.calibration import recordings
from espnet_ext.convert.model import load, mha_config
from espnet_ext.errors import UserError, about, check_number
from espnet_ext.evaluate.cache import measure_cache
from espnet_ext.evaluate.models import read_model_config, scored_sets
from espnet_ext.files import KB, write_atomic
from espnet_ext.packing import CHECKPOINT
from espnet_ext.report.columns import DRAWN
from espnet_ext.report.page import page
from espnet_ext.report.plots import COLOURS, MARKERS, plain_numbers, png, pyplot
from espnet_ext.report.schema import csv_text, rounded, text
from espnet_ext.report.statistics import paired_bootstrap, read_score
from espnet_ext.report.tables import Section
from espnet_ext.results import CONVERSION, read_json
from espnet_ext.scoring import read_numbers
from espnet_ext.utterance import encode

FRAMES = 1000
SCRATCH = "from scratch"
COLUMNS = {
    "model": "model",
    "method": "method",
    "conf": "rank or key-value heads",
    "training": "training",
    "kb": "KB / 1000 frames",
    "change": "change of encoder output, %",
    "test_set": "test set",
    "wer": "WER",
    "wer_low": "low",
    "wer_high": "high",
    "difference": "difference",
    "difference_low": "low",
    "difference_high": "high",
    "p": "p",
    "drawn": "drawn",
}
NOTE = (
    "WER in percent with its 95% bootstrap interval. KB are 1024 bytes: what attention keeps of a "
    "stream of 1000 encoder frames, all layers, read off its tensors, in float32. Change: mean "
    "square difference of encoder outputs from the source's over their mean square, on 50 "
    "recordings of each test set; a fine-tuned model may well change. Difference: WER minus that "
    "of the model converted, paired bootstrap, 95% interval, two-sided p, each for itself. " + DRAWN
)


class Curve:
    """A model that was converted, and what became of it.

    Args:
        source: Its directory, scored.
        inference_tag: Name of the decoding's directory in each model.
        checkpoint: File name of the checkpoint in each.
        dumpdir: Formatted data, for the recordings of the test sets.
        num_utts: Recordings per test set on which encoder outputs are compared.
    """

    def __init__(self, source, inference_tag, checkpoint=CHECKPOINT, dumpdir="dump", num_utts=50):
        self.source, self.tag, self.checkpoint = Path(source), inference_tag, checkpoint
        self.scores = scored_sets(self.source, inference_tag)
        model = load(mha_config(self.source / "config.yaml"), self.source / checkpoint)
        self.waves = {
            name: list(recordings(model, Path(dumpdir, "raw", name, "wav.scp"), num_utts).values())
            for name in self.scores
        }
        self.outputs = {
            name: [encode(model, wave) for wave in waves] for name, waves in self.waves.items()
        }

    def rows(self, expdir, scratch: bool = False) -> list[dict]:
        """A row per test set with the keys of ``COLUMNS``.

        Args:
            expdir: The source, or a directory that ``asr_convert`` wrote, or that was fine-tuned
                from either, scored.
            scratch: It may also be a model that was trained by itself.

        Raises:
            UserError: It is none, or of no use.
        """
        expdir = Path(expdir)
        origin, training = _origin(expdir, self.source, scratch)
        itself = training == "source"
        config = (mha_config if itself else read_model_config)(expdir / "config.yaml")
        cache = measure_cache(config, FRAMES, 8, [])
        model = load(config, expdir / self.checkpoint)
        rows = []
        scores = scored_sets(expdir, self.tag)
        for name, path in ((name, scores[name]) for name in self.scores if name in scores):
            found = read_numbers(path)
            row = {
                "model": expdir.name,
                **_method(config["encoder_conf"], origin, training == SCRATCH),
                "training": training,
                "kb": rounded(cache["bytes"] / KB, 4),
                "test_set": name,
                "wer": rounded(found["err"], 2),
                "drawn": found["drawn"],
            }
            row["wer_low"], row["wer_high"] = (rounded(v, 2) for v in found["err_interval_95"])
            if training != SCRATCH and not itself:
                encoded = [encode(model, wave) for wave in self.waves[name]]
                with about(f"{expdir}, {name}"):
                    change = _change(encoded, self.outputs[name])
                row["change"] = None if change is None else float(f"{100 * change:.3g}")
            if not itself:
                counts, speakers = read_score(path.parent)
                baseline, _ = read_score(self.scores[name].parent)
                test = paired_bootstrap(counts, baseline, speakers)
                row["difference"], row["p"] = test["difference"], test["p"]
                row["difference_low"], row["difference_high"] = test["interval_95"]
            rows.append({key: row.get(key) for key in COLUMNS})
        return rows


def _change(encoded, original):
    """Square difference over square; None where no recording is long enough for a frame."""
    difference = sum((a - b).square().sum().item() for a, b in zip(encoded, original, strict=True))
    total = sum(b.square().sum().item() for b in original)
    check_number(difference + total)
    return difference / total if total else None


def _origin(expdir, source, scratch=False):
    """``conversion.json`` that a model comes from, {} without one, and how it was trained."""
    if expdir.resolve() == source.resolve():
        return {}, "source"
    for place in (expdir, *_started_from(expdir)):
        training = "zero-shot" if place == expdir else "fine-tuned"
        if place.resolve() == source.resolve():
            return {}, training
        path = place / "conversion.json"
        if path.is_file():
            origin = read_json(path, CONVERSION)
            if Path(origin["source"]).resolve() != source.resolve():
                raise UserError(f"{expdir}: was converted from {origin['source']}, not {source}")
            return origin, training
    if scratch:
        return {}, SCRATCH
    raise UserError(f"{expdir}: neither written by asr_convert nor fine-tuned from such a model")


def _started_from(expdir):
    params = read_model_config(expdir / "config.yaml").get("init_param") or []
    return [Path(param.split(":")[0]).parent for param in params]


def _method(conf, origin, scratch):
    """What was done to a model, in words, and the rank or the heads that its layers have."""
    layers = layer_attentions(conf.get("attention", "mha"), conf.get("attention_conf"))
    names, options = {name for name, _ in layers}, conf.get("attention_conf") or {}
    method = attention_label(conf.get("attention", "mha"))
    size = next((options[key] for key in options_of(layers[0][0]) if key in options), None)
    found = {"conf": text(size, missing="")}
    if not origin:
        return found | {"method": method if scratch else f"{method} (source)"}
    takes = {option for name in names for option in conversion_options(name)}
    similar, calibration = origin.get("similar_heads"), origin.get("calibration")
    if "similar" in takes:
        method += ", similar heads" if similar else ", neighbouring heads"
    if any(isinstance(options.get(ATTENTIONS[name].ranked), list) for name in names):
        method += ", rank per layer"
    if "moments" in takes and calibration:
        method += ", activation-aware"
    elif "moments" in takes and ("similar" not in takes or similar):
        method += ", plain"
    return found | {"method": method}


def write_curve(output, source: Path, rows: list[dict]) -> str:
    """Write the table, plots and page of rows into a directory.

    Returns:
        The table as CSV.
    """
    output, table = Path(output), csv_text(COLUMNS, rows)
    plots = {
        f"curve_{name}.png": curve_plot(rows, name)
        for name in dict.fromkeys(row["test_set"] for row in rows)
    }
    for name, image in plots.items():
        write_atomic(output / name, image)
    cells = [[text(row[key], missing="-") for key in COLUMNS] for row in rows]
    section = Section("Conversion", NOTE, list(COLUMNS.values()), cells)
    shown = page(f"Conversions of {source.name}", [], [section], plots)
    write_atomic(output / "curve.csv", table.encode())
    write_atomic(output / "report.html", shown.encode())
    return table


def curve_plot(rows: list[dict], test_set: str) -> bytes:
    """PNG of WER against KB per 1000 frames, with intervals: zero-shot and fine-tuned."""
    rows = [row for row in rows if row["test_set"] == test_set]
    source, rest = rows[0], [row for row in rows[1:] if row["training"] != SCRATCH]
    methods = list(dict.fromkeys(row["method"] for row in rest))
    panels = sorted({row["training"] for row in rest or [source]}, reverse=True)  # zero-shot first
    figure, axes = pyplot.subplots(
        1,
        len(panels),
        figsize=(1 + 6 * len(panels), 5),
        sharex=True,
        sharey=True,
        squeeze=False,
        constrained_layout=True,
    )
    for panel, training in zip(axes[0], panels, strict=True):
        panel.axhspan(source["wer_low"], source["wer_high"], color="0.85")
        panel.axhline(source["wer"], color="0.4", lw=1, label=source["method"])
        for number, method in enumerate(methods):
            points = [r for r in rest if (r["method"], r["training"]) == (method, training)]
            points.sort(key=lambda row: row["kb"])
            if not points:
                continue
            errors = [
                [r["wer"] - r["wer_low"] for r in points],
                [r["wer_high"] - r["wer"] for r in points],
            ]
            panel.errorbar(
                [row["kb"] * 1.015**number for row in points],  # so that intervals stay apart
                [row["wer"] for row in points],
                yerr=errors,
                label=method,
                color=COLOURS[1 + number % (len(COLOURS) - 1)],
                marker=MARKERS[number % len(MARKERS)],
                markeredgecolor="black",
                capsize=3,
            )
        for row in (row for row in rows if row["training"] == SCRATCH):
            errors = [[row["wer"] - row["wer_low"]], [row["wer_high"] - row["wer"]]]
            label = f"{row['method']} {row['conf']}, {SCRATCH}"
            panel.errorbar(row["kb"], row["wer"], errors, label=label, color="black", fmt="*")
        panel.set_xscale("log", base=2)
        plain_numbers(panel.xaxis)
        panel.set_title(f"{test_set}, {training}; 95% interval, {source['drawn']} drawn")
        panel.set_xlabel("attention cache, KB per 1000 frames")
        panel.grid(alpha=0.3)
    low, high = min(row["wer_low"] for row in rows), max(row["wer_high"] for row in rows)
    if high > 10 > low:
        axes[0][0].set_yscale("symlog", linthresh=1)
        plain_numbers(axes[0][0].yaxis)
    if low < high / 2:
        axes[0][0].set_ylim(bottom=0)
    axes[0][0].set_ylabel("WER, %")
    labelled = [panel.get_legend_handles_labels() for panel in axes[0]]
    shown = {label: handle for pair in labelled for handle, label in zip(*pair, strict=True)}
    axes[0][0].legend(shown.values(), shown, fontsize="small")
    return png(figure)
