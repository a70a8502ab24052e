"""Features of a stream equal ESPnet's features of the whole, first and last frames included."""

import numpy as np
import pytest
import torch
from espnet2.asr.frontend.default import DefaultFrontend
from espnet2.layers.global_mvn import GlobalMVN
from espnet2.layers.utterance_mvn import UtteranceMVN
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_ext.frontend import FrontendState, StreamingFrontend
from tiny import build_encoder, max_error

FRONTEND = DefaultFrontend(
    fs=8000, n_fft=256, win_length=200, hop_length=80, n_mels=20, frontend_conf=None
).eval()


@pytest.fixture(scope="module")
def normalize(tmp_path_factory):
    path = tmp_path_factory.mktemp("stats") / "feats_stats.npz"
    rng = np.random.default_rng(0)
    mean = rng.normal(size=20)
    np.savez(path, count=100, sum=100 * mean, sum_square=100 * (mean**2 + 1.5))
    return GlobalMVN(path).eval()


def offline(samples, lengths, normalize):
    with torch.no_grad():
        feats, olens = FRONTEND(samples, torch.tensor(lengths))
        return (feats, olens) if normalize is None else normalize(feats, olens)


def stream(frontend, samples, packets, lengths=None):
    state, outputs, counts, start = frontend.init_state(samples.size(0)), [], 0, 0
    for i, size in enumerate(packets):
        received = None
        if lengths is not None:
            received = [max(0, min(n - start, size)) for n in lengths]
        feats, valid, state = frontend.forward_chunk(
            samples[:, start : start + size], state, i == len(packets) - 1, received
        )
        start += size
        outputs.append(feats)
        counts = counts + np.array(valid)
    return torch.cat(outputs, dim=1), counts.tolist()


@settings(max_examples=60, deadline=None)
@given(packets=st.lists(st.integers(0, 700), min_size=1, max_size=12))
def test_streamed_features_equal_offline_for_any_packets(packets):
    total = sum(packets)
    samples = torch.from_numpy(np.random.default_rng(total).normal(size=(1, total))).float()
    feats, counts = stream(StreamingFrontend(FRONTEND), samples, packets)
    if total <= 128:  # shorter than half a window: ESPnet cannot mirror it either
        assert feats.size(1) == 0
        return
    want, olens = offline(samples, [total], None)
    assert counts == olens.tolist() == [feats.size(1)]
    assert max_error(feats, want) < 1e-5


@pytest.mark.parametrize("packet", [1, 80, 333, 4000])
def test_normalized_features_of_a_padded_batch_equal_offline(packet, normalize):
    lengths = [1777, 1203]
    samples = torch.randn(2, 1777)
    samples[1, 1203:] = 0
    want, olens = offline(samples, lengths, normalize)
    packets = [packet] * (1777 // packet) + [1777 % packet]
    feats, counts = stream(StreamingFrontend(FRONTEND, normalize), samples, packets, lengths)
    assert counts == olens.tolist()
    for b, n in enumerate(counts):
        assert max_error(feats[b, :n], want[b, :n]) < 1e-5


def test_stacked_streams_of_different_ages_are_as_alone(normalize):
    frontend, ages = StreamingFrontend(FRONTEND, normalize), (0, 50, 700)
    waves = [torch.randn(1, age + 1000) for age in ages]
    states, parts = [], []
    for wave, age in zip(waves, ages, strict=True):
        feats, _, state = frontend.forward_chunk(wave[:, :age], frontend.init_state())
        states.append(state)
        parts.append([feats])
    state = FrontendState.stack(states)
    for start in range(0, 1000, 250):
        packet = [w[:, a + start : a + start + 250] for w, a in zip(waves, ages, strict=True)]
        feats, counts, state = frontend.forward_chunk(torch.cat(packet), state, start == 750)
        for part, row, n in zip(parts, feats, counts, strict=True):
            part.append(row[None, :n])
    for part, wave in zip(parts, waves, strict=True):
        want, _ = offline(wave, [wave.size(1)], normalize)
        assert max_error(torch.cat(part, dim=1), want) < 1e-5


@pytest.mark.parametrize("packet", [160, 1000, 20000])
def test_encoder_output_from_waveform_equals_offline(packet, normalize):
    encoder = build_encoder("conformer", "mla", causal=True, chunk_size=4, left_context=16).eval()
    lengths = [12345, 9001]
    samples = torch.randn(2, 12345)
    samples[1, 9001:] = 0
    feats, feats_lens = offline(samples, lengths, normalize)
    want, olens, _ = encoder(feats, feats_lens)
    frontend = StreamingFrontend(FRONTEND, normalize)
    front, state, outputs = frontend.init_state(2), encoder.init_state(2), []
    for start in range(0, 12345, packet):
        part = samples[:, start : start + packet]
        received = [max(0, min(n - start, part.size(1))) for n in lengths]
        is_final = start + packet >= 12345
        feats, valid, front = frontend.forward_chunk(part, front, is_final, received)
        y, state = encoder.forward_chunk(feats, state, is_final, valid)
        outputs.append(y)
    y = torch.cat(outputs, dim=1)
    assert state.lengths == olens.tolist()
    for b, n in enumerate(state.lengths):
        assert max_error(y[b, :n], want[b, :n]) < 1e-5


def test_front_ends_that_cannot_stream_are_named(normalize):
    with pytest.raises(ValueError, match="normalize.*UtteranceMVN"):
        StreamingFrontend(FRONTEND, UtteranceMVN())
    wide = DefaultFrontend(fs=8000, n_fft=256, hop_length=128, n_mels=20, frontend_conf=None)
    with pytest.raises(ValueError, match="hop_length.*128"):
        StreamingFrontend(wide)
    with pytest.raises(ValueError, match="frontend.*GlobalMVN"):
        StreamingFrontend(normalize)
