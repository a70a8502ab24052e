"""The comparison shows what the models' files say, and what is missing as missing."""

import csv
import io
import json
import re
import shutil
import statistics
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_ext.bin.asr_compare import main
from espnet_ext.errors import UserError
from espnet_ext.report import columns
from espnet_ext.report.compare import BUDGETS, Comparison, grid_cells
from espnet_ext.report.page import report_html
from espnet_ext.report.plots import PLOTS
from espnet_ext.report.schema import csv_text
from espnet_ext.report.statistics import paired_bootstrap, read_score, seeds_bootstrap
from espnet_ext.report.tables import comparison_csv, summary_report
from espnet_ext.resources import PUBLISHED_BASELINES

FILES = {
    "summary_report.txt",
    "comparison_table.csv",
    "cache_comparison.png",
    "wer_vs_cache.png",
    "inference_time_comparison.png",
    "report.html",
}
ENCODERS, ATTENTIONS = ["conformer", "branchformer"], ["mha", "gqa", "mla", "linear"]


@pytest.fixture(scope="module")
def output(eight_runs):
    output = eight_runs.parent / "comparison"
    main(["--expdir", str(eight_runs), "--output", str(output)])
    return output


@pytest.fixture
def runs(eight_runs, tmp_path):
    """A copy of the eight runs that a test may break."""
    return shutil.copytree(eight_runs, tmp_path / "exp")


def read_csv(text):
    return list(csv.DictReader(io.StringIO(text)))


@pytest.fixture
def rows(output):
    return read_csv((output / "comparison_table.csv").read_text())


