"""The parts of benchmarks/cuda.sh on a CPU, with sizes that a test can wait for.

tests/recipe/test_recipe_mini_an4.py kills, resumes, decodes and profiles its recipe.
"""

import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from benchmarks import cuda_card as cuda
from benchmarks import cuda_equality
from copies import ROOT, copy_mini_an4, run
from espnet_ext.attention import ATTENTIONS
from espnet_ext.evaluate.models import build_encoder, read_model_config
from tiny import VARIANTS


def rows(text):
    """Cells of the rows of a Markdown table, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]


def test_equality_compares_every_attention(capsys):
    assert cuda_equality.equality("cpu", cuda.TINY)
    table = {(cells[0], cells[1]): cells for cells in rows(capsys.readouterr().out)}
    assert {check for check, _ in table} == {c.__name__ for c in cuda_equality.CHECKS}
    assert all(cells[-1] == "ok" for cells in table.values())
    for precision in cuda_equality.PRECISIONS:
        assert table["offline", precision][2] == str(2 * len(VARIANTS))
        assert table["streaming", precision][2] == str(len(VARIANTS))


@pytest.mark.parametrize("wrong", [math.nan, 1.0, RuntimeError("no kernel | image")])
def test_equality_fails_for_a_wrong_result_and_goes_on(monkeypatch, capsys, wrong):
    def bad(device, encoders):
        yield "first", "float32", 0.0
        if isinstance(wrong, Exception):
            raise wrong
        yield "second", "float32", wrong

    def good(device, encoders):
        yield "third", "float32", 0.0

    monkeypatch.setattr(cuda_equality, "CHECKS", (bad, good))
    assert cuda.run_part("equality", "cpu", cuda.TINY) == 1
    table = rows(capsys.readouterr().out)
    assert ["bad", "**failed**"] in [[cells[0], cells[-1]] for cells in table]
    assert table[-1][0] == "good" and table[-1][-1] == "ok"


def test_error_of_anything_not_finite_is_infinite():
    a, b = torch.ones(3), torch.tensor([1.0, math.nan, 1.0])
    assert cuda_equality.relative_error(a, 2 * a) == 0.5
    for pair in ((a, b), (b, a), (b, b), (a, a[:2])):
        assert cuda_equality.relative_error(*pair) == math.inf


def test_training_times_both_sides(capsys):
    assert cuda.training("cpu", cuda.TINY)
    ((name, utterances, ours, stock, *_),) = rows(capsys.readouterr().out)
    assert (name, utterances) == ("conformer_mha", "2")
    assert int(ours) > 0 and int(stock) > 0


def test_row_that_does_not_fit_or_fails_leaves_the_others(capsys):
    def full(device):
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert cuda.row(full, "cpu") == ("skipped: does not fit the memory |", True)
    sizes = replace(cuda.TINY, training=(("conformer_nothing", 2), *cuda.TINY.training))
    assert not cuda.training("cpu", sizes)
    failed, timed = rows(capsys.readouterr().out)
    assert failed[2].startswith("**failed**: UserError") and "conformer_nothing" in failed[2]
    assert int(timed[2]) > 0


def test_part_too_large_for_the_memory_is_skipped(monkeypatch, capsys):
    def full(device, sizes):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setitem(cuda.PARTS, "streaming", (full, "Streaming", 10))
    assert cuda.run_part("streaming", "cpu", cuda.TINY) == cuda.SKIPPED
    assert capsys.readouterr().out.strip() == "Skipped: does not fit the memory of this card."


@pytest.fixture
def from_the_root(monkeypatch):
    """As cuda.sh calls its Python."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")


def test_page_has_the_parts_that_were_run(from_the_root, tmp_path):
    page = tmp_path / "page.md"
    options = ["--device", "cpu", "--tiny", "--output", str(page)]
    assert cuda.main([*options, "--only", "streaming"]) == 0
    text = page.read_text()
    assert text.startswith("# On a CUDA card\n") and f"torch {torch.__version__}" in text
    assert [cells[1] for cells in rows(text)] == ["1", "3"]
    assert "equal" not in text
    assert list(tmp_path.iterdir()) == [page]


def test_part_that_takes_too_long_is_skipped(from_the_root, tmp_path):
    page = tmp_path / "page.md"
    options = ["--device", "cpu", "--tiny", "--output", str(page), "--only"]
    assert cuda.main([*options, "equality", "training", "--minutes", "0.02"]) == 0
    assert "Skipped from here on: did not fit 1 s." in page.read_text()
    assert "Skipped: no time left." in page.read_text()


def test_part_that_dies_is_a_failure(from_the_root, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    options = ["--device", "cpu", "--tiny", "--output", str(tmp_path / "page.md")]
    assert cuda.main([*options, "--only", "equality", "recipe"]) == 1
    assert capsys.readouterr().out.endswith("page.md; failed: equality, recipe\n")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a card")
def test_script_without_a_card_writes_nothing(tmp_path):
    page = tmp_path / "page.md"
    script = [ROOT / "benchmarks/cuda.sh", "--output", page]
    done = subprocess.run(script, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "cuda.sh: no CUDA card here: nothing was run, nothing was written\n"
    assert not page.exists()


def test_recipe_has_options_and_configs_that_run_sh_takes(tmp_path):
    recipe = copy_mini_an4(tmp_path)
    cuda.write_configs(recipe, "cuda", cuda.FULL)
    for attention in cuda.FULL.attentions:
        config = read_model_config(recipe / f"conf/train_asr_{attention}.yaml")
        assert type(build_encoder(config).encoders[0].self_attn) is ATTENTIONS[attention]
        options = cuda.run_options(attention, "cuda")
        done = run(recipe, *options, "--stage", "17")  # past the last: options alone are read
        assert done.returncode == 0, done.stdout + done.stderr
