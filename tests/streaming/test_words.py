"""Words with times and confidence, and utterances that end in silence."""

import json
import math

import numpy as np
import pytest
import torch
from espnet2.text.char_tokenizer import CharTokenizer
from espnet2.text.word_tokenizer import WordTokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_ext.bin import stream
from espnet_ext.streaming.exported import text_of
from espnet_ext.streaming.searches import GreedySearch, PrefixBeamSearch, make_search
from espnet_ext.streaming.speech2text import StreamingSpeech2Text
from espnet_ext.streaming.transcriber import Settled, Transcriber, Transcript
from espnet_ext.streaming.words import words_of
from tiny import FS, speech


def log_probs(path, tokens=4, peak=0.9):
    """Log probabilities whose likeliest path is ``path``, each frame's peak as given."""
    peaks = [peak] * len(path) if isinstance(peak, float) else peak
    rows = np.empty((len(path), tokens))
    for row, token, p in zip(rows, path, peaks, strict=True):
        row[:] = (1 - p) / (tokens - 1)
        row[token] = p
    return np.log(rows)


SEARCHES = {"greedy": GreedySearch, "beam": PrefixBeamSearch}


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("packet", [1, 3, 100])
def test_spans_are_the_frames_of_the_best_path(search, packet):
    path = [0, 0, 1, 1, 1, 0, 1, 2, 2, 0, 3]
    peaks = [0.9, 0.9, 0.6, 0.95, 0.7, 0.9, 0.8, 0.85, 0.9, 0.9, 0.7]
    frames, found = log_probs(path, peak=peaks), SEARCHES[search]()
    for start in range(0, len(path), packet):
        found.extend(frames[start : start + packet])
    best = found.nbest()[0]
    assert best.tokens == [1, 1, 2, 3]
    assert [(span.first, span.last) for span in best.spans] == [(2, 4), (6, 6), (7, 8), (10, 10)]
    assert [math.exp(span.log_prob) for span in best.spans] == pytest.approx([0.95, 0.8, 0.9, 0.7])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), length=st.integers(1, 120), sharp=st.floats(0.5, 8))
