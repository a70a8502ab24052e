"""The encoders' convolutions over time, with ESPnet's weights, in forms that are faster on a CPU.

ESPnet lays their inputs out as (B, channels, T) views of (B, T, channels). PyTorch's own
``Conv1d`` copies such a view, and runs a depthwise one many times slower than the same convolution
in two dimensions with the channels last. A GPU has kernels of its own and keeps ``Conv1d``.
"""

import torch
import torch.nn.functional as F
from torch import nn

from espnet_ext.state import ConvolutionState


class PointwiseConv1d(nn.Conv1d):
    """Convolution over one frame: (B, channels, T) -> (B, channels, T)."""

    @classmethod
    def like(cls, conv: nn.Conv1d) -> "PointwiseConv1d":
        """A convolution with the shape and the parameter names of ``conv``."""
        return cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            padding=conv.padding,
            groups=conv.groups,
            bias=conv.bias is not None,
        )

    def forward(self, x):
        """A matrix product where frames are rows, without a copy."""
        return F.linear(x.transpose(1, 2), self.weight[..., 0], self.bias).transpose(1, 2)


class DepthwiseConv1d(PointwiseConv1d):
    """Each channel's own convolution: (B, channels, T) -> (B, channels, T)."""

    def forward(self, x):
        """Convolution with the padding on both sides."""
        return self.convolve(x, self.padding[0])

    def convolve(self, x, padding: int):
        """Convolution with so many zeros before and after (B, channels, T)."""
        if x.device.type != "cpu":
            return F.conv1d(x, self.weight, self.bias, padding=padding, groups=self.groups)
        x = x.transpose(1, 2).contiguous().transpose(1, 2)  # in memory: the channels last
        x, weight = x.unsqueeze(2), self.weight.unsqueeze(2)  # (B, channels, 1, T)
        return F.conv2d(x, weight, self.bias, padding=(0, padding), groups=self.groups).squeeze(2)


class CausalConv1d(DepthwiseConv1d):
    """Depthwise convolution that sees a frame and the ``kernel_size - 1`` before it."""

    def forward(self, x):
        """Whole utterances: (B, channels, T) -> (B, channels, T)."""
        return self.convolve(x, self.kernel_size[0] - 1)[..., : x.size(-1)]

    def init_state(self, batch_size: int, device) -> ConvolutionState:
        """The past of a stream that has not begun: zeros, as the offline padding."""
        shape = (batch_size, self.in_channels, self.kernel_size[0] - 1)
        return ConvolutionState(torch.zeros(shape, dtype=self.weight.dtype, device=device))

    def forward_chunk(self, x, state: ConvolutionState):
        """One chunk (B, channels, n) -> (B, channels, n); the state is updated in place."""
        x = torch.cat([state.past, x], dim=-1)
        state.past.copy_(x[..., x.size(-1) - state.past.size(-1) :])
        return self.convolve(x, 0)
