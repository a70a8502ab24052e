"""WeNet's streaming step, eager and as TorchScript, from a checkout of its repository.

Its encoder is built at the size of ours and fed at a held offset. What its import needs and a
current PyTorch or a bare machine lacks is put in place here.
"""

import ast
import logging
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

    logging.getLogger().setLevel(logging.WARNING)  # its import makes every package talk
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


def batched_steps(checkout: str, sizes: dict, chunk: int, context: int, batch: int) -> dict:
    """Functions that make one step of a batch of streams, as WeNet's server on a GPU does.

    Its caches are handed over as one tensor each: putting them together from the streams, and
    taking them apart, is not counted.

    Args:
        checkout, sizes, chunk, context: As those of ``steps``.
        batch: Streams.
    """
    encoder_class = load(checkout)
    source = Path(checkout, "wenet", "bin", "export_onnx_gpu.py").read_text()
    tree = ast.parse(source)
    wanted = [n for n in tree.body if getattr(n, "name", "") == "StreamingEncoder"]
    from wenet.utils.mask import make_pad_mask

    names = {"torch": torch, "make_pad_mask": make_pad_mask}
    # the class alone: its file imports what only an export needs
    exec(compile(ast.Module(wanted, []), "export_onnx_gpu.py", "exec"), names)
    torch.manual_seed(0)
    encoder = encoder_class(80, **sizes).eval()
    encoder.global_cmvn = torch.nn.Identity()
    width = sizes["output_size"]
    model = types.SimpleNamespace(ctc=_CTC(width), encoder=encoder)
    whole = names["StreamingEncoder"](model, context, 10).eval()
    layers, heads = sizes["num_blocks"], sizes["attention_heads"]
    inputs = (
        torch.randn(batch, 4 * (chunk - 1) + 7, 80),
        torch.full((batch,), 4 * (chunk - 1) + 7),
        torch.full((batch, 1), context),
        torch.randn(batch, layers, heads, context, 2 * width // heads),
        torch.randn(batch, layers, width, sizes["cnn_module_kernel"] - 1),
        torch.ones(batch, 1, context),
    )
    traced = torch.jit.trace(whole, inputs, check_trace=False)
    return {"eager": lambda: whole(*inputs), "TorchScript": lambda: traced(*inputs)}


class _CTC(torch.nn.Module):
    """An output layer as small as one may be: ours has none in this comparison."""

    def __init__(self, width):
        super().__init__()
        self.output = torch.nn.Linear(width, 16)

    def log_softmax(self, x):
        return self.output(x).log_softmax(-1)
