"""``frontend: kaldi_fbank`` gives Kaldi's features: whole, in batches of any ends, in packets."""

import importlib.util
import io
import tarfile
from pathlib import Path

import kaldi_native_fbank
import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_ext.errors import UserError
from espnet_ext.frontend import FrontendState, KaldiFbank, StreamingFrontend
from tiny import max_error, speech

FBANK = KaldiFbank(fs="8k", n_mels=20).eval()
ODD = KaldiFbank(fs=11025, n_mels=23).eval()  # an odd window, 275 samples, and an even hop


def kaldi(samples, fs, n_mels):
    """Features (t, n_mels) of kaldi-native-fbank, with the options of sherpa-onnx."""
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.samp_freq = fs
    options.frame_opts.dither = 0
    options.frame_opts.snip_edges = False
    options.mel_opts.num_bins = n_mels
    options.mel_opts.high_freq = -400
    fbank = kaldi_native_fbank.OnlineFbank(options)
    fbank.accept_waveform(fs, samples.tolist())
    fbank.input_finished()
    frames = [fbank.get_frame(i) for i in range(fbank.num_frames_ready)]
    return np.array(frames, dtype=np.float32).reshape(-1, n_mels)


def noisy(n, seed=0):
    """Tones of changing loudness (n,) over noise 60 dB below them."""
    noise = np.random.default_rng(seed).normal(0, 3e-4, n).astype(np.float32)
    return speech(1 + n / 8000, seed)[:n] + noise


@pytest.fixture(scope="module")
def recordings():
    """Real speech (n,): the utterances of AN4 inside ESPnet's package, 16 kHz."""
    package = Path(importlib.util.find_spec("egs3").submodule_search_locations[0])
    with tarfile.open(package / "mini_an4/esp2_asr/downloads.tar.gz") as archive:
        files = [archive.extractfile(m).read() for m in archive if m.name.endswith(".sph")]
    return [soundfile.read(io.BytesIO(file), dtype="float32")[0] for file in files]


def whole(fbank, samples):
    """Features (t, n_mels) of one utterance (n,)."""
    samples = torch.as_tensor(samples)
    feats, lengths = fbank(samples[None], torch.tensor([len(samples)]))
    assert lengths.tolist() == [feats.size(1)]
    return feats[0]


@pytest.mark.parametrize("n_mels", [20, 23, 40, 80])
@pytest.mark.parametrize("fs", [8000, 16000, 22050, 44100])
def test_features_are_those_of_kaldi(recordings, fs, n_mels):
    """On speech and noise, read as if they were of any rate.

    Not on pure tones: beside them, Kaldi's float32 rounds the quiet bands by up to a percent.
    """
    fbank = KaldiFbank(fs, n_mels)
    noise = np.random.default_rng(0).normal(0, 0.1, fs).astype(np.float32)
    for samples in (*recordings, noise):
        difference = np.abs(whole(fbank, samples).numpy() - kaldi(samples, fs, n_mels))
        assert difference.max() < 2e-3 and difference.mean() < 2e-5


