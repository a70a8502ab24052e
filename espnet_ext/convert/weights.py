"""What a conversion measures and decides: moments of layer inputs, and each layer's rank."""

import torch
from torch import Tensor

from espnet_ext.attention.from_mha import share

#: added to the covariance's diagonal, relative to its mean, where inputs leave directions empty
RIDGE = 1e-6
#: the same, relative to mean squares: what rounding leaves where all inputs are one vector
ROUNDING = 1e-14


class Moments:
    """Mean and covariance of vectors that come in batches, each with a weight."""

    def __init__(self, width: int) -> None:
        self.count = 0.0
        self.total = torch.zeros(width, dtype=torch.float64)
        self.product = torch.zeros(width, width, dtype=torch.float64)

    def add(self, x: Tensor, weights: Tensor) -> None:
        """Count vectors (n, width) with their weights (n,)."""
        x, weights = (y.detach().to("cpu", torch.float64) for y in (x, weights))
        self.count += weights.sum().item()
        self.total += weights @ x
        self.product += (x.T * weights) @ x

    @property
    def mean(self) -> Tensor:
        """(width,)."""
        return self.total / self.count

    def root(self) -> Tensor:
        """L (width, width) with L L^T the covariance, which a ridge makes regular."""
        squares = self.product / self.count
        covariance = squares - torch.outer(self.mean, self.mean)
        ridge = RIDGE * covariance.diagonal().mean() + ROUNDING * squares.diagonal().mean()
        covariance.diagonal().add_(ridge)
        return torch.linalg.cholesky(covariance)


def allocate_ranks(spectra: list[Tensor], total: int) -> list[int]:
    """Share ``total`` ranks among layers, each to the layer whose relative error it lowers most.

    Args:
        spectra: Squared singular values of each layer (2D,), falling (``spectrum`` of MLA).
        total: Ranks to share, at least one per layer. What full rank has no use for is left.
    """
    gains = torch.stack([share(squares, squares.sum()) for squares in spectra])  # (layers, 2D)
    first = torch.ones(len(gains), dtype=torch.long)  # every layer has a latent
    useful = int((gains > 0).sum())
    more = max(0, min(total, useful) - len(gains))
    order = gains[:, 1:].flatten().argsort(descending=True)[:more]
    chosen = order.div(gains.size(1) - 1, rounding_mode="floor")
    return (first + chosen.bincount(minlength=len(gains))).tolist()
