"""Exported steps against our own streaming, in onnxruntime and in real wheels of sherpa-onnx."""

import hashlib
import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import soundfile
import torch
import yaml
from onnx import TensorProto, helper

from disks import small_disk
from espnet_ext.bin import asr_export
from espnet_ext.errors import UserError
from espnet_ext.export import model
from espnet_ext.export.container import Container
from espnet_ext.export.model import _graph, export, features_of, token_lines
from espnet_ext.export.quantize import quantized
from espnet_ext.export.step import Step
from espnet_ext.frontend import KaldiFbank
from espnet_ext.streaming import StreamingSpeech2Text
from espnet_ext.streaming.exported import (
    KEY,
    ExportedSpeech2Text,
    ExportedStep,
    read_tokens,
    text_of,
)
from export.conftest import MODELS, WHEELS, stack
from streaming.conftest import write_model
from tiny import ENCODERS, FS, speech

FILES = {"model.onnx", "tokens.txt", "features.npz", "certificate.json", "README.md"}


def log_probs(model, samples, packet):
    """Those of our own streaming, to the end."""
    stream, found = model.start(), []
    for start in range(0, len(samples), packet):
        is_final = start + packet >= len(samples)
        part = torch.from_numpy(samples[start : start + packet])[None]
        feats, _, stream.frontend = model.frontend.forward_chunk(part, stream.frontend, is_final)
        y, stream.encoder = model.model.encoder.forward_chunk(feats, stream.encoder, is_final)
        found.append(model.model.ctc.log_softmax(y)[0].detach().numpy())
    return np.concatenate(found)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("samples", [23999, 16000, 1799, 100, 3])
def test_recording_gives_what_our_own_streaming_gives(exported, name, samples):
    """Features, every frame to the end, and text, whatever the packets."""
    model = exported(name)
    wave = speech(samples / FS, seed=samples)
    want = log_probs(model.ours, wave, 1601)
    theirs = ExportedSpeech2Text(None, model.path / "model.onnx")
    for packet in (77, 4000, 24000):
        stream, got = theirs.start(), []
        for start in range(0, samples, packet):
            is_final = start + packet >= samples
            feats = stream.features(wave[start : start + packet], is_final)
            got.append(theirs.read(stream, feats, is_final))
        got = np.concatenate(got)
        assert got.shape == want.shape
        # ESPnet's log-mel is calculated in float32, which quiet bands show
        assert not got.size or np.abs(got - want).max() < (1e-4 if name != "log-mel" else 1e-2)
    if name != "no left context, no convolution":
        assert (stream.frames > 30) == (samples > 10000)
    result = theirs(theirs.start(), wave, is_final=True)
    ours = model.ours(model.ours.start(), wave, is_final=True)
    assert (result.tokens, result.text) == (ours.tokens, ours.text)
    assert len(result.tokens) > 3 or samples < 10000
    assert result.score == pytest.approx(ours.score, abs=1e-2)


def streamed(step, feats, ages):
    """Log probabilities of streams (B, T, n_mels) in one batch; stream i joins at step ages[i]."""
    past = [step.zeros() for _ in feats]
    found, last = [[] for _ in feats], max(ages) + (feats.shape[1] - step.frames) // step.shift
    axes = [next(i for i, n in enumerate(shape) if isinstance(n, str)) for shape, _ in step._forms]
    for now in range(last + 1):
        there = [
            i
            for i, age in enumerate(ages)
            if age <= now and (now - age) * step.shift + step.frames <= feats.shape[1]
        ]
        starts = [(now - ages[i]) * step.shift for i in there]
        batch = [feats[i, s : s + step.frames] for i, s in zip(there, starts, strict=True)]
        together = [
            np.concatenate(rows, axis)
            for *rows, axis in zip(*(past[i] for i in there), axes, strict=True)
        ]
        y, after = step(np.stack(batch), together)
        for row, i in enumerate(there):
            found[i].append(y[row])
            past[i] = [x.take([row], axis) for x, axis in zip(after, axes, strict=True)]
    return [np.concatenate(parts) for parts in found]