@pytest.mark.parametrize("fs", [8000, 11025, 16000, 22050, 44100])
def test_any_length_gives_what_kaldi_gives(fs):
    fbank = KaldiFbank(fs, 23)
    hop, window, left = fbank.hop, fbank.window, fbank.left
    near = [0, hop // 2, left, hop, hop + hop // 2, window - left, window, window + hop // 2]
    for n in sorted({m + d for m in near for d in (-1, 0, 1) if m + d >= 0}):
        want, got = kaldi(noisy(n), fs, 23), whole(fbank, noisy(n)).numpy()
        assert got.shape == want.shape == ((n + hop // 2) // hop, 23)
        assert np.abs(got - want).max(initial=0) < 2e-3, n
        assert fbank.has_features(n) == bool(len(want))


def test_silence_and_a_constant_are_at_the_floor():
    for level in (0.0, 0.5):
        feats = whole(FBANK, torch.full((1000,), level))
        assert max_error(feats, torch.full((13, 20), -15.942385)) < 1e-5


@pytest.mark.parametrize("fbank", [FBANK, ODD], ids=["8k", "11025"])
def test_an_utterance_in_a_batch_is_as_alone(fbank):
    lengths = [3000, 2777, 100, 39, 0]
    samples = torch.full((5, 3210), torch.nan)  # nothing is read that no utterance has
    for row, n in zip(samples, lengths, strict=True):
        row[:n] = torch.from_numpy(noisy(n, seed=n))
    feats, frames = fbank(samples, torch.tensor(lengths))
    assert feats.shape == (5, fbank.num_frames(3000), fbank.n_mels)
    for row, n, m in zip(feats, lengths, frames.tolist(), strict=True):
        assert max_error(row[:m], whole(fbank, noisy(n, seed=n))) < 1e-6
        assert not row[m:].any()
    empty, frames = fbank(samples[3:, :39], torch.tensor([39, 0]))
    assert empty.shape == (2, 0, fbank.n_mels) and frames.tolist() == [0, 0]


@settings(max_examples=80, deadline=None)
@given(
    packets=st.lists(st.integers(0, 400), min_size=1, max_size=12),
    together=st.integers(0, 400),
    fbank=st.sampled_from([FBANK, ODD]),
)
def test_packets_of_any_size_give_the_whole(packets, together, fbank):
    samples = torch.from_numpy(noisy(sum(packets), seed=together))
    live = StreamingFrontend(fbank)
    state, parts, start = live.init_state(), [], 0
    for i, size in enumerate(packets):
        packet = samples[None, start : start + size]
        feats, counts, state = live.forward_chunk(packet, state, i == len(packets) - 1)
        assert counts == [feats.size(1)]
        assert state.nbytes <= 4 * (2 * fbank.window + sum(packets) * (i == 0))
        parts.append(feats[0])
        start += size
    assert max_error(torch.cat(parts), whole(fbank, samples)) < 1e-5


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 900), min_size=2, max_size=3),
    packet=st.integers(1, 500),
    ages=st.lists(st.integers(0, 500), min_size=3, max_size=3),
    fbank=st.sampled_from([FBANK, ODD]),
)
def test_stacked_streams_of_any_age_end_as_alone(lengths, packet, ages, fbank):
    """Each has had some samples alone; then they go on together, and end when they end."""
    live, streams, states, parts = StreamingFrontend(fbank), [], [], []
    for n, age in zip(lengths, ages, strict=False):
        streams.append(torch.from_numpy(noisy(age + n, seed=n)))
        feats, _, state = live.forward_chunk(streams[-1][None, :age], live.init_state())
        states.append(state)
        parts.append([feats[0]])
    state = FrontendState.stack(states)
    for start in range(0, max(lengths) + 1, packet):
        batch, sizes = torch.full((len(lengths), packet), torch.nan), []
        for row, samples, age in zip(batch, streams, ages, strict=False):
            piece = samples[age + start : age + start + packet]
            row[: len(piece)] = piece
            sizes.append(len(piece))
        final = start + packet > max(lengths)
        feats, counts, state = live.forward_chunk(batch, state, final, sizes)
        for part, row, m in zip(parts, feats, counts, strict=True):
            part.append(row[:m])
    for part, samples in zip(parts, streams, strict=True):
        assert max_error(torch.cat(part), whole(fbank, samples)) < 1e-5


def test_autocast_and_other_dtypes_leave_the_features():
    samples = torch.from_numpy(noisy(2000))
    want = whole(FBANK, samples)
    with torch.autocast("cpu", torch.bfloat16):
        got = whole(FBANK, samples)
        live = StreamingFrontend(FBANK)
        streamed, _, _ = live.forward_chunk(samples[None], live.init_state(), True)
    assert got.dtype == torch.float32 and torch.equal(got, want)
    assert max_error(streamed[0], want) < 1e-5
    for dtype, allowed in ((torch.bfloat16, 0.04), (torch.float16, 0.005), (torch.float64, 1e-5)):
        fbank = KaldiFbank(8000, 20).to(dtype)
        rounded = samples.to(dtype)
        got = whole(fbank, rounded)
        assert got.dtype == dtype
        assert max_error(got.float(), whole(FBANK, rounded.float())) < allowed
        live = StreamingFrontend(fbank)
        streamed, _, _ = live.forward_chunk(rounded[None], live.init_state(), True)
        assert torch.equal(streamed[0], got)


def test_no_constant_is_in_a_checkpoint():
    assert not FBANK.state_dict() and FBANK.output_size() == 20


@pytest.mark.parametrize(
    "options,words",
    [
        ({"hop_length": 128}, ["hop_length", "160", "16000", "128"]),
        ({"fs": 8000, "n_fft": 512}, ["n_fft", "256", "8000", "512"]),
        ({"win_length": 512}, ["win_length", "400", "512"]),
        ({"window": "hann", "fmin": 0}, ["kaldi_fbank takes fs and n_mels", "window, fmin"]),
        ({"n_mels": 2}, ["n_mels", "at least 3", "2"]),
        ({"n_mels": 300}, ["n_mels", "300", "fewer"]),
        ({"fs": 840}, ["fs", "above 840 Hz", "840"]),
        ({"fs": "8x"}, ["8x", "16k"]),
    ],
)
def test_impossible_options_are_named(options, words):
    with pytest.raises(UserError) as error:
        KaldiFbank(**options)
    for word in words:
        assert word in str(error.value)


def test_the_options_of_the_default_front_end_may_stay_where_they_agree():
    fbank = KaldiFbank(fs="16k", n_fft=512, win_length=400, hop_length=160)
    assert (fbank.fs, fbank.hop, fbank.n_mels) == (16000, 160, 80)


def test_several_channels_are_refused():
    with pytest.raises(UserError, match="one channel.*2, 800, 3"):
        FBANK(torch.zeros(2, 800, 3), torch.tensor([800, 800]))
