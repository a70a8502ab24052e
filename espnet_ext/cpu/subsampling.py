"""ESPnet's convolutional subsampling of long recordings, a block of frames at a time.

Between its convolutions the subsampling keeps n_feat values for every frame and every second mel
band: 479 MB for four minutes at 256-d. Blocks of output frames need only their own input frames, so
nothing but the result is kept; a block that stays in a processor's cache is faster as well.
"""

import torch
import torch.nn.functional as F
from espnet2.legacy.nets.pytorch_backend.transformer.subsampling import (
    Conv2dSubsampling,
    Conv2dSubsampling1,
    Conv2dSubsampling2,
    Conv2dSubsampling6,
    Conv2dSubsampling8,
)
from torch import nn
from torch.compiler import is_exporting

from espnet_ext.cpu.conv import trains_on_cpu

BLOCK_FRAMES = 96  # of output
#: patches of a weight gradient that are copied at once
PATCHES = 304


def stride_and_receptive_field(embed: nn.Module) -> tuple[int, int]:
    """Feature frames from one encoder frame to the next, and that one encoder frame sees."""
    stride, field = 1, 1
    for module in embed.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d)):
            field += (module.kernel_size[0] - 1) * stride
            stride *= module.stride[0]
    return stride, field


class InBlocks:
    """Mixed into one of ESPnet's subsamplings; parameters and results stay as they are."""

    def forward(self, x, x_mask, prefix_embeds=None):
        """As ESPnet's: features (B, T, n_mels) -> (B, T', n_feat) with positions, and the mask."""
        if prefix_embeds is not None:
            return super().forward(x, x_mask, prefix_embeds)
        stride, field = stride_and_receptive_field(self.conv)
        frames = (x.size(1) - field) // stride + 1
        parts = [x]
        # an exported graph takes any number of streams, and so may not divide them
        if x.device.type == "cpu" and not torch.is_grad_enabled() and not is_exporting():
            parts = x.split(max(1, BLOCK_FRAMES // max(1, frames)))
        y = torch.cat([self._in_blocks(part, frames, stride, field) for part in parts])
        if x_mask is not None:
            lengths = (x_mask.sum(-1) - field) // stride + 1  # (B, 1)
            positions = torch.arange(frames, device=x.device)
            x_mask = (positions < lengths[..., None]).to(x_mask.dtype)  # (B, 1, T')
        return self.pos_enc(y), x_mask

    def _in_blocks(self, x, frames, stride, field):
        """Features (B, T, n_mels) -> (B, T', n_feat)."""
        on_cpu = x.device.type == "cpu"
        # gradients keep what blocks would drop, so blocks are then of use to a CPU's cache alone
        size = BLOCK_FRAMES if on_cpu or not torch.is_grad_enabled() else frames
        blocks = []
        for start in range(0, frames, size):
            stop = min(start + size, frames)
            y = x[:, start * stride : (stop - 1) * stride + field].unsqueeze(1)  # (B, 1, t, mels)
            if on_cpu:  # channels last are its faster layout
                y = y.to(memory_format=torch.channels_last)
            if trains_on_cpu(y):
                y = self.conv[3:](_two_convolutions(self.conv[0], self.conv[2], y))
            else:
                y = self.conv(y)
            blocks.append(self.out(y.transpose(1, 2).flatten(2)))  # (B, t', channels * mels')
        return torch.cat(blocks, dim=1)


def _two_convolutions(first, second, x):
    return _TwoConvolutions.apply(
        x, first.weight, first.bias, first.stride, second.weight, second.bias, second.stride
    )


class _TwoConvolutions(torch.autograd.Function):
    """Two convolutions with a ReLU between them, for training on a CPU.

    The tensor between them is the largest of the encoder and quick to make, so the backward pass
    makes it again. The second weight's gradient is a matrix product of patches, which takes a third
    of the time of PyTorch's own.
    """

    @staticmethod
    def forward(ctx, x, weight1, bias1, stride1, weight2, bias2, stride2):
        ctx.save_for_backward(x, weight1, bias1, weight2)
        ctx.strides = stride1, stride2
        between = F.conv2d(x, weight1, bias1, stride1).relu_()
        return F.conv2d(between, weight2, bias2, stride2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, weight1, bias1, weight2 = ctx.saved_tensors
        stride1, stride2 = ctx.strides
        grad = grad.contiguous(memory_format=torch.channels_last)
        between = F.conv2d(x, weight1, bias1, stride1).relu_()
        grad_between = _gradients(grad, between, weight2, stride2, (True, False, False))[0]
        grad_between = torch.ops.aten.threshold_backward(grad_between, between, 0)
        needs = (ctx.needs_input_grad[0], True, True)
        grad_x, grad_weight1, grad_bias1 = _gradients(grad_between, x, weight1, stride1, needs)
        grad_weight2 = _weight_gradient(grad, between, weight2, stride2)
        return grad_x, grad_weight1, grad_bias1, None, grad_weight2, grad.sum((0, 2, 3)), None


def _gradients(grad, x, weight, stride, needs):
    """PyTorch's gradients of a convolution's input, weight and bias."""
    return torch.ops.aten.convolution_backward(
        grad, x, weight, [weight.size(0)], stride, (0, 0), (1, 1), False, (0, 0), 1, needs
    )


def _weight_gradient(grad, x, weight, stride):
    """Gradient of a weight (out, in, k, l) by inputs (B, in, T, M) and gradients (B, out, t, m)."""
    n_out, n_in, *kernel = weight.shape
    patches = x.permute(0, 2, 3, 1)  # (B, T, M, in)
    for axis in (0, 1):
        patches = patches.unfold(axis + 1, kernel[axis], stride[axis])
    patches = patches.permute(0, 1, 2, 4, 5, 3)  # (B, t, m, k, l, in), a view
    grad = grad.permute(0, 2, 3, 1)  # (B, t, m, out)
    total = grad.new_zeros(n_out, weight[0].numel())
    rows = max(1, PATCHES // (grad.size(0) * grad.size(2)))
    for some, some_grad in zip(patches.split(rows, dim=1), grad.split(rows, dim=1), strict=True):
        total.addmm_(some_grad.flatten(0, 2).T, some.flatten(3).flatten(0, 2))
    return total.view(n_out, *kernel, n_in).permute(0, 3, 1, 2)


class BlockedConv2dSubsampling(InBlocks, Conv2dSubsampling):
    """A quarter of the frames."""


class BlockedConv2dSubsampling1(InBlocks, Conv2dSubsampling1):
    """All of the frames."""


class BlockedConv2dSubsampling2(InBlocks, Conv2dSubsampling2):
    """Half of the frames."""


class BlockedConv2dSubsampling6(InBlocks, Conv2dSubsampling6):
    """A sixth of the frames."""


class BlockedConv2dSubsampling8(InBlocks, Conv2dSubsampling8):
    """An eighth of the frames."""
