"""Every test runs on a CPU with one thread, from one seed."""

import os
import random
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


@pytest.fixture(scope="session")
def fsdd_archive() -> Path:
    """The archive of the Free Spoken Digit Dataset, or a skip with what to do."""
    default = REPO.parent / "shared" / "data" / "free-spoken-digit-dataset.tar.gz"
    path = Path(os.environ.get("FSDD_ARCHIVE", default))
    if not path.is_file():
        pytest.skip("no Free Spoken Digit Dataset: set FSDD_ARCHIVE to its .tar.gz")
    return path


def pytest_collection_modifyitems(items):
    """The longest file first, so that the other workers do not end up waiting for it."""
    items.sort(key=lambda item: "test_recipe_mini_an4" not in item.nodeid)
