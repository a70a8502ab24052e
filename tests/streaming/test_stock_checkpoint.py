"""A checkpoint that stock ESPnet made from the published config decodes here as it does there."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

CONF = Path(__file__).parents[2] / "conf"
TOKENS = ["<blank>", "<unk>", *"ABCDEFGHIJKLMNOPQRST", "<space>", "<sos/eos>"]
SHRUNK = {
    "encoder_conf": {"output_size": 32, "linear_units": 64, "num_blocks": 2},
    "decoder_conf": {"linear_units": 64, "num_blocks": 1},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """An experiment of stock ESPnet: conf/train_asr.yaml without what is ours, and shrunk."""
    from espnet2.tasks.asr import ASRTask
    from espnet2.utils.yaml_no_alias_safe_dump import yaml_no_alias_safe_dump

    folder = tmp_path_factory.mktemp("exp")
    config = yaml.safe_load((CONF / "train_asr.yaml").read_text())
    config["encoder"] = "conformer"
    for key in ("attention", "attention_conf"):
        del config["encoder_conf"][key]
    for key, sizes in SHRUNK.items():
        config[key] |= sizes
    (folder / "train.yaml").write_text(yaml.safe_dump(config))
    (folder / "tokens.txt").write_text("".join(f"{token}\n" for token in TOKENS))
    feats = np.random.default_rng(0).normal(-5, 3, (1000, 80))
    sums = {"count": len(feats), "sum": feats.sum(0), "sum_square": (feats**2).sum(0)}
    np.savez(folder / "feats_stats.npz", **sums)
    options = ["--config", folder / "train.yaml", "--output_dir", folder, "--token_type", "char"]
    options += ["--token_list", folder / "tokens.txt", "--normalize", "global_mvn"]
    options += ["--normalize_conf", f"stats_file={folder}/feats_stats.npz"]
    args = ASRTask.get_parser().parse_args([str(option) for option in options])
    torch.manual_seed(0)
    model = ASRTask.build_model(args)
    for name, parameter in model.named_parameters():  # hypotheses must tell recordings apart
        if parameter.dim() > 1 and name.startswith(("decoder.", "ctc.")):
            parameter.data.mul_(4)
    torch.save(model.state_dict(), folder / "valid.acc.ave.pth")
    with open(folder / "config.yaml", "w") as file:
        yaml_no_alias_safe_dump(vars(args), file, indent=4, sort_keys=False)
    return folder


def test_stock_checkpoint_decodes_alike(trained):
    from espnet_ext.bin.asr_inference import ESPnetSpeech2Text, Speech2Text
    from espnet_ext.encoder import ConformerEncoder

    (trained / "ours").mkdir()
    shutil.copy(trained / "config.yaml", trained / "ours")
    (command,) = re.findall(r"^    (sed .*)", (CONF.parent / "docs/baselines.md").read_text(), re.M)
    subprocess.run(command, shell=True, check=True, cwd=trained / "ours")
    decoding = yaml.safe_load((CONF / "decode_asr.yaml").read_text())
    weights = trained / "valid.acc.ave.pth"
    stock = ESPnetSpeech2Text(trained / "config.yaml", weights, **decoding)
    ours = Speech2Text(trained / "ours" / "config.yaml", weights, **decoding)
    assert isinstance(ours.asr_model.encoder, ConformerEncoder)
    assert not isinstance(stock.asr_model.encoder, ConformerEncoder)

    rng = np.random.default_rng(1)
    texts = set()
    for seconds in (0.4, 0.7, 1.0):
        time = np.arange(int(16000 * seconds)) / 16000
        speech = 0.1 * rng.standard_normal(len(time)) + np.sin(2000 * time * rng.random())
        ((want_text, _, want_tokens, want), *_) = stock(speech)
        ((text, _, tokens, hypothesis), *_) = ours(speech)
        assert (text, tokens) == (want_text, want_tokens)
        assert float(hypothesis.score) == pytest.approx(float(want.score), abs=1e-3)
        texts.add(text)
    assert len(texts) == 3
