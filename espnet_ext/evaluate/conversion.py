"""What each rank and each group costs: a model and its conversions, zero-shot and fine-tuned."""

from pathlib import Path

from espnet_ext.attention import ATTENTIONS, attention_label, layer_attentions
from espnet_ext.attention.registry import conversion_options, options_of
from espnet_ext.convert.model import load, mha_config, recordings
from espnet_ext.errors import UserError, about, check_number
from espnet_ext.evaluate.cache import measure_cache
from espnet_ext.evaluate.models import read_model_config
from espnet_ext.files import KB, write_atomic
from espnet_ext.jobs.markers import BESIDE
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


def curve(
    source,
    models,
    inference_tag: str,
    checkpoint: str = "valid.acc.ave.pth",
    dumpdir="dump",
    num_utts: int = 50,
) -> list[dict]:
    """A row per model and test set, the source first.

    Args:
        source: Directory of the model that was converted, scored.
        models: Directories that ``asr_convert`` wrote, or that were fine-tuned from those, scored.
        inference_tag: Name of the decoding's directory in each.
        checkpoint: File name of the checkpoint in each.
        dumpdir: Formatted data, for the recordings of the test sets.
        num_utts: Recordings per test set on which encoder outputs are compared.

    Returns:
        Rows with the keys of ``COLUMNS``.

    Raises:
        UserError: A model is not scored, or not a conversion of ``source``.
    """
    source = Path(source)
    expdirs = [source, *map(Path, models)]
    origins = [{}, *(_origin(expdir, source) for expdir in expdirs[1:])]
    scores = [_scores(expdir, inference_tag) for expdir in expdirs]
    original = load(mha_config(source / "config.yaml"), source / checkpoint)
    waves, outputs = {}, {}
    for name in scores[0]:
        waves[name] = recordings(original, Path(dumpdir, "raw", name, "wav.scp"), num_utts)
        outputs[name] = [encode(original, wave) for wave in waves[name]]
    rows = []
    for expdir, origin, scored in zip(expdirs, origins, scores, strict=True):
        config = (read_model_config if origin else mha_config)(expdir / "config.yaml")
        cache = measure_cache(config, FRAMES, 8, [])
        model = load(config, expdir / checkpoint)
        for name, directory in scored.items():
            found = read_numbers(directory / "score.json")
            row = {
                "model": expdir.name,
                **_method(config["encoder_conf"], origin),
                "kb": rounded(cache["bytes"] / KB, 4),
                "test_set": name,
                "wer": rounded(found["err"], 2),
                "drawn": found["drawn"],
            }
            row["wer_low"], row["wer_high"] = (rounded(v, 2) for v in found["err_interval_95"])
            if expdir != source:
                encoded = [encode(model, wave) for wave in waves[name]]
                with about(f"{expdir}, {name}"):
                    change = _change(encoded, outputs[name])
                row["change"] = None if change is None else float(f"{100 * change:.3g}")
                counts, speakers = read_score(directory)
                test = paired_bootstrap(counts, read_score(scores[0][name])[0], speakers)
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


def _scores(expdir, inference_tag):
    """Test set -> its score."""
    decoded = expdir / inference_tag
    found = [path for path in sorted(decoded.glob("**/score_wer")) if BESIDE not in path.parts]
    if not found:
        raise UserError(f"{expdir}: nothing is scored in {inference_tag}: run stages 12 and 13")
    return {str(path.parent.relative_to(decoded)): path for path in found}


def _origin(expdir, source):
    """``conversion.json`` of a conversion, or of the one that was fine-tuned."""
    for place in (expdir, *_started_from(expdir)):
        path = place / "conversion.json"
        if path.is_file():
            origin = read_json(path, CONVERSION)
            if Path(origin["source"]).resolve() != source.resolve():
                raise UserError(f"{expdir}: was converted from {origin['source']}, not {source}")
            return origin | {"tuned": place != expdir}
    raise UserError(f"{expdir}: neither written by asr_convert nor fine-tuned from such a model")


def _started_from(expdir):
    params = read_model_config(expdir / "config.yaml").get("init_param") or []
    return [Path(param.split(":")[0]).parent for param in params]


def _method(conf, origin):
    """What was done to a model, in words."""
    layers = layer_attentions(conf.get("attention", "mha"), conf.get("attention_conf"))
    names, options = {name for name, _ in layers}, conf.get("attention_conf") or {}
    method = attention_label(conf.get("attention", "mha"))
    if not origin:
        return {"method": f"{method} (source)", "training": "source"}
    takes = {option for name in names for option in conversion_options(name)}
    similar, calibration = origin.get("similar_heads"), origin.get("calibration")
    if "similar" in takes:
        method += ", similar heads" if similar else ", neighbouring heads"
    if any(isinstance(options.get(ATTENTIONS[name].ranked), list) for name in names):
        method += ", rank per layer"
    if "moments" in takes and ("similar" not in takes or similar):
        method += ", activation-aware" if calibration else ", plain"
    size = next((options[key] for key in options_of(layers[0][0]) if key in options), None)
    return {
        "method": method,
        "conf": text(size, missing=""),
        "training": "fine-tuned" if origin["tuned"] else "zero-shot",
    }


def write_curve(output, source, *args) -> str:
    """Write a curve's table, plots and page into a directory; see ``curve`` for the arguments.

    Returns:
        The table as CSV.
    """
    output, rows = Path(output), curve(source, *args)
    plots = {
        f"curve_{name}.png": curve_plot(rows, name)
        for name in dict.fromkeys(row["test_set"] for row in rows)
    }
    for name, image in plots.items():
        write_atomic(output / name, image)
    title, table = f"Conversions of {Path(source).name}", curve_csv(rows)
    write_atomic(output / "curve.csv", table.encode())
    write_atomic(output / "report.html", page(title, [], [curve_section(rows)], plots).encode())
    return table


def curve_csv(rows: list[dict]) -> str:
    """The rows as CSV, empty cells where a value is missing."""
    return csv_text(COLUMNS, rows)


def curve_section(rows: list[dict]) -> Section:
    """The rows as a table of the page."""
    cells = [[text(row[key], missing="-") for key in COLUMNS] for row in rows]
    return Section("Conversion", NOTE, list(COLUMNS.values()), cells)


def curve_plot(rows: list[dict], test_set: str) -> bytes:
    """PNG of WER against KB per 1000 frames, with intervals: zero-shot and fine-tuned."""
    rows = [row for row in rows if row["test_set"] == test_set]
    source, rest = rows[0], rows[1:]
    methods = list(dict.fromkeys(row["method"] for row in rest))
    panels = list(dict.fromkeys(row["training"] for row in rest))
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
        panel.set_xscale("log", base=2)
        plain_numbers(panel.xaxis)
        panel.set_title(f"{test_set}, {training}; 95% interval, {source['drawn']} drawn")
        panel.set_xlabel("attention cache, KB per 1000 frames")
        panel.grid(alpha=0.3)
    if max(row["wer"] for row in rows) > 10:
        axes[0][0].set_yscale("symlog", linthresh=1)
        plain_numbers(axes[0][0].yaxis)
    axes[0][0].set_ylim(bottom=0)
    axes[0][0].set_ylabel("WER, %")
    axes[0][0].legend(fontsize="small")
    return png(figure)
