"""Modules of ESPnet's encoder layers: the same results in less time and memory.

The wide ones hold several tensors of their hidden width for all frames: a gigabyte for an hour at
1024 units. Without gradients they run in blocks, which hold them for their own frames alone and
stay in a processor's cache. Everything keeps the layout (B, T, channels), where ESPnet's
convolutions change it and back.
"""

import torch
import torch.nn.functional as F
from espnet2.asr.encoder.e_branchformer_encoder import EBranchformerEncoderLayer
from espnet2.asr.layers.cgmlp import ConvolutionalGatingMLP
from espnet2.legacy.nets.pytorch_backend.conformer.convolution import ConvolutionModule
from espnet2.legacy.nets.pytorch_backend.conformer.swish import Swish
from espnet2.legacy.nets.pytorch_backend.transformer.positionwise_feed_forward import (
    PositionwiseFeedForward,
)

from espnet_ext.attention.blocked import may_hide

#: frames per block
BLOCK = 512


class SiLU(Swish):
    """Swish in one pass; its backward pass needs the input alone."""

    def forward(self, x):
        """(...) -> (...)."""
        return F.silu(x)


class FeedForward(PositionwiseFeedForward):
    """Position-wise feed-forward layer."""

    def forward(self, x):
        """(B, T, n_feat) -> (B, T, n_feat)."""
        if torch.is_grad_enabled() or x.size(1) <= BLOCK:
            return super().forward(x)
        y = torch.empty_like(x)
        for start in range(0, x.size(1), BLOCK):
            block = slice(start, start + BLOCK)
            y[:, block] = super().forward(x[:, block])
        return y


class Convolution(ConvolutionModule):
    """The Conformer's convolution module."""

    def forward(self, x, mask_pad=None):
        """(B, T, n_feat) and the mask (B, 1, T), True on real frames -> (B, T, n_feat)."""
        return self._around(x, lambda y: self.depthwise_conv(_real_frames(y, mask_pad)))

    def forward_chunk(self, x, past):
        """One chunk (B, n, n_feat) -> (B, n, n_feat)."""
        return self._around(x, lambda y: self.depthwise_conv.forward_chunk(y, past))

    def _around(self, x, convolve):
        x = F.glu(self.pointwise_conv1(x.transpose(1, 2)).transpose(1, 2), dim=-1)
        x = convolve(x.transpose(1, 2)).transpose(1, 2)
        x = self.norm(x.flatten(0, 1)).unflatten(0, x.shape[:2])  # frames of all are its batch
        return self.pointwise_conv2(self.activation(x).transpose(1, 2)).transpose(1, 2)


class GatingMLP(ConvolutionalGatingMLP):
    """Convolutional gating MLP."""

    def forward(self, x, mask):
        """As ESPnet's: (B, T, n_feat), or a tuple with positions, to the same."""
        x, *positions = x if isinstance(x, tuple) else (x,)
        length = x.size(1)
        if torch.is_grad_enabled() or length <= BLOCK:
            y = self._masked(x, mask)
        else:
            before, after = self.csgu.conv.sight
            y = torch.empty_like(x)
            for start in range(0, length, BLOCK):
                stop = min(start + BLOCK, length)
                lo, hi = max(0, start - before), min(length, stop + after)
                block = self._masked(x[:, lo:hi], None if mask is None else mask[..., lo:hi])
                y[:, start:stop] = block[:, start - lo : stop - lo]
        return (y, *positions) if positions else y

    def forward_chunk(self, x, past):
        """One chunk (B, n, n_feat) -> (B, n, n_feat)."""
        return self._around(x, lambda y: self.csgu.conv.forward_chunk(y, past))

    def _masked(self, x, mask):
        return self._around(x, lambda y: self.csgu.conv(_real_frames(y, mask)))

    def _around(self, x, convolve):
        csgu = self.csgu
        content, gate = self.channel_proj1(x).chunk(2, dim=-1)
        gate = convolve(csgu.norm(gate).transpose(1, 2)).transpose(1, 2)
        if csgu.linear is not None:
            gate = csgu.linear(gate)
        return self.channel_proj2(csgu.dropout(content * csgu.act(gate)))


class EBranchformerLayer(EBranchformerEncoderLayer):
    """E-Branchformer layer."""

    def forward(self, x_input, mask, cache=None):
        """As ESPnet's, whose merge copies its input twice to hide padded frames."""
        output, _ = super().forward(x_input, mask if may_hide(mask) else None, cache)
        return output, mask


def _real_frames(x, mask):
    """(B, channels, T) with zeros on padded frames, in the layout of ``x``."""
    return x * mask if may_hide(mask) else x


#: ESPnet's class -> the one here
FASTER = {
    ConvolutionModule: Convolution,
    ConvolutionalGatingMLP: GatingMLP,
    EBranchformerEncoderLayer: EBranchformerLayer,
    PositionwiseFeedForward: FeedForward,
    Swish: SiLU,
}