class Tables(HTMLParser):
    """Cells of every table of a page."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.cell = [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.cell = ""

    def handle_data(self, data):
        if self.cell is not None:
            self.cell += data

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.tables[-1][-1].append(self.cell)
            self.cell = None


def test_comparison_writes_every_file(output):
    assert {path.name for path in output.iterdir()} == FILES
    for path in output.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")


def test_rows_are_the_eight_models_and_the_lossless_input_cache(rows):
    rows = [(row["encoder"], row["attention"], row["cache"]) for row in rows]
    kinds = {"mha": ["kv", "input"], "gqa": ["kv"], "mla": ["latent"], "linear": ["sums"]}
    assert rows == [(e, a, k) for e in ENCODERS for a in ATTENTIONS for k in kinds[a]]


def test_tables_agree_with_the_json_to_the_digit(eight_runs, output, rows):
    summary = (output / "summary_report.txt").read_text()
    page = Tables((output / "report.html").read_text()).tables[0]
    for row in rows:
        raw = (eight_runs / row["directory"] / "evaluation_results.json").read_text()
        results = json.loads(raw, parse_float=str, parse_int=str)  # numbers as they are written
        own = results["input_cache"] if row["cache"] == "input" else results
        wer = results["wer"]["test_clean"]
        shown = [own["kv_cache_kb"], own["compression_ratio"], wer["wer"]]
        assert [row["kv_cache_kb"], row["compression_ratio"], row["wer_test_clean"]] == shown
        low, high = wer["interval_95"]
        assert [row["wer_test_clean_low"], row["wer_test_clean_high"]] == [low, high]
        keys = ["inference_time_ms", "memory_mb"]
        costs = [results[key] for key in keys]
        assert [row[key] for key in keys] == costs
        assert row["training_seconds"] == results["training_seconds"]
        assert row["drawn_test_clean"] == wer["drawn"] == "utterances"  # one speaker
        cells = [row["model"], *shown[:2], wer["wer"], f"[{low}, {high}]", wer["drawn"]]
        cells += [*costs, results["parameters"], results["training_seconds"]]
        assert cells in page
        assert re.search(r"\s{2,}".join(map(re.escape, cells)), summary)


def test_text_and_page_hold_the_same_tables(output):
    summary = (output / "summary_report.txt").read_text()
    for table in Tables((output / "report.html").read_text()).tables:
        for row in table:
            assert re.search(r"^" + r"\s+".join(map(re.escape, row)).strip(), summary, re.M), row


def test_every_table_with_an_interval_says_what_was_drawn(output):
    tables = Tables((output / "report.html").read_text()).tables
    intervals = [table for table in tables if any("95% interval" in cell for cell in table[0])]
    assert len(intervals) == 2  # error rates, differences
    for table in intervals:
        column = table[0].index("drawn")
        assert {row[column] for row in table[1:]} == {"utterances"}


def test_page_needs_no_network(output):
    page = (output / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert not re.search(r"(src|href)=\"(?!data:|https://github)", page)
    assert "@import" not in page and "url(" not in page


def test_deleted_and_half_finished_runs_are_missing_never_zero(runs):
    shutil.rmtree(next(runs.glob("*_conformer_gqa_*")))
    half = next(runs.glob("*_conformer_mla_*"))
    (half / "evaluation_results.json").unlink()
    (half / "valid.acc.ave.pth").unlink()
    unevaluated = next(runs.glob("*_branchformer_mla_*"))
    (unevaluated / "evaluation_results.json").unlink()
    comparison = Comparison(runs, ENCODERS, ATTENTIONS)
    missing = [r for r in read_csv(comparison_csv(comparison)) if r["status"] == "missing"]
    assert {row["model"]: row["reason"] for row in missing} == {
        "conformer gqa": "not trained",
        "conformer mla": f"{half}: training is not done",
        "branchformer mla": f"{unevaluated}: not evaluated",
    }
    for row in missing:
        filled = {key for key, value in row.items() if value}
        assert filled == {"model", "status", "encoder", "attention", "reason"}
    line = re.search("^conformer gqa.*", summary_report(comparison), re.M)[0]
    assert re.fullmatch(r"conformer gqa: not trained( +missing)+", line)


@pytest.mark.parametrize("content", ["{", "[]", '{"version": 99}', '{"version": 1}', "\xff"])
def test_corrupted_results_are_named_and_skipped(runs, content):
    broken = next(runs.glob("*_conformer_gqa_*")) / "evaluation_results.json"
    broken.write_bytes(content.encode("latin-1"))
    comparison = Comparison(runs, ENCODERS, ATTENTIONS)
    assert f"NOTE: skipped {broken}" in summary_report(comparison)
    statuses = [row["status"] for row in read_csv(comparison_csv(comparison))]
    assert statuses.count("measured") == 9 and statuses.count("missing") == 1


@pytest.mark.parametrize("content", ["a: [", "encoder_conf: null", "- 1"])
def test_broken_config_of_one_model_does_not_stop_the_others(runs, content):
    broken = next(runs.glob("*_conformer_gqa_*"))
    (broken / "evaluation_results.json").unlink()
    (broken / "config.yaml").write_text(content)
    comparison = Comparison(runs, ENCODERS, ATTENTIONS)
    assert summary_report(comparison).count(f"skipped {broken}/config.yaml: ") == 1
    statuses = [row["status"] for row in read_csv(comparison_csv(comparison))]
    assert statuses.count("measured") == 9 and statuses.count("missing") == 1


@pytest.mark.parametrize(
    "key,value",
    [("cache", {}), ("wer", {"test_clean": 5}), ("parameters", True), ("streaming", {"x": 1}),
     ("encoder_conf", None), ("decoder_cache", 7), ("equivalence", {"equal": 1})],
)  # fmt: skip
def test_results_of_another_form_are_named_by_their_key(runs, key, value):
    broken = next(runs.glob("*_conformer_gqa_*")) / "evaluation_results.json"
    broken.write_text(json.dumps(json.loads(broken.read_text()) | {key: value}))
    comparison = Comparison(runs, ENCODERS, ATTENTIONS)
    assert len(comparison.models) == 7
    assert any(f"skipped {broken}: {key}" in note for note in comparison.notes)


def test_models_of_one_attention_are_told_apart_by_their_directories(runs):
    copied = shutil.copytree(runs / "asr_train_asr_conformer_mla_raw_word", runs / "asr_converted")
    path = copied / "evaluation_results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model": copied.name}))
    comparison = Comparison(runs, ENCODERS, ATTENTIONS)
    names = [row["model"] for row in read_csv(comparison_csv(comparison))]
    assert len(set(names)) == len(names)
    assert "conformer mla, asr_converted" in names and "branchformer mla" in names


def test_name_is_text_in_csv_page_and_plots(runs):
    """No formula of a spreadsheet, no tag, no mathematics, and no order to a terminal."""
    name = r"=1+1 <b>&" + r"$\frac$"
    copied = shutil.copytree(runs / "asr_train_asr_conformer_mla_raw_word", runs / name)
    path = copied / "evaluation_results.json"
    changed = json.loads(path.read_text()) | {"model": name, "device": "-x\x1b[2J\n"}
    path.write_text(json.dumps(changed))
    comparison = Comparison(runs, ENCODERS, ATTENTIONS)
    text = comparison_csv(comparison)
    (row,) = [row for row in read_csv(text) if name in row["model"]]
    assert row["directory"] == f"'{name}" and row["device"] == r"'-x\x1b[2J\n"
    cells = [cell for line in read_csv(text) for cell in line.values()]
    assert not any(cell.startswith(("=", "+", "@")) for cell in cells)
    plots = {name: draw(comparison) for name, draw in PLOTS.items()}  # mathematics would not parse
    page = report_html(comparison, plots)
    assert "<b>" not in page and f"conformer mla, {name}" in Tables(page).tables[0][4]
    assert "\x1b" not in page + summary_report(comparison) + text


def test_number_below_zero_is_no_formula():
    assert csv_text(["a", "-b"], [{"a": -1.5, "-b": "-1.5"}]) == "a,'-b\n-1.5,'-1.5\n"


def test_nothing_evaluated_is_one_clear_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["--expdir", str(tmp_path), "--output", str(tmp_path / "out")])
    assert end.value.code == 1
    assert "espnet-ext evaluate" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_published_rows_only_beside_the_very_test_set(output, runs):
    for name in ("comparison_table.csv", "summary_report.txt", "report.html"):
        assert "ublished" not in (output / name).read_text()
    for path in runs.glob("*/evaluation_results.json"):
        results = json.loads(path.read_text())
        results["wer"]["test_clean"]["words"] = 52576
        path.write_text(json.dumps(results))
    comparison = Comparison(runs, ENCODERS, ATTENTIONS, PUBLISHED_BASELINES)
    rows = read_csv(comparison_csv(comparison))
    published = [row for row in rows if row["status"] == "published"]
    assert rows[-len(published) :] == published
    assert published[0]["wer_test_clean"] == "6.5"
    assert all(row["config"].startswith("https://") for row in published)
    assert "Not measured here" in summary_report(comparison)


def with_tests(comparison):
    return [model for model in comparison.models if model["tests"]]


def test_variants_are_compared_with_the_mha_that_differs_in_attention_alone(eight_runs):
    comparison = Comparison(eight_runs, ENCODERS, ATTENTIONS)
    baselines = {m["model"]: m["tests"]["test_clean"]["baseline"] for m in with_tests(comparison)}
    assert len(baselines) == 6
    for model, baseline in baselines.items():
        encoder = re.search("(branchformer|conformer)", model)[0]
        assert baseline == f"asr_train_asr_{encoder}_mha_raw_word"


def test_difference_is_the_difference_of_the_error_rates(eight_runs):
    comparison = Comparison(eight_runs, ENCODERS, ATTENTIONS)
    wer = {model["model"]: model["wer"]["test_clean"]["wer"] for model in comparison.models}
    for model in with_tests(comparison):
        test = model["tests"]["test_clean"]
        difference = wer[model["model"]] - wer[test["baseline"]]
        assert test["difference"] == pytest.approx(difference, abs=0.011)
        low, high = test["interval_95"]
        assert low <= test["difference"] <= high


def test_bootstrap_finds_a_real_difference_and_no_other():
    better = {f"u{i}": (i % 2, 10) for i in range(200)}
    worse = {f"u{i}": (i % 2 + (i % 3 == 0), 10) for i in range(200)}
    found = paired_bootstrap(worse, better, resamples=1000)
    assert found["difference"] == 3.35 and found["interval_95"][0] > 0 and found["p"] < 0.01
    none = paired_bootstrap(better, better, resamples=1000)
    assert (none["difference"], none["interval_95"], none["p"]) == (0.0, [0.0, 0.0], 1.0)
    # the same error rate reached on other utterances
    shuffled = {f"u{i}": ((i + 1) % 2, 10) for i in range(200)}
    assert paired_bootstrap(shuffled, better, resamples=1000)["p"] > 0.5


def test_bootstrap_refuses_other_utterances():
    with pytest.raises(UserError, match="different utterances"):
        paired_bootstrap({"a": (0, 1)}, {"b": (0, 1)})


def test_winner_fits_the_budget_and_nothing_that_fits_is_better(eight_runs):
    comparison = Comparison(eight_runs, ENCODERS, ATTENTIONS)
    points = comparison.points
    assert {point["cache_kind"] for point in points} == {"kv", "input", "latent", "sums"}
    sizes = sorted(point["stream"]["total_kb"] for point in points)
    assert sizes[0] < max(BUDGETS)
    for (budget, name), winner in comparison.winners().items():
        fits = [p for p in points if p["stream"]["total_kb"] <= budget]
        assert (winner is None) == (not fits)
        if winner:
            assert winner["stream"]["total_kb"] <= budget
            assert winner["stream_wer"][name]["wer"] == min(
                point["stream_wer"][name]["wer"] for point in fits
            )


def test_left_context_that_a_budget_buys_is_the_largest_that_fits(eight_runs):
    from espnet_ext.evaluate.cache import measure_cache
    from espnet_ext.evaluate.models import read_model_config

    comparison = Comparison(eight_runs, ENCODERS, ATTENTIONS)
    for row in comparison.rows:
        frames = comparison.affordable(row, 4)
        if row["attention"] == "linear":
            assert frames == -1
            continue
        assert comparison.affordable(row, 0) is None
        config = read_model_config(eight_runs / row["model"] / "config.yaml")
        if row["cache_kind"] == "input":
            config["encoder_conf"]["attention_conf"] = {"cache": "input"}
        fits, too_much = measure_cache(config, 4, 4, [frames, frames + 1])["streams"]
        assert fits["bytes"] <= 4 * 1024 < too_much["bytes"]


def test_column_is_one_entry_for_text_csv_and_page(runs, monkeypatch):
    """The example of docs/report.md, taken from the page."""
    page = (Path(__file__).parents[2] / "docs/report.md").read_text()
    (entry,) = re.findall(r"^ +(Column\(.*\)),$", page, re.MULTILINE)
    results = next(table for table in columns.TABLES if table.title == "Results")
    monkeypatch.setattr(results, "columns", [*results.columns, eval(entry, vars(columns))])
    comparison = Comparison(runs, ENCODERS, ATTENTIONS)
    header, *rows = Tables(report_html(comparison, {})).tables[0]
    title = header[-1]
    shown = {row["encoder_parameters"] for row in read_csv(comparison_csv(comparison))}
    assert shown == {row[-1] for row in rows} and "" not in shown
    assert title in summary_report(comparison) and title not in header[:-1]


def rewrite(path, **changed):
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def test_model_trained_with_the_input_cache_is_in_every_table(runs):
    path = runs / "asr_train_asr_conformer_mha_raw_word/evaluation_results.json"
    conf = json.loads(path.read_text())["encoder_conf"] | {"attention_conf": {"cache": "input"}}
    rewrite(path, encoder_conf=conf, input_cache=None)
    cells = [cell(8, 16, 2048, 340.0, 2.0)]
    grid = {"encoder": "conformer", "attention": "mha", "attention_conf": {}, "cells": cells}
    grid["sets"] = {"test_clean": {"utterances": ["u"], "speakers": ["s"], "words": [9]}}
    path.with_name("grid.json").write_text(json.dumps(grid))
    comparison = Comparison(runs, ENCODERS, ATTENTIONS)
    assert not comparison.notes
    for table in columns.TABLES:
        names = [columns.row_name(row) for row in table.rows(comparison) if "status" in row]
        rows = [name for name in names if name.startswith("conformer mha")]
        per_seed = table.title in ("Difference from MHA", "Over seeds", "Published baselines")
        assert set(rows) == (set() if per_seed else {"conformer mha (input cache)"}), table.title


@pytest.fixture
def two_seeds(runs, tmp_path):
    """The Conformer's MHA and MLA, and on another machine a second seed with other scores."""
    for attention in ("mha", "mla"):
        own, other = (
            runs / f"asr_train_asr_{encoder}_{attention}_raw_word" for encoder in ENCODERS
        )
        copied = shutil.copytree(other, tmp_path / "theirs" / f"{own.name}_seed2")
        results = json.loads((own / "evaluation_results.json").read_text())
        scores = json.loads((copied / "evaluation_results.json").read_text())
        results |= {key: scores[key] for key in ("wer", "streaming_wer")}
        results |= {"model": copied.name, "seed": 2, "device": "their machine"}
        (copied / "evaluation_results.json").write_text(json.dumps(results))
        rewrite(own / "evaluation_results.json", seed=1)
    return [runs, tmp_path / "theirs"]


