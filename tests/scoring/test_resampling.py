"""What the bootstrap draws, and that a difference by chance is seldom called one of the models."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_ext.bin.score import main as score_main
from espnet_ext.errors import UserError
from espnet_ext.report.statistics import paired_bootstrap, read_score, seeds_bootstrap
from espnet_ext.scoring import bootstrap, nesting
from espnet_ext.scoring.resampling import FEWEST_SPEAKERS


def utterances(readers, each=2):
    """LibriSpeech's ids, two chapters of every reader, and their Kaldi speakers."""
    ids = [
        f"{1000 + r}-{134686 + c}-{n:04d}"
        for r in range(readers)
        for c in range(2)
        for n in range(each)
    ]
    return {i: i.rpartition("-")[0] for i in ids}


def test_null_differences_by_speaker_are_called_significant_as_often_as_promised():
    """Each model suits some speakers better, and on the whole none is better."""
    speakers = utterances(40, each=10)
    readers = [i.split("-")[0] for i in speakers]
    calls = {"speakers": 0, "utterances": 0}
    trials = 120
    for trial in range(trials):
        draw = np.random.default_rng(trial)
        suits = dict(zip(dict.fromkeys(readers), draw.normal(0, 1.5, 40), strict=True))
        mean = np.array([4 + suits[r] for r in readers])
        model = np.clip(mean.round() + draw.integers(-1, 2, len(mean)), 0, None).astype(int)
        base = np.full(len(mean), 4) + draw.integers(-1, 2, len(mean))
        pairs = ([(int(e), 20) for e in errors] for errors in (model, base))
        counts = [dict(zip(speakers, each, strict=True)) for each in pairs]
        nested = paired_bootstrap(*counts, speakers, resamples=400)
        # the same errors, under names that tell nothing of who speaks
        alone = [{f"u{n:04d}": pair for n, pair in enumerate(c.values())} for c in counts]
        flat = paired_bootstrap(*alone, resamples=400)
        assert (nested["drawn"], flat["drawn"]) == ("speakers", "utterances")
        assert nested["difference"] == flat["difference"]
        calls["speakers"] += nested["p"] <= 0.05
        calls["utterances"] += flat["p"] <= 0.05
    assert calls["utterances"] > 0.4 * trials
    assert calls["speakers"] < 0.12 * trials


def test_null_differences_by_seed_are_called_significant_as_often_as_promised():
    """Models whose trainings scatter, drawn from one distribution: pairs of three seeds each."""
    calls, trials = {"seeds": 0, "recordings": 0}, 100
    for trial in range(trials):
        draw = np.random.default_rng(trial)
        one, other = (
            {
                seed: {f"u{n:03d}": (int(e), 10) for n, e in enumerate(errors)}
                for seed, errors in enumerate(
                    draw.binomial(10, draw.uniform(0.02, 0.2, (3, 1)), (3, 60))
                )
            }
            for _ in range(2)
        )
        found = seeds_bootstrap(one, other, resamples=200)
        assert found["drawn"] == "seeds and utterances" and found["seeds"] == [0, 1, 2]
        assert ("within luck" in found["verdict"]) == (
            found["interval_95"][0] <= 0 <= found["interval_95"][1]
        )
        calls["seeds"] += found["p"] <= 0.05
        calls["recordings"] += paired_bootstrap(one[0], other[0], resamples=200)["p"] <= 0.05
    assert calls["recordings"] > 0.4 * trials  # which says why one training each shows nothing
    assert calls["seeds"] < 0.1 * trials


def test_difference_over_seeds_is_of_those_that_both_have():
    def model(rate):
        return {f"u{n}": (int(n % 20 < rate), 1) for n in range(200)}

    better, worse = ({s: model(r) for s, r in rates.items()} for rates in
                     ({1: 2, 2: 3, 3: 2, 4: 3, 9: 20}, {4: 9, 3: 8, 2: 8, 1: 9}))  # fmt: skip
    found = seeds_bootstrap(worse, better)
    assert found["seeds"] == [1, 2, 3, 4] and found["difference"] == 30.0
    assert found["p"] < 0.01 and found["verdict"] == "beyond luck: the interval leaves 0 out"
    none = seeds_bootstrap(better, better)
    assert (none["difference"], none["interval_95"], none["p"]) == (0.0, [0.0, 0.0], 1.0)
    with pytest.raises(UserError, match="share no seed"):
        seeds_bootstrap({1: model(1)}, {2: model(1)})