@torch.no_grad()
@pytest.mark.parametrize("name", ENCODERS)
def test_step_with_shifting_caches_is_a_step_with_rings(tmp_path, name):
    """Every attention with every cache in every encoder, streams of two ages in one batch."""
    write_model(tmp_path, frontend="kaldi_fbank", **stack(name))
    ours = StreamingSpeech2Text(tmp_path / "config.yaml", tmp_path / "model.pth")
    step = Step(ours.model, ours.chunk_size, ours.left_context)
    feats = torch.randn(2, 12 * step.shift + step.frames, 20, generator=torch.Generator())
    normalized = ours.model.normalize(feats.clone(), torch.tensor([feats.size(1)] * 2))[0]
    encoder, n = ours.model.encoder, ours.chunk_size
    past = [{k: torch.zeros(2, *s) for k, s in layer.items()} for layer in step.shapes]
    frames = torch.tensor([0, 0])
    for i in range(4):  # the second stream begins anew after two steps
        if i == 2:
            frames[1] = 0
            for layer in past:
                for tensor in layer.values():
                    tensor[1] = 0
        part = feats[:, i * step.shift : i * step.shift + step.frames]
        got, past = step(part, past, frames, torch.zeros(2))
        frames += n
        for stream, begin in enumerate((0, 2 if i > 1 else 0)):
            seen = normalized[stream, begin * step.shift : i * step.shift + step.frames]
            want, _ = encoder.forward_chunk(seen[None], encoder.init_state(1, n, ours.left_context))
            want = ours.model.ctc.log_softmax(want)[0, -n:]
            assert (got[stream] - want).abs().max() < 1e-4


@pytest.mark.parametrize("name", ENCODERS)
def test_stream_does_not_depend_on_its_neighbours(exported, name):
    """Bit by bit, in float32 and with 8-bit weights; dynamic 8 bits cannot."""
    model = exported(name)
    feats = np.random.default_rng(0).normal(size=(3, 100, 20)).astype(np.float32) * 5 - 5
    path = model.path / "model.int8.onnx"
    onnx.save(quantized(onnx.load(model.path / "model.onnx"), "int8"), path)
    for file in (model.path / "model.onnx", path):
        step = ExportedStep(file)
        alone = [streamed(step, row[None], [0])[0] for row in feats]
        for got, want in zip(streamed(step, feats, [0, 1, 4]), alone, strict=True):
            assert np.array_equal(got, want)
    float32 = streamed(ExportedStep(model.path / "model.onnx"), feats, [0, 0, 0])
    error = max(np.abs(np.exp(a) - np.exp(b)).max() for a, b in zip(float32, alone, strict=True))
    assert 0 < error < 0.3


def test_five_minutes_of_stream_stay_right_and_small(exported):
    model = exported("conformer")
    theirs = ExportedSpeech2Text(None, model.path / "model.onnx")
    wave = np.tile(speech(30.0), 10)
    stream, sizes = theirs.start(), set()
    got = [theirs.read(stream, stream.features(wave[s : s + FS])) for s in range(0, len(wave), FS)]
    got = np.concatenate(got)
    sizes = {sum(x.nbytes for x in stream.past), sum(x.nbytes for x in theirs.start().past)}
    assert len(sizes) == 1 and stream.nbytes < sizes.pop() + 20000
    want = model.ours.model.ctc.log_softmax(model.ours.encode_offline(wave))[0].detach().numpy()
    assert np.abs(got - want[: len(got)]).max() < 1e-3  # linear attention sums 7500 frames


# the file