def test_spans_of_the_beam_are_in_order_and_inside(seed, length, sharp):
    rng = np.random.default_rng(seed)
    frames = torch.from_numpy(rng.normal(size=(length, 5)) * sharp).log_softmax(-1).numpy()
    for name, make in SEARCHES.items():
        search = make()
        search.extend(frames[: length // 2])
        search.extend(frames[length // 2 :])
        for hypothesis in search.nbest():
            assert len(hypothesis.spans) == len(hypothesis.tokens)
            firsts = [span.first for span in hypothesis.spans]
            assert firsts == sorted(firsts)
            for token, span in zip(hypothesis.tokens, hypothesis.spans, strict=True):
                assert 0 <= span.first <= span.last < length
                assert span.log_prob in frames[:, token]
                if name == "greedy":
                    assert span.log_prob == frames[span.first : span.last + 1, token].max()


@pytest.mark.parametrize(
    ("token_type", "tokens", "want"),
    [
        ("word", ["ONE", "TWO"], [["ONE"], ["TWO"]]),
        ("char", ["A", "<space>", "<space>", "B", "C"], [["A"], ["B", "C"]]),
        ("char", ["<space>", "A", "<space>"], [["A"]]),
        ("bpe", ["\u2581A", "B", "\u2581", "C"], [["\u2581A", "B"], ["\u2581", "C"]]),
        ("bpe", ["A", "\u2581B"], [["A"], ["\u2581B"]]),
        ("char", [], []),
    ],
)
def test_tokens_that_make_a_word(token_type, tokens, want):
    assert [tokens[group] for group in words_of(tokens, token_type)] == want


PIECES = ["<blank>", "<unk>", "\u2581A", "B", "\u2581", "C", "\u2581D"]
VOCABULARIES = {
    "bpe": (PIECES, text_of),
    "char": (["<blank>", "<unk>", "<space>", "A", "B"], CharTokenizer().tokens2text),
    "word": (["<blank>", "<unk>", "ONE", "TWO"], WordTokenizer().tokens2text),
    "phn": (["<blank>", "<unk>", "AH", "B"], "".join),
}


class Rows(Transcriber):
    """Log probabilities are all that it hears; a frame is a sample."""

    fs = frame_seconds = 1

    def __init__(self, token_type, search):
        self.token_type, (self.tokens, self._text) = token_type, VOCABULARIES[token_type]
        self._set_search(search, 4, None)

    def start(self):
        stream = Heard(search=make_search(self.search, self.beam_size))
        stream.rows = 0
        return stream

    def __call__(self, stream, rows=(), is_final=False):
        self._extend(stream, rows)
        stream.rows += len(rows)
        return self._result(stream, is_final)

    def _symbols(self, tokens):
        return [self.tokens[token] for token in tokens]


class Heard(Transcript):
    received = property(lambda self: self.rows)


@settings(max_examples=60, deadline=None)
@given(
    token_type=st.sampled_from(sorted(VOCABULARIES)),
    search=st.sampled_from(sorted(SEARCHES)),
    seed=st.integers(0, 10**6),
    packets=st.lists(st.integers(1, 20), min_size=1, max_size=8),
    sharp=st.floats(0.5, 8),
)
def test_words_that_are_settled_change_no_result(token_type, search, seed, packets, sharp):
    model, rng = Rows(token_type, search), np.random.default_rng(seed)
    stream, whole, known = model.start(), model.start(), []
    for size in packets:
        logits = torch.from_numpy(rng.normal(size=(size, len(model.tokens))) * sharp)
        rows = logits.log_softmax(-1).numpy()
        whole.settled, whole.appeared = Settled(), known
        got, want = model(stream, rows), model(whole, rows)
        assert got == want and got.text == model._text(model._symbols(got.tokens))
        known = [(word.text, word.appeared) for word in got.words]
        assert stream.settled.tokens <= stream.search.settled
    spoken = len(got.words)
    assert spoken < 8 or search == "beam" or len(stream.settled.words) >= spoken - 2


def load(model_dir, **options):
    return StreamingSpeech2Text(model_dir / "config.yaml", model_dir / "model.pth", **options)


@pytest.mark.parametrize("search", SEARCHES)
def test_words_are_the_text_and_times_do_not_depend_on_packets(model_dir, search):
    speech2text, samples = load(model_dir, search=search), speech()
    want = speech2text.offline(samples)
    assert " ".join(word.text for word in want.words) == want.text
    for packet in (500, len(samples)):
        stream, heard, shown = speech2text.start(), 0, 0
        for start in range(0, len(samples), packet):
            partial = speech2text(stream, samples[start : start + packet])
            heard += len(samples[start : start + packet])
            assert all(word.end <= heard / FS for word in partial.words)
            shown = max(shown, len(partial.words))
        got = speech2text(stream, is_final=True)
        assert shown > 3
        for one, other in zip(got.words, want.words, strict=True):
            assert (one.text, one.start, one.end) == (other.text, other.start, other.end)
            assert one.confidence == pytest.approx(other.confidence, abs=1e-4)
            assert 0 <= one.start < one.end <= len(samples) / FS + speech2text.frame_seconds
            assert 0 < one.confidence <= 1


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("packet", [300, 4000, 10**6])
def test_silence_ends_an_utterance_and_only_the_search_begins_anew(model_dir, search, packet):
    whole = load(model_dir, search="greedy")
    speech2text = load(model_dir, search=search, endpoint=0.3)
    with torch.no_grad():  # silence is blank, and what is loud is not
        for model in (whole, speech2text):
            ctc = model.model.ctc.ctc_lo
            ctc.bias[0] = 0.0
    samples = np.concatenate([speech()[: FS // 2], np.zeros(FS, np.float32)] * 3)
    quiet = whole.offline(np.zeros(FS, np.float32))
    if quiet.words:  # make blank of what silence looks like
        with torch.no_grad():
            y = whole.encode_offline(np.zeros(2 * FS, np.float32))[0, -1]
            for model in (whole, speech2text):
                model.model.ctc.ctc_lo.weight[0] += 40 * y / y.square().sum()
    stream, utterances = speech2text.start(), []
    for start in range(0, len(samples), packet):
        utterances += speech2text(stream, samples[start : start + packet]).utterances
    last = speech2text(stream, is_final=True)
    utterances += [*last.utterances, last]
    assert len([u for u in utterances if u.words]) >= 2 and all(u.is_final for u in utterances)
    if search == "greedy":
        words = [word for u in utterances for word in u.words]
        want = whole.offline(samples).words
        assert [(w.text, w.start, w.end) for w in words] == [(w.text, w.start, w.end) for w in want]


def test_what_a_runtime_makes_is_one_of_the_class(model_dir):
    assert isinstance(load(model_dir), StreamingSpeech2Text)


def test_an_endpoint_that_cannot_be(model_dir):
    for value in (0.0, -1.0, math.nan):
        with pytest.raises(Exception, match="endpoint"):
            load(model_dir, endpoint=value)


def test_command_prints_words_as_json(capsys):
    stream.main(["--output", "json", "--endpoint", "0.2"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[-1]["is_final"]
    ended = [utterance for line in lines for utterance in line["utterances"]] + lines[-1:]
    words = [word for utterance in ended for word in utterance["words"]]
    assert [word["text"] for word in words] == "SEVEN FOUR FIVE NINE TWO".split()
    heard = [line["heard"] for line in lines]
    for word in words:
        assert 0 <= word["start"] < word["end"] <= word["appeared"] <= heard[-1] + 1e-3
        assert 0.5 < word["confidence"] <= 1
        assert any(abs(word["appeared"] - at) < 1e-3 for at in heard)
    assert all(line["ledger"]["attention"] >= 0 for line in lines)