def test_seeds_of_several_machines_are_one_model_with_mean_and_spread(two_seeds, tmp_path):
    comparison = Comparison(two_seeds, ENCODERS, ATTENTIONS)
    assert not comparison.notes
    names = [row["model"] for row in read_csv(comparison_csv(comparison))]
    assert len(names) == 10 + 3 and len(set(names)) == 13  # the second MHA has an input cache too
    assert {"conformer mla, seed 1", "conformer mla, seed 2", "branchformer mla"} < set(names)
    views = ["offline", "chunk 4, left context 4", "chunk 4, left context 8"]
    rows = [row for row in comparison.over_seeds if row["attention"] == "mla"]
    assert [row["view"] for row in rows] == views and len(comparison.over_seeds) == 6
    mla, mha = (
        {m["seed"]: m for m in comparison.models if (m["encoder"], m["attention"]) == own}
        for own in (("conformer", "mla"), ("conformer", "mha"))
    )
    assert mla[2]["tests"]["test_clean"]["baseline"] == mha[2]["model"]
    for row, wers in zip(rows, zip(*map(decodings, mla.values()), strict=True), strict=True):
        spread, test = row["spread"]["test_clean"], row["tests"]["test_clean"]
        assert spread["values"] == [wer["wer"] for wer in wers]
        assert spread["mean"] == pytest.approx(statistics.fmean(spread["values"]), abs=0.006)
        assert spread["deviation"] == pytest.approx(statistics.stdev(spread["values"]), abs=0.006)
        errors = [
            {seed: read_score(m["path"].parent / wer["directory"])[0] for (seed, m), wer in
             zip(models.items(), wers, strict=True)}
            for models in (mla, mha)
        ]  # fmt: skip
        assert test == seeds_bootstrap(*errors) | {"baseline": mha[1]["stem"]}
        assert test["drawn"] == "seeds and utterances" and test["seeds"] == [1, 2]
    main(["--expdir", *map(str, two_seeds), "--output", str(tmp_path / "out")])
    summary = (tmp_path / "out" / "summary_report.txt").read_text()
    assert re.search(r"^conformer mla +1, 2 .*offline .* (within|beyond) luck", summary, re.M)
    assert re.search(r"^conformer mla, seed 2 .* their machine ", summary, re.M)


