"""Measured caches are the formula's, for every attention there is; logs are read as written."""

import importlib.util
import inspect
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import yaml

from espnet_ext.attention import build_attention
from espnet_ext.bin.asr_profile import main
from espnet_ext.errors import UserError
from espnet_ext.evaluate.cache import measure_cache
from espnet_ext.evaluate.models import build_encoder, build_frontend, read_model_config
from espnet_ext.evaluate.process import PeakMemory
from espnet_ext.evaluate.training import read_training, seconds
from espnet_ext.frontend.streaming import StreamingFrontend
from espnet_ext.report.schema import KINDS
from tiny import VARIANTS, forgets


def config(variant="mha", encoder="conformer", **conf):
    attention, attention_conf = VARIANTS[variant]
    sizes = {"output_size": 16, "attention_heads": 4, "num_blocks": 2}
    kernel = "cnn_module_kernel" if encoder == "conformer" else "cgmlp_conv_kernel"
    widths = {"linear_units": 8} if encoder == "conformer" else {"cgmlp_linear_units": 16}
    return {
        "encoder": f"kv_{encoder}",
        "encoder_conf": {
            **sizes,
            **widths,
            kernel: 3,
            "attention": attention,
            "attention_conf": attention_conf,
            **conf,
        },
        "frontend_conf": {"n_mels": 20, "n_fft": 512, "hop_length": 160},
    }


