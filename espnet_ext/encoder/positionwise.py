"""ESPnet's wide layers on long recordings, a block of frames at a time; results stay as they are.

Inside, these layers hold several tensors of their hidden width for all frames: a gigabyte for an
hour at 1024 units. Blocks hold them for their own frames alone. With gradients everything is kept
anyway, and the layers run as ESPnet's.
"""

import torch
from espnet2.asr.layers.cgmlp import ConvolutionalGatingMLP
from espnet2.legacy.nets.pytorch_backend.transformer.positionwise_feed_forward import (
    PositionwiseFeedForward,
)
from torch import nn

#: frames per block of a feed-forward layer: what a processor's cache holds
FEED_FORWARD_BLOCK = 512
#: frames per block of a gating MLP, which also computes the frames that its convolution looks at
GATING_BLOCK = 4096


class BlockedFeedForward(PositionwiseFeedForward):
    """Position-wise feed-forward layer."""

    def forward(self, x):
        """(B, T, n_feat) -> (B, T, n_feat)."""
        if torch.is_grad_enabled() or x.size(1) <= FEED_FORWARD_BLOCK:
            return super().forward(x)
        y = torch.empty_like(x)
        for start in range(0, x.size(1), FEED_FORWARD_BLOCK):
            block = slice(start, start + FEED_FORWARD_BLOCK)
            y[:, block] = super().forward(x[:, block])
        return y


class BlockedGatingMLP(ConvolutionalGatingMLP):
    """Convolutional gating MLP."""

    def forward(self, x, mask):
        """As ESPnet's: (B, T, n_feat), or a tuple with positions, to the same."""
        x, *positions = x if isinstance(x, tuple) else (x,)
        length = x.size(1)
        if torch.is_grad_enabled() or length <= GATING_BLOCK:
            y = super().forward(x, mask)
        else:
            sight = self.csgu.conv.kernel_size[0] - 1  # covers a causal convolution as well
            y = torch.empty_like(x)
            for start in range(0, length, GATING_BLOCK):
                stop = min(start + GATING_BLOCK, length)
                lo, hi = max(0, start - sight), min(length, stop + sight)
                block = super().forward(x[:, lo:hi], None if mask is None else mask[..., lo:hi])
                y[:, start:stop] = block[:, start - lo : stop - lo]
        return (y, *positions) if positions else y


def use_blocks(layer: nn.Module) -> None:
    """Let the wide layers inside an encoder layer that ESPnet has built run in blocks."""
    blocked = {
        PositionwiseFeedForward: BlockedFeedForward,
        ConvolutionalGatingMLP: BlockedGatingMLP,
    }
    for module in layer.modules():
        module.__class__ = blocked.get(type(module), type(module))
