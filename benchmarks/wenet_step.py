"""WeNet's streaming step, eager and as TorchScript, from a checkout of its repository.

Its encoder is built at the size of ours and fed at a held offset. What its import needs and a
current PyTorch or a bare machine lacks is put in place here.
"""

import sys
import types
from pathlib import Path

import torch


def load(checkout: str):
    """WeNet's ``ConformerEncoder`` of a checkout."""
    package = types.ModuleType("wenet")
    package.__path__ = [str(Path(checkout) / "wenet")]
    sys.modules.setdefault("wenet", package)
    if "whisper" not in sys.modules:
        whisper, tokenizer = types.ModuleType("whisper"), types.ModuleType("whisper.tokenizer")
        tokenizer.LANGUAGES = {}
        sys.modules |= {"whisper": whisper, "whisper.tokenizer": tokenizer}
    import typing

    for name in ("List", "Optional", "Tuple", "Union"):
        if not hasattr(torch.nn.modules.conv, name):
            setattr(torch.nn.modules.conv, name, getattr(typing, name))
    from wenet.models.transformer.encoder import ConformerEncoder

    return ConformerEncoder


class _Step(torch.nn.Module):
    """A module whose forward pass, which alone becomes TorchScript, is the streaming step."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, xs, offset: int, size: int, att_cache, cnn_cache):
        return self.encoder.forward_chunk(xs, offset, size, att_cache, cnn_cache)


def steps(checkout: str, sizes: dict, chunk: int, context: int) -> dict:
    """Functions that make one step at a left context: ``eager`` and ``TorchScript``.

    Args:
        checkout: Directory of the checkout.
        sizes: Options of the encoder.
        chunk: Encoder frames per step.
        context: Encoder frames of left context.
    """
    torch.manual_seed(0)
    encoder = load(checkout)(80, **sizes).eval()
    layers, heads, width = (sizes[key] for key in ("num_blocks", "attention_heads", "output_size"))
    att = torch.randn(layers, heads, context, 2 * width // heads)
    cnn = torch.randn(layers, 1, width, sizes["cnn_module_kernel"] - 1)
    # the frames that one chunk looks at: WeNet is fed what overlaps anew
    feats = torch.randn(1, 4 * (chunk - 1) + 7, 80)
    found = {}
    whole = _Step(encoder)
    for name, module in (("eager", whole), ("TorchScript", torch.jit.script(whole))):

        def step(module=module):
            module(feats, context, context, att, cnn)

        found[name] = step
    return found
