"""Recordings longer than a model's utterances: encoded whole, searched in pieces, joined."""

import pytest
import soundfile
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_ext.bin import asr_inference
from espnet_ext.errors import UserError
from espnet_ext.streaming import long_audio
from espnet_ext.streaming.long_audio import cut_points
from tiny import FS, max_error, speech


def load(model_dir, max_segment, name="config.yaml", **options):
    decode = type("Decode", (asr_inference.Speech2Text,), {"max_segment": max_segment})
    model = model_dir / "model.pth" if name == "config.yaml" else None
    return decode(model_dir / name, model, beam_size=3, maxlenratio=-12, **options)


@settings(max_examples=100, deadline=None)
@given(length=st.integers(1, 400), longest=st.integers(2, 90), seed=st.integers(0, 99))
def test_pieces_follow_one_another_and_are_not_too_long(length, longest, seed):
    torch.manual_seed(seed)
    pieces = cut_points(torch.rand(length), longest)
    assert pieces[0][0] == 0 and pieces[-1][1] == length
    assert all(a[1] == b[0] for a, b in zip(pieces, pieces[1:], strict=False))
    assert all(0 < stop - start <= longest for start, stop in pieces)
    assert len(pieces) == 1 or all(stop - start >= longest / 2 for start, stop in pieces)


def test_pieces_end_in_pauses():
    blank = torch.full((300,), 0.2)
    for middle in (75, 150, 240):
        blank[middle - 8 : middle + 8] = 0.99
    stops = [stop for _, stop in cut_points(blank, 100)[:-1]]
    assert [min(abs(stop - m) for m in (75, 150, 240)) <= 3 for stop in stops] == [True] * 3


def test_long_recordings_decode_as_their_pieces_of_the_whole_encoder_output(model_dir, monkeypatch):
    monkeypatch.setattr(long_audio, "PACKET_SECONDS", 1)
    samples = torch.from_numpy(speech(7.3))
    decode = load(model_dir, 2)
    whole = decode.asr_model.encode(samples[None], torch.tensor([len(samples)]))[0][0]
    assert max_error(decode.long_audio.encode(samples), whole) < 1e-4
    ((text, tokens, ids, hyp),) = decode(samples)
    blank = decode.asr_model.ctc.softmax(whole[None])[0, :, 0]
    pieces = cut_points(blank, int(2 * len(whole) / 7.3))
    assert len(pieces) >= 4
    found = [decode._decode_single_sample(whole[a:b])[0] for a, b in pieces]
    assert tokens == [t for piece in found for t in piece[1]] and len(tokens) > len(pieces)
    assert ids == [i for piece in found for i in piece[2]]
    assert text == " ".join(tokens)
    assert float(hyp.score) == pytest.approx(sum(float(p[3].score) for p in found), rel=1e-4)


def test_recordings_that_are_not_long_decode_as_before(model_dir):
    samples = speech(3.0)
    cut, never, whole = (load(model_dir, n)(samples)[0][1] for n in (2, 0, 3))
    assert never == whole and cut != whole


def test_batches_with_a_long_recording_decode_it_as_alone(model_dir):
    decode = load(model_dir, 2, batch_size=2)
    waves = [speech(1.0), speech(4.0)]
    texts = [results[0][0] for results in decode.batch_decode(waves)]
    assert texts == [decode(wave)[0][0] for wave in waves]


def test_command_writes_long_and_short_recordings(model_dir, tmp_path):
    for name, seconds in (("long", 5.0), ("short", 1.0)):
        soundfile.write(tmp_path / f"{name}.wav", speech(seconds), FS)
    scp = tmp_path / "wav.scp"
    scp.write_text("".join(f"{n} {tmp_path}/{n}.wav\n" for n in ("long", "short")))
    texts = {}
    for max_segment in ("2", "0"):
        argv = [
            *("--asr_train_config", str(model_dir / "config.yaml")),
            *("--asr_model_file", str(model_dir / "model.pth")),
            *("--data_path_and_name_and_type", f"{scp},speech,sound", "--maxlenratio", "-12"),
            *("--output_dir", str(tmp_path / max_segment), "--max_segment", max_segment),
            *("--beam_size", "2", "--log_level", "ERROR"),
        ]
        asr_inference.main(argv)
        lines = (tmp_path / max_segment / "1best_recog" / "text").read_text().splitlines()
        texts[max_segment] = dict(line.split(maxsplit=1) for line in lines)
    assert texts["2"]["short"] == texts["0"]["short"]
    assert len(texts["2"]["long"].split()) > len(texts["0"]["long"].split())


def test_what_cannot_be_decoded_is_refused_in_one_line(model_dir, monkeypatch):
    monkeypatch.setattr(long_audio, "MAX_WHOLE", 3)
    config = yaml.safe_load((model_dir / "config.yaml").read_text())
    config["encoder"] = "conformer"
    config["encoder_conf"] = {"output_size": 32, "num_blocks": 1, "linear_units": 8}
    (model_dir / "stock.yaml").write_text(yaml.safe_dump(config))
    decode = load(model_dir, 2, "stock.yaml")
    assert decode(speech(2.5))  # ESPnet's encoders decode what they always did
    with pytest.raises(UserError, match="4 s.*more than 3 s.*ConformerEncoder.*kv_conformer"):
        decode(speech(4.0))
    with pytest.raises(UserError, match="4 s.*max_segment: 0"):
        load(model_dir, 0)(speech(4.0))
    with pytest.raises(UserError, match="max_segment.*0.5"):
        load(model_dir, 0.5)
