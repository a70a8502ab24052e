"""Modules of ESPnet's encoder layers: the same results in less time and memory.

The wide ones hold several tensors of their hidden width for all frames: a gigabyte for an hour at
1024 units. Without gradients they run in blocks, which hold them for their own frames alone and
stay in a processor's cache.
"""

import torch
import torch.nn.functional as F
from espnet2.asr.layers.cgmlp import ConvolutionalGatingMLP
from espnet2.legacy.nets.pytorch_backend.conformer.convolution import ConvolutionModule
from espnet2.legacy.nets.pytorch_backend.conformer.swish import Swish
from espnet2.legacy.nets.pytorch_backend.transformer.positionwise_feed_forward import (
    PositionwiseFeedForward,
)

BLOCK_FRAMES = 512


class SiLU(Swish):
    """Swish in one pass; its backward pass needs the input alone."""

    def forward(self, x):
        """(...) -> (...)."""
        return F.silu(x)


class FeedForward(PositionwiseFeedForward):
    """Position-wise feed-forward layer."""

    def forward(self, x):
        """(B, T, n_feat) -> (B, T, n_feat)."""
        whole = super().forward
        return in_blocks(lambda part: whole(x[:, part]), x)


class Convolution(ConvolutionModule):
    """The Conformer's convolution module, in the layout (B, T, channels) of its neighbours.

    Batch norm of ESPnet's layout is slower, and far less exact in bfloat16.
    """

    def forward(self, x, mask_pad=None):
        """(B, T, n_feat) and the mask (B, 1, T), True on real frames -> (B, T, n_feat)."""
        x = F.glu(self.pointwise_conv1(x.transpose(1, 2)).transpose(1, 2), dim=-1)
        x = x.transpose(1, 2) if mask_pad is None else x.transpose(1, 2) * mask_pad
        x = self.depthwise_conv(x).transpose(1, 2)
        x = self.norm(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        return self.pointwise_conv2(self.activation(x).transpose(1, 2)).transpose(1, 2)


class GatingMLP(ConvolutionalGatingMLP):
    """Convolutional gating MLP."""

    def forward(self, x, mask):
        """As ESPnet's: (B, T, n_feat), or a tuple with positions, to the same."""
        x, *positions = x if isinstance(x, tuple) else (x,)
        whole, around = super().forward, self.csgu.conv.kernel_size[0] - 1
        y = in_blocks(
            lambda part: whole(x[:, part], None if mask is None else mask[..., part]), x, around
        )
        return (y, *positions) if positions else y


def in_blocks(function, x, around: int = 0):
    """A layer (B, T, n_feat) -> (B, T, n_feat), block by block where no gradient is asked for.

    Args:
        function: The layer's output for a slice of frames.
        x: Its input.
        around: Frames before and after a frame that its output may depend on.
    """
    length = x.size(1)
    if torch.is_grad_enabled() or length <= BLOCK_FRAMES:
        return function(slice(0, length))
    y = torch.empty_like(x)
    for start in range(0, length, BLOCK_FRAMES):
        stop = min(start + BLOCK_FRAMES, length)
        lo, hi = max(0, start - around), min(length, stop + around)
        y[:, start:stop] = function(slice(lo, hi))[:, start - lo : stop - lo]
    return y
