"""A tiny streaming model that decoding tests share."""

import pytest

from tiny_model import TOKENS, write_model  # noqa: F401


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    """A tiny streaming model with random weights, as a training run leaves it."""
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def kaldi_model_dir(tmp_path_factory):
    """The same with ``frontend: kaldi_fbank``."""
    return write_model(tmp_path_factory.mktemp("kaldi_model"), frontend="kaldi_fbank")