def decodings(model):
    streams = [stream["wer"]["test_clean"] for stream in model["streaming_wer"]]
    return [model["wer"]["test_clean"], *streams]


def test_results_may_be_files_and_a_model_of_two_machines_is_refused(two_seeds, tmp_path, capsys):
    runs, theirs = two_seeds
    directory = next(theirs.glob("*_mla_*"))
    lone = shutil.copy(directory / "evaluation_results.json", tmp_path / "from_a_letter.json")
    comparison = Comparison([runs, lone], ENCODERS, ATTENTIONS)
    assert comparison.seeds["asr_train_asr_conformer_mla_raw_word"].keys() == {1, 2}
    assert any("no statistics" in note for note in comparison.notes)  # its scores stayed there
    copied = shutil.copytree(directory, tmp_path / "again" / directory.name)
    for again in (copied, lone):
        with pytest.raises(SystemExit):
            main(["--expdir", *map(str, [*two_seeds, again]), "--output", str(tmp_path / "out")])
        (line,) = capsys.readouterr().err.splitlines()
        assert "give one of them" in line and str(directory) in line and "seed 2" in line
    rewrite(directory / "evaluation_results.json", parameters=5)
    with pytest.raises(UserError, match="not by its parameters: rename"):
        Comparison(two_seeds, ENCODERS, ATTENTIONS)
    assert not (tmp_path / "out").exists()


