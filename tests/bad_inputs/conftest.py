"""Good inputs of every command, made once, and the tiny model of the tests of streaming."""

import pytest

from bad_inputs.good import write_all
from streaming.conftest import model_dir  # noqa: F401


@pytest.fixture(scope="session")
def good(tmp_path_factory):
    """The directory that the words of ``good.COMMANDS`` are about."""
    return write_all(tmp_path_factory.mktemp("good"))
