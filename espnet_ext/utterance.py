"""What every decoder asks of an utterance: one channel of numbers, long enough or without text."""

import math

import numpy as np
import torch
from espnet2.legacy.nets.pytorch_backend.transformer.subsampling import TooShortUttError

from espnet_ext.errors import UserError
from espnet_ext.frontend import front_end

#: a second axis longer than this is no axis of channels
MAX_CHANNELS = 64
#: nothing is louder, not even 16-bit samples that were not scaled; features of far more overflow
MAX_SAMPLE = 2**15


def mono(samples):
    """Samples (n, channels), an array or a tensor, as their mean (n,); others as they are."""
    is_array = samples.ndim == 2 and samples.shape[1] <= MAX_CHANNELS
    return samples.mean(1) if is_array else samples


def waveform(samples, dtype=None, device=None) -> torch.Tensor:
    """One utterance as a model takes it.

    Args:
        samples: Floats in [-1, 1], (n,), or (n, channels), which become their mean as in stage 3.
        dtype: Of the result; that of the samples by default.
        device: Of the result.

    Returns:
        (n,).

    Raises:
        UserError: They are integers, of another shape, not numbers, or far too large for samples.
    """
    samples = torch.as_tensor(samples, device=device)
    if samples.numel() and not samples.is_floating_point():
        raise UserError(f"samples: must be floats in [-1, 1], got {samples.dtype}; scale them")
    samples = mono(samples).to(dtype or samples.dtype)
    if samples.dim() != 1:
        raise UserError(f"samples: must be (n,) or (n, channels), got {tuple(samples.shape)}")
    fine = samples.abs() <= MAX_SAMPLE  # not-a-number is not
    if not fine.all():
        at = int(fine.int().argmin())
        raise UserError(
            f"samples: must be finite numbers in [-1, 1], sample {at} is {samples[at].item():g}"
        )
    return samples


def has_features(model, samples: int) -> bool:
    """Whether so many samples give features."""
    front = front_end(model.frontend)
    return samples > 0 if front is None else front.has_features(samples)


@torch.no_grad()
def encode(model, samples: torch.Tensor) -> torch.Tensor:
    """Encoder output (T, n_feat) of one utterance (n,), T being 0 if it is too short."""
    try:
        if has_features(model, len(samples)):
            y = model.encode(samples[None], torch.tensor([len(samples)], device=samples.device))[0]
            return (y[0] if isinstance(y, tuple) else y)[0]
    except TooShortUttError:
        pass
    return samples.new_zeros(0, model.encoder.output_size())


def check_log_probs(log_probs) -> None:
    """Refuse log probabilities (..., n, tokens) with a frame that has no largest one.

    Raises:
        UserError: A frame holds not-a-number or plus infinity, or all of it is minus infinity.
    """
    if log_probs.shape[-2]:
        best = np.max(log_probs, -1) if isinstance(log_probs, np.ndarray) else log_probs.amax(-1)
        check_number(float(best.min()) + float(best.max()))


def check_finite(values: torch.Tensor) -> None:
    """Refuse what a model puts out if any of it is not finite; see ``check_number``."""
    if not values.isfinite().all():
        check_number(math.nan)


def check_number(value: float) -> None:
    """Refuse a score, or a sum of what a model puts out, that is not finite.

    Raises:
        UserError: It is not.
    """
    if not math.isfinite(value):
        raise UserError(
            f"the model's output is not a number ({value:g}): the checkpoint is of no use, or the "
            "dtype is too narrow, use float32"
        )
