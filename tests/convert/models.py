"""Directories of tiny models with random weights, as a training leaves them."""

import numpy as np
import soundfile
import torch
import yaml

from tiny import ENCODERS, N_FEAT, N_HEAD, randomize

TOKENS = ["<blank>", "<unk>", "A", "B", "C", "D", "<sos/eos>"]
CHECKPOINT = "valid.acc.ave.pth"


def write_model(expdir, encoder, encoder_conf=None, **options):
    """A model of ESPnet's task: ``encoder`` without ``kv_`` is stock ESPnet's."""
    from espnet2.tasks.asr import ASRTask

    import espnet_ext  # noqa: F401

    torch.manual_seed(3)
    conf = {"output_size": N_FEAT, "attention_heads": N_HEAD, "num_blocks": 2}
    conf |= {"rel_pos_type": "latest"} | ENCODERS.get(encoder.removeprefix("kv_"), (None, {}))[1]
    config = ASRTask.get_default_config() | {
        "token_list": TOKENS,
        "token_type": "word",
        "encoder": encoder,
        "encoder_conf": conf | (encoder_conf or {}),
        "decoder": "transformer",
        "decoder_conf": {"attention_heads": 2, "linear_units": 16, "num_blocks": 2},
        "frontend_conf": {"fs": 8000, "n_fft": 256, "hop_length": 80, "n_mels": 20},
        "specaug": None,
        "normalize": None,
        "model_conf": {"ctc_weight": 0.5},
    }
    config |= options
    expdir.mkdir(parents=True)
    (expdir / "config.yaml").write_text(yaml.safe_dump(config))
    model, _ = ASRTask.build_model_from_file(expdir / "config.yaml")
    torch.save(randomize(model).state_dict(), expdir / CHECKPOINT)
    return expdir


def write_audio(data, utterances=3, seconds=2):
    """A data directory of noise whose loudness changes."""
    data.mkdir(parents=True)
    tables = {"wav.scp": {}, "text": {}, "utt2spk": {}}
    for i in range(utterances):
        noise = np.random.default_rng(i)
        wave = noise.normal(0, 0.1, 8000 * seconds + 1600 * i)
        wave *= np.repeat(noise.uniform(0.1, 1, len(wave) // 800 + 1), 800)[: len(wave)]
        soundfile.write(data / f"u{i}.wav", wave, 8000)
        row = {"wav.scp": data / f"u{i}.wav", "text": "A B C A", "utt2spk": "s"}
        for name, value in row.items():
            tables[name][f"s-u{i}"] = value
    for name, table in tables.items():
        (data / name).write_text("".join(f"{i} {v}\n" for i, v in table.items()))
    return data