@pytest.mark.parametrize("encoder", ["conformer", "branchformer"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_measured_cache_is_the_formula_s(variant, encoder):
    cache = measure_cache(config(variant, encoder), 30, 4, [0, 6, -1])
    assert cache["differences"] == []
    assert cache["mha_bytes"] == 4 * 30 * 2 * 2 * 16
    if not forgets(variant):
        assert cache["bytes_per_frame"] == 0
        assert [s["left_context"] for s in cache["streams"]] == [-1]
    else:
        assert cache["bytes"] == 30 * cache["bytes_per_frame"] > 0
        assert [s["left_context"] for s in cache["streams"]] == [0, 6, -1]
        assert [s["frames"] for s in cache["streams"]] == [4, 8, 32]
    assert cache["frontend_missing"] is None
    for stream in cache["streams"]:
        assert stream["bytes"] == sum(stream["ledger"][kind] for kind in KINDS)
        assert min(stream["ledger"][kind] for kind in KINDS[1:]) > 0
        assert stream["capacity_bytes"] >= stream["bytes"]


@pytest.mark.parametrize("encoder", ["conformer", "branchformer"])
@pytest.mark.parametrize("variant", ["mha", "mla", "linear"])
def test_state_of_a_stream_is_the_most_that_one_keeps(variant, encoder):
    """A stream of its own, a hop of samples at a time, never keeps more than the figure."""
    conf = config(variant, encoder, causal=True)
    left = -1 if variant == "linear" else 8
    figure = measure_cache(conf, 40, 4, [left])["streams"][0]
    model = build_encoder(conf)
    frontend = StreamingFrontend(build_frontend(conf))
    features, state = frontend.init_state(), model.init_state(chunk_size=4, left_context=left)
    seen = []
    for _ in range(4 * 4 * 12):
        feats, _, features = frontend.forward_chunk(torch.randn(1, 160), features)
        _, state = model.forward_chunk(feats, state)
        if state.frames >= 8:
            seen.append(state.nbytes + features.nbytes)
    assert figure["bytes"] == max(seen) > min(seen)
    # features: 4 frames of 4 and the 3 that the next chunk sees again, less the one that is awaited
    assert figure["ledger"]["subsampling"] == (4 * 4 + 3 - 1) * 20 * 4
    assert figure["ledger"]["frontend"] == (512 // 2 + 160) * 4  # half a window and a hop


@pytest.mark.parametrize(
    ("conf", "reason"),
    [
        ({"input_size": 20}, "reads features"),
        ({"frontend": "s3prl"}, "got s3prl"),
        ({"frontend_conf": {"n_mels": 20, "n_fft": 512, "hop_length": 256}}, "hop_length"),
    ],
)
def test_front_end_that_is_not_counted_is_named(tmp_path, capsys, conf, reason):
    path = tmp_path / "train_asr_x.yaml"
    path.write_text(yaml.safe_dump(config() | conf))
    assert main(["--config", str(path), "--frames", "20"]) == 0
    assert re.search(f"x: a front end is not counted: .*{reason}", capsys.readouterr().out)


def test_wrong_formula_is_found_and_fails(monkeypatch, tmp_path, capsys):
    from espnet_ext.attention.mla import MultiHeadLatentAttention

    monkeypatch.setattr(MultiHeadLatentAttention, "cache_values", lambda self, frames: frames)
    path = tmp_path / "train_asr_x.yaml"
    path.write_text(yaml.safe_dump(config("mla")))
    assert main(["--config", str(path), "--frames", "20"]) == 1
    assert "measured cache differs from the formula: x: left context unlimited" in (
        capsys.readouterr().out
    )


def test_config_with_chunks_of_its_own_keeps_them():
    cache = measure_cache(config(causal=True, chunk_size=5, left_context=10), 20, 4, [8])
    assert [(s["chunk_size"], s["left_context"]) for s in cache["streams"]] == [(5, 8), (5, 10)]
    assert not cache["rebuilt_causal"]
    assert measure_cache(config(), 20, 4, [8])["rebuilt_causal"]


def test_command_line_prints_and_writes_every_model(tmp_path, capsys):
    for variant in ("mha", "gqa"):
        (tmp_path / f"train_asr_{variant}.yaml").write_text(yaml.safe_dump(config(variant)))
    profile = tmp_path / "profile.yaml"
    profile.write_text("frames: 64\nleft_contexts: [8]\nchunk_size: 4\n")
    arguments = ["--config", *map(str, sorted(tmp_path.glob("train*"))), "--output"]
    arguments += [str(tmp_path / "out.json"), "--profile_config", str(profile)]
    assert main(arguments) == 0
    _, _, *lines = capsys.readouterr().out.splitlines()  # titles, a line
    assert lines[0].split()[:3] == ["gqa", "gqa", "128"] and "2x" in lines[0].split()
    assert lines[1].split()[3:7] == ["0.015625", "MB", "0.015625", "MB"]  # 64 frames of 256 B
    written = [json.loads(line) for line in (tmp_path / "out.json").read_text().splitlines()]
    assert [result["cache"]["bytes"] for result in written] == [64 * 128, 64 * 256]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("encoder: conformer\n", "encoder: must be one of kv_conformer"),
        ("a: [\n", "is not YAML"),
        ("- a\n", "must be a mapping"),
        ("encoder: kv_conformer\nencoder_conf: {atention: mha}\n", "atention"),
        ("encoder: kv_conformer\nencoder_conf: {attention: nope}\n", "attention: must be one of"),
    ],
)
def test_config_of_no_use_is_one_clear_line(tmp_path, capsys, content, message):
    path = tmp_path / "x.yaml"
    path.write_text(content)
    with pytest.raises(SystemExit) as end:
        main(["--config", str(path)])
    error = capsys.readouterr().err
    assert end.value.code == 1 and message in error and error.count("\n") == 1


@pytest.mark.parametrize("option", [["--frames", "0"], ["--left_contexts", "-2"]])
def test_impossible_option_is_refused(tmp_path, capsys, option):
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(config()))
    with pytest.raises(SystemExit):
        main(["--config", str(tmp_path / "x.yaml"), *option])
    assert option[0] in capsys.readouterr().err


def test_everything_is_measured_on_random_weights(tmp_path, capfd):
    """The whole model, in a fresh process: it needs half a minute, most of it imports."""
    decoder = {"attention_heads": 2, "linear_units": 8, "num_blocks": 1}
    whole = config() | {"decoder": "transformer", "decoder_conf": decoder}
    path, out = tmp_path / "train_asr_x.yaml", tmp_path / "out.json"
    path.write_text(yaml.safe_dump(whole))
    (tmp_path / "decode.yaml").write_text("beam_size: 2\nctc_weight: 0.3\nlm_weight: 0.3\n")
    arguments = ["--measure", "all", "--config", str(path), "--output", str(out), "--frames", "40"]
    arguments += ["--vocab_size", "12", "--inference_config", str(tmp_path / "decode.yaml")]
    assert main(arguments) == 0, capfd.readouterr()
    result = json.loads(out.read_text())
    streaming = result["streaming"]
    first = streaming["first_token_ms"]
    # 16 frames of 4 hops of 10 ms; 67 feature frames span 660 ms, and half a window of 16 ms
    assert (first["chunk"], first["lookahead"]) == (640, 36)
    assert first["total"] == pytest.approx(676 + first["compute"])
    assert 0 < streaming["ms_per_chunk_median"] <= streaming["ms_per_chunk_p95"]
    assert streaming["rebuilt_causal"] and not result["causal"]
    assert result["parameters"]["model"] > result["parameters"]["encoder"]
    assert result["decoder"]["hypotheses"] == 2
    # one layer, keys and values of 16 values in float32
    assert result["decoder"]["self_attention"] == 2 * 100 * 2 * 16 * 4
    assert result["decoder"]["src_attention"] == 40 * 2 * 16 * 4
    assert result["offline"]["memory"]["peak_mb"] > 0
    assert result["input_cache"]["cache"]["bytes"] * 2 == result["cache"]["bytes"]
    adds, more = result["multiply_adds"], result["input_cache"]["multiply_adds"]
    assert adds["offline"] == more["offline"] > 0
    assert more["streaming"] > adds["streaming"]  # keys and values are computed anew