@pytest.mark.parametrize("name", ["conformer", "log-mel"])
def test_file_is_one_of_a_kind_and_names_nothing_of_this_machine(exported, name):
    model = exported(name)
    made = (model.path / "model.onnx").read_bytes()
    proto = onnx.load_from_string(made)
    onnx.checker.check_model(proto, full_check=True)
    assert [(o.domain, o.version) for o in proto.opset_import if not o.domain] == [("", 18)]
    assert b"/" + b"site-packages" not in made and b".py" not in made
    names = [value.name for value in proto.graph.input]
    assert names[0] == "feats" and names[-1] == "frames" and "padding" in names
    assert [f"next.{n}" for n in names[1:]] == [o.name for o in proto.graph.output][1:]
    if name == "conformer":
        assert {"layer0.k", "layer0.v", "layer1.c", "layer2.s_z"} <= set(names)
    else:  # a second export, byte by byte
        info, _ = features_of(model.ours.frontend.front)
        again = _graph(model.ours, "onnxruntime", info).SerializeToString()
        assert hashlib.sha256(again).digest() == hashlib.sha256(made).digest()
        assert {p.key for p in proto.metadata_props} == {KEY}


def test_state_is_no_larger_than_what_the_caches_hold(exported):
    """Beside the container's least, which is 7296 values and five a layer."""
    model = exported("e_branchformer")
    own = model.ours.model.encoder.init_state()
    _, own = model.ours.model.encoder.forward_chunk(torch.randn(1, 200, 20), own)
    ledger = own.ledger()
    held = sum(x.nbytes for x in ExportedStep(model.path / "model.onnx").zeros())
    assert 0 <= held - ledger["attention"] - ledger["convolution"] < 4 * (7296 + 2 + 6 * 8)


@pytest.mark.parametrize(
    "shapes",
    [
        {"k": (2, 3, 4), "v": (2, 3, 4), "convolution.a": (3, 5)},
        {"c": (3, 4), "convolution.a": (2, 3), "convolution.b": (1, 4)},
        {"s": (2, 4, 4), "z": (2, 4)},
        {"k": (2, 0, 4), "v": (2, 0, 4)},
    ],
)
def test_container_gives_back_what_it_was_given(shapes):
    container = Container([shapes, {"c": (2, 2)}])
    pasts = [{n: torch.randn(3, *s) for n, s in layer.items()} for layer in container.shapes]
    before = container.zeros(3)
    made = [{n: x if x.numel() else None for n, x in past.items()} for past in pasts]
    after = container.pack(made, before, 5)
    assert [x.shape for x in after] == [x.shape for x in before]
    assert all(x.numel() for x in after)
    got, frames, padding = container.unpack(after)
    assert frames.tolist() == [5] * 3 and padding.tolist() == [0.0] * 3
    for mine, theirs in zip(pasts, got, strict=True):
        assert mine.keys() == theirs.keys()
        for name, x in mine.items():  # what is empty has no place
            assert torch.equal(x, theirs[name]) if x.numel() else theirs[name] is None


def test_tokens_join_to_text():
    for kind, symbols, text in [
        ("word", ["<blank>", "<unk>", "ONE", "TWO", "<sos/eos>"], "ONE TWO"),
        ("char", ["<blank>", "<unk>", "A", "<space>", "B", "<sos/eos>"], "A B"),
        ("bpe", ["<blank>", "<unk>", "\u2581A", "B", "<sos/eos>"], "AB"),
    ]:
        lines = token_lines(symbols, kind).splitlines()
        assert [line.split(" ")[1] for line in lines] == [str(i) for i in range(len(symbols))]
        assert text_of(line.split(" ")[0] for line in lines[2:-1]) == text
    with pytest.raises(UserError, match="token_type"):
        token_lines(["<blank>"], "whisper")


# what cannot be exported


def run(capsys, *words):
    with pytest.raises(SystemExit) as exit_:
        asr_export.main([str(word) for word in words])
    assert exit_.value.code == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


