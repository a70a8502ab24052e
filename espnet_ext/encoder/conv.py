"""Causal convolutions, and ESPnet's modules around them on one chunk of a stream."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espnet_ext.cpu.conv import depthwise_conv1d
from espnet_ext.state import ConvolutionState


def like(conv: nn.Conv1d, cls: type[nn.Conv1d]) -> nn.Conv1d:
    """A new convolution of a class, with the shape and the parameter names of ``conv``."""
    return cls(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size[0],
        padding=conv.padding[0],
        groups=conv.groups,
        bias=conv.bias is not None,
    )


class CausalConv1d(nn.Conv1d):
    """Depthwise convolution that sees a frame and the ``kernel_size - 1`` before it."""

    def forward(self, x: Tensor) -> Tensor:
        """Whole utterances: (B, channels, T) -> (B, channels, T)."""
        y = depthwise_conv1d(x, self.weight, self.bias, self.kernel_size[0] - 1)
        return y[..., : x.size(-1)]

    def init_state(self, batch_size: int, device: torch.device | str | None) -> ConvolutionState:
        """The past of a stream that has not begun: zeros, as the offline padding."""
        shape = (batch_size, self.kernel_size[0] - 1, self.in_channels)
        return ConvolutionState(torch.zeros(shape, dtype=self.weight.dtype, device=device))

    def forward_chunk(self, x: Tensor, past: Any) -> Tensor:
        """One chunk (B, channels, n) -> (B, channels, n), which also sees the past."""
        x = past.extend(x.transpose(1, 2))  # (B, k-1+n, channels), as the convolution reads it
        return depthwise_conv1d(x.transpose(1, 2), self.weight, self.bias, 0)


def convolution_chunk(module: Any, x: Tensor, past: Any) -> Tensor:
    """ESPnet's convolution module on one chunk (B, n, n_feat) -> (B, n, n_feat)."""
    x = F.glu(module.pointwise_conv1(x.transpose(1, 2)).transpose(1, 2), dim=-1)
    x = module.depthwise_conv.forward_chunk(x.transpose(1, 2), past).transpose(1, 2)
    x = module.norm(x.flatten(0, 1)).unflatten(0, x.shape[:2])  # frames of all are its batch
    return module.pointwise_conv2(module.activation(x).transpose(1, 2)).transpose(1, 2)


def gating_chunk(module: Any, x: Tensor, past: Any) -> Tensor:
    """ESPnet's convolutional gating MLP on one chunk (B, n, n_feat) -> (B, n, n_feat)."""
    csgu = module.csgu
    content, gate = module.channel_proj1(x).chunk(2, dim=-1)
    gate = csgu.conv.forward_chunk(csgu.norm(gate).transpose(1, 2), past).transpose(1, 2)
    if csgu.linear is not None:
        gate = csgu.linear(gate)
    return module.channel_proj2(content * csgu.act(gate))
