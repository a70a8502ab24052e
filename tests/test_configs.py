"""conf/tuning: what the names promise, and the sizes the headers state."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import yaml

import espnet_ext  # noqa: F401  (adds the encoders to ESPnet's choices)
from espnet_ext.attention import ATTENTIONS

CONF = Path(__file__).resolve().parents[1] / "conf"
KIND = f"(?:{'|'.join(ATTENTIONS)})"  # of all layers, or of the lower and of the upper ones
NAME = re.compile(
    rf"train_asr_(e_branchformer|branchformer|conformer)_({KIND}(?:_{KIND})?)(_[a-z]+)?\.yaml"
)
CONFIGS = sorted((CONF / "tuning").glob("train_asr_*.yaml"))
OF_RECIPES = [
    path
    for recipe in ("fsdd", "read_english")
    for path in sorted(CONF.parent.glob(f"egs2/{recipe}/asr1/conf/train_asr_*.yaml"))
    if NAME.fullmatch(path.name)
]
STREAMING = [path for path in CONFIGS if path.stem.endswith("_streaming")]
TOKENS = ["<blank>", "<unk>", *(f"token{i}" for i in range(4997)), "<sos/eos>"]


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


@pytest.mark.parametrize(
    "path", CONFIGS + OF_RECIPES, ids=lambda path: f"{path.parents[2].name} {path.stem}"
)
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
    assert (streaming.pop("frontend"), streaming.pop("frontend_conf")) == (
        "kaldi_fbank",
        {"n_mels": 80},  # the rest is the same at any rate
    )
    offline = load(path.with_name(path.name.replace("_streaming", "")))
    del offline["frontend_conf"]
    assert streaming == offline


def test_models_that_stream_read_the_features_of_kaldi():
    paths = [*CONF.rglob("train_asr*.yaml"), *CONF.parent.glob("egs2/*/asr1/conf/train_asr*.yaml")]
    for path in paths:
        config = load(path)
        want = "kaldi_fbank" if config["encoder_conf"].get("causal") else "default"
        assert config.get("frontend", "default") == want, path


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


SHARED = {  # hyper-parameters of ESPnet's librispeech_100 models
    "decoder": "transformer",
    "decoder_conf.attention_heads": 4,
    "decoder_conf.linear_units": 2048,
    "decoder_conf.num_blocks": 6,
    "decoder_conf.dropout_rate": 0.1,
    "decoder_conf.positional_dropout_rate": 0.1,
    "decoder_conf.self_attention_dropout_rate": 0.1,
    "decoder_conf.src_attention_dropout_rate": 0.1,
    "model_conf.ctc_weight": 0.3,
    "model_conf.lsm_weight": 0.1,
    "model_conf.length_normalized_loss": False,
    "frontend_conf.n_fft": 512,
    "frontend_conf.win_length": 400,
    "frontend_conf.hop_length": 160,
    "specaug": "specaug",
    "specaug_conf.apply_time_warp": True,
    "specaug_conf.time_warp_window": 5,
    "specaug_conf.time_warp_mode": "bicubic",
    "specaug_conf.apply_freq_mask": True,
    "specaug_conf.freq_mask_width_range": [0, 27],
    "specaug_conf.num_freq_mask": 2,
    "specaug_conf.apply_time_mask": True,
    "specaug_conf.time_mask_width_ratio_range": [0.0, 0.05],
    "specaug_conf.num_time_mask": 5,
    "optim": "adam",
    "optim_conf.lr": 0.002,
    "optim_conf.weight_decay": 1e-6,
    "scheduler": "warmuplr",
    "scheduler_conf.warmup_steps": 15000,
    "seed": 2022,
    "num_workers": 4,
    "batch_type": "numel",
    "batch_bins": 16_000_000,
    "accum_grad": 4,
    "sort_in_batch": "descending",
    "max_epoch": 70,
    "patience": "none",
    "init": "none",
    "use_amp": True,
    "cudnn_deterministic": False,
    "num_att_plot": 0,
    "best_model_criterion": [["valid", "acc", "max"]],
    "keep_nbest_models": 10,
    "encoder_conf.output_size": 256,
    "encoder_conf.attention_heads": 4,
    "encoder_conf.num_blocks": 12,
    "encoder_conf.linear_units": 1024,
    "encoder_conf.dropout_rate": 0.1,
    "encoder_conf.positional_dropout_rate": 0.1,
    "encoder_conf.attention_dropout_rate": 0.1,
    "encoder_conf.input_layer": "conv2d",
    "encoder_conf.rel_pos_type": "latest",
    "encoder_conf.pos_enc_layer_type": "rel_pos",
}
PUBLISHED = {
    "conformer": {
        "encoder_conf.normalize_before": True,
        "encoder_conf.macaron_style": True,
        "encoder_conf.activation_type": "swish",
        "encoder_conf.use_cnn_module": True,
        "encoder_conf.cnn_module_kernel": 31,
        "encoder_conf.selfattention_layer_type": "rel_selfattn",
    },
    "e_branchformer": {
        "encoder_conf.attention_layer_type": "rel_selfattn",
        "encoder_conf.cgmlp_linear_units": 1024,
        "encoder_conf.cgmlp_conv_kernel": 31,
        "encoder_conf.use_linear_after_conv": False,
        "encoder_conf.gate_activation": "identity",
        "encoder_conf.use_ffn": True,
        "encoder_conf.macaron_ffn": True,
        "encoder_conf.merge_conv_kernel": 31,
    },
}


def flat(config, prefix=""):
    """``{"encoder_conf.output_size": 256, ...}``"""
    out = {}
    for key, value in config.items():
        nested = isinstance(value, dict) and value
        out |= flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return out


@pytest.mark.parametrize("encoder", PUBLISHED)
def test_mha_config_has_the_published_hyper_parameters(encoder):
    ours = {
        "encoder": f"kv_{encoder}",
        "encoder_conf.attention": "mha",
        "encoder_conf.attention_conf": {},
    }
    config = load(CONF / f"tuning/train_asr_{encoder}_mha.yaml")
    assert flat(config) == SHARED | PUBLISHED[encoder] | ours


def test_decoding_is_the_published_one_with_exact_ctc_scores():
    assert load(CONF / "decode_asr.yaml") == {
        "beam_size": 20,
        "ctc_weight": 0.3,
        "lm_weight": 0.3,
        "penalty": 0.0,
        "maxlenratio": 0.0,
        "minlenratio": 0.0,
        "ctc_window_margin": 0,
    }


def test_run_sh_passes_the_published_options(tmp_path):
    shutil.copy(CONF.parent / "run.sh", tmp_path)
    asr = tmp_path / "egs2/TEMPLATE/asr1/asr.sh"
    asr.parent.mkdir(parents=True)
    asr.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    asr.chmod(0o755)
    printed = subprocess.run([tmp_path / "run.sh"], capture_output=True, text=True, check=True)
    words = printed.stdout.splitlines()
    assert dict(zip(words[::2], words[1::2], strict=True)) == {
        "--lang": "en",
        "--ngpu": "1",
        "--nj": "32",
        "--inference_nj": "32",
        "--nbpe": "5000",
        "--max_wav_duration": "30",
        "--speed_perturb_factors": "0.9 1.0 1.1",
        "--audio_format": "flac.ark",
        "--feats_type": "raw",
        "--use_lm": "false",
        "--asr_config": "conf/train_asr.yaml",
        "--inference_config": "conf/decode_asr.yaml",
        "--train_set": "train_clean_100",
        "--valid_set": "dev",
        "--test_sets": "test_clean test_other dev_clean dev_other",
        "--lm_train_text": "data/train_clean_100/text",
        "--bpe_train_text": "data/train_clean_100/text",
    }
