"""Delay and calibration of words."""

import numpy as np
import pytest

from espnet_ext.evaluate.words import calibration_error, word_figures
from espnet_ext.streaming.words import Word


def word(text, confidence=1.0, appeared=0.0):
    return Word(text, 0.0, 0.1, confidence, appeared)


def test_delay_counts_right_words_from_their_end():
    references = {"a": "ONE TWO THREE", "b": "FOUR", "c": ""}
    words = {
        "a": [word("ONE", appeared=1.0), word("SIX", appeared=2.0), word("THREE", appeared=3.5)],
        "b": [word("NINE", appeared=0.1), word("FOUR", appeared=0.9)],
        "c": [],
    }
    ends = {"a": [0.5, 1.5, 2.5], "b": [0.4], "c": []}
    figures = word_figures(references, words, ends)
    assert figures["word_delay_ms"] == pytest.approx(500)  # 500, 1000 and 500
    assert figures["word_delay_ms_p95"] == pytest.approx(950)
    assert word_figures(references, words)["word_delay_ms"] is None


def test_confidence_error():
    assert calibration_error(np.array([]), np.array([])) is None
    assert calibration_error(np.array([1.0, 1.0]), np.array([True, True])) == 0
    right = np.array([True] * 8 + [False] * 2)
    assert calibration_error(np.full(10, 0.8), right) == pytest.approx(0)
    assert calibration_error(np.full(10, 0.95), right) == pytest.approx(0.15)
    mixed = np.array([0.95] * 10 + [0.15] * 10)
    rights = np.array([True] * 10 + [True] * 5 + [False] * 5)
    assert calibration_error(mixed, rights) == pytest.approx((0.05 + 0.35) / 2)
    figures = word_figures({"a": "ONE TWO"}, {"a": [word("ONE", 0.9), word("SIX", 0.9)]})
    assert figures["confidence_error"] == pytest.approx(0.4)
