"""Multi-head attention (Vaswani et al. 2017) with relative positions (Dai et al. 2019)."""

from typing import Any

from torch import Tensor, nn

from espnet_ext.attention.base import SoftmaxAttention, quantised
from espnet_ext.attention.checks import check_choice


class MultiHeadAttention(SoftmaxAttention):
    """Each head has keys and values of its own. Parameters are named as in stock ESPnet.

    Args:
        n_head: Number of heads.
        n_feat: Width of the model.
        dropout_rate: Dropout of attention weights.
        cache: What a frame leaves behind: ``kv``, its keys and values (2 * n_feat values), or
            ``input``, the layer input they are projected from (n_feat values). The two are equal in
            outputs and in weights; ``input`` halves the bytes and costs time.

    Raises:
        ValueError: A value breaks its rule; the message names key, rule and value.
    """

    n_kv_head: int

    def __init__(
        self, n_head: int, n_feat: int, dropout_rate: float = 0.0, cache: str = "kv"
    ) -> None:
        super().__init__(n_head, n_feat, dropout_rate)
        self._add_key_value(n_head, cache)

    def _add_key_value(self, n_kv_head: int, cache: str) -> None:
        check_choice("cache", cache, ("kv", "input"))
        self.n_kv_head = n_kv_head
        self.cache = cache
        self.linear_k = nn.Linear(self.n_feat, n_kv_head * self.d_k)
        self.linear_v = nn.Linear(self.n_feat, n_kv_head * self.d_k)

    def record(self, x: Tensor) -> dict[str, Tensor]:
        if self.cache == "input":
            return {"x": x}
        # (B, T, n_feat) -> (B, G, T, d_k)
        return {"k": self.split_heads(self.linear_k(x)), "v": self.split_heads(self.linear_v(x))}

    def record_shapes(self) -> dict[str, tuple[int, ...]]:
        if self.cache == "input":
            return {"x": (self.n_feat,)}
        return {"k": (self.n_kv_head, self.d_k), "v": (self.n_kv_head, self.d_k)}

    def key_value(self, record: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        if self.cache == "input":
            x = record["x"]
            return self.split_heads(self.linear_k(x)), self.split_heads(self.linear_v(x))
        return record["k"], record["v"]

    def absorbed_weights(self) -> tuple[Tensor, Tensor, Tensor | None] | None:
        if self.cache == "kv" or quantised(self.linear_k, self.linear_v):
            return None
        # the key bias adds one constant to a row of scores, which softmax does not see
        w_k = self.linear_k.weight.unflatten(0, (-1, self.d_k))  # (G*d, D) -> (G, d, D)
        w_v = self.linear_v.weight.unflatten(0, (-1, self.d_k)).transpose(1, 2)  # -> (G, D, d)
        return w_k, w_v, self.linear_v.bias.view(-1, 1, self.d_k)

    def from_mha(self, mha: Any) -> tuple[dict[str, Tensor], float | None]:
        """The same parameters: what differs is what the cache keeps."""
        return mha.state_dict(), 0.0