@pytest.mark.parametrize(
    "options,words",
    [
        (["--left_context", -1], "left_context: an exported step has a cache of one size"),
        (["--inference_asr_model", "nothing.pth"], "nothing.pth: no such file"),
        (["--chunk_size", 0], "chunk_size is a whole number of at least 1"),
        (["--train_scp", "wav.scp"], "train_scp: recordings to adapt on, give --adapt_features"),
    ],
)
def test_what_cannot_be_exported_is_refused_in_one_line(exported, capsys, tmp_path, options, words):
    folder = exported("no left context, no convolution").files["asr_train_config"].parent
    output = tmp_path / "onnx"
    if "--inference_asr_model" not in options:
        options = [*options, "--inference_asr_model", "model.pth"]
    assert words in run(capsys, folder, "--output", output, *options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change,words",
    [
        ({"frontend": "default"}, "frontend: sherpa-onnx calculates Kaldi's features alone"),
        ({"encoder_conf": {"input_layer": "conv2d2"}}, "input_layer: sherpa-onnx's time stamps"),
        ({"encoder_conf": {"causal": False}}, "causal: an encoder that streams must be"),
        ({"model_conf": {"ctc_weight": 0.0}}, "needs a CTC output"),
    ],
)
def test_model_that_sherpa_onnx_cannot_run_is_refused(exported, tmp_path, change, words):
    files = exported("no left context, no convolution").files
    config = yaml.safe_load(files["asr_train_config"].read_text())
    for key, value in change.items():
        config[key] = config[key] | value if isinstance(value, dict) else value
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match=words):
        export(tmp_path / "onnx", {"asr_train_config": tmp_path / "config.yaml"})
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


@pytest.fixture
def made_before(exported, monkeypatch):
    """A small model whose graph is not made again; a function that changes it."""
    small = exported("no left context, no convolution")
    graph = onnx.load(small.path / "model.onnx")
    monkeypatch.setattr(model, "_graph", lambda *_: graph)
    return SimpleNamespace(files=small.files, graph=graph)


def test_nothing_is_left_of_an_export_on_a_full_disk(made_before, capsys, tmp_path):
    expdir = made_before.files["asr_train_config"].parent
    with small_disk(tmp_path / "disk", 40) as disk:
        words = [expdir, "--output", disk.path / "onnx", "--inference_asr_model", "model.pth"]
        assert f"{disk.path}/onnx: no space left" in run(capsys, *words)
        assert not list(disk.path.iterdir())
        disk.size(4096)
        asr_export.main([str(word) for word in words])
        assert {path.name for path in (disk.path / "onnx").iterdir()} == FILES
        kept = (disk.path / "onnx/model.onnx").read_bytes()
        assert "onnx: is there already" in run(capsys, *words)
        assert (disk.path / "onnx/model.onnx").read_bytes() == kept


