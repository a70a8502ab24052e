"""Text from streams: as offline, whatever the packets, and one clear line for bad input."""

import io
import itertools
import json
import math

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from commands import run
from espnet_ext.bin import asr_certify, asr_inference_streaming, stream
from espnet_ext.errors import UserError
from espnet_ext.results import read_json
from espnet_ext.streaming import equivalence
from espnet_ext.streaming.searches import MAX_OPEN, GreedySearch, PrefixBeamSearch
from espnet_ext.streaming.speech2text import StreamingSpeech2Text
from tiny import FS, speech


def load(model_dir, **options):
    return StreamingSpeech2Text(model_dir / "config.yaml", model_dir / "model.pth", **options)


def transcribe(speech2text, samples, packet):
    s = speech2text.start()
    for start in range(0, len(samples), packet):
        speech2text(s, samples[start : start + packet])
    return speech2text(s, is_final=True), s


@pytest.mark.parametrize("options", [{}, {"search": "beam"}, {"search": "beam", "rescore": True}])
def test_streamed_text_equals_offline_text(model_dir, options):
    speech2text = load(model_dir, **options)
    samples = speech()
    want = speech2text.offline(samples)
    assert len(want.tokens) > 5
    for packet in (50, 777, len(samples)):
        got, _ = transcribe(speech2text, samples, packet)
        assert got.text == want.text and got.is_final
        assert got.score == pytest.approx(want.score, abs=1e-3)


def test_partial_text_of_greedy_search_only_grows(model_dir):
    speech2text, samples = load(model_dir), speech()
    s, texts = speech2text.start(), [""]
    for start in range(0, len(samples), 400):
        texts.append(speech2text(s, samples[start : start + 400]).text)
        assert texts[-1].startswith(texts[-2])
    assert len(set(texts)) > 3
    assert speech2text(s, is_final=True).text.startswith(texts[-1])


def test_memory_of_a_long_stream_is_flat(model_dir):
    speech2text = load(model_dir, search="beam", beam_size=3)
    s, sizes = speech2text.start(), []
    for second in range(64):
        speech2text(s, speech(1.0, seed=second))
        sizes.append(s.nbytes)
    # 100 feature frames a second fill chunks of 32, so what is pending repeats every 8 seconds
    assert sizes[-8:] == sizes[16:24]
    assert max(len(prefix) for prefix in s.search.beam) <= MAX_OPEN + 1 < len(s.search.committed)
    assert s.ledger()["rescoring"] == 0


def brute_force(log_probs):
    """Log probability of every token sequence, summed over all CTC paths."""
    totals = {}
    frames, size = log_probs.shape
    for path in itertools.product(range(size), repeat=frames):
        tokens = tuple(t for t, _ in itertools.groupby(path) if t)
        score = sum(log_probs[i, t] for i, t in enumerate(path))
        totals[tokens] = np.logaddexp(totals.get(tokens, -math.inf), score)
    return totals


@settings(max_examples=40, deadline=None)
@given(
    frames=st.integers(1, 6),
    seed=st.integers(0, 1000),
    cut=st.integers(0, 6),
    sharpness=st.floats(0.1, 4),
)
def test_prefix_beam_search_sums_over_all_paths(frames, seed, cut, sharpness):
    """With nothing pruned it gives the exact probability of every sequence, in packets or not."""
    logits = np.random.default_rng(seed).normal(size=(frames, 3)) * sharpness
    log_probs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    search = PrefixBeamSearch(beam_size=1000, token_beam=3)
    search.extend(log_probs[:cut])
    search.extend(log_probs[cut:])
    want = brute_force(log_probs)
    got = {tuple(tokens): score for tokens, score, _ in search.nbest() if score > -math.inf}
    for tokens, score in got.items():
        assert score == pytest.approx(want[tokens], abs=1e-9)
    assert np.exp(list(got.values())).sum() == pytest.approx(1)
    assert search.nbest()[0][0] == list(max(want, key=want.get))


def test_greedy_search_collapses_across_packets():
    log_probs = np.log(np.eye(4)[[0, 2, 2, 0, 2, 3, 3, 0]] * 0.9 + 0.025)
    whole, parts = GreedySearch(), GreedySearch()
    whole.extend(log_probs)
    for frame in log_probs:
        parts.extend(frame[None])
    assert whole.nbest()[0][0] == parts.nbest()[0][0] == [2, 2, 3]


@pytest.mark.parametrize(
    "options,words",
    [
        ({"search": "best"}, ["search", "greedy", "best"]),
        ({"rescore": True}, ["rescore", "beam"]),
        ({"chunk_size": 0}, ["chunk_size", "at least 1", "0"]),
        ({"cache_dtype": "int4"}, ["dtype", "int8", "int4"]),
    ],
)
def test_impossible_streaming_options_are_named(model_dir, options, words):
    with pytest.raises(UserError) as error:
        load(model_dir, **options)
    for word in words:
        assert word in str(error.value)


