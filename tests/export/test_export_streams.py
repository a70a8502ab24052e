"""Streams of an export: words as the model's own, and many of them in one step."""

import pytest

from espnet_ext.streaming import StreamingSpeech2Text, StreamPool
from streaming.test_pool import recording, run
from tiny import FS


@pytest.fixture(scope="module", params=["conformer", "linear"])
def model(exported, request):
    return exported(request.param)


def load(model, **options):
    file = model.path / "model.onnx"
    return StreamingSpeech2Text(asr_model_file=file, runtime="onnxruntime", **options)


def test_words_are_those_of_the_model(model):
    samples, theirs = recording(0, 2.0), load(model)
    want = model.ours.offline(samples)
    stream = theirs.start()
    for start in range(0, len(samples), 999):
        theirs(stream, samples[start : start + 999])
    got = theirs(stream, is_final=True)
    assert len(want.words) > 3
    for word, other in zip(got.words, want.words, strict=True):
        assert (word.text, word.start, word.end) == (other.text, other.start, other.end)
        assert word.confidence == pytest.approx(other.confidence, abs=1e-3)
        assert word.appeared <= len(samples) / FS


def test_streams_are_stepped_together_each_as_if_alone(model):
    alone = load(model)
    pool = StreamPool(alone, budget=10**9, max_batch=3)
    recordings = [recording(i, 0.9 + i / 5) for i in range(4)]
    results = run(pool, recordings, (0, 1, 1, 4), 900)
    for samples, result in zip(recordings, results, strict=True):
        stream = alone.start()
        alone(stream, samples)
        want = alone(stream, is_final=True)
        assert len(want.tokens) > 1 and result.tokens == want.tokens
        assert result.score == pytest.approx(want.score, abs=1e-3)


def test_no_stream_holds_more_than_its_share(model):
    pool = StreamPool(load(model), budget=10**9)
    stream, most, samples = pool.start(), 0, recording(0, 3.0)
    for start in range(0, len(samples), 1000):
        pool.push(stream, samples[start : start + 1000])
        most = max(most, stream.nbytes)
        pool.step()
    assert most <= pool.stream_bytes < 4 * most
