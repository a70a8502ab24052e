"""Grouped-query attention (Ainslie et al. 2023); with one key-value head, multi-query attention
(Shazeer 2019)."""

from espnet_ext.attention.base import SoftmaxAttention, check_at_least
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
    ):
        SoftmaxAttention.__init__(self, n_head, n_feat, dropout_rate)
        check_at_least("n_kv_head", n_kv_head, 1)
        if n_head % n_kv_head:
            raise ValueError(f"n_kv_head: must divide attention_heads {n_head}, got {n_kv_head}")
        self._add_key_value(n_kv_head, cache)
