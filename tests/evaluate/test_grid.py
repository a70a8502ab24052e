"""Cells of the grid: texts of live streams, whatever the batch, and what a stream keeps."""

import json

import numpy as np
import pytest
import soundfile
import torch

from espnet_ext.bin import asr_grid
from espnet_ext.evaluate import grid as module
from espnet_ext.evaluate.grid import (
    batches,
    costs,
    decode,
    features,
    in_trained_range,
    same,
    streamed,
)
from espnet_ext.evaluate.models import read_model_config
from espnet_ext.pretrained import RECORDING, model_files
from espnet_ext.streaming.speech2text import StreamingSpeech2Text
from tiny import max_error

FS = 8000


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Pieces of the recording in the package, as a test set: of many lengths, two too short."""
    directory = tmp_path_factory.mktemp("data") / "pieces"
    directory.mkdir()
    samples, _ = soundfile.read(RECORDING, dtype="float32")
    pieces = {
        f"u{n}": samples[900 * n : 900 * n + length]
        for n, length in enumerate((30, 500, 4001, 9000, 9040, 15000, 20000, len(samples)))
    }
    for utt, wave in pieces.items():
        soundfile.write(directory / f"{utt}.wav", wave, FS)
    tables = {
        "wav.scp": {utt: directory / f"{utt}.wav" for utt in pieces},
        "text": dict.fromkeys(pieces, "SEVEN FOUR FIVE NINE TWO"),
        "utt2spk": dict.fromkeys(pieces, "jackson"),
    }
    for name, table in tables.items():
        lines = (f"{utt} {value}\n" for utt, value in table.items())
        (directory / name).write_text("".join(lines))
    return directory


@pytest.fixture(scope="module")
def speech2text():
    return StreamingSpeech2Text.from_pretrained()


def read(directory):
    return {p.stem: soundfile.read(p, dtype="float32")[0] for p in directory.glob("*.wav")}


@pytest.mark.parametrize("chunk_size, left_context", [(8, 16), (24, -1)])
def test_text_of_a_cell_is_that_of_live_streams(recordings, chunk_size, left_context):
    live = StreamingSpeech2Text.from_pretrained(chunk_size=chunk_size, left_context=left_context)
    feats = features(live, {p.stem: p for p in recordings.glob("*.wav")})
    texts = decode(live, feats, chunk_size, left_context)
    assert texts.keys() == feats.keys() and len(set(texts.values())) > 4
    for utt, samples in read(recordings).items():
        stream = live.start()
        for start in range(0, len(samples), 700):
            live(stream, samples[start : start + 700])
        assert live(stream, is_final=True).text == texts[utt]
    heard = streamed(live, {p.stem: p for p in recordings.glob("*.wav")})
    assert same(heard, texts) == {"utterances": 8, "same_text": 8}
    assert same(heard, texts | {"u7": "ANOTHER"}) == {"utterances": 8, "same_text": 7}


def test_padding_changes_no_frame(recordings, speech2text):
    """What follows an utterance in a batch, and who is beside it, does not matter."""
    feats = features(speech2text, {p.stem: p for p in recordings.glob("*.wav")})
    encoder = speech2text.model.encoder
    encoder.chunk_size, encoder.left_context = 8, 16
    rows = [x for x in feats.values() if encoder.output_length(len(x))]
    assert len(rows) == 6
    lengths = torch.tensor([len(row) for row in rows])
    padded = torch.nn.utils.rnn.pad_sequence(rows, True, padding_value=50.0)
    with torch.no_grad():
        together, frames, _ = encoder(padded, lengths)
        for row, y, n in zip(rows, together, frames.tolist(), strict=True):
            alone, _, _ = encoder(row[None], torch.tensor([len(row)]))
            assert max_error(alone[0], y[:n]) < 1e-5


@pytest.mark.parametrize("most", [1, 300, 10000])
def test_batches_hold_every_utterance_once_and_few_frames(most):
    rng = np.random.default_rng(most)
    feats = {f"u{i}": torch.zeros(int(n), 1) for i, n in enumerate(rng.integers(1, 90, 40))}
    made = batches(feats, most)
    assert sorted(utt for batch in made for utt in batch) == sorted(feats)
    for batch in made:
        frames = len(batch) * max(len(feats[utt]) for utt in batch)
        assert frames <= most or len(batch) == 1
    assert batches({}) == []


@pytest.mark.parametrize(
    "conf, seen, unseen",
    [
        ({"dynamic_chunk": True}, [(8, 64), (25, -1), (1, 8)], [(8, 72), (26, 16)]),
        ({"chunk_size": 16, "left_context": 32}, [(16, 32)], [(16, 64), (8, 32), (16, -1)]),
        ({"chunk_size": 16}, [(16, -1)], [(16, 64)]),
        ({}, [], [(16, 64), (16, -1)]),
    ],
)
def test_cells_of_the_training_are_told_from_others(conf, seen, unseen):
    assert all(in_trained_range(conf, *cell) for cell in seen)
    assert not any(in_trained_range(conf, *cell) for cell in unseen)


def test_bytes_are_those_of_a_stream_at_its_most(speech2text):
    """Fed by hops of 10 ms until long after the left context is full."""
    live = StreamingSpeech2Text.from_pretrained(chunk_size=8, left_context=16)
    config = read_model_config(model_files()["asr_train_config"])
    [cell] = costs(config, 8, [16])
    rng = np.random.default_rng(0)
    stream, most = live.start(), 0
    for _ in range(300):
        live(stream, rng.normal(0, 0.1, 80).astype(np.float32))
        most = max(most, stream.nbytes)
    assert cell["bytes"] == most == sum(cell["ledger"].values()) - cell["ledger"]["positions"]


def test_mha_says_what_its_input_cache_keeps_and_linear_has_chunks_alone():
    config = read_model_config(model_files()["asr_train_config"])
    mha, linear = (
        config | {"encoder_conf": config["encoder_conf"] | {"attention": a, "attention_conf": {}}}
        for a in ("mha", "linear")
    )
    [narrow, wide] = costs(mha, 8, [16, 32])
    # keys and values of 16 frames more, or their inputs, in 4 layers of 64
    assert wide["bytes"] - narrow["bytes"] == 2 * 4 * 4 * 64 * 16
    assert wide["input_cache_bytes"] - narrow["input_cache_bytes"] == 4 * 4 * 64 * 16
    assert [cell["left_context"] for cell in costs(linear, 8, [16, 32, -1])] == [-1]


def test_command_writes_every_cell_with_what_paired_differences_need(
    recordings, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(module, "FRAMES", 48)
    expdir = tmp_path / "asr_x"
    expdir.mkdir()
    for path in model_files().values():
        (expdir / path.name).write_bytes(path.read_bytes())
    (expdir / "feats_stats.npz").write_bytes((RECORDING.parent / "feats_stats.npz").read_bytes())
    threads = torch.get_num_threads()
    cells = ["--chunk_sizes", "8", "16", "8", "--left_contexts", "128", "-1", "128"]
    dtypes = ["--cache_dtypes", "float16", "int8"]
    assert asr_grid.main([str(expdir), "--data_dir", str(recordings), *cells, *dtypes]) == 0
    torch.set_num_threads(threads)
    found = json.loads((expdir / "grid.json").read_text())
    pieces = found["sets"]["pieces"]
    assert pieces["words"] == [5] * 8 and pieces["utterances"] == [f"u{n}" for n in range(8)]
    assert found["seed"] is not None and found["attention"] == "mla"
    shape = [(c["chunk_size"], c["left_context"], c["in_trained_range"]) for c in found["cells"]]
    assert shape == [(8, 128, False), (8, -1, True), (16, 128, True), (16, -1, True)]
    for cell in found["cells"]:
        wer = cell["wer"]["pieces"]
        assert sum(wer["errors"]) == wer["substituted"] + wer["deleted"] + wer["inserted"]
        assert wer["errors"][:2] == [5, 5] and wer["wer"] == 100 * sum(wer["errors"]) / 40
    assert found["cells"][0]["streamed"] == {"utterances": 8, "same_text": 8}
    assert not any({"streamed", "cache_dtypes"} & cell.keys() for cell in found["cells"][1:])
    first = found["cells"][0]
    kept = {"float32": first} | first["cache_dtypes"]
    # 128 frames in 4 layers of rank 32: 4, 2, and 1 byte a value with a float32 scale a vector
    assert kept["float32"]["bytes"] - kept["float16"]["bytes"] == 128 * 4 * 32 * 2
    assert kept["float32"]["bytes"] - kept["int8"]["bytes"] == 128 * 4 * (32 * 3 - 4)
    for live in first["cache_dtypes"].values():
        assert live["utterances"] == len(live["wer"]["pieces"]["errors"]) == 8
    assert kept["float16"]["wer"] == first["wer"] and kept["float16"]["same_text"] == 8
    # 8 frames of 40 ms, the last ends 17.5 ms after it begins, and what the subsampling sees ahead
    assert found["cells"][0]["latency_ms"] == 340 + 17.5
    line = capsys.readouterr().out.splitlines()[1]
    assert "outside the trained range; streamed, 8 of 8 with the same text; caches of" in line
    (recordings / "text").rename(recordings / "text.away")
    assert asr_grid.main([str(expdir), "--data_dir", str(recordings), *cells]) == 1
    (recordings / "text.away").rename(recordings / "text")
    assert "text" in capsys.readouterr().err