def model_args(model_dir):
    return (
        "--asr_train_config",
        model_dir / "config.yaml",
        "--asr_model_file",
        model_dir / "model.pth",
    )


def test_stream_command_prints_partial_and_final_text(model_dir, tmp_path, capsys, monkeypatch):
    path = tmp_path / "a b.wav"
    soundfile.write(path, speech(), FS)
    status, out, _ = run(capsys, stream.main, path, *model_args(model_dir))
    lines = out.splitlines()
    assert status == 0 and len(lines) > 3
    assert all(" KB " in line for line in lines[:-1])
    samples, _ = soundfile.read(path, dtype="int16")
    assert lines[-1] == load(model_dir).offline(samples.astype(np.float32) / 32768).text
    pcm = io.TextIOWrapper(io.BytesIO(samples.tobytes()))
    monkeypatch.setattr("sys.stdin", pcm)
    assert run(capsys, stream.main, "-", *model_args(model_dir))[1].splitlines()[-1] == lines[-1]


@pytest.mark.parametrize(
    "name,words",
    [
        ("missing.wav", ["missing.wav", "cannot be read"]),
        ("empty.wav", ["empty.wav", "no samples"]),
        ("single.wav", ["single.wav", "1 samples", "too short"]),
        ("rate.wav", ["rate.wav", "16000 Hz", "8000 Hz"]),
        ("stereo.wav", ["stereo.wav", "2 channels", "mono"]),
        ("nan.wav", ["nan.wav", "sample 5000", "not numbers"]),
        ("truncated.wav", ["truncated.wav", "truncated"]),
        ("truncated.flac", ["truncated.flac", "corrupt"]),
        ("text.wav", ["text.wav", "corrupt or no audio"]),
    ],
)
def test_bad_recordings_give_one_clear_line(model_dir, tmp_path, capsys, name, words):
    path, samples = tmp_path / name, speech(1.0)
    if name == "nan.wav":
        samples[5000] = np.nan
        soundfile.write(path, samples, FS, subtype="FLOAT")
    elif name == "text.wav":
        path.write_text("not audio at all")
    elif name != "missing.wav":
        shapes = {"empty": samples[:0], "single": samples[:1], "stereo": np.stack([samples] * 2, 1)}
        rate = 16000 if name == "rate.wav" else FS
        soundfile.write(path, shapes.get(path.stem, samples), rate)
    if "truncated" in name:
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    status, _, err = run(capsys, stream.main, path, *model_args(model_dir))
    assert status == 1
    lines = [line for line in err.splitlines() if "error:" in line]
    assert len(lines) == 1 and "Traceback" not in err
    for word in words:
        assert word in lines[0]


def test_streaming_decoding_writes_what_espnet_writes(model_dir, tmp_path, capsys):
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"{name}.wav", speech(1.5, seed=ord(name)), FS)
    scp = tmp_path / "wav.scp"
    scp.write_text("".join(f"{n} {tmp_path}/{n}.wav\n" for n in "ab"))
    (tmp_path / "keys").write_text("b\n")
    data = ("--data_path_and_name_and_type", f"{scp},speech,sound")
    for offline in ("false", "true"):
        status, _, err = run(
            capsys,
            asr_inference_streaming.main,
            *model_args(model_dir),
            *data,
            *("--output_dir", tmp_path / offline, "--offline", offline),
        )
        assert status == 0, err
    files = {
        n: (tmp_path / "false" / "1best_recog" / n).read_text()
        for n in ("text", "token", "token_int")
    }
    assert [line.split()[0] for line in files["text"].splitlines()] == ["a", "b"]
    for name, content in files.items():
        assert content == (tmp_path / "true" / "1best_recog" / name).read_text()
    run(
        capsys,
        asr_inference_streaming.main,
        *model_args(model_dir),
        *data,
        *("--output_dir", tmp_path / "one", "--key_file", tmp_path / "keys"),
    )
    one = (tmp_path / "one" / "1best_recog" / "text").read_text()
    assert one == files["text"].splitlines(keepends=True)[1]


def test_decoding_caches_keys_and_values_unless_told_not_to(model_dir):
    from espnet_ext.bin.asr_inference import Speech2Text, get_parser
    from espnet_ext.decoder import TransformerDecoder

    texts = {}
    for kv_cache in (True, False):
        Speech2Text.kv_cache = kv_cache
        decode = Speech2Text(
            model_dir / "config.yaml", model_dir / "model.pth", beam_size=3, maxlenratio=-8
        )
        decoder = decode.beam_search.scorers["decoder"]
        assert isinstance(decoder, TransformerDecoder) == kv_cache
        texts[kv_cache] = decode(speech())[0][1]
    assert texts[True] == texts[False]
    assert "--kv_cache" in get_parser().format_help()


