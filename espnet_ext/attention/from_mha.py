"""Weights of multi-head attention rewritten for the other attentions, in float64.

Keys and values are k = W_K x + b_K and v = W_V x + b_V. A key bias adds a constant to a row of
scores, which softmax does not see; a value bias passes straight through, because weights sum to
one. So all that has to be approximated is W = [W_K; W_V]. Where the covariance C of layer inputs x
is known it is W C^(1/2): the error of keys and values on real inputs is least, not that of the
weights. The mean of x has no part in either: its share of the error is a constant, in keys for the
softmax to drop and in values for a bias to correct: their own, or where heads share it that of the
output.

``moments`` are those of layer inputs, each counted as much as it is attended to: ``mean`` (D,) and
``root()`` (D, D), L with L L^T = C.
Letters in shapes: D n_feat, H heads, G key-value heads, d = d_k.
"""

from typing import Any

import torch
from torch import Tensor

KEY_VALUE = ("linear_k.", "linear_v.")


def key_value_weights(attention: Any) -> Tensor:
    """[W_K; W_V] (2D, D)."""
    weights = [attention.linear_k.weight, attention.linear_v.weight]
    return torch.cat(weights).detach().cpu().double()


def on_inputs(weights: Tensor, moments: Any) -> Tensor:
    """Weights (..., D) whose squares are the mean squares of what they make of inputs."""
    return weights if moments is None else weights @ moments.root()


def share(part: Tensor, whole: Tensor) -> Tensor:
    """``part / whole`` of sums of squares; of weights that are all 0, nothing is lost."""
    return torch.where(whole == 0, torch.zeros_like(part), part / whole)
