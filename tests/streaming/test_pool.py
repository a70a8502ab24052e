"""A pool of streams: each text that of a stream alone, bytes within the budget, faults apart."""

import threading
import time
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_ext.errors import UserError
from espnet_ext.streaming.pool import PoolFull, StreamPool
from espnet_ext.streaming.speech2text import Result, StreamingSpeech2Text
from streaming.conftest import write_model
from tiny import FS, speech


@pytest.fixture(scope="module")
def speech2text(model_dir):
    return StreamingSpeech2Text(model_dir / "config.yaml", model_dir / "model.pth")


def recording(seed, seconds):
    return np.roll(speech(), 977 * seed)[: int(seconds * FS)]


def run(pool, recordings, begins, packet):
    """Final results of recordings that begin in different rounds, and get a packet a round."""
    streams, given_, finals, rounds = {}, [0] * len(recordings), {}, 0
    while len(finals) < len(recordings):
        for i, samples in enumerate(recordings):
            if rounds == begins[i]:
                streams[i] = pool.start()
            if i in streams and not streams[i].finished:
                part = samples[given_[i] : given_[i] + packet]
                pool.push(streams[i], part)
                given_[i] += packet
                if given_[i] >= len(samples):
                    pool.finish(streams[i])
        while outcomes := pool.step():
            for stream, result in outcomes:
                assert isinstance(result, Result), result
                if result.is_final:
                    finals[next(i for i, own in streams.items() if own is stream)] = result
        rounds += 1
    assert not pool.streams
    return [finals[i] for i in range(len(recordings))]


@pytest.mark.parametrize("search", ["greedy", "beam"])
def test_each_text_is_that_of_a_stream_alone(model_dir, search):
    alone = StreamingSpeech2Text(model_dir / "config.yaml", model_dir / "model.pth", search=search)
    recordings = [recording(i, 1.5 + i / 3) for i in range(5)]
    results = run(StreamPool(alone, max_batch=3), recordings, (0, 0, 2, 3, 9), packet=800)
    for samples, result in zip(recordings, results, strict=True):
        stream = alone.start()
        alone(stream, samples)
        want = alone(stream, is_final=True)
        assert len(want.tokens) > 3
        assert result.tokens == want.tokens
        assert result.score == pytest.approx(want.score, abs=1e-3)


@settings(max_examples=10, deadline=None)
@given(
    seconds=st.lists(st.floats(0, 1.2), min_size=1, max_size=4),
    begins=st.lists(st.integers(0, 5), min_size=4, max_size=4),
    packet=st.integers(40, 5000),
    max_batch=st.integers(1, 4),
)
def test_any_lengths_packets_and_batches(speech2text, seconds, begins, packet, max_batch):
    recordings = [recording(i, s) for i, s in enumerate(seconds)]
    results = run(StreamPool(speech2text, max_batch=max_batch), recordings, begins, packet)
    for samples, result in zip(recordings, results, strict=True):
        stream = speech2text.start()
        speech2text(stream, samples)
        assert result.tokens == speech2text(stream, is_final=True).tokens


def test_those_that_wait_longest_come_first(speech2text):
    pool = StreamPool(speech2text, max_batch=1)
    streams = [pool.start() for _ in range(3)]
    for stream in streams:
        pool.push(stream, recording(0, 0.6))
    assert [pool.step()[0][0] for _ in range(3)] == streams
    for stream in (streams[2], streams[0]):
        pool.push(stream, recording(1, 0.6))
    assert [pool.step()[0][0] for _ in range(2)] == [streams[2], streams[0]]


