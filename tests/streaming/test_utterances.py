"""Any utterance, alone or in a batch: its own text, no text, or one line that names it."""

import copy
import io
import math

import numpy as np
import pytest
import soundfile
import torch

from commands import run
from espnet_ext.audio import waveform
from espnet_ext.bin import asr_certify, asr_inference, asr_inference_streaming, stream
from espnet_ext.decoder import FastCTCPrefixScorer
from espnet_ext.errors import UserError
from espnet_ext.streaming import GreedySearch, PrefixBeamSearch, StreamingSpeech2Text
from espnet_ext.streaming.searches import Hypothesis
from tiny import FS, speech

PAD = 128  # half a window of the tiny model: fewer samples have no feature
NO_FRAME = 300  # samples of features that give no encoder frame


def load(model_dir, max_segment=2.0, kv_cache=True, **options):
    cls = type(
        "Decode", (asr_inference.Speech2Text,), {"max_segment": max_segment, "kv_cache": kv_cache}
    )
    options = {"beam_size": 3, "maxlenratio": -6} | options
    return cls(model_dir / "config.yaml", model_dir / "model.pth", **options)


def stereo(seconds, seed=0):
    """Two channels that do not sound alike, (n, 2)."""
    return np.stack([speech(seconds, seed), 0.5 * speech(seconds, seed + 50)], 1)


def tokens(results):
    return [nbest[0][2] for nbest in results]


@pytest.mark.parametrize("options", [{}, {"kv_cache": False}, {"ctc_weight": 1.0}], ids=str)
def test_batch_decodes_each_utterance_as_alone(model_dir, options):
    decode = load(model_dir, batch_size=3, **options)
    waves = [speech(1.5), speech(0.1)[:NO_FRAME], speech(0.7, 3), np.zeros(0, np.float32)]
    waves += [speech(1.0)[:PAD], speech(3.1, 4), stereo(0.8), stereo(2.6, 7)]
    alone = [decode(wave)[0] for wave in waves]
    assert [bool(text) for text, *_ in alone] == [True, False, True, False, False, True, True, True]
    together = [nbest[0] for nbest in decode.batch_decode(waves)]
    assert [best[:3] for best in together] == [best[:3] for best in alone]
    for ours, want in zip(together, alone, strict=True):
        assert float(ours[3].score) == pytest.approx(float(want[3].score), abs=1e-4)
    # padded, as the command offers them
    padded = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(w) for w in waves[:6]], True)
    lengths = torch.tensor([len(wave) for wave in waves[:6]])
    assert tokens(decode.batch_decode(padded, lengths)) == [best[2] for best in alone[:6]]
    assert decode.batch_decode([]) == []


@pytest.mark.parametrize("seconds", [0.8, 2.6], ids=["short", "long"])
def test_channels_are_averaged_whatever_the_length(model_dir, seconds):
    decode, samples = load(model_dir), stereo(seconds)
    want = decode(samples.mean(1))[0]
    assert decode(samples)[0][:3] == want[:3] != decode(samples[:, 0])[0][:3]


@pytest.mark.parametrize("shape", [(2, 8000), (80, 2, 2), ()], ids=str)
def test_samples_of_another_shape_are_refused(shape):
    with pytest.raises(UserError, match="samples: must be"):
        waveform(np.zeros(shape, np.float32))


@pytest.mark.parametrize("beam_size", [6, 7, 8, 50])
@pytest.mark.parametrize("kv_cache", [True, False])
def test_beam_of_the_vocabulary_or_more_finds_the_same_text(model_dir, beam_size, kv_cache):
    waves = [speech(1.2), speech(0.6, 1)]
    want = tokens(load(model_dir, beam_size=6, batch_size=2).batch_decode(waves))
    decode = load(model_dir, beam_size=beam_size, batch_size=2, kv_cache=kv_cache)
    assert all(want) and tokens(decode.batch_decode(waves)) == want
    assert [decode(wave)[0][2] for wave in waves] == want


