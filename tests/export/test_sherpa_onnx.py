"""Exported models in the real wheels of sherpa-onnx, driven as its users drive them."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from espnet_ext.export.container import Container
from espnet_ext.frontend import KaldiFbank
from espnet_ext.streaming.exported import read_tokens
from export.conftest import MODELS, WHEELS
from tiny import ENCODERS, FS, speech

pytestmark = pytest.mark.parametrize("version", WHEELS)
SHERPA = [name for name in MODELS if name != "log-mel"]


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


@pytest.mark.parametrize("name", SHERPA)
def test_tokens_and_time_stamps_are_ours(exported, sherpa, name, version):
    model = exported(name)
    waves = [speech(seconds, seed) for seed, seconds in enumerate((3.0, 1.27, 2.0))]
    for wave, got in zip(waves, sherpa(version, model.path, waves), strict=True):
        assert_same(got, by_the_strict_rule(model, wave))


@pytest.mark.parametrize("frames", [19, 20, 35, 36])
def test_step_needs_one_frame_more_than_it_reads(exported, sherpa, frames, version):
    """19 frames are one window: what sherpa-onnx does not read is what docs/export.md says."""
    model = exported("linear")
    wave = speech(frames * 0.01, seed=5)
    (got,) = sherpa(version, model.path, [wave])
    want = by_the_strict_rule(model, wave)
    assert got["tokens"] == want["tokens"]
    assert bool(want["tokens"]) == (frames > 19)


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