def test_wrong_graph_is_not_written(made_before, tmp_path):
    """The certificate would say that it is wrong."""
    (bias,) = (x for x in made_before.graph.graph.initializer if x.name.endswith("ctc_lo.bias"))
    values = onnx.numpy_helper.to_array(bias) + np.eye(1, bias.dims[0], dtype=np.float32)[0] / 100
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    with pytest.raises(UserError, match="from those of our own streaming"):
        export(tmp_path / "onnx", made_before.files)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_extra_that_is_missing_is_named(made_before, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    words = rf"{package}: not installed; pip install 'espnet-ext\[export\]'"
    with pytest.raises(UserError, match=words):
        export(tmp_path / "onnx", made_before.files)
    if package == "onnxruntime":
        with pytest.raises(UserError, match=words):
            StreamingSpeech2Text(asr_model_file=__file__, runtime="onnxruntime")


@pytest.mark.parametrize(
    "content,words",
    [(b"no checkpoint", "no whole checkpoint"), (None, "no such file")],
)
def test_checkpoint_of_no_use_is_one_line(made_before, capsys, tmp_path, content, words):
    (tmp_path / "exp").mkdir()
    source = made_before.files["asr_train_config"].parent
    for name in ("config.yaml", "feats_stats.npz"):
        (tmp_path / "exp" / name).write_bytes((source / name).read_bytes())
    if content is not None:
        (tmp_path / "exp/valid.acc.ave.pth").write_bytes(content)
    assert words in run(capsys, tmp_path / "exp", "--output", tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


# in Python


def test_stream_command_runs_an_export_without_pytorch(exported, tmp_path):
    model = exported("conformer")
    soundfile.write(tmp_path / "a.wav", speech(2.0), FS, subtype="FLOAT")
    program = (
        "import sys\n"
        "from espnet_ext.bin import stream\n"
        "stream.main()\n"
        "print({m for m in ('torch', 'espnet2', 'librosa') if m in sys.modules})\n"
    )
    words = [str(model.path), "--runtime", "onnxruntime"]
    done = subprocess.run(
        [sys.executable, "-c", program, *words, str(tmp_path / "a.wav")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *_, text, modules = done.stdout.splitlines()
    assert modules == "set()"
    assert text == model.ours(model.ours.start(), speech(2.0), is_final=True).text != ""


def test_other_sizes_than_those_of_the_export_are_refused(exported):
    path = exported("conformer").path / "model.onnx"
    assert ExportedSpeech2Text(None, path, chunk_size=4, left_context=6).fs == FS
    with pytest.raises(UserError, match="chunk_size: .* was exported with 4, got 8"):
        ExportedSpeech2Text(None, path, chunk_size=8)
    with pytest.raises(UserError, match="left_context: .* was exported with 6, got -1"):
        ExportedSpeech2Text(None, path, left_context=-1)


@pytest.mark.parametrize(
    "option,words",
    [
        ({"rescore": True}, "rescore: an exported model has none"),
        ({"device": "cuda"}, "device: an exported model has none"),
        ({"asr_train_config": "config.yaml"}, "asr_train_config: an exported model has none"),
        ({"search": "best"}, "search: must be greedy or beam"),
        ({"asr_model_file": None}, "asr_model_file: must be the model.onnx"),
        ({"runtime": "tensorrt"}, "runtime: must be torch or onnxruntime"),
    ],
)
def test_what_an_export_does_not_have_is_refused(exported, option, words):
    own = {"asr_model_file": exported("linear").path / "model.onnx", "runtime": "onnxruntime"}
    with pytest.raises(UserError, match=words):
        StreamingSpeech2Text(**own | option)


def test_beam_search_is_that_of_the_model_in_pytorch(exported):
    model, search = exported("linear"), {"search": "beam", "beam_size": 4}
    ours = StreamingSpeech2Text(**model.files, **search)
    theirs = StreamingSpeech2Text.from_pretrained(model.path, runtime="onnxruntime", **search)
    wave = speech(2.0)
    want, got = ours(ours.start(), wave, True), theirs(theirs.start(), wave, True)
    assert (got.text, got.tokens) == (want.text, want.tokens) and len(want.tokens) > 3
    assert got.score == pytest.approx(want.score, abs=1e-3)


def test_files_that_are_no_export_are_refused(exported, tmp_path):
    source = exported("conformer").path
    for content in (b"", b"not a model", (source / "model.onnx").read_bytes()[:5000]):
        (tmp_path / "model.onnx").write_bytes(content)
        with pytest.raises(UserError, match="model.onnx: no model for onnxruntime"):
            ExportedStep(tmp_path / "model.onnx")
    (tmp_path / "model.onnx").write_bytes((source / "model.onnx").read_bytes())
    with pytest.raises(UserError, match="tokens.txt: cannot be read"):
        ExportedStep(tmp_path / "model.onnx")
    (tmp_path / "tokens.txt").write_text("<blank> 0\nA 2\n")
    with pytest.raises(UserError, match="tokens.txt: must have a line"):
        ExportedStep(tmp_path / "model.onnx")
    with pytest.raises(UserError, match="no such file"):
        ExportedStep(tmp_path / "nothing.onnx")


def test_samples_that_cannot_be_right_are_refused(exported):
    speech2text = ExportedSpeech2Text(None, exported("conformer").path / "model.onnx")
    stream = speech2text.start()
    for samples in (np.zeros((2, 2)), np.zeros(3, np.int32), np.array([0.0, np.nan])):
        with pytest.raises(UserError, match="samples: must be"):
            speech2text(stream, samples)
    speech2text(stream, np.zeros(0, np.float32), is_final=True)
    with pytest.raises(UserError, match="stream: has ended"):
        speech2text(stream, np.zeros(3, np.float32))


def test_certificate_and_readme_say_what_was_made(exported):
    model = exported("conformer")
    certificate = json.loads((model.path / "certificate.json").read_text())
    assert certificate == model.certificate
    worst = certificate["max_error"]["model.onnx"]
    assert worst["log_probs"] < 1e-4 and worst["tokens_differ"] == 0
    readme = (model.path / "README.md").read_text()
    assert "sample_rate=8000, feature_dim=20" in readme and "model.onnx" in readme


# in the real wheels of sherpa-onnx, driven as its users drive them

wheels = pytest.mark.parametrize("version", WHEELS)


@torch.no_grad()
def by_the_strict_rule(exported, samples, heard=0):
    """Tokens and time stamps of our own streaming, of the steps that sherpa-onnx makes.

    It makes one only where more features follow, and none of a part of a chunk. The stream begins
    at what steps of the samples ``heard`` before a reset leave unread.
    """
    ours, symbols = exported.ours, read_tokens(exported.path / "tokens.txt")
    stream, encoder = ours.start(), ours.model.encoder
    feats = ours.frontend.forward_chunk(
        torch.from_numpy(samples)[None], stream.frontend, is_final=True
    )[0]
    step, sees = encoder.subsampling
    frames, shift = (ours.chunk_size - 1) * step + sees, ours.chunk_size * step
    ready = ours.frontend.front.frames_ready(heard)
    feats = feats[:, shift * max(0, -(-(ready - frames) // shift)) :]
    steps = max(0, -(-(feats.size(1) - frames) // shift))
    seen = feats[:, : (steps - 1) * shift + frames] if steps else feats[:, :0]
    y, _ = encoder.forward_chunk(seen, stream.encoder)
    assert y.size(1) == steps * ours.chunk_size
    found, last = {"tokens": [], "timestamps": []}, 0
    for frame, token in enumerate(ours.model.ctc.log_softmax(y)[0].argmax(-1).tolist()):
        if token not in (0, last):
            found["tokens"].append(symbols[token].replace("\u2581", " "))
            found["timestamps"].append(frame * 0.04)
        last = token
    return found


def assert_same(got, want):
    assert len(want["tokens"]) > 3  # or nothing would have been compared
    assert got["tokens"] == want["tokens"]
    assert got["timestamps"] == pytest.approx(want["timestamps"], abs=1e-4)


@wheels
@pytest.mark.parametrize("name", [name for name in MODELS if name != "log-mel"])
def test_tokens_and_time_stamps_are_ours(exported, sherpa, name, version):
    model = exported(name)
    waves = [speech(seconds, seed) for seed, seconds in enumerate((3.0, 1.27, 2.0))]
    for wave, got in zip(waves, sherpa(version, model.path, waves), strict=True):
        assert_same(got, by_the_strict_rule(model, wave))


@wheels
@pytest.mark.parametrize("frames", [19, 20, 35, 36])
def test_step_needs_one_frame_more_than_it_reads(exported, sherpa, frames, version):
    """19 frames are one window: what sherpa-onnx does not read is what docs/export.md says."""
    model = exported("linear")
    wave = speech(frames * 0.01, seed=5)
    (got,) = sherpa(version, model.path, [wave])
    want = by_the_strict_rule(model, wave)
    assert got["tokens"] == want["tokens"]
    assert bool(want["tokens"]) == (frames > 19)


@wheels
@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("way", ["together", "reset"])
def test_streams_of_other_ages_and_reset_streams_are_as_if_alone(
    exported, sherpa, name, way, version
):
    model = exported(name)
    waves = [speech(seconds, seed) for seed, seconds in enumerate((3.0, 2.5, 2.0))]
    for wave, got in zip(waves, sherpa(version, model.path, waves, way), strict=True):
        heard = waves[-1][: FS if way == "reset" else 0]
        assert_same(got, by_the_strict_rule(model, np.concatenate([heard, wave]), len(heard)))


@wheels
def test_wheel_feeds_the_features_that_models_are_trained_on(sherpa, tmp_path, version):
    """A graph that gives its features out as tokens: a silent change would fail here."""
    bands, frames, finest, lowest, numbers = 20, 4, 0.02, -17.0, 1200
    feature_probe(tmp_path, bands, frames, lowest + finest * np.arange(numbers))
    wave = speech(0.5)
    (got,) = sherpa(version, tmp_path, [wave], feature_dim=bands)
    values = lowest + finest * np.array([int(token) for token in got["tokens"]])
    values = values.reshape(-1, bands)
    feats = KaldiFbank(FS, bands)(torch.from_numpy(wave)[None], torch.tensor([len(wave)]))[0][0]
    assert len(values) >= 40
    assert np.abs(values - feats[: len(values)].numpy()).max() < 0.6 * finest


def feature_probe(folder, bands, frames, centres):
    """Write a model whose tokens are the numbers of the centres that its features are nearest."""
    container = Container([{"k": (1, 1, 1), "v": (1, 1, 1)}])
    dims = [x.shape for x in container.zeros(2)]
    dims = [["streams" if n == 2 and i < 2 else n for i, n in enumerate(d)] for d in dims]
    for d in dims[4:6]:  # of two channels
        d[1] = 2
    values = bands * frames
    names = {"stop": [frames], "start": [0], "axis": [1], "flat": [0, values, 1, 1]}
    tokens = {
        "centres": np.concatenate([[1e4], centres]),  # the blank is never nearest
        "blank": np.where(np.arange(len(centres) + 1) == 0, 0.0, -1e9),
    }
    nodes = [
        helper.make_node("Slice", ["feats", "start", "stop", "axis"], ["some"]),
        helper.make_node("Reshape", ["some", "flat"], ["column"]),
        helper.make_node("Sub", ["column", "centres"], ["difference"]),
        helper.make_node("Abs", ["difference"], ["distance"]),
        helper.make_node("Neg", ["distance"], ["scores"]),
        helper.make_node("Mul", ["scores", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "blank"], ["blanks"]),  # between any two tokens
        helper.make_node("Concat", ["scores", "blanks"], ["both"], axis=2),
        helper.make_node("Reshape", ["both", "shape"], ["log_probs"]),
        *(helper.make_node("Identity", [n], [f"next.{n}"]) for n in container.names),
    ]
    names["shape"] = [0, 2 * values, len(centres) + 1]
    constants = [helper.make_tensor(n, TensorProto.INT64, [len(v)], v) for n, v in names.items()]
    constants += [helper.make_tensor(n, 1, [1, 1, 1, v.size], v) for n, v in tokens.items()]
    constants.append(helper.make_tensor("zero", 1, [], [0.0]))
    kinds = [7 if n == "frames" else 1 for n in container.names]
    past = list(zip(container.names, kinds, dims, strict=True))
    graph = helper.make_graph(
        nodes,
        "probe",
        [helper.make_tensor_value_info("feats", 1, ["streams", frames + 1, bands])]
        + [helper.make_tensor_value_info(*value) for value in past],
        [helper.make_tensor_value_info("log_probs", 1, ["streams", *names["shape"][1:]])]
        + [helper.make_tensor_value_info(f"next.{n}", k, d) for n, k, d in past],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    helper.set_model_props(model, container.metadata(frames + 1, frames))
    onnx.save(model, folder / "model.onnx")
    symbols = ["<blk>", *range(len(centres))]
    (folder / "tokens.txt").write_text("".join(f"{s} {i}\n" for i, s in enumerate(symbols)))