def cell(chunk_size, left_context, size, latency, wer, **more):
    place = {"chunk_size": chunk_size, "left_context": left_context, "frames": left_context}
    costs = {"bytes": size, "latency_ms": latency, "ledger": {"attention": size}}
    scored = {"wer": wer, "interval_95": [0, 9], "errors": [1]}
    return place | costs | {"in_trained_range": True, "wer": {"test_clean": scored}} | more


POINTS = st.lists(st.tuples(*[st.integers(1, 6)] * 3), min_size=1, max_size=12)


@settings(max_examples=50, deadline=None)
@given(POINTS)
def test_front_has_what_nothing_beats_and_beats_all_else(points):
    cells = [cell(n, 0, 1024 * kb, ms, wer) for n, (kb, ms, wer) in enumerate(points)]
    rows = grid_cells([{"stem": "a", "cache_kind": "kv", "cells": cells}])
    assert len(rows) == len(points)
    for cost, title in (("kb", "bytes"), ("latency_ms", "latency")):
        at = {(row["cell"][cost], row["cell"]["wer"]["test_clean"]) for row in rows}
        front = {
            (row["cell"][cost], row["cell"]["wer"]["test_clean"])
            for row in rows
            if title in row["cell"]["front"]["test_clean"]
        }
        best = sorted(front)
        assert [wer for _, wer in best] == sorted({wer for _, wer in best}, reverse=True)
        assert all(any(c <= own and w <= wer for c, w in front) for own, wer in at)
        assert len({own for own, _ in best}) == len(best)


