"""conf/tuning: what the names promise, and the sizes the headers state."""

import re
from pathlib import Path

import pytest
import torch
import yaml

import espnet_ext  # noqa: F401  (adds the encoders to ESPnet's choices)

CONF = Path(__file__).resolve().parents[1] / "conf"
CONFIGS = sorted((CONF / "tuning").glob("train_asr_*.yaml"))
STREAMING = [path for path in CONFIGS if path.stem.endswith("_streaming")]
TOKENS = ["<blank>", "<unk>", *(f"token{i}" for i in range(4997)), "<sos/eos>"]
NAME = re.compile(r"train_asr_(e_branchformer|branchformer|conformer)_([a-z]+)(_[a-z]+)?\.yaml")


def load(path):
    return yaml.safe_load(path.read_text())


@pytest.fixture(scope="module")
def build():
    from espnet2.tasks.asr import ASRTask

    def build(path):
        options = ["--config", str(path), "--output_dir", "unused", "--token_type", "bpe"]
        args = ASRTask.get_parser().parse_args(options)
        args.token_list, args.normalize = TOKENS, None
        with torch.device("meta"):
            return ASRTask.build_model(args)

    return build


def size(module):
    """Parameters in millions, as the headers print them."""
    return f"{sum(p.numel() for p in module.parameters()) / 1e6:.2f}"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_is_what_its_name_says(path):
    encoder, attention, _ = NAME.fullmatch(path.name).groups()
    config = load(path)
    assert config["encoder"] == f"kv_{encoder}"
    assert config["encoder_conf"]["attention"] == attention
    assert f"./run.sh --asr_config conf/tuning/{path.name}" in path.read_text()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_differs_from_its_mha_sibling_only_in_attention(path):
    def rest(path):
        config = load(path)
        for key in ("attention", "attention_conf"):
            del config["encoder_conf"][key]
        return config

    encoder, _, suffix = NAME.fullmatch(path.name).groups(default="")
    assert rest(path) == rest(path.with_name(f"train_asr_{encoder}_mha{suffix}.yaml"))


@pytest.mark.parametrize(
    "model",
    [
        ("conformer", "", "_large", "_streaming"),
        ("branchformer", "", "_large", "_streaming"),
        ("e_branchformer", "", "_streaming"),
    ],
    ids=lambda model: model[0],
)
def test_every_model_has_a_config_for_the_four_attentions(model):
    encoder, *kinds = model
    for attention in ("mha", "gqa", "mla", "linear"):
        for kind in kinds:
            assert (CONF / f"tuning/train_asr_{encoder}_{attention}{kind}.yaml").is_file()


@pytest.mark.parametrize("path", STREAMING, ids=lambda path: path.stem)
def test_streaming_config_adds_only_what_streaming_needs(path):
    streaming = load(path)
    added = {key: streaming["encoder_conf"].pop(key) for key in ("causal", "dynamic_chunk")}
    assert added == {"causal": True, "dynamic_chunk": True}
    assert streaming == load(path.with_name(path.name.replace("_streaming", "")))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_builds_at_the_size_its_header_states(path, build):
    stated = re.search(
        r"^# Parameters with 5000 tokens: (\S+) M \(encoder (\S+) M\)\.$", path.read_text(), re.M
    )
    model = build(path)
    assert (size(model), size(model.encoder)) == stated.groups()


@pytest.mark.parametrize(
    "name, published",
    [("conformer", "34.23"), ("e_branchformer", "38.47"), ("branchformer", "35.53")],
)
def test_mha_config_has_the_published_size(name, published, build):
    assert size(build(CONF / f"tuning/train_asr_{name}_mha.yaml")) == published


def test_train_asr_is_the_conformer_with_mha():
    assert load(CONF / "train_asr.yaml") == load(CONF / "tuning/train_asr_conformer_mha.yaml")