IMPOSSIBLE = {
    "beam_size": (0, -1),
    "nbest": (0,),
    "ctc_weight": (math.nan, -0.1, 1.1),
    "penalty": (math.nan, math.inf),
    "maxlenratio": (math.nan,),
    "minlenratio": (math.inf,),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_impossible_decoding_option_is_named(model_dir, name):
    for value in IMPOSSIBLE[name]:
        with pytest.raises(UserError, match=f"{name}: must be"):
            load(model_dir, **{name: value})


def test_streaming_search_takes_a_beam_of_the_vocabulary_or_more(model_dir):
    for beam_size in (7, 50):
        speech2text = streaming(model_dir, search="beam", beam_size=beam_size)
        assert speech2text.offline(speech(1.0)).text


def test_long_recordings_decode_in_bfloat16(model_dir):
    # 703 feature frames: bfloat16 counts in steps of four there
    ((text, *_, hyp),) = load(model_dir, dtype="bfloat16")(speech(7.02))
    assert text and math.isfinite(hyp.score)


def test_hypotheses_that_never_end_are_no_text_and_not_no_line(model_dir):
    for seconds in (0.5, 2.5):
        ((text, _, ids, _),) = load(model_dir, minlenratio=-50)(speech(seconds))
        assert text == "" and ids == []


@pytest.mark.parametrize("kv_cache", [True, False])
def test_float16_is_right_or_refused(model_dir, kv_cache):
    for seconds in (0.7, 2.5):
        with pytest.raises(UserError, match="float16|not a number.*float32"):
            load(model_dir, dtype="float16", kv_cache=kv_cache)(speech(seconds))


@pytest.mark.parametrize("max_segment", [math.nan, -1.0])
def test_impossible_max_segment_is_refused(model_dir, max_segment):
    with pytest.raises(UserError, match="max_segment"):
        load(model_dir, max_segment)


def poisoned(value):
    samples = speech(1.0)
    samples[4000] = value
    return samples


BAD = [math.nan, math.inf, -math.inf, 1e30]


@pytest.mark.parametrize("value", BAD)
def test_bad_sample_in_a_batch_is_named(model_dir, value):
    decode = load(model_dir, batch_size=2)
    with pytest.raises(UserError, match="utterance 2: .*sample 4000"):
        decode.batch_decode([speech(1.0), poisoned(value)])
    with pytest.raises(UserError, match="sample 4000"):
        decode(poisoned(value))
    with pytest.raises(UserError, match="int32"):
        decode((1000 * speech(1.0)).astype(np.int32))


def test_model_that_puts_out_no_numbers_is_refused_by_name(model_dir):
    for weight in ("encoder.after_norm.weight", "ctc.ctc_lo.weight", "decoder.after_norm.weight"):
        for kv_cache in (True, False):
            decode = load(model_dir, batch_size=2, kv_cache=kv_cache)
            decode.asr_model.get_parameter(weight).data.fill_(math.nan)
            with pytest.raises(UserError, match="not a number"):
                decode(speech(0.5))
            with pytest.raises(UserError, match="not a number"):
                decode.batch_decode([speech(0.5), speech(0.6)])


def test_checkpoint_that_holds_no_numbers_is_refused_by_every_command(model_dir, tmp_path, capsys):
    state = torch.load(model_dir / "model.pth", weights_only=True)
    torch.save({k: v * math.nan for k, v in state.items()}, tmp_path / "nan.pth")
    write(tmp_path, {"a": speech(0.8)})
    model = ("--asr_train_config", model_dir / "config.yaml", "--asr_model_file")
    data = ("--data_path_and_name_and_type", f"{tmp_path}/wav.scp,speech,sound")
    commands = {
        asr_certify.main: ("--wav_scp", tmp_path / "wav.scp", "--output", tmp_path / "e.json"),
        asr_inference_streaming.main: (*data, "--output_dir", tmp_path / "s"),
        asr_inference.main: (*data, "--output_dir", tmp_path / "o", "--log_level", "ERROR"),
        stream.main: (tmp_path / "a.wav",),
    }
    for main, argv in commands.items():
        status, out, err = run(capsys, main, *model, tmp_path / "nan.pth", *argv)
        assert status == 1 and not out
        assert "nan.pth" in err and "not a number" in err and "Traceback" not in err
    assert not (tmp_path / "e.json").exists()


# the commands


def write(folder, waves, fs=FS):
    """WAV files of floats and their wav.scp."""
    for name, wave in waves.items():
        soundfile.write(folder / f"{name}.wav", wave, fs, subtype="FLOAT")
    (folder / "wav.scp").write_text("".join(f"{n} {folder}/{n}.wav\n" for n in waves))


def arguments(model_dir, folder, output):
    return (
        *("--asr_train_config", model_dir / "config.yaml"),
        *("--asr_model_file", model_dir / "model.pth", "--output_dir", folder / output),
        *("--data_path_and_name_and_type", f"{folder}/wav.scp,speech,sound"),
        *("--log_level", "ERROR"),
    )


def texts(folder):
    lines = (folder / "1best_recog" / "text").read_text().splitlines()
    return {line.split()[0]: " ".join(line.split()[1:]) for line in lines}


def test_command_gives_every_utterance_its_line_in_batches_of_any_size(model_dir, tmp_path, capsys):
    waves = {"a": speech(1.0), "b": speech(0.1)[:NO_FRAME], "c": stereo(0.8), "d": np.zeros(0)}
    waves |= {"e": stereo(2.6), "f": speech(0.1)[:PAD], "g": speech(0.1)[:1], "h": speech(2.3)}
    write(tmp_path, waves)
    found = {}
    for batch_size in (1, 3):
        options = ("--batch_size", batch_size, "--max_segment", 2, "--maxlenratio", -6)
        argv = arguments(model_dir, tmp_path, f"batch{batch_size}")
        status, _, err = run(capsys, asr_inference.main, *argv, *options, "--beam_size", 3)
        assert status == 0, err
        found[batch_size] = texts(tmp_path / f"batch{batch_size}")
    assert found[1] == found[3] and list(found[1]) == list("abcdefgh")
    assert {name for name, text in found[1].items() if not text} == set("bdfg")
    decode = load(model_dir)
    for name, wave in waves.items():
        assert found[1][name] == decode(wave.astype(np.float32))[0][0]


@pytest.mark.parametrize("batch_size,value,workers", [(1, math.nan, 0), (3, 1e30, 1)])
def test_command_names_the_utterance_with_a_bad_sample(
    model_dir, tmp_path, capsys, batch_size, value, workers
):
    write(tmp_path, {"good": speech(0.5), "ill": poisoned(value), "more": speech(0.5)})
    argv = (*arguments(model_dir, tmp_path, "out"), "--batch_size", batch_size)
    options = ("--beam_size", 2, "--num_workers", workers)
    status, _, err = run(capsys, asr_inference.main, *argv, *options)
    line = [line for line in err.splitlines() if "error:" in line]
    assert status == 1 and len(line) == 1 and "Traceback" not in err
    assert "error: ill: " in line[0] and "sample 4000" in line[0]
    status, _, err = run(capsys, asr_inference_streaming.main, *arguments(model_dir, tmp_path, "s"))
    assert status == 1 and "error: ill: " in err and "Traceback" not in err
    status, _, err = run(capsys, stream.main, tmp_path / "ill.wav", *argv[:4])
    assert status == 1 and "ill.wav: " in err and "Traceback" not in err


@pytest.mark.parametrize("offline", ["false", "true"])
def test_streaming_command_gives_short_recordings_an_empty_text(
    model_dir, tmp_path, capsys, offline
):
    waves = {"a": speech(1.0), "b": speech(0.1)[:NO_FRAME], "d": np.zeros(0)}
    write(tmp_path, waves | {"f": speech(0.1)[:PAD], "g": speech(0.1)[:1]})
    argv = (*arguments(model_dir, tmp_path, "out"), "--offline", offline)
    for search in (("greedy", "false"), ("beam", "false"), ("beam", "true")):
        options = ("--search", search[0], "--rescore", search[1])
        status, _, err = run(capsys, asr_inference_streaming.main, *argv, *options)
        assert status == 0, err
        found = texts(tmp_path / "out")
        assert list(found) == list("abdfg") and [bool(t) for t in found.values()] == [1, 0, 0, 0, 0]


@pytest.mark.parametrize("milliseconds", ["nan", "inf", "0", "-5"])
def test_impossible_packets_are_refused(model_dir, tmp_path, capsys, milliseconds):
    write(tmp_path, {"a": speech(0.5)})
    argv = (*arguments(model_dir, tmp_path, "out"), "--packet_ms", milliseconds)
    status, _, err = run(capsys, asr_inference_streaming.main, *argv)
    assert status == 1 and "packet_ms" in err and "Traceback" not in err


# streams


def streaming(model_dir, **options):
    return StreamingSpeech2Text(model_dir / "config.yaml", model_dir / "model.pth", **options)


def snapshot(s):
    """The state of a stream: every tensor and number in it."""
    buffer = io.BytesIO()
    torch.save(copy.deepcopy([s.frontend, s.encoder, vars(s.search), s.encoded]), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("search", ["greedy", "beam"])
def test_refused_packet_leaves_the_stream_as_it_was(model_dir, search):
    speech2text, samples = streaming(model_dir, search=search), speech(1.5)
    want, s = speech2text.offline(samples), speech2text.start()
    for start in range(0, len(samples), 1500):
        before = snapshot(s)
        bad = [poisoned(value) for value in (*BAD, 1e6)]
        bad += [stereo(0.1), (1000 * speech(0.1)).astype(np.int32)]
        for packet in bad:
            with pytest.raises(UserError, match="samples"):
                speech2text(s, packet)
        assert snapshot(s) == before
        speech2text(s, samples[start : start + 1500])
    assert speech2text(s, is_final=True).tokens == want.tokens
    before = snapshot(s)
    with pytest.raises(UserError, match="ended"):
        speech2text(s, samples)
    assert snapshot(s) == before


def test_features_that_the_encoder_refuses_leave_the_stream_as_it_was(model_dir, monkeypatch):
    speech2text = streaming(model_dir)
    s = speech2text.start()
    speech2text(s, speech(0.5))
    before = snapshot(s)

    def refuse(*_, **__):
        raise ValueError("feats: must be finite")

    with monkeypatch.context() as patched:
        patched.setattr(speech2text.model.encoder, "forward_chunk", refuse)
        with pytest.raises(UserError, match="feats"):
            speech2text(s, speech(0.5))
    assert snapshot(s) == before


def scorer_of(log_probs):
    class Known:
        def log_softmax(self, x):
            return torch.from_numpy(log_probs)[None]

    return FastCTCPrefixScorer(ctc=Known(), eos=3).batch_init_state(torch.zeros(len(log_probs), 1))


@pytest.mark.parametrize(
    "frame", [[math.nan, -1, -1, -1], [-1, math.inf, -1, -1], [-math.inf] * 4], ids=str
)
def test_every_ctc_search_refuses_what_is_no_distribution(frame):
    good = np.log(np.full((3, 4), 0.25))
    bad = np.vstack([good, [frame], good])
    for search in (GreedySearch(), PrefixBeamSearch()):
        search.extend(good)
        before = copy.deepcopy(vars(search))
        with pytest.raises(UserError, match="not a number"):
            search.extend(bad)
        assert vars(search) == before
    with pytest.raises(UserError, match="not a number"):
        scorer_of(bad)
    impossible = np.vstack([good, np.log(np.eye(4)[1] + 1e-300)])
    impossible[-1][[0, 2, 3]] = -math.inf  # some tokens may well be impossible
    scorer_of(impossible)
    for search in (GreedySearch(), PrefixBeamSearch()):
        search.extend(impossible)
        assert all(math.isfinite(score) for _, score, _ in search.nbest())


def test_batch_search_goes_on_around_an_utterance_without_frames(model_dir):
    decode = load(model_dir)
    x = torch.randn(3, 12, 32)
    for lengths in ([12, 0, 7], [0, 12, 7]):
        x_lengths = torch.tensor(lengths)
        found = decode.beam_search(x=x, x_lengths=x_lengths, maxlenratio=-5)
        for y, n, nbest in zip(x, lengths, found, strict=True):
            if n:
                assert nbest[0].yseq.tolist() == decode.beam_search(y[:n], -5)[0].yseq.tolist()
            assert math.isfinite(nbest[0].score)
            assert n or len(nbest[0].yseq) == 2


@pytest.mark.parametrize("ctc_weight", [0.0, 0.5, 1.0])
def test_rescoring_drops_impossible_hypotheses(model_dir, ctc_weight):
    speech2text = streaming(model_dir, search="beam", rescore=True, ctc_weight=ctc_weight)
    scores = {2: -math.inf, 3: -2.0, 4: -3.0}
    nbest = [Hypothesis([token], score, []) for token, score in scores.items()]
    encoded = torch.randn(1, 9, 32)
    with torch.no_grad():
        found = speech2text._rescored(nbest, encoded)
        assert sorted(hyp.tokens for hyp in found) == [[3], [4]]
        assert found[0][1] >= found[1][1]
        speech2text.model.decoder.output_layer.bias[3] = -math.inf
        assert [hyp.tokens for hyp in speech2text._rescored(nbest, encoded)] == [[4]]
        assert speech2text._rescored(nbest[1:2], encoded) == nbest[1:2]
        speech2text.model.decoder.output_layer.bias[3] = math.nan
        with pytest.raises(UserError, match="not a number"):
            speech2text._rescored(nbest, encoded)
    with pytest.raises(UserError, match="ctc_weight"):
        streaming(model_dir, ctc_weight=math.nan)


def test_batch_that_memory_does_not_suffice_for_is_searched_in_halves(model_dir, monkeypatch):
    decode = load(model_dir, batch_size=3)
    waves = [speech(1.0, 5), speech(0.6, 6), speech(0.1)[:PAD], speech(0.8, 7)]
    want, search, sizes = tokens(decode.batch_decode(waves)), decode.beam_search.forward, []

    def small(x, **options):
        sizes.append(len(x))
        if len(x) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return search(x, **options)

    monkeypatch.setattr(decode.beam_search, "forward", small)
    monkeypatch.setattr(decode, "names", ["a", "b", "c", "d"])
    assert tokens(decode.batch_decode(waves)) == want and sizes == [3, 1, 2, 1, 1]
    with pytest.raises(UserError, match="d: samples"):
        decode.batch_decode([*waves[:3], poisoned(math.nan)])
