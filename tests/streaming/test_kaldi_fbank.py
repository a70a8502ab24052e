"""A model with ``frontend: kaldi_fbank`` does all that one with ESPnet's default front end does."""

import json

import pytest
import soundfile
import torch
import yaml

from espnet_ext.bin import asr_certify, asr_convert
from espnet_ext.bin.asr_inference import Speech2Text
from espnet_ext.evaluate.cost import profile
from espnet_ext.evaluate.models import complete
from espnet_ext.streaming import long_audio
from espnet_ext.streaming.speech2text import StreamingSpeech2Text
from tiny import FS, max_error, speech


def files(model_dir):
    return model_dir / "config.yaml", model_dir / "model.pth"


@pytest.mark.parametrize("n", [0, 1, 39, 40, 55, 900, 16123])
def test_streamed_text_equals_offline_text(kaldi_model_dir, n):
    speech2text = StreamingSpeech2Text(*files(kaldi_model_dir))
    assert speech2text.fs == FS
    samples = speech(3.0)[:n]
    want = speech2text.offline(samples)
    assert (len(want.tokens) > 5) == (n == 16123)
    for packet in (50, 777, 20000):
        stream = speech2text.start()
        for start in range(0, n, packet):
            speech2text(stream, samples[start : start + packet])
        got = speech2text(stream, is_final=True)
        assert got.text == want.text and got.score == pytest.approx(want.score, abs=1e-3)


def test_stream_is_certified_equal(kaldi_model_dir, tmp_path):
    soundfile.write(tmp_path / "a.wav", speech(1.5), FS)
    (tmp_path / "wav.scp").write_text(f"a {tmp_path}/a.wav\n")
    config, model = map(str, files(kaldi_model_dir))
    asr_certify.main(
        [
            *("--asr_train_config", config, "--asr_model_file", model),
            *("--wav_scp", str(tmp_path / "wav.scp"), "--output", str(tmp_path / "e.json")),
        ]
    )
    report = json.loads((tmp_path / "e.json").read_text())
    assert report["equal"] and report["text_identical"] and report["utterances"] == 1
    assert report["max_error"]["features"] < 1e-5


def test_long_audio_is_encoded_in_packets_as_whole(kaldi_model_dir, monkeypatch):
    monkeypatch.setattr(long_audio, "PACKET_SECONDS", 1)
    decode = type("Decode", (Speech2Text,), {"max_segment": 2.0})
    decode = decode(*files(kaldi_model_dir), beam_size=2, maxlenratio=-12)
    samples = torch.from_numpy(speech(5.3))
    assert decode.long_audio.fs == FS and decode.long_audio.takes(len(samples))
    whole = decode.asr_model.encode(samples[None], torch.tensor([len(samples)]))[0][0]
    assert max_error(decode.long_audio.encode(samples), whole) < 1e-4
    assert len(decode(samples)[0][1]) > 12
    # too short for a frame of features, and for one of the encoder
    assert [decode(samples[:n])[0][1] for n in (0, 39, 500)] == [[]] * 3


def test_models_of_other_dtypes_decode_the_text(kaldi_model_dir):
    texts = []
    for dtype in ("float32", "float64", "bfloat16"):
        decode = Speech2Text(*files(kaldi_model_dir), beam_size=3, maxlenratio=-12, dtype=dtype)
        texts.append(decode(speech())[0][0])
    assert texts[0] == texts[1] and len(texts[0].split()) == len(texts[2].split()) == 12


def test_training_step_takes_a_padded_batch(kaldi_model_dir):
    """Features of an utterance do not depend on the batch, and the model trains under autocast."""
    model = StreamingSpeech2Text(*files(kaldi_model_dir)).model.eval()
    waves = [torch.from_numpy(speech(s, seed=i)) for i, s in enumerate((2.0, 1.0))]
    batch = torch.full((2, len(waves[0])), 0.3)  # what follows an utterance is not read
    for row, wave in zip(batch, waves, strict=True):
        row[: len(wave)] = wave
    lengths = torch.tensor([len(wave) for wave in waves])
    feats, frames = model._extract_feats(batch, lengths)
    for row, m, wave in zip(feats, frames, waves, strict=True):
        alone, _ = model._extract_feats(wave[None], torch.tensor([len(wave)]))
        assert max_error(row[:m], alone[0]) < 1e-5
    text = torch.tensor([[2, 3], [4, 5]])
    with torch.autocast("cpu", torch.bfloat16):
        loss, _, _ = model(batch, lengths, text, torch.tensor([2, 2]))
    loss.backward()
    assert torch.isfinite(loss) and loss > 0


def test_model_is_converted_with_recordings(kaldi_model_dir, tmp_path):
    """Its keys and values are calibrated on features of its own front end."""
    soundfile.write(tmp_path / "a.wav", speech(1.5), FS)
    (tmp_path / "wav.scp").write_text(f"a {tmp_path}/a.wav\n")
    source = tmp_path / "source"
    source.mkdir()
    config = yaml.safe_load((kaldi_model_dir / "config.yaml").read_text())
    config["encoder_conf"] |= {"attention": "mha", "attention_conf": {}}
    (source / "config.yaml").write_text(yaml.safe_dump(config))
    from espnet2.tasks.asr import ASRTask

    model, _ = ASRTask.build_model_from_file(source / "config.yaml")
    torch.save(model.state_dict(), source / "valid.acc.ave.pth")
    asr_convert.main(
        [
            *("--from", str(source), "--output", str(tmp_path / "mla")),
            *("--attention", "mla", "--attention_conf", "kv_lora_rank=64"),
            *("--calibration_scp", str(tmp_path / "wav.scp")),
        ]
    )
    converted = yaml.safe_load((tmp_path / "mla/config.yaml").read_text())
    assert converted["frontend"] == "kaldi_fbank"
    samples = torch.from_numpy(speech(1.0))[None]
    outputs = []
    for path in (source, tmp_path / "mla"):
        model, _ = ASRTask.build_model_from_file(path / "config.yaml", path / "valid.acc.ave.pth")
        outputs.append(model.eval().encode(samples, torch.tensor([samples.size(1)]))[0])
    assert max_error(*outputs) < 1e-4


def test_model_is_profiled(kaldi_model_dir):
    config, model = files(kaldi_model_dir)
    result = profile(config, model, frames=40, chunk_size=8, left_contexts=(16,))
    cache = result["cache"]
    assert cache["frontend_missing"] is None and not cache["differences"]
    # after a hop of 80 samples, the window of 200 to come has 140, for it begins 60 before one
    assert cache["streams"][0]["ledger"]["frontend"] == 4 * 140
    first = result["streaming"]["first_token_ms"]
    # 35 feature frames, 10 ms apart; the last one ends 17.5 ms after it begins
    assert first["chunk"] + first["lookahead"] == pytest.approx(340 + 17.5)
    assert result["multiply_adds"]["offline"] > 0 < result["offline"]["real_time_factor"]


def test_config_without_options_of_its_front_end_has_those_of_its_own_kind():
    config = {"frontend": "kaldi_fbank", "encoder": "kv_conformer"}
    assert complete(config, 10)["frontend_conf"] == {}
    assert "hop_length" in complete({}, 10)["frontend_conf"]