def test_a_step_without_a_whole_chunk_looks_at_no_stream(speech2text, monkeypatch):
    pool = StreamPool(speech2text)
    streams = [pool.start() for _ in range(5)]
    looked = []
    monkeypatch.setattr(type(pool), "_take", lambda self, stream: looked.append(stream))
    chunk = speech2text.samples(speech2text.chunk_seconds)
    for stream in streams:
        pool.push(stream, np.zeros(chunk // 2, np.float32))
    assert not pool.due and not pool.step() and not looked
    pool.push(streams[3], np.zeros(chunk, np.float32))
    assert not pool.step() and looked == [streams[3]]


@pytest.mark.parametrize("chunks", [1, 1.3, 2])
def test_what_waits_is_taken_however_little_may_wait(speech2text, chunks):
    period = speech2text.chunk_seconds
    pool = StreamPool(speech2text, max_waiting=chunks * period)
    stream, samples, given = pool.start(), recording(1, 2), 0
    for _ in range(1000):
        if part := min(pool.room(stream), len(samples) - given):
            pool.push(stream, samples[given : given + part])
            given += part
        pool.step()
    assert given == len(samples)


def test_what_comes_while_a_step_looks_is_not_forgotten(speech2text, monkeypatch):
    pool = StreamPool(speech2text)
    stream, take, samples = pool.start(), StreamPool._take, recording(1, 2)
    chunk = speech2text.samples(speech2text.chunk_seconds)

    def slow(self, own):
        ready = take(self, own)
        if not ready and own.received < chunk + 99:
            self.push(own, samples[own.received : own.received + chunk])
        return ready

    monkeypatch.setattr(StreamPool, "_take", slow)
    pool.push(stream, samples[: chunk // 2])
    stream.needed = 0  # a bound may be low
    pool.push(stream, samples[chunk // 2 : chunk // 2 + 9])
    assert not pool.step() and list(pool.due) == [stream]
    assert [one for one, _ in pool.step()] == [stream] and not pool.due


def test_streams_of_a_step_that_failed_can_be_stepped_again(speech2text, monkeypatch):
    pool = StreamPool(speech2text)
    stream = pool.start()
    pool.push(stream, recording(1, 0.6))
    pool.finish(stream)

    def full(streams):
        raise MemoryError

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(speech2text, "step", full)
        pool.step()
    finals = [result for _ in range(9) for _, result in pool.step() if result.is_final]
    assert [result.text for result in finals] == [speech2text.offline(recording(1, 0.6)).text]


def test_a_stream_that_is_dropped_leaves_nothing_behind(speech2text):
    pool = StreamPool(speech2text)
    stream = pool.start()
    pool.push(stream, recording(1, 0.6))
    kept = weakref.ref(stream)
    assert pool.due
    pool.drop(stream)
    del stream
    assert kept() is None and not pool.due and not pool.step()


def test_faults_of_a_stream_are_its_own(speech2text):
    pool = StreamPool(speech2text)
    good, silent, gone, loud = (pool.start() for _ in range(4))
    samples = recording(1, 0.6)
    for bad in (np.full(80, np.nan), np.zeros((2, 80, 2)), np.arange(80), np.full(80, 1e9), "ab"):
        with pytest.raises(UserError):
            pool.push(good, bad)
    for stream in (good, gone):
        pool.push(stream, samples)
    pool.drop(gone)
    pool.push(loud, recording(2, 0.6))
    pool.step()
    state = loud.stream.encoder
    state.pending = (torch.full((200, state.pending[0].size(1)), 3e38),)
    pool.push(loud, samples)
    outcomes = dict(pool.step())
    assert isinstance(outcomes[loud], UserError) and loud not in pool.streams
    pool.finish(good)
    finals = [result for _ in range(9) for stream, result in pool.step() if stream is good]
    stream = speech2text.start()
    speech2text(stream, samples)
    assert finals[-1].tokens == speech2text(stream, is_final=True).tokens and finals[-1].is_final
    assert list(pool.streams) == [silent]
    with pytest.raises(UserError, match="ended"):
        pool.push(good, samples)


@pytest.mark.parametrize("shape", [(80, 2), (80, 1), (0, 2), ()], ids=str)
def test_a_pool_refuses_what_a_stream_alone_refuses(speech2text, shape):
    pool = StreamPool(speech2text)
    stream, pooled, bad = speech2text.start(), pool.start(), np.zeros(shape, np.float32)
    said = set()
    for hear in (
        lambda: speech2text(stream, bad),
        lambda: speech2text.take(stream, bad),
        lambda: speech2text.offline(bad),
        lambda: pool.push(pooled, bad),
    ):
        with pytest.raises(UserError) as refused:
            hear()
        said.add(str(refused.value))
    assert said == {f"samples: must be mono (n,), got shape {shape}"} and pooled.received == 0


def test_budget_admits_what_it_holds(speech2text):
    one = StreamPool(speech2text, budget=10**9).stream_bytes
    pool = StreamPool(speech2text, budget=3 * one + one // 2)
    assert pool.max_streams == 3
    streams = [pool.start() for _ in range(3)]
    with pytest.raises(PoolFull, match="3 streams"):
        pool.start()
    pool.drop(streams[1])
    pool.start()
    with pytest.raises(UserError, match="no stream"):
        StreamPool(speech2text, budget=one - 1)


@pytest.mark.parametrize("left_context", [0, 16, -1])
@pytest.mark.parametrize("attention", ["mha", "mla", "linear"])
def test_no_stream_holds_more_than_its_share(tmp_path, attention, left_context):
    conf = {"kv_lora_rank": 12} if attention == "mla" else {}
    options = {
        "output_size": 32, "attention_heads": 4, "num_blocks": 2, "linear_units": 32,
        "attention": attention, "attention_conf": conf, "causal": True, "chunk_size": 8,
    }  # fmt: skip
    path = write_model(tmp_path, encoder_conf=options)
    model = StreamingSpeech2Text(
        path / "config.yaml", path / "model.pth",
        left_context=-1 if attention == "linear" else left_context,
    )  # fmt: skip
    seconds = 6.0
    pool = StreamPool(model, budget=10**9, max_seconds=seconds)
    stream, most = pool.start(), 0
    samples = np.tile(speech(), 9)[: int(seconds * FS)]
    for start in range(0, len(samples), 2000):
        pool.push(stream, samples[start : start + 2000])
        held = stream.stream
        most = max(most, stream.nbytes, held.encoder.capacity_bytes + held.frontend.nbytes)
        pool.step()
        most = max(most, held.encoder.capacity_bytes + held.frontend.nbytes)
    assert most <= pool.stream_bytes < 4 * most
    with pytest.raises(UserError, match="max_seconds"):
        pool.push(stream, samples[:800])


def test_a_cache_without_end_needs_a_longest_stream(model_dir):
    model = StreamingSpeech2Text(
        model_dir / "config.yaml", model_dir / "model.pth", left_context=-1
    )
    with pytest.raises(UserError, match="max_seconds"):
        StreamPool(model, budget=10**9)
    StreamPool(model)


def test_options_that_cannot_be(model_dir, speech2text):
    with pytest.raises(UserError, match="max_batch"):
        StreamPool(speech2text, max_batch=0)
    with pytest.raises(UserError, match="max_waiting"):
        StreamPool(speech2text, max_waiting=float("nan"))
    rescoring = StreamingSpeech2Text(
        model_dir / "config.yaml", model_dir / "model.pth", search="beam", rescore=True
    )
    with pytest.raises(UserError, match="rescore"):
        StreamPool(rescoring)


def test_too_much_at_once_is_refused_and_nothing_lost(speech2text):
    pool = StreamPool(speech2text)
    stream, samples = pool.start(), recording(0, 0.6)
    pool.push(stream, samples)
    with pytest.raises(UserError, match="max_waiting"):
        pool.push(stream, recording(1, 0.6))
    pool.finish(stream)
    finals = [result for _ in range(9) for _, result in pool.step() if result.is_final]
    alone = speech2text.start()
    speech2text(alone, samples)
    assert [r.tokens for r in finals] == [speech2text(alone, is_final=True).tokens]


def test_packets_come_from_other_threads(speech2text):
    pool = StreamPool(speech2text)
    recordings = [recording(i, 1.5) for i in range(4)]
    streams = [pool.start() for _ in recordings]

    def speak(stream, samples):
        for start in range(0, len(samples), 400):
            while True:
                try:
                    pool.push(stream, samples[start : start + 400])
                    break
                except UserError:  # a step has to come first
                    time.sleep(0.001)
        pool.finish(stream)

    threads = [
        threading.Thread(target=speak, args=pair) for pair in zip(streams, recordings, strict=True)
    ]
    for thread in threads:
        thread.start()
    finals = {}
    while len(finals) < len(streams):
        finals |= {s: r for s, r in pool.step() if r.is_final}
    for thread in threads:
        thread.join()
    for stream, samples in zip(streams, recordings, strict=True):
        alone = speech2text.start()
        speech2text(alone, samples)
        assert finals[stream].tokens == speech2text(alone, is_final=True).tokens
