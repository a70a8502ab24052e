"""Causal depthwise convolution: the same weights as ESPnet's, all of the padding on the left."""

import torch
import torch.nn.functional as F
from torch import nn

from espnet_ext.state import ConvolutionState


class CausalConv1d(nn.Conv1d):
    """Convolution over time that sees a frame and the ``kernel_size - 1`` before it."""

    @classmethod
    def like(cls, conv: nn.Conv1d) -> "CausalConv1d":
        """A causal convolution with the shape and the parameter names of ``conv``."""
        return cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            groups=conv.groups,
            bias=conv.bias is not None,
        )

    def forward(self, x):
        """Whole utterances: (B, channels, T) -> (B, channels, T)."""
        return super().forward(F.pad(x, (self.kernel_size[0] - 1, 0)))

    def init_state(self, batch_size: int, device) -> ConvolutionState:
        """The past of a stream that has not begun: zeros, as the offline padding."""
        shape = (batch_size, self.in_channels, self.kernel_size[0] - 1)
        return ConvolutionState(torch.zeros(shape, dtype=self.weight.dtype, device=device))

    def forward_chunk(self, x, state: ConvolutionState):
        """One chunk (B, channels, n) -> (B, channels, n); the state is updated in place."""
        x = torch.cat([state.past, x], dim=-1)
        state.past.copy_(x[..., x.size(-1) - state.past.size(-1) :])
        return super().forward(x)