def test_grids_are_one_table_and_one_plot_means_over_seeds(two_seeds, tmp_path):
    for expdir, wer in zip(two_seeds, (2.0, 3.0), strict=True):
        cells = [
            cell(8, 16, 2048, 340.0, wer, streamed={"utterances": 10, "same_text": 9}),
            cell(8, 128, 4096, 340.0, wer + 1, in_trained_range=False, input_cache_bytes=3072),
        ]
        grid = {"encoder": "conformer", "attention": "mha", "attention_conf": {}, "cells": cells}
        grid["sets"] = {"test_clean": {"utterances": ["u"], "speakers": ["s"], "words": [9]}}
        (path,) = expdir.glob("*_conformer_mha_*/evaluation_results.json")
        path.with_name("grid.json").write_text(json.dumps(grid))
    broken = next(two_seeds[0].glob("*_conformer_mla_*")) / "grid.json"
    broken.write_text("{")
    output = tmp_path / "out"
    main(["--expdir", *map(str, two_seeds), "--output", str(output)])
    assert {path.name for path in output.iterdir()} == FILES | {"wer_over_costs.png"}
    page = (output / "report.html").read_text()
    assert f"skipped {broken}" in page and page.count("data:image/png;base64,") == 4
    (shown,) = [table for table in Tables(page).tables if "front" in table[0]]
    assert shown[1:] == [
        [
            "conformer mha",
            "2",
            "8",
            "16",
            "yes",
            "340.0",
            "2.0",
            "2.5",
            "bytes, latency",
            "9 of 10",
        ],
        ["conformer mha", "2", "8", "128", "NO", "340.0", "4.0", "3.5", "", ""],
        ["conformer mha (input cache)", "2", "8", "128", "NO", "340.0", "3.0", "3.5", "", ""],
    ]