def test_peak_memory_counts_what_was_held_for_a_while():
    memory = PeakMemory()
    if memory.held_mb is None:
        pytest.skip("/proc/self/clear_refs cannot be written here")
    block = bytearray(b"x") * (64 << 20)
    del block
    assert 60 < memory.read()["peak_mb"] < 100


@pytest.mark.parametrize(
    ("span", "expected"),
    [
        ("0.61 seconds", 0.61),
        ("1 second", 1),
        ("1 minute and 2.5 seconds", 62.5),
        ("1 hour, 2 minutes and 3 seconds", 3723),
        ("2 days, 1 hour and 1 minute", 176460),
    ],
)
def test_time_spans_are_read_as_espnet_writes_them(span, expected):
    assert seconds(span) == expected


def test_epochs_of_a_resumed_training_count_once(tmp_path):
    line = "INFO: {}epoch results: [train] loss=1, time={} seconds, total_count={}, "
    line += "[valid] loss=2, time=1 second, total_count=1\n"
    (tmp_path / "train.1.log").write_text(line.format(1, 10, 5) + line.format(2, 99, 10))
    (tmp_path / "train.log").write_text(line.format(2, 20, 10))
    shapes = tmp_path / "speech_shape"
    shapes.write_text("a 8000\nb 16000\n")
    options = {"train_shape_file": [str(shapes)], "frontend_conf": {"fs": "8k"}}
    training = read_training(tmp_path, options)
    assert (training["seconds"], training["epochs"], training["batches"]) == (32, 2, 10)
    assert training["audio_seconds"] == 3
    assert training["audio_per_second"] == pytest.approx(2 * 3 / 30)
    assert read_training(tmp_path / "none", {}) is None


def test_large_configs_are_those_of_the_course_project():
    """By formula alone: the measurement at this size is in docs/profiling.md."""
    conf = Path(__file__).parents[2] / "conf" / "tuning"
    mib = {}
    for path in conf.glob("*_large.yaml"):
        options = read_model_config(path)["encoder_conf"]
        attention = build_attention(
            options["attention"],
            options["attention_heads"],
            options["output_size"],
            attention_conf=options["attention_conf"],
        )
        name = path.stem.removeprefix("train_asr_").removesuffix("_large")
        mib[name] = options["num_blocks"] * attention.cache_values(1000) * 4 / 2**20
    assert mib["conformer_mha"] == 187.5
    assert mib["conformer_mla"] == 93.75
    assert mib["conformer_gqa"] == 23.4375
    assert mib["branchformer_mha"] == 70.3125
    assert mib["branchformer_mla"] == 35.15625
    assert mib["branchformer_gqa"] == 17.578125


def test_unreadable_config_is_named(tmp_path):
    with pytest.raises(UserError, match="nope.yaml: cannot be read"):
        read_model_config(tmp_path / "nope.yaml")


def test_commit_of_an_installed_package_is_not_that_of_a_repository_around_it(tmp_path):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    commit = ["git", "-C", tmp_path, *identity, "commit", "-q", "--allow-empty", "-m", "theirs"]
    subprocess.run(commit, check=True)
    copy = shutil.copy(inspect.getfile(PeakMemory), tmp_path)
    spec = importlib.util.spec_from_file_location("installed", copy)
    installed = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(installed)
    assert re.fullmatch(r"espnet_ext \d+\.\d+\.\d+", installed.commit())
