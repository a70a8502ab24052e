"""What every decoder asks of an utterance and of what a model makes of it."""

import math

import numpy as np
import torch
from espnet2.legacy.nets.pytorch_backend.transformer.subsampling import TooShortUttError

from espnet_ext.errors import UserError
from espnet_ext.frontend import front_end


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
