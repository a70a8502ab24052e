"""Error counts against a naive edit distance, tables, intervals and id checks."""

import json
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_ext.bin.score import main as score_main
from espnet_ext.bin.score_results import main as results_main
from espnet_ext.errors import UserError
from espnet_ext.scoring import Score, score, tokenizer, write_score

words = st.lists(st.sampled_from(["A", "B", "C", "NEÉ", "ß", "two"]), max_size=8)


def distance(ref, hyp):
    """Edit distance with unit costs, row by row."""
    row = list(range(len(hyp) + 1))
    for i, r in enumerate(ref, 1):
        last, row = row, [i]
        for j, h in enumerate(hyp, 1):
            row.append(min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (r != h)))
    return row[-1]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(words, words), min_size=1, max_size=5), st.sampled_from(["wer", "cer"]))
def test_score_equals_naive_edit_distance(pairs, unit):
    refs = {f"u{i}": " ".join(ref) for i, (ref, _) in enumerate(pairs)}
    hyps = {f"u{i}": "  ".join(hyp) for i, (_, hyp) in enumerate(pairs)}
    counted = score(refs, hyps, tokenizer(unit))
    pieces = str.split if unit == "wer" else list
    for i, (ref, hyp) in enumerate(pairs):
        ref, hyp = pieces(" ".join(ref)), pieces(" ".join(hyp))
        correct, substituted, deleted, inserted = counted.counts[i]
        assert substituted + deleted + inserted == distance(ref, hyp)
        assert correct + substituted + deleted == len(ref)
        assert correct + substituted + inserted == len(hyp)
        aligned = counted.alignments[i]
        assert [w for _, part, _ in aligned for w in part] == counted.references[i]
        assert [w for _, _, part in aligned for w in part] == counted.hypotheses[i]


def test_summary_matches_a_table_worked_by_hand():
    refs = {"a": "ONE TWO THREE FOUR", "b": "FIVE", "c": "SIX SEVEN"}
    hyps = {"a": "ONE TOO THREE", "b": "FIVE", "c": "SIX SEVEN EIGHT NINE"}
    row = score(refs, hyps, tokenizer("wer")).summary()
    assert (row["snt"], row["wrd"]) == (3, 7)
    rates = [row[k] for k in ("corr", "sub", "del", "ins", "err", "s_err")]
    assert rates == pytest.approx([500 / 7, 100 / 7, 100 / 7, 200 / 7, 400 / 7, 200 / 3])


def test_empty_hypothesis_counts_as_deletions():
    row = score({"a": "ONE TWO"}, {"a": ""}, tokenizer("wer")).summary()
    assert (row["del"], row["err"]) == (100.0, 100.0)


@pytest.mark.parametrize(
    "refs, hyps, message",
    [
        ({"a": "X", "b": "Y", "c": "Z"}, {"a": "X"}, "^2 reference .* the first is b"),
        ({"a": "X"}, {"a": "X", "q": "Y"}, "^1 hypotheses have no reference.* q"),
        ({"a": "X"}, {"a\u200b": "X"}, "'a.u200b' and 'a' differ only in what does not show"),
        ({}, {}, "no utterances"),
    ],
)
def test_score_refuses_ids_that_differ(refs, hyps, message):
    with pytest.raises(UserError, match=message):
        score(refs, hyps, tokenizer("wer"))


def one_word_utterances(wrong, total):
    counts = np.zeros((total, 4), dtype=np.int64)
    counts[:, 0] = 1
    counts[:wrong] = [0, 1, 0, 0]
    ids = [str(i) for i in range(total)]
    return Score(ids, [["A"]] * total, [["A"]] * total, [[]] * total, counts)


def test_interval_of_independent_words_is_the_binomial_one():
    low, high = one_word_utterances(300, 2000).interval(resamples=4000)
    half = 1.96 * 100 * math.sqrt(0.15 * 0.85 / 2000)
    assert low == pytest.approx(15 - half, abs=0.15 * half)
    assert high == pytest.approx(15 + half, abs=0.15 * half)


def test_interval_resamples_utterances_not_words():
    single = one_word_utterances(30, 200)
    tenfold = Score(single.ids, single.references, single.hypotheses, [], single.counts * 10)
    assert tenfold.interval() == single.interval()


def test_interval_is_repeatable_and_depends_on_the_seed():
    counted = one_word_utterances(37, 211)
    assert counted.interval() == counted.interval()
    assert counted.interval(seed=1) != counted.interval(seed=2)


def test_written_files_agree_with_each_other(tmp_path):
    refs = {"s1-a": "ONE TWO THREE", "s2-b": "FOUR FIVE"}
    hyps = {"s1-a": "ONE THREE", "s2-b": "FORE FIVE SIX"}
    counted = score(refs, hyps, tokenizer("wer"))
    write_score(tmp_path, counted, {"s1-a": "s1", "s2-b": "s2"})
    assert (tmp_path / "ref.trn").read_text() == "ONE TWO THREE\t(s1-s1-a)\nFOUR FIVE\t(s2-s2-b)\n"
    numbers = json.loads((tmp_path / "score.json").read_text())
    assert (numbers["snt"], numbers["wrd"], numbers["err"]) == (2, 5, 60.0)
    low, high = numbers["err_interval_95"]
    assert low <= 60.0 <= high
    text = (tmp_path / "result.txt").read_text()
    total = re.search(
        r"^\| Sum/Avg \| +2 +5 \| +60.0 +20.0 +20.0 +20.0 +60.0 +100.0 \|$", text, re.M
    )
    assert total, text
    assert "REF:  ONE TWO THREE\nHYP:  ONE *** THREE\nEval:     D\n" in text
    assert "REF:  FOUR FIVE ***\nHYP:  FORE FIVE SIX\nEval: S         I\n" in text


def test_score_command_writes_units_and_results(tmp_path, capsys):
    exp = tmp_path / "exp"
    (tmp_path / "ref").write_text("u1 AB CD\nu2 EF\n")
    (tmp_path / "hyp").write_text("u1 AB CD\nu2\n")
    files = ["--ref", str(tmp_path / "ref"), "--hyp", str(tmp_path / "hyp")]
    score_main([*files, "--output", str(exp / "decode" / "test"), "--token_type", "char"])
    results_main([str(exp)])
    row = "|decode/test|2|3|66.7|0.0|33.3|0.0|33.3|50.0|"
    assert row in capsys.readouterr().out
    results = (exp / "RESULTS.md").read_text()
    assert "### WER" in results and row in results
    assert "|decode/test|2|7|71.4|0.0|28.6|0.0|28.6|50.0|" in results  # 5 + 2 characters
    assert not (exp / "decode" / "test" / "score_ter").exists()


def test_score_command_names_the_file_of_a_missing_hypothesis(tmp_path, capsys):
    (tmp_path / "ref").write_text("u1 A\nu2 B\n")
    (tmp_path / "hyp").write_text("u1 A\n")
    with pytest.raises(SystemExit):
        score_main(
            ["--ref", str(tmp_path / "ref"), "--hyp", str(tmp_path / "hyp"), "--token_type", "word"]
            + ["--output", str(tmp_path / "out")]
        )
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and str(tmp_path / "hyp") in line and "u2" in line
    assert not (tmp_path / "out").exists()
