"""Convolutions over time, with PyTorch's weights, in forms that are faster on a CPU.

ESPnet lays their inputs out as (B, channels, T) views of (B, T, channels). PyTorch's own
``Conv1d`` copies such a view, and runs a depthwise one many times slower than the same convolution
in two dimensions with the channels last. A GPU has kernels of its own and keeps ``Conv1d``.
"""

import torch
import torch.nn.functional as F
from torch import nn

from espnet_ext import cpu

#: frames per piece of a weight gradient
SPAN = 16


def trains_on_cpu(x: torch.Tensor) -> bool:
    """Whether the gradients here are of use; autocast needs PyTorch's own."""
    cpu = x.device.type == "cpu"
    return cpu and torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")


class PointwiseConv1d(nn.Conv1d):
    """Convolution over one frame: (B, channels, T) -> (B, channels, T)."""

    def forward(self, x):
        """A matrix product where frames are rows, without a copy."""
        return F.linear(x.transpose(1, 2), self.weight[..., 0], self.bias).transpose(1, 2)


class DepthwiseConv1d(nn.Conv1d):
    """Each channel's own convolution: (B, channels, T) -> (B, channels, T)."""

    def forward(self, x):
        """Convolution with the padding on both sides."""
        return depthwise_conv1d(x, self.weight, self.bias, self.padding[0])


def depthwise_conv1d(x, weight, bias, padding: int):
    """``conv1d`` of each channel with so many zeros before and after: (B, channels, T)."""
    if x.device.type != "cpu" or not cpu.enabled():
        return F.conv1d(x, weight, bias, padding=padding, groups=len(weight))
    x = x.transpose(1, 2).contiguous().transpose(1, 2)  # in memory: the channels last
    if trains_on_cpu(x):
        return _Depthwise.apply(x, weight, bias, padding)
    return _depthwise(x, weight, bias, padding)


def _depthwise(x, weight, bias, padding):
    """Convolution of (B, channels, T) in two dimensions, one of them of size one."""
    x, weight = x.unsqueeze(2), weight.unsqueeze(2)
    return F.conv2d(x, weight, bias, padding=(0, padding), groups=x.size(1)).squeeze(2)


class _Depthwise(torch.autograd.Function):
    """``_depthwise`` with a weight gradient that takes a fifth of the time of PyTorch's own."""

    @staticmethod
    def forward(ctx, x, weight, bias, padding):
        ctx.save_for_backward(x, weight)
        ctx.padding = padding
        return _depthwise(x, weight, bias, padding)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        width = weight.size(2)
        # the layout of the input: the channels last
        grad = grad.transpose(1, 2).contiguous().transpose(1, 2)
        grad_x = _depthwise(grad, weight.flip(2), None, width - 1 - ctx.padding)
        grad_bias = grad.sum((0, 2)) if ctx.needs_input_grad[2] else None
        return grad_x, _weight_gradient(grad, x, width, ctx.padding), grad_bias, None


def _weight_gradient(grad, x, width, padding):
    """Correlation of inputs (B, channels, T) with gradients (B, channels, T'): (channels, 1, k).

    ``result[c, 0, k]`` is the sum over i of ``grad[c, i] * x[c, i + k - padding]``. Pieces of SPAN
    gradients and the inputs that these meet are multiplied each with each; their products for one k
    lie on a diagonal.
    """
    batch, channels, frames = grad.shape
    pieces = -(-frames // SPAN)
    meets = SPAN + width - 1
    grad = F.pad(grad, (0, pieces * SPAN - frames)).unfold(2, SPAN, SPAN)  # (B, C, pieces, SPAN)
    x = F.pad(x, (padding, pieces * SPAN + width - 1 - padding - x.size(2)))
    x = x.unfold(2, meets, SPAN)  # (B, C, pieces, meets)
    grad, x = (y.transpose(0, 1).flatten(1, 2) for y in (grad, x))  # (C, B * pieces, .)
    products = torch.bmm(grad.transpose(1, 2), x)  # (C, SPAN, meets)
    diagonals = products.as_strided((channels, SPAN, width), (SPAN * meets, meets + 1, 1))
    return diagonals.sum(1, keepdim=True)
