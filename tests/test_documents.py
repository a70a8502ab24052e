"""Numbers in documents: each follows from what it is said to follow from, and stands once."""

import ast
import importlib
import importlib.util
import re
from pathlib import Path

import pytest

import espnet_ext
from espnet_ext.evaluate.cache import measure_cache
from espnet_ext.evaluate.models import read_model_config, with_encoder_conf
from espnet_ext.report.kept import read_kept, tables, updated

ROOT = Path(__file__).parents[1]
FSDD = ROOT / "egs2/fsdd/asr1"


def table(path, first):
    """Rows of the table of a page whose header begins with ``first``."""
    _, _, text = path.read_text().partition(f"| {first} |")
    lines = text.split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_names_of_the_api_page_are_there_and_typed():
    api, module = {}, None
    for name, names, _ in table(ROOT / "docs/api.md", "module"):
        module = name.strip("`") or module
        api.setdefault(module, []).extend(re.findall("`([A-Za-z_0-9]+)`", names))
    for module, names in api.items():
        for name in names:
            assert hasattr(importlib.import_module(module), name), f"{module}.{name}"
    assert len(api) > 10 and "StreamState" in api["espnet_ext.state"]


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))], ids=lambda page: page.name
)
def test_imports_of_the_documents_work(page):
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        try:
            nodes = ast.parse(block).body
        except SyntaxError:
            continue  # an excerpt
        for node in nodes:
            if isinstance(node, ast.ImportFrom) and node.module.startswith("espnet_ext"):
                for alias in node.names:
                    assert hasattr(importlib.import_module(node.module), alias.name), alias.name


def test_versions_agree():
    version = espnet_ext.__version__
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {version}\n" in (ROOT / "CHANGELOG.md").read_text()


def results():
    """Model of each row of FSDD's table, whether with the input cache, and the row."""
    rows = iter(table(FSDD / "RESULTS.md", "model | offline | interval"))
    for model in read_kept(FSDD / "results")[1]:
        yield model, False, next(rows)
        if model.endswith("_mha"):
            yield model, True, next(rows)
    assert not list(rows)


@pytest.mark.parametrize("path, count", [(FSDD / "RESULTS.md", 4), (ROOT / "README.md", 1)])
def test_tables_of_fsdd_are_made_from_the_kept_results(path, count):
    page = path.read_text()
    assert page.count("<!-- table: ") == count
    assert updated(page, tables(FSDD / "results", "test")) == page


def test_sizes_of_the_fsdd_models_are_those_of_their_configs():
    seen = []
    for model, lossless, row in results():
        config = read_model_config(FSDD / f"conf/train_asr_{model}.yaml")
        config["frontend_conf"]["fs"] = "8k"  # as run.sh tells the training
        assert lossless == ("input cache" in row[0])
        if lossless:
            config = with_encoder_conf(config, attention_conf={"cache": "input"})
        cache = measure_cache(config, 1000, 16, [64])
        stream = cache["streams"][0]
        assert [row[6], row[8]] == [
            f"{cache['bytes'] / 1024:.0f}",
            f"{stream['bytes'] / 1024:.1f}",
        ], row
        assert stream["capacity_bytes"] >= stream["bytes"]
        seen.append(row[0])
    assert len(seen) == 12


def test_measured_ratios_and_costs_stand_in_the_benchmarks_page_alone():
    for name in ("streaming", "data", "decoder", "long_audio"):
        text = (ROOT / f"docs/{name}.md").read_text()
        assert "benchmarks/RESULTS.md" in text
        assert not re.findall(r"^\|.*\d \([\d.]+ to [\d.]+\).*", text, re.MULTILINE)


def test_page_of_benchmarks_has_its_own_headings_and_a_commit_that_is_one():
    text = (ROOT / "benchmarks/RESULTS.md").read_text()
    headings = re.findall(r"^#.*", text, re.MULTILINE)
    assert headings[0] == "# Benchmarks" and all(h.startswith("## ") for h in headings[1:])
    assert re.findall(r"commit (\S+);", text) and "-dirty" not in text


@pytest.fixture
def run_all(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    spec = importlib.util.spec_from_file_location("run_all", ROOT / "benchmarks/run_all.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_a_benchmark_prints_makes_no_heading(run_all, tmp_path):
    script = tmp_path / "one.py"
    script.write_text("print('# two cores')\nprint('| a |')\n")
    text = run_all.run(str(script), [])
    assert not re.search("^#", text, re.MULTILINE) and r"\# two cores" in text
