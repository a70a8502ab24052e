"""CER, WER and TER with alignments, tables and bootstrap intervals."""

from espnet_ext.scoring.counting import UNITS, Score, score, tokenizer
from espnet_ext.scoring.report import write_results, write_score

__all__ = ["UNITS", "Score", "score", "tokenizer", "write_results", "write_score"]
