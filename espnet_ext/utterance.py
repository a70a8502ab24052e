"""What every decoder asks of an utterance and of what a model makes of it."""

import math

import torch
from espnet2.legacy.nets.pytorch_backend.transformer.subsampling import TooShortUttError

from espnet_ext.errors import check_number
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


def check_finite(values: torch.Tensor) -> None:
    """Refuse what a model puts out if any of it is not finite; see ``check_number``."""
    if not values.isfinite().all():
        check_number(math.nan)
