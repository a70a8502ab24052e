"""What is kept of evaluated models says all that the tables say."""

import json
import shutil

import pytest
import yaml

from espnet_ext.bin.asr_compare import main as compare
from espnet_ext.bin.asr_results import main
from espnet_ext.errors import UserError
from espnet_ext.evaluate.gather import LAST_LINES, gather
from espnet_ext.report.compare import Comparison
from espnet_ext.report.kept import Kept, grid_rows, read_kept, restore, tables, updated
from espnet_ext.report.statistics import paired_bootstrap, read_score, seeds_bootstrap

SET = "test_clean"
LEDGER = {"attention": 1536, "convolution": 512}
CELL = {"in_trained_range": True, "latency_ms": 357.5, "bytes": 2048, "ledger": LEDGER}


def grid(expdir, rate):
    """A ``grid.json`` of two cells, one of them not of the training; linear has one.

    Of the four words of each of three utterances some are wrong; ``rate`` is what it says of that.
    """
    config = yaml.safe_load((expdir / "config.yaml").read_text())
    encoder, attention = config["encoder"].removeprefix("kv_"), config["encoder_conf"]["attention"]
    cells = []
    for left in [-1] if attention == "linear" else [64, -1]:
        wer = {"wer": rate + left / 100, "interval_95": [1.0, 2.0]}
        wer["errors"] = [rate % 3, 0, 1]
        cells.append(CELL | {"chunk_size": 16, "left_context": left, "wer": {SET: wer}})
        cells[-1] |= {"frames": 1000 if left < 0 else left}
        if attention == "mha":
            cells[-1] |= {"input_cache_bytes": 1280, "ledger": LEDGER | {"attention": 1536}}
        if attention == "mla":
            cells[-1] |= {"ledger": LEDGER | {"attention": 384}, "bytes": 896}
    cells[0]["in_trained_range"] = False
    if attention == "mla":
        narrow = {"wer": {SET: wer | {"wer": 50.0}}, "utterances": 3, "same_text": 2}
        cells[0]["cache_dtypes"] = {"int8": narrow | {"bytes": 600}}
    found = {"encoder": encoder, "attention": attention, "cells": cells}
    found["sets"] = {SET: {"utterances": ["a", "b", "c"], "words": [4] * 3, "speakers": ["s"] * 3}}
    found["attention_conf"] = config["encoder_conf"]["attention_conf"]
    (expdir / "grid.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def recipe(eight_runs, tmp_path_factory):
    """Two seeds of eight models, and their test set, in a recipe's directory; read only."""
    root = tmp_path_factory.mktemp("recipe")
    for seed in (1, 2):
        shutil.copytree(eight_runs, root / f"exp{seed}")
        for number, expdir in enumerate(sorted((root / f"exp{seed}").iterdir())):
            config = yaml.safe_load((expdir / "config.yaml").read_text())
            (expdir / "config.yaml").write_text(yaml.safe_dump(config | {"seed": seed}))
            grid(expdir, 10 * seed + number)
            log = expdir / "train.log"
            log.write_text("begun\n" * 30 + log.read_text() + "more\n" * 30)
    data = root / "dump" / "raw" / SET
    data.mkdir(parents=True)
    scored = next(root.glob(f"exp1/*/decode*/{SET}"))
    shutil.copy(scored / "ref", data / "text")
    shutil.copy(scored / "score_wer" / "utt2spk", data / "utt2spk")
    return root


@pytest.fixture(scope="module")
def results(recipe):
    for seed in (1, 2):
        for expdir in sorted((recipe / f"exp{seed}").iterdir()):
            gather(expdir, recipe / "results", recipe / "dump")
    return recipe / "results"


def test_what_is_kept_is_small_and_named_by_seed_and_model(recipe, results):
    assert len(list(results.glob("seed[12]/*/evaluation_results.json"))) == 16
    model = results / "seed1" / "branchformer_mla"
    files = {str(path.relative_to(model)) for path in model.rglob("*") if path.is_file()}
    assert files == {
        *("config.yaml", "train.log", "evaluation_results.json", "grid.json"),
        f"decode_asr_asr_model_valid.acc.ave/{SET}/text",
        *(f"streaming_C4_L{left}/{SET}/text" for left in (4, 8)),
    }
    log = (model / "train.log").read_text().splitlines()
    assert log[-LAST_LINES:] == ["more"] * LAST_LINES and len(log) == LAST_LINES + 2
    assert (results / "data" / SET / "text").read_text() == (
        recipe / "dump" / "raw" / SET / "text"
    ).read_text()


def _tests(comparison):
    """Differences from MHA by model and test set, whatever the directories are called."""
    return {
        (row["encoder"], row["attention"], name): {**test, "baseline": 0}
        for row in comparison.models
        for name, test in row["tests"].items()
    }


def test_restored_models_compare_as_the_original_ones(recipe, results, tmp_path):
    restore(read_kept(results)[2], tmp_path)
    encoders, attentions = ["conformer", "branchformer"], ["mha", "gqa", "mla", "linear"]
    mine, theirs = (
        Comparison(expdir, encoders, attentions) for expdir in (tmp_path, recipe / "exp2")
    )
    found, own = _tests(mine), _tests(theirs)
    assert len(found) == 6 and not mine.notes and found == own
    out = tmp_path / "comparison"
    compare(["--expdir", str(tmp_path), "--output", str(out)])
    assert (out / "report.html").is_file()


def test_nothing_to_restore_is_said(tmp_path):
    (tmp_path / "model").mkdir()
    models = {"model": Kept(tmp_path, tmp_path / "model")}
    with pytest.raises(UserError, match="no kept model of this seed has evaluation_results.json"):
        restore(models, tmp_path / "exp")
    assert not (tmp_path / "exp").exists()


def test_tables_hold_what_was_measured(recipe, results):
    made = tables(results, SET)
    lines = made["models"].splitlines()
    assert len(lines) == 2 + 10  # eight models, and MHA's input cache twice
    cells = [cell.strip() for cell in lines[5].split("|")][1:-1]
    expdir = recipe / "exp1" / "asr_train_asr_conformer_mla_raw_word"
    found = json.loads((expdir / "evaluation_results.json").read_text())["wer"][SET]
    counts = [
        read_score(recipe / "exp1" / model / found["directory"])[0]
        for model in (expdir.name, expdir.name.replace("mla", "mha"))
    ]
    test = paired_bootstrap(*counts)
    low, high = found["interval_95"]
    assert cells[:3] == ["Conformer MLA, rank 4", f"{found['wer']:.2f}", f"{low:.2f} to {high:.2f}"]
    assert cells[3:9] == ["17.64", "1.00 to 2.00", "", "0", "4", "0.9"]  # 1536 B are 4 times 384
    assert cells[-1] == f"{test['p']:.2g}" and cells[-2].startswith(f"{test['difference']:.2f} (")
    lossless = [cell.strip() for cell in lines[3].split("|")][7:10]
    assert lossless == ["1", "2", "1.2"]  # 768 B of keys' inputs, and a state of 1280 B
    rows = made["grid"].splitlines()
    assert rows[0].split("|")[4:6] == [" 64 ", " all "]
    assert rows[4] == "| Conformer MLA, rank 4 | 16 | 358 | 17.64* (1) | 16.99 (1) |"
    linear = next(row for row in rows if "Conformer linear" in row)
    assert linear.split("|")[4:6] == [" ", " 14.99* (2) "]
    rows = made["dtypes"].splitlines()
    assert len(rows) == 2 + 2
    assert rows[0] == "| model | chunk | left context | float32 | int8 | same text |"
    assert rows[2] == "| Conformer MLA, rank 4 | 16 | 64 | 17.64* (1) | 50.00* (1) | 2 |"
    mean = made["seeds"].splitlines()[4]
    begin = (
        "| Conformer MLA, rank 4 | 1 2 | 22.64 | 7.07 | 17.64 27.64 | 21.99 | 7.07 | 16.99 26.99 |"
    )
    assert mean.startswith(begin)
    rows = made["summary"].splitlines()
    assert rows[5].startswith("| Conformer MLA, rank 4 | 22.64 | 7.07 | ") and len(rows) == 2 + 10
    assert rows[5].endswith(" | 0 | 0.9 |") and rows[3].endswith(" | | 1 | 1.2 |")
    both = [read_kept(results)[seed] for seed in (1, 2)]
    mla, mha = (
        {s: one[name].errors(SET, (16, -1))[0] for s, one in enumerate(both)}
        for name in ("conformer_mla", "conformer_mha")
    )
    test = seeds_bootstrap(mla, mha)
    assert test["drawn"] == "seeds and utterances"
    low, high = test["interval_95"]
    shown = f"| {test['difference']:.2f} ({low:.2f} to {high:.2f}) | {test['p']:.2g} |"
    assert f"{shown} {test['verdict']} |" in mean


def test_figure_has_every_cell_and_the_lossless_caches(results, tmp_path):
    rows = grid_rows(read_kept(results)[1], SET)
    assert len(rows) == 8 * 2 - 2 + 2 * 2  # linear has one cell each, MHA's input cache two
    sizes = {row["cell"]["kb"] for row in rows if row["cache_kind"] == "input"}
    assert sizes == {1.25}
    figure = tmp_path / "figure.png"
    main(["--results", str(results), "--figure", str(figure), "--test_set", SET])
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_cell_of_another_left_context_stands_in_no_column_of_64(results, tmp_path):
    copy = shutil.copytree(results, tmp_path / "results")
    path = copy / "seed2/conformer_gqa/grid.json"
    found = json.loads(path.read_text())
    found["cells"][0]["left_context"] = 32
    path.write_text(json.dumps(found))
    with pytest.raises(UserError, match="grid.json: lacks chunk size 16 with left context 64"):
        tables(copy, SET)


def test_narrower_caches_of_another_test_set_are_left_out(results, tmp_path):
    copy = shutil.copytree(results, tmp_path / "results")
    path = copy / "seed1/conformer_mla/grid.json"
    found = json.loads(path.read_text())
    live = found["cells"][0]["cache_dtypes"]["int8"]
    live["wer"] = {"another": live["wer"][SET]}
    path.write_text(json.dumps(found))
    assert len(tables(copy, SET)["dtypes"].splitlines()) == 2 + 1


def test_page_gets_its_tables_and_keeps_its_words(results, tmp_path, monkeypatch):
    page = tmp_path / "RESULTS.md"
    page.write_text("# A\n\n<!-- table: grid -->\n\n| old |\n|---|\n\nafter\n")
    options = ["--results", str(results), "--page", str(page), "--test_set", SET]
    main(options)
    made = tables(results, SET)["grid"]
    assert page.read_text() == f"# A\n\n<!-- table: grid -->\n\n{made}\nafter\n"
    main(options)
    assert page.read_text().count("| model |") == 1
    page.write_text(f"# A\n\n<!-- table: grid -->\n{made}")
    main(options)
    assert page.read_text() == f"# A\n\n<!-- table: grid -->\n\n{made}\n"
    page.write_text("# A\n")
    with pytest.raises(SystemExit):
        main(options)
    assert page.read_text() == "# A\n"
    with pytest.raises(UserError, match="no table is called gird; there are models"):
        updated("<!-- table: gird -->\n\n", tables(results, SET))


def test_model_of_another_test_set_or_without_a_score_is_refused(recipe, results, tmp_path, capsys):
    shutil.copytree(recipe / "dump", tmp_path / "dump")
    with open(tmp_path / "dump" / "raw" / SET / "text", "a") as file:
        file.write("another WORD\n")
    expdir = next((recipe / "exp1").iterdir())
    before = sorted(results.rglob("*"))
    for arguments in ([expdir, "--dumpdir", tmp_path / "dump"], [expdir, "--dumpdir", tmp_path]):
        with pytest.raises(SystemExit):
            main([*map(str, arguments), "--results", str(results)])
    first, second = capsys.readouterr().err.splitlines()
    assert "other data" in first and "cannot be read" in second
    ignored = shutil.ignore_patterns("score_wer", "grid.json", "evaluation_results.json")
    shutil.copytree(expdir, tmp_path / "asr_x", ignore=ignored)
    with pytest.raises(UserError, match="no results"):
        gather(tmp_path / "asr_x", results, recipe / "dump")
    assert sorted(results.rglob("*")) == before
    with pytest.raises(SystemExit):
        main(["--results", str(results), "--seed", "7"])
    assert "keeps nothing of seed 7" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["[]", '{"encoder": "x"}', '{"cells": [{}]}', "{"])
def test_broken_grid_is_named(content, tmp_path):
    (tmp_path / "grid.json").write_text(content)
    with pytest.raises(UserError, match="grid.json: .*; make it again$"):
        Kept(tmp_path, tmp_path).grid  # noqa: B018