def test_speaker_is_the_reader_and_few_of_them_are_not_drawn():
    many, few = utterances(FEWEST_SPEAKERS), utterances(FEWEST_SPEAKERS - 1)
    levels, drawn = nesting(many)
    assert drawn == "speakers" and levels[1] == list(many)
    assert set(levels[0]) == {i.split("-")[0] for i in many}  # not their chapters
    assert nesting(few) == ([list(few)], "utterances")  # 38 chapters
    digits = {f"{s}-test-{n:04d}": s for s in ("george", "jackson") for n in range(30)}
    assert nesting(digits) == ([list(digits)], "utterances")
    others = {f"{s}-test-{n}": f"speaker-{s}" for s in range(30) for n in range(2)}
    levels, drawn = nesting(others)
    assert drawn == "speakers" and levels[0] == list(others.values())


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=2, max_size=6), st.integers(0, 9))
def test_drawn_speaker_comes_with_all_that_it_says(sizes, seed):
    speakers = np.repeat(np.arange(len(sizes)), sizes)
    one_hot = np.eye(len(speakers))
    drawn = bootstrap(one_hot, [speakers, np.arange(len(speakers))], 50, seed)
    for speaker in range(len(sizes)):
        assert (np.ptp(drawn[:, speakers == speaker], axis=1) == 0).all()
    assert (drawn @ (1 / np.array(sizes))[speakers]).round(9).tolist() == [len(sizes)] * 50


@pytest.mark.parametrize("level", [0, 1, 2])
def test_nested_spread_is_that_of_whatever_level_varies(level):
    """Seeds of speakers of utterances: variance of the mean, whichever level it comes from."""
    labels = np.indices((25, 20, 4)).reshape(3, -1)
    labels = [labels[0], labels[0] * 20 + labels[1], np.arange(2000)]
    effect = np.random.default_rng(1).normal(0, 1, labels[level].max() + 1)
    values = effect[labels[level]][:, None]
    expected = effect.std() / np.sqrt(len(effect))
    assert bootstrap(values, labels, 1000).std() / 2000 == pytest.approx(expected, rel=0.25)
    # one seed has no spread of its own: its speakers are drawn
    one = [np.zeros(2000), labels[1], labels[2]]
    inside = bootstrap(values, one, 1000)
    np.testing.assert_array_equal(inside, bootstrap(values, labels[1:], 1000))


def test_level_that_cuts_across_is_drawn_once_for_all():
    """Three trainings decode the same recordings: they do not make three times the speakers."""
    draw = np.random.default_rng(2)
    speakers = np.repeat(np.arange(40), 5)
    values = draw.normal(0, 1, 40)[speakers][:, None]
    alone = bootstrap(values, [speakers, np.arange(200)], 2000).std()
    levels = [np.repeat(np.arange(3), 200), np.tile(speakers, 3), np.tile(np.arange(200), 3)]
    together = bootstrap(np.tile(values, (3, 1)), levels, 2000).std() / 3
    assert together == pytest.approx(alone, rel=0.1)
    # and what differs from training to training widens it
    by_seed = np.tile(values, (3, 1)) + np.repeat([-3.0, 0.0, 3.0], 200)[:, None]
    assert bootstrap(by_seed, levels, 2000).std() / 3 > 1.5 * alone


@pytest.mark.parametrize(("readers", "drawn"), [(20, "speakers"), (6, "utterances")])
def test_scores_say_what_was_drawn_and_who_spoke(tmp_path, readers, drawn):
    speakers = utterances(readers)
    files = {"ref": dict.fromkeys(speakers, "A B"), "hyp": dict.fromkeys(speakers, "A C")}
    files["utt2spk"] = speakers
    for name, table in files.items():
        (tmp_path / name).write_text("".join(f"{k} {v}\n" for k, v in table.items()))
    arguments = [word for name in files for word in (f"--{name}", str(tmp_path / name))]
    score_main([*arguments, "--output", str(tmp_path / "out"), "--token_type", "word"])
    wer = tmp_path / "out" / "score_wer"
    assert json.loads((wer / "score.json").read_text())["drawn"] == drawn
    assert f"({drawn} drawn)" in (wer / "result.txt").read_text()
    counts, read = read_score(wer)
    assert read == speakers and set(counts.values()) == {(1, 2)}
