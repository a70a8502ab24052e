"""Grouped-query attention (Ainslie et al. 2023); with one key-value head, multi-query attention
(Shazeer 2019)."""

from typing import Any

from torch import Tensor

from espnet_ext.attention.base import SoftmaxAttention
from espnet_ext.attention.checks import check_at_least
from espnet_ext.attention.from_mha import KEY_VALUE, key_value_weights, on_inputs, share
from espnet_ext.attention.mha import MultiHeadAttention


class GroupedQueryAttention(MultiHeadAttention):
    """Query heads 0..n_head/n_kv_head-1 share the first key-value head, the next the second, ...

    Args:
        n_head: Number of query heads.
        n_feat: Width of the model.
        dropout_rate: Dropout of attention weights.
        n_kv_head: Number of key-value heads; it divides ``n_head``. ``n_head`` gives multi-head
            attention, 1 gives multi-query attention.
        cache: ``kv``, keys and values before they are shared out (2 * n_kv_head * d_k values per
            frame), or ``input``, the layer input (n_feat values).

    Raises:
        ValueError: A value breaks its rule; the message names key, rule and value.
    """

    def __init__(
        self,
        n_head: int,
        n_feat: int,
        dropout_rate: float = 0.0,
        n_kv_head: int = 1,
        cache: str = "kv",
    ) -> None:
        SoftmaxAttention.__init__(self, n_head, n_feat, dropout_rate)
        check_at_least("n_kv_head", n_kv_head, 1)
        if n_head % n_kv_head:
            raise ValueError(f"n_kv_head: must divide attention_heads {n_head}, got {n_kv_head}")
        self._add_key_value(n_kv_head, cache)

    def from_mha(
        self, mha: Any, moments: Any = None, similar: bool = False
    ) -> tuple[dict[str, Tensor], float | None]:
        """Keys and values are the means of a group's heads (Ainslie et al. 2023).

        What a head's mean value is off by, the output bias takes up.
        """
        order, lost = group_heads(mha, self.n_kv_head, similar, moments)

        def reordered(x: Tensor) -> Tensor:  # (H * d, ...) -> (H, d, ...)
            return x.unflatten(0, (mha.h, -1))[order]

        weight, bias = (x.detach().cpu().double() for x in mha.linear_v.parameters())
        if moments is not None:
            bias = bias + weight @ moments.mean
        heads = reordered(bias).unflatten(0, (self.n_kv_head, -1))  # (G, H/G, d)
        off = (heads - heads.mean(1, keepdim=True)).flatten()  # (H * d,)

        state = {}
        for name, value in mha.state_dict().items():
            if name.startswith(KEY_VALUE):
                groups = reordered(value.double()).unflatten(0, (self.n_kv_head, -1))
                state[name] = groups.mean(1).flatten(0, 1)  # (G, H/G, d, ...) -> (G * d, ...)
            elif name.startswith(("linear_q.", "linear_pos.", "pos_bias_")):
                state[name] = reordered(value).reshape(value.shape)
            elif name == "linear_out.weight":
                state[name] = reordered(value.T).flatten(0, 1).T
            else:
                state[name] = value
        out = state["linear_out.weight"].detach().cpu().double()
        state["linear_out.bias"] = mha.linear_out.bias.detach().cpu().double() + out @ off
        return state, lost


def group_heads(
    attention: Any, n_kv_head: int, similar: bool, moments: Any = None
) -> tuple[list[int], float]:
    """The heads, group after group, and the share of keys and values that means lose (squares).

    Neighbours form a group, or ``similar`` heads: from neighbours on, two heads change places while
    that makes the means fit better.
    """
    weights = on_inputs(key_value_weights(attention), moments)  # (2 * H * d, D)
    heads = weights.view(2, attention.h, -1).transpose(0, 1).flatten(1)  # (H, 2 * d * D)

    def lost(order: list[int]) -> float:
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
