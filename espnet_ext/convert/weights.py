"""Weights of multi-head attention rewritten for the other attentions, in float64.

Keys and values are k = W_K x + b_K and v = W_V x + b_V. A key bias adds a constant to a row of
scores, which softmax does not see; a value bias passes straight through, because weights sum to
one. So all that latent attention has to approximate is W = [W_K; W_V]. Its best latent of rank r is
c = U^T W x, with keys and values U c, where U (2D, r) holds left singular vectors of W. Where the
covariance C of layer inputs x is known they are those of W C^(1/2): the error of keys and values on
real inputs is least, not that of the weights. The mean of x has no part in either: its share of the
error is a constant, in keys for the softmax to drop and in values for the bias to correct.

Letters in shapes: D n_feat, H heads, G key-value heads, d = d_k.
"""

import torch

#: added to the covariance's diagonal, relative to its mean, where inputs leave directions empty
RIDGE = 1e-6


class Moments:
    """Mean and covariance of vectors that come in batches."""

    def __init__(self, width: int):
        self.count = 0
        self.total = torch.zeros(width, dtype=torch.float64)
        self.product = torch.zeros(width, width, dtype=torch.float64)

    def add(self, x: torch.Tensor) -> None:
        """Count vectors (..., width)."""
        x = x.detach().flatten(0, -2).to("cpu", torch.float64)
        self.count += len(x)
        self.total += x.sum(0)
        self.product += x.T @ x

    @property
    def mean(self) -> torch.Tensor:
        """(width,)."""
        return self.total / self.count

    def root(self) -> torch.Tensor:
        """L (width, width) with L L^T the covariance, which a ridge makes regular."""
        covariance = self.product / self.count - torch.outer(self.mean, self.mean)
        covariance.diagonal().add_(RIDGE * covariance.diagonal().mean())
        return torch.linalg.cholesky(covariance)


def key_value_weights(attention) -> torch.Tensor:
    """[W_K; W_V] (2D, D)."""
    weights = [attention.linear_k.weight, attention.linear_v.weight]
    return torch.cat(weights).detach().cpu().double()


def _on_inputs(weights, moments):
    """Weights (..., D) whose squares are the mean squares of what they make of inputs."""
    return weights if moments is None else weights @ moments.root()


def share(part, whole):
    """``part / whole`` of sums of squares; of weights that are all 0, nothing is lost."""
    return torch.where(whole == 0, torch.zeros_like(part), part / whole)


def directions(attention, moments: Moments | None = None):
    """What latent attention of each rank keeps.

    Args:
        attention: Multi-head attention.
        moments: Of its inputs; without them all inputs count as equally likely.

    Returns:
        U (2D, 2D), a latent's directions, the most important first, and their squared singular
        values (2D,), the error that leaving each out adds.
    """
    weights = _on_inputs(key_value_weights(attention), moments)
    u, s, _ = torch.linalg.svd(weights, full_matrices=True)
    return u, torch.cat([s**2, s.new_zeros(len(u) - len(s))])


def to_latent(attention, rank: int, moments: Moments | None = None):
    """Latent attention of a rank; exact from n_feat on.

    Args:
        attention: Multi-head attention.
        rank: ``kv_lora_rank``, at most 2 * n_feat.
        moments: Of its inputs, or None.

    Returns:
        Its parameters by name, and the share of keys and values that is lost (squares, 0 to 1).
    """
    weights = key_value_weights(attention)
    u, squares = directions(attention, moments)
    down = u[:, :rank].T @ weights  # (r, D)
    k_up, v_up = u[:, :rank].chunk(2)  # (D, r) each
    bias = attention.linear_v.bias.detach().cpu().double()
    if moments is not None:
        _, w_v = weights.chunk(2)
        bias = bias + (w_v - v_up @ down) @ moments.mean
    state = {k: v for k, v in attention.state_dict().items() if not k.startswith(KEY_VALUE)}
    state |= {
        "linear_kv_down.weight": down,
        "linear_k_up.weight": k_up,
        "linear_v_up.weight": v_up,
        "linear_v_up.bias": bias,
    }
    return state, share(squares[rank:].sum(), squares.sum()).item()


KEY_VALUE = ("linear_k.", "linear_v.")


def allocate_ranks(spectra: list[torch.Tensor], total: int) -> list[int]:
    """Share ``total`` ranks among layers, each to the layer whose relative error it lowers most.

    Args:
        spectra: Squared singular values of each layer (2D,), falling, see ``directions``.
        total: Ranks to share, at least one per layer. What full rank has no use for is left.
    """
    gains = torch.stack([share(squares, squares.sum()) for squares in spectra])  # (layers, 2D)
    first = torch.ones(len(gains), dtype=torch.long)  # every layer has a latent
    useful = int((gains > 0).sum())
    more = max(0, min(total, useful) - len(gains))
    order = gains[:, 1:].flatten().argsort(descending=True)[:more]
    chosen = order.div(gains.size(1) - 1, rounding_mode="floor")
    return (first + chosen.bincount(minlength=len(gains))).tolist()


def to_groups(attention, n_kv_head: int, order: list[int]):
    """Grouped-query attention whose keys and values are the means of heads (Ainslie et al. 2023).

    Args:
        attention: Multi-head attention.
        n_kv_head: Groups.
        order: Heads in their new order; the first H/G make the first group. See ``group_heads``.

    Returns:
        Its parameters by name.
    """
    heads = attention.h

    def reordered(x):  # (H * d, ...) -> (H, d, ...)
        return x.unflatten(0, (heads, -1))[order]

    state = {}
    for name, value in attention.state_dict().items():
        if name.startswith(KEY_VALUE):
            groups = reordered(value.double()).unflatten(0, (n_kv_head, -1))  # (G, H/G, d, ...)
            state[name] = groups.mean(1).flatten(0, 1)
        elif name.startswith(("linear_q.", "linear_pos.", "pos_bias_")):
            state[name] = reordered(value).reshape(value.shape)
        elif name == "linear_out.weight":
            state[name] = reordered(value.T).flatten(0, 1).T
        else:
            state[name] = value
    return state


def group_heads(attention, n_kv_head: int, similar: bool, moments: Moments | None = None):
    """Which heads share keys and values.

    Args:
        attention: Multi-head attention.
        n_kv_head: Groups, of equal size.
        similar: Group heads that make similar keys and values; else neighbours. From neighbours
            on, two heads change places while that makes the means fit better.
        moments: Of the layer's inputs, or None.

    Returns:
        The heads, group after group, and the share of keys and values that the means lose
        (squares, 0 to 1).
    """
    weights = _on_inputs(key_value_weights(attention), moments)  # (2 * H * d, D)
    heads = weights.view(2, attention.h, -1).transpose(0, 1).flatten(1)  # (H, 2 * d * D)

    def lost(order):
        groups = heads[order].unflatten(0, (n_kv_head, -1))  # (G, H/G, 2 * d * D)
        return (groups - groups.mean(1, keepdim=True)).square().sum().item()

    order = list(range(attention.h))
    best, improved = lost(order), similar
    while improved:
        improved = False
        for i in range(len(order)):
            for j in range(i):
                swapped = order.copy()
                swapped[i], swapped[j] = order[j], order[i]
                if (value := lost(swapped)) < best * (1 - 1e-9):
                    order, best, improved = swapped, value, True
    return order, share(heads.new_tensor(best), heads.square().sum()).item()


def to_linear(attention):
    """Linear attention that begins with the projections of multi-head attention."""
    names = ("linear_q.", "linear_k.", "linear_v.", "linear_out.")
    return {k: v for k, v in attention.state_dict().items() if k.startswith(names)}
