"""Every test runs on a CPU with one thread, from one seed."""

import logging
import os
import random
import shutil
import subprocess
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch

torch.set_num_threads(1)

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _seed():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _log():
    """A test that leaves the log changed fails itself, not the next one that reads it."""
    before = logging.root.level, logging.root.manager.disable
    yield
    after = logging.root.level, logging.root.manager.disable
    logging.root.setLevel(before[0])
    logging.disable(before[1])
    assert after == before


@pytest.fixture(scope="session")
def fsdd_archive() -> Path:
    """The archive of the Free Spoken Digit Dataset, or a skip with what to do."""
    default = REPO.parent / "shared" / "data" / "free-spoken-digit-dataset.tar.gz"
    path = Path(os.environ.get("FSDD_ARCHIVE", default))
    if not path.is_file():
        pytest.skip("no Free Spoken Digit Dataset: set FSDD_ARCHIVE to its .tar.gz")
    return path


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    """A real Slurm of two nodes, both this machine: what commands need in their environment."""
    if not shutil.which("slurmctld") or not shutil.which("munged"):
        pytest.skip("no Slurm: apt-get install slurm-wlm munge")
    if os.geteuid() != 0:
        pytest.skip("only root can start Slurm's daemons")
    script, folder = REPO / "tests/jobs/one_host_slurm.sh", tmp_path_factory.mktemp("slurm")
    started = subprocess.run([script, "start", folder, "2"], capture_output=True, text=True)
    if started.returncode != 0:
        pytest.fail(started.stderr)
    name, _, value = started.stdout.strip().partition("=")
    yield {name: value}
    subprocess.run([script, "stop", folder], check=True)


@pytest.fixture(params=["cpu on", "cpu off"])
def cpu_switch(request):
    """A test with ``espnet_ext/cpu`` in use, and again without it."""
    from espnet_ext import cpu

    cpu.enable(request.param == "cpu on")
    yield request.param
    cpu.enable()


def pytest_collection_modifyitems(items):
    """The longest files first, so that the other workers do not end up waiting for them."""
    longest = ("test_recipe_mini_an4", "test_faults", "test_recipe_librispeech")
    items.sort(key=lambda item: not any(name in item.nodeid for name in longest))
