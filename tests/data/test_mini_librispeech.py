"""Mini LibriSpeech: unseen test voices, the same samples everywhere, the layout of LibriSpeech."""

import hashlib
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from espnet_ext.bin.data_prep_librispeech import main as prepare
from espnet_ext.data import mini_librispeech as mini
from espnet_ext.data.kaldi import read_data_dir, validate
from espnet_ext.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
PLAN = mini.plan()
SPLITS = ["train-clean-100", "dev-clean", "dev-other", "test-clean", "test-other"]


def planned(split):
    return [utterance for utterance in PLAN if utterance.speaker.split == split]


def words(split):
    return {word for utterance in planned(split) for word in utterance.text.split()}


def checksum(utterance):
    return hashlib.sha256(mini.speak(utterance).tobytes()).hexdigest()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Every 40th utterance of the corpus."""
    out = tmp_path_factory.mktemp("mini")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mini, "plan", lambda: PLAN[::40])
        mini.make(out)
    return out / "LibriSpeech"


@pytest.mark.parametrize("split", SPLITS[1:])
def test_evaluation_voices_and_sentences_are_unseen_in_training(split):
    def voices(split):
        return {utterance.speaker.voice.split("+")[1] for utterance in planned(split)}

    assert not voices(split) & voices("train-clean-100")
    assert {u.speaker.gender for u in planned(split)} == {"F", "M"}
    assert not {u.text for u in planned(split)} & {u.text for u in planned("train-clean-100")}
    assert words(split) <= words("train-clean-100")
    assert len(planned(split)) >= 100


def test_no_two_utterances_share_a_sentence_or_a_name():
    assert len({utterance.text for utterance in PLAN}) == len(PLAN)
    assert len({utterance.name for utterance in PLAN}) == len(PLAN)


def test_every_word_is_said_in_training_by_voices_of_both_genders():
    assert 60 <= len(words("train-clean-100")) <= 150
    for gender in ("F", "M"):
        texts = [u.text for u in planned("train-clean-100") if u.speaker.gender == gender]
        assert words("train-clean-100") == set(" ".join(texts).split())


def test_utterance_is_the_same_in_any_process_whatever_was_spoken_before():
    some = [0, 5, 644, 1559]  # breathy voices among them: their noise is seeded
    script = (
        "import sys; from test_mini_librispeech import PLAN, checksum\n"
        f"print(*[checksum(PLAN[n]) for n in {some[::-1]}])"
    )
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(ROOT / "tests/data")])
    environment = os.environ | {"PYTHONPATH": path, "MALLOC_PERTURB_": "90"}
    there = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert [checksum(PLAN[n]) for n in some] == there.stdout.split()[::-1]


@pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="eSpeak NG of another platform may round differently",
)
def test_samples_are_those_of_every_other_machine():
    assert checksum(PLAN[0])[:16] == "6d83b83618950521"
    assert checksum(PLAN[-1])[:16] == "a60a84edf8713120"


def test_resampling_is_exact_integer_arithmetic():
    samples = np.random.default_rng(0).integers(-32768, 32768, 2000).astype(np.int16)
    resampled = mini.to_16k(samples)
    up, down, taps = mini._low_pass()
    middle = len(taps) // 2
    for n in (0, 1, 700, len(resampled) - 1):
        exact = sum(
            int(samples[k]) * up * int(taps[middle + n * down - k * up])
            for k in range(len(samples))
            if abs(n * down - k * up) <= middle
        )
        assert abs(int(resampled[n]) * 2**mini.FILTER_BITS - exact) <= 2 ** (mini.FILTER_BITS - 1)


@pytest.mark.parametrize("hertz, gain", [(100, 1), (1000, 1), (6000, 1), (9500, 0)])
def test_resampling_keeps_what_16_khz_can_hold_and_drops_the_rest(hertz, gain):
    tone = 10000 * np.sin(2 * np.pi * hertz * np.arange(22050) / 22050)
    resampled = mini.to_16k(tone.astype(np.int16))
    expected = gain * 10000 * np.sin(2 * np.pi * hertz * np.arange(16000) / 16000)
    assert len(resampled) == 16000
    np.testing.assert_allclose(resampled[200:-200], expected[200:-200], atol=50)


def test_other_is_noisier_and_clean_is_quiet_between_words():
    speech = mini.to_16k(mini.synthesize(PLAN[0].text, PLAN[0].speaker))

    def floor(other, seed):
        """Level of the quietest frames below that of the whole, in dB."""
        heard = mini.in_room(speech, other, np.random.default_rng(seed)).astype(float)
        frames = (heard[: len(heard) // 400 * 400].reshape(-1, 400) ** 2).mean(axis=1)
        return 10 * np.log10((heard**2).mean() / np.percentile(frames, 2))

    assert all(12 < floor(True, seed) < 26 for seed in range(10))
    assert all(28 < floor(False, seed) < 50 for seed in range(10))


def test_corpus_is_read_by_the_preparation_of_librispeech(corpus, tmp_path):
    found = 0
    for split in SPLITS:
        prepare(["--check_counts", "false", str(corpus / split), str(tmp_path / split)])
        assert not validate(tmp_path / split)
        tables = read_data_dir(tmp_path / split)
        for utterance in PLAN[::40]:
            if utterance.speaker.split == split:
                found += 1
                speaker = f"{utterance.speaker.name}-{utterance.chapter}"
                assert tables["text"][utterance.name] == utterance.text
                assert tables["utt2spk"][utterance.name] == speaker
                assert tables["spk2gender"][speaker] == utterance.speaker.gender.lower()
                samples, rate = sf.read(tables["wav.scp"][utterance.name], dtype="int16")
                assert rate == 16000
                np.testing.assert_array_equal(samples, mini.speak(utterance))
    assert found == len(PLAN[::40])


def test_corpus_is_read_by_torchaudio(corpus):
    from torchaudio.datasets import LIBRISPEECH

    dataset = LIBRISPEECH(corpus.parent, url="test-clean", folder_in_archive="LibriSpeech")
    utterances = {u.name: u for u in PLAN[::40] if u.speaker.split == "test-clean"}
    assert len(dataset) == len(utterances)
    for n in range(len(dataset)):
        path, rate, text, speaker, chapter, index = dataset.get_metadata(n)
        utterance = utterances[f"{speaker}-{chapter}-{index:04d}"]
        assert (text, rate) == (utterance.text, 16000)
        assert (corpus.parent / "LibriSpeech" / path).is_file()


def test_corpus_that_is_there_is_kept_and_one_of_another_plan_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(mini, "plan", lambda: PLAN[:2])
    first = mini.make(tmp_path)
    (tmp_path / "LibriSpeech/mark").touch()
    (tmp_path / ".LibriSpeech.tmp/dev-clean").mkdir(parents=True)  # of a run that was killed
    assert mini.make(tmp_path) == first
    assert (tmp_path / "LibriSpeech/mark").exists()

    monkeypatch.setattr(mini, "plan", lambda: PLAN[2:5])
    assert re.match("3 utterances: train-clean-100 0.[0-9] min; SHA-256 ", mini.make(tmp_path))
    assert not (tmp_path / "LibriSpeech/mark").exists()
    assert not (tmp_path / "LibriSpeech/dev-clean").exists()
    assert len(list(tmp_path.rglob("*.flac"))) == 3


def test_corpus_made_elsewhere_is_not_touched(tmp_path):
    (tmp_path / "LibriSpeech").mkdir()
    (tmp_path / "LibriSpeech/README.TXT").write_text("LibriSpeech ASR corpus\n")
    with pytest.raises(UserError, match="LibriSpeech: not made here, so it stays"):
        mini.make(tmp_path)
    assert os.listdir(tmp_path) == ["LibriSpeech"]


def test_missing_package_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(UserError, match="package espeakng-loader, .* is not installed: make setup"):
        mini.make(tmp_path)
    assert not os.listdir(tmp_path)


def test_command_line_ends_a_mistake_in_one_line(tmp_path):
    (tmp_path / "LibriSpeech").mkdir()
    done = subprocess.run(
        [sys.executable, str(ROOT / "local/make_mini_librispeech.py"), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert re.fullmatch(
        "make_mini_librispeech: error: .*LibriSpeech: not made here.*\n", done.stderr
    )
