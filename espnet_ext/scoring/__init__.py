"""CER, WER and TER with alignments, tables and bootstrap intervals."""

from espnet_ext.scoring.counting import UNITS, Score, score, tokenizer
from espnet_ext.scoring.report import (
    read_numbers,
    score_files,
    scored,
    write_results,
    write_score,
)
from espnet_ext.scoring.resampling import bootstrap, error_rates, interval, nesting

__all__ = [
    "UNITS",
    "Score",
    "bootstrap",
    "error_rates",
    "interval",
    "nesting",
    "read_numbers",
    "score",
    "score_files",
    "scored",
    "tokenizer",
    "write_results",
    "write_score",
]
