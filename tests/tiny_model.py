"""A tiny streaming model, as a training run leaves it, and one of language."""

import numpy as np
import torch
import yaml
from espnet2.tasks.asr import ASRTask

from espnet_ext.checkpoint import StrictLMTask
from tiny import FS, randomize, speech

TOKENS = ["<blank>", "<unk>", "ONE", "TWO", "THREE", "FOUR", "<sos/eos>"]


def write_model(path, encoder_conf=None, **options):
    """The model's directory, its config changed by options."""
    rng = np.random.default_rng(0)
    np.savez(
        path / "feats_stats.npz",
        count=100,
        sum=rng.normal(size=20) - 400,
        sum_square=np.full(20, 4000.0),
    )
    config = {
        "token_type": "word",
        "token_list": TOKENS,
        "frontend_conf": {
            "fs": FS,
            "n_fft": 256,
            "win_length": 200,
            "hop_length": 80,
            "n_mels": 20,
        },
        "normalize": "global_mvn",
        "normalize_conf": {"stats_file": str(path / "feats_stats.npz")},
        "encoder": "kv_conformer",
        "encoder_conf": {
            "output_size": 32,
            "attention_heads": 4,
            "num_blocks": 2,
            "linear_units": 32,
            "cnn_module_kernel": 7,
            "macaron_style": True,
            "attention": "mla",
            "attention_conf": {"kv_lora_rank": 12},
            "causal": True,
            "dynamic_chunk": True,
            "chunk_size": 8,
            "left_context": 16,
        }
        | (encoder_conf or {}),
        "decoder": "transformer",
        "decoder_conf": {"attention_heads": 2, "linear_units": 16, "num_blocks": 1},
        "model_conf": {"ctc_weight": 0.3},
    } | options
    (path / "train.yaml").write_text(yaml.safe_dump(config))
    args = ASRTask.get_parser().parse_args(
        ["--config", str(path / "train.yaml"), "--output_dir", str(path)]
    )
    torch.manual_seed(0)
    model = randomize(ASRTask.build_model(args))
    # tokens that answer to what differs from frame to frame, so that the text is not one word
    with torch.no_grad():
        samples = torch.from_numpy(speech())[None]
        y, _ = model.eval().encode(samples, torch.tensor([samples.size(1)]))
        ctc = model.ctc.ctc_lo
        ctc.weight.normal_(std=2.0)
        ctc.bias.copy_(-ctc.weight @ y[0].mean(0))
    torch.save(model.state_dict(), path / "model.pth")
    (path / "config.yaml").write_text(yaml.safe_dump(vars(args)))
    return path


def write_lm(path):
    """A language model of its tokens."""
    (path / "train.yaml").write_text(
        yaml.safe_dump({"lm": "seq_rnn", "lm_conf": {"unit": 8, "nlayers": 1}})
    )
    parser = StrictLMTask.get_parser()
    args = parser.parse_args(["--config", str(path / "train.yaml"), "--output_dir", str(path)])
    args.token_list = TOKENS
    torch.save(StrictLMTask.build_model(args).state_dict(), path / "lm.pth")
    (path / "config.yaml").write_text(yaml.safe_dump(vars(args)))
    return path
