"""ESPnet's convolutional subsampling of long recordings, a block of frames at a time.

Between its convolutions the subsampling keeps n_feat values for every frame and every second mel
band: 479 MB for four minutes at 256-d. Blocks of output frames need only their own input frames, so
nothing but the result is kept; a block that stays in a processor's cache is faster as well.
"""

import torch
from espnet2.legacy.nets.pytorch_backend.transformer.subsampling import (
    Conv2dSubsampling,
    Conv2dSubsampling1,
    Conv2dSubsampling2,
    Conv2dSubsampling6,
    Conv2dSubsampling8,
)
from torch import nn

#: output frames per block
BLOCK = 96


def step_and_sight(embed: nn.Module) -> tuple[int, int]:
    """Feature frames from one encoder frame to the next, and that one encoder frame sees."""
    step, sees = 1, 1
    for module in embed.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d)):
            sees += (module.kernel_size[0] - 1) * step
            step *= module.stride[0]
    return step, sees


class InBlocks:
    """Mixed into one of ESPnet's subsamplings; parameters and results stay as they are."""

    def forward(self, x, x_mask, prefix_embeds=None):
        """As ESPnet's: features (B, T, n_mels) -> (B, T', n_feat) with positions, and the mask."""
        if prefix_embeds is not None:
            return super().forward(x, x_mask, prefix_embeds)
        step, sees = step_and_sight(self.conv)
        frames = (x.size(1) - sees) // step + 1
        on_cpu = x.device.type == "cpu"
        # gradients keep what blocks would drop, so blocks are then of use to a CPU's cache alone
        size = BLOCK if on_cpu or not torch.is_grad_enabled() else frames
        blocks = []
        for start in range(0, frames, size):
            stop = min(start + size, frames)
            y = x[:, start * step : (stop - 1) * step + sees].unsqueeze(1)  # (B, 1, t, mels)
            if on_cpu:  # channels last are its faster layout
                y = y.to(memory_format=torch.channels_last)
            y = self.conv(y).transpose(1, 2).flatten(2)  # (B, t', channels * mels')
            blocks.append(self.out(y))
        if x_mask is not None:
            lengths = (x_mask.sum(-1) - sees) // step + 1  # (B, 1)
            positions = torch.arange(frames, device=x.device)
            x_mask = (positions < lengths[..., None]).to(x_mask.dtype)  # (B, 1, T')
        return self.pos_enc(torch.cat(blocks, dim=1)), x_mask


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


BLOCKED = {cls.__mro__[2]: cls for cls in InBlocks.__subclasses__()}


def use_blocks(embed: nn.Module) -> None:
    """Let a convolutional subsampling that ESPnet has built run in blocks; leave others alone."""
    embed.__class__ = BLOCKED.get(type(embed), type(embed))
