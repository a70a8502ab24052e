"""docs/attention.md as a reader follows it: every test over the registry passes on its example."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from copies import ROOT

REGISTRY = "espnet_ext/attention/registry.py"
#: where the tests are that run over the registry
SUITE = ("attention", "decoder", "encoder", "evaluate/test_profile.py", "test_configs.py")


def blocks():
    """Code of the page by the file that the line before it names."""
    page = (ROOT / "docs/attention.md").read_text()
    return dict(re.findall(r"`(\S+/\S+\.\w+)`[^`]*:\n\n```\w+\n(.*?)```", page, re.S))


def follow(tree):
    """Do in a copy of the repository what the page says."""
    page = blocks()
    (tree / "espnet_ext/attention/shared.py").write_text(page["espnet_ext/attention/shared.py"])
    registry = (tree / REGISTRY).read_text()
    end = registry.index("    }\n", registry.index("ATTENTIONS = "))
    (tree / REGISTRY).write_text(registry[:end] + page[REGISTRY] + registry[end:])
    conf = "conf/tuning/train_asr_conformer_{}.yaml"
    config = (tree / conf.format("mha")).read_text()
    for line in page[conf.format("shared")].splitlines():
        key = re.escape(re.match(r"# \w+|\W*\w+:|# \./", line)[0])
        config, found = re.subn(f"^{key}.*$", line, config, count=1, flags=re.M)
        assert found, line
    (tree / conf.format("shared")).write_text(config)


@pytest.fixture
def tree(tmp_path):
    """A copy of the repository's code, tests and configurations."""
    for name in ("espnet_ext", "tests", "conf"):
        caches = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=caches)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def suite(tree):
    """Exit status and output of the tests that know the example."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-k", "shared"]
    command += [f"tests/{name}" for name in SUITE]
    env = os.environ | {"PYTHONPATH": str(tree)}
    run = subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True)
    return run.returncode, run.stdout


def test_example_of_the_page_passes_every_test_over_the_registry(tree):
    follow(tree)
    code, said = suite(tree)
    passed = re.search(r"(\d+) passed", said)
    assert code == 0 and "skipped" not in said, said[-3000:]
    assert int(passed[1]) > 60, said[-300:]  # there are that many, and each knows the example
