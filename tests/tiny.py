"""Encoders small enough for a test, one of each kind, and what makes them comparable."""

import numpy as np
import torch

from espnet_ext.attention import ATTENTIONS, build_attention
from espnet_ext.positions import relative_positions
from espnet_ext.register import ENCODERS as CLASSES
from espnet_ext.step import FramesOfPast, Window

N_FEAT, N_HEAD, INPUT_SIZE = 32, 4, 20
FS = 8000

# options of the variants that need some; a variant that is not here is built with its defaults
ATTENTION_CONF = {"gqa": {"n_kv_head": 2}, "mla": {"kv_lora_rank": 12}}

# every attention of the registry, and the ones with a choice of cache in both forms
VARIANTS = {name: (name, ATTENTION_CONF.get(name, {})) for name in ATTENTIONS}
VARIANTS |= {
    f"{name}_input": (name, ATTENTION_CONF.get(name, {}) | {"cache": "input"})
    for name in ("mha", "gqa")
}

# options of the encoders that keep them tiny; an encoder that is not here has its defaults
ENCODER_CONF = {
    "conformer": {"macaron_style": True, "cnn_module_kernel": 7, "linear_units": 32},
    "branchformer": {"cgmlp_linear_units": 48, "cgmlp_conv_kernel": 7},
    "e_branchformer": {
        "cgmlp_linear_units": 48,
        "cgmlp_conv_kernel": 7,
        "merge_conv_kernel": 5,
        "use_ffn": True,
        "macaron_ffn": True,
        "linear_units": 32,
    },
}
ENCODERS = {
    name: (cls, ENCODER_CONF.get(name, {}))
    for name, cls in ((key.removeprefix("kv_"), cls) for key, cls in CLASSES.items())
}


def stock(encoder):
    """ESPnet's class that an encoder derives from."""
    return ENCODERS[encoder][0].__bases__[1]


def forgets(variant):
    """Whether an attention has a left context."""
    return ATTENTIONS[VARIANTS[variant][0]].has_left_context


def build_encoder(encoder, variant="mha", num_blocks=2, **options):
    """A tiny encoder with weights large enough for an error to show."""
    cls, conf = ENCODERS[encoder]
    attention, attention_conf = VARIANTS[variant]
    model = cls(
        INPUT_SIZE,
        output_size=N_FEAT,
        attention_heads=N_HEAD,
        num_blocks=num_blocks,
        attention=attention,
        attention_conf=attention_conf,
        **(conf | options),
    )
    return randomize(model)


def build_tiny_attention(variant, **conf):
    """One attention, every weight large enough for an error to show."""
    name, base = VARIANTS[variant]
    attention = build_attention(name, N_HEAD, N_FEAT, 0.0, base | conf)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return attention.eval()


@torch.no_grad()
def stream_attention(attention, x, chunk_size, left_context):
    """One attention alone on a stream: (B, T, n_feat) in chunks -> (B, T, n_feat)."""
    batch = x.size(0)
    state = attention.init_cache(batch, chunk_size, left_context, torch.float32, "cpu")
    capacity, outputs, start = chunk_size + left_context, [], 0
    for chunk in x.split(chunk_size, dim=1):
        n, kept = chunk.size(1), min(start, left_context)
        window = Window(start % capacity, (kept,) * batch, (n,) * batch, n, capacity, "cpu")
        distances = torch.arange(window.keys - 1, -n, -1)
        past = FramesOfPast(state, window, attention.project_positions(distances))
        outputs.append(attention.forward_chunk(chunk, past))
        start += n
    return torch.cat(outputs, dim=1)


def positions(length, dtype=torch.float32):
    """Position embeddings (1, 2T-1, n_feat) of T frames."""
    distances = torch.arange(length - 1, -length, -1)
    return relative_positions(distances, N_FEAT, dtype)[None]


def randomize(model):
    """Draw biases, convolutions and running statistics anew: ESPnet starts some of them at zero."""
    for name, parameter in model.named_parameters():
        if "conv" in name or "bias" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    for name, buffer in model.named_buffers():
        if "running_mean" in name:
            buffer.normal_()
    return model


def max_error(a, b):
    """Largest absolute difference of two tensors of the same shape."""
    assert a.shape == b.shape, f"{tuple(a.shape)} against {tuple(b.shape)}"
    return (a - b).abs().max().item() if a.numel() else 0.0


def speech(seconds=2.0, seed=0):
    """A new tone and loudness every 80 ms: something different in every encoder frame."""
    rng = np.random.default_rng(seed)
    n = int(seconds * FS)
    tones = rng.uniform(100, 3900, n // 640 + 1).repeat(640)[:n]
    loudness = 10 ** rng.uniform(-4, -0.5, n // 640 + 1).repeat(640)[:n]
    return (loudness * np.sin(2 * np.pi * np.cumsum(tones) / FS)).astype(np.float32)