def test_certificate_says_equal_and_notices_when_it_is_not(
    model_dir, tmp_path, capsys, monkeypatch
):
    soundfile.write(tmp_path / "a.wav", speech(1.5), FS)
    (tmp_path / "wav.scp").write_text(f"a {tmp_path}/a.wav\n")
    argv = (
        *model_args(model_dir),
        *("--wav_scp", tmp_path / "wav.scp", "--output", tmp_path / "equivalence.json"),
    )
    status, out, _ = run(capsys, asr_certify.main, *argv)
    report = json.loads((tmp_path / "equivalence.json").read_text())
    assert status == 0 and out.startswith("equal")
    assert report["equal"] and report["text_identical"] and report["utterances"] == 1
    errors = report["max_error"]
    assert len(errors["layers"]) == 2
    assert 0 < max(errors["features"], errors["logits"], errors["encoder"]) < 1e-4
    exact = report["max_error_float64"]
    assert max(exact["features"], exact["logits"], exact["encoder"], *exact["layers"]) < 1e-12

    # a recording of no encoder frame is not counted, and nothing is certified on such alone
    soundfile.write(tmp_path / "b.wav", speech(1.5)[:100], FS)
    (tmp_path / "wav.scp").write_text(f"b {tmp_path}/b.wav\n")
    status, out, err = run(capsys, asr_certify.main, *argv)
    assert status == 1 and not out and "long enough" in err
    (tmp_path / "wav.scp").write_text(f"a {tmp_path}/a.wav\nb {tmp_path}/b.wav\n")
    assert run(capsys, asr_certify.main, *argv)[0] == 0
    assert json.loads((tmp_path / "equivalence.json").read_text())["utterances"] == 1

    from espnet_ext.encoder.conv import CausalConv1d, depthwise_conv1d

    def forgetful(self, x, past):
        seen = past.extend(x.transpose(1, 2))
        seen[:, : seen.size(1) - x.size(-1)] = 0
        return depthwise_conv1d(seen.transpose(1, 2), self.weight, self.bias, 0)

    monkeypatch.setattr(CausalConv1d, "forward_chunk", forgetful)
    status, out, _ = run(capsys, asr_certify.main, *argv)
    report = json.loads((tmp_path / "equivalence.json").read_text())
    assert status == 1 and out.startswith("NOT EQUAL")
    assert not report["equal"] and report["max_error"]["layers"][0] > 1e-3


@pytest.mark.parametrize("where", ["features", "layers", "encoder"])
def test_certificate_never_passes_what_is_no_number(
    model_dir, tmp_path, capsys, monkeypatch, where
):
    """Not-a-number in one value of one packet, though the text comes out the same."""
    soundfile.write(tmp_path / "a.wav", speech(1.0), FS)
    (tmp_path / "wav.scp").write_text(f"a {tmp_path}/a.wav\n")
    real = equivalence._error

    def spoilt(chunks, whole):
        chunks = [chunk.clone() for chunk in chunks]
        if chunks[0].size(-1) == {"features": 20, "layers": 32, "encoder": 32}[where]:
            chunks[-1][..., -1] = math.nan
        return real(chunks, whole)

    monkeypatch.setattr(equivalence, "_error", spoilt)
    status, out, _ = run(
        capsys,
        asr_certify.main,
        *model_args(model_dir),
        *("--wav_scp", tmp_path / "wav.scp", "--output", tmp_path / "equivalence.json"),
    )
    assert status == 1 and out.startswith("NOT EQUAL")
    report = read_json(tmp_path / "equivalence.json")
    found = report["max_error"][where]
    assert not report["equal"] and (found == [None, None] if where == "layers" else found is None)


def test_largest_error_of_what_is_no_number_or_of_another_length_is_infinite():
    good = torch.ones(1, 3, 2)
    bad = torch.full((1, 3, 2), math.nan)
    assert equivalence._error([good[:, :1], good[:, 1:]], [good]) == 0
    assert equivalence._error([], []) == equivalence._error([], [good[:, :0]]) == 0
    for chunks, whole in (
        ([bad], [good]),
        ([good], [bad]),
        ([bad], [bad]),
        ([good[:, 1:]], [good]),
    ):
        assert equivalence._error(chunks, whole) == math.inf
    infinite = [torch.full((1, 3, 2), math.inf)]
    assert equivalence._error(infinite, infinite) == equivalence._error([], [good]) == math.inf
