"""Multi-head latent attention (DeepSeek-AI 2024, DeepSeek-V2) under relative positions.

A frame x_j leaves one latent c_j = W_DKV x_j behind, and every head's key and value are linear in
it: k_j = W_UK c_j, v_j = W_UV c_j + b_V. DeepSeek has to carry rotary positions beside the latent,
because a rotation sits between query and key. Here the position term (q_i + v) . p_{i-j} never
touches the key, so the latent is all there is. Two forms of the same numbers:

    expanded   score = (q_i + u) . (W_UK c_j)        context = sum_j a_ij (W_UV c_j + b_V)
    absorbed   score = (W_UK^T (q_i + u)) . c_j      context = W_UV (sum_j a_ij c_j) + b_V

Training and whole utterances run expanded; a streaming step runs absorbed, where keys and values
are never built, unless the chunk is so long that building them once is cheaper.

The best latent of rank r for a trained multi-head attention, of W = [W_K; W_V], is c = U^T W x with
keys and values U c, where U (2D, r) holds left singular vectors of W (``from_mha.py``).
"""

from typing import Any

import torch
from torch import Tensor, nn

from espnet_ext.attention.base import SoftmaxAttention, quantised
from espnet_ext.attention.checks import check_at_least
from espnet_ext.attention.from_mha import KEY_VALUE, key_value_weights, on_inputs, share


class MultiHeadLatentAttention(SoftmaxAttention):
    """Keys and values of all heads from one low-rank latent per frame.

    Args:
        n_head: Number of heads.
        n_feat: Width of the model.
        dropout_rate: Dropout of attention weights.
        kv_lora_rank: Width r of the latent, 1 to 2 * n_feat; at 2 * n_feat any multi-head attention
            can be written as latent attention, at n_feat the cache is as large as layer inputs.
            None takes n_feat / 2, a quarter of what multi-head attention keeps.
        q_lora_rank: Width of a latent between input and queries, or None for plain queries. It
            saves parameters and no cache.
        kv_norm: Normalise the latent (RMSNorm, as DeepSeek-V2); the normalised latent is cached.

    Raises:
        ValueError: A value breaks its rule; the message names key, rule and value.
    """

    not_from_mha = ("q_lora_rank", "kv_norm")
    ranked = "kv_lora_rank"

    def __init__(
        self,
        n_head: int,
        n_feat: int,
        dropout_rate: float = 0.0,
        kv_lora_rank: int | None = None,
        q_lora_rank: int | None = None,
        kv_norm: bool = False,
    ) -> None:
        super().__init__(n_head, n_feat, dropout_rate)
        kv_lora_rank = n_feat // 2 if kv_lora_rank is None else kv_lora_rank
        check_at_least("kv_lora_rank", kv_lora_rank, 1)
        if kv_lora_rank > 2 * n_feat:
            raise ValueError(
                f"kv_lora_rank: must be at most 2 * output_size = {2 * n_feat}, got {kv_lora_rank}"
            )
        if not isinstance(kv_norm, bool):
            raise ValueError(f"kv_norm: must be true or false, got {kv_norm!r}")
        if q_lora_rank is not None:
            check_at_least("q_lora_rank", q_lora_rank, 1)
            self.linear_q = nn.Sequential(
                nn.Linear(n_feat, q_lora_rank, bias=False), nn.Linear(q_lora_rank, n_feat)
            )
        self.kv_lora_rank = kv_lora_rank
        self.linear_kv_down = nn.Linear(n_feat, kv_lora_rank, bias=False)
        self.kv_norm = nn.RMSNorm(kv_lora_rank) if kv_norm else nn.Identity()
        self.linear_k_up = nn.Linear(kv_lora_rank, n_feat, bias=False)
        self.linear_v_up = nn.Linear(kv_lora_rank, n_feat)

    def record(self, x: Tensor) -> dict[str, Tensor]:
        return {"c": self.kv_norm(self.linear_kv_down(x))}  # (B, T, D) -> (B, T, r)

    def record_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"c": (self.kv_lora_rank,)}

    def key_value(self, record: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        c = record["c"]
        # (B, T, r) -> (B, H, T, d_k)
        return self.split_heads(self.linear_k_up(c)), self.split_heads(self.linear_v_up(c))

    def absorbed_weights(self) -> tuple[Tensor, Tensor, Tensor | None] | None:
        if quantised(self.linear_k_up, self.linear_v_up):
            return None
        w_k = self.linear_k_up.weight.unflatten(0, (self.h, self.d_k))  # (H*d, r) -> (H, d, r)
        w_v = self.linear_v_up.weight.unflatten(0, (self.h, self.d_k)).transpose(1, 2)  # (H, r, d)
        return w_k, w_v, self.linear_v_up.bias.view(self.h, 1, self.d_k)

    @staticmethod
    def cache_kind(conf: dict) -> str:
        return "latent"

    def from_mha(self, mha: Any, moments: Any = None) -> tuple[dict[str, Tensor], float | None]:
        """The best latent of this rank; exact from ``n_feat`` on."""
        weights = key_value_weights(mha)
        u, squares = directions(mha, moments)
        down = u[:, : self.kv_lora_rank].T @ weights  # (r, D)
        k_up, v_up = u[:, : self.kv_lora_rank].chunk(2)  # (D, r) each
        bias = mha.linear_v.bias.detach().cpu().double()
        if moments is not None:
            _, w_v = weights.chunk(2)
            bias = bias + (w_v - v_up @ down) @ moments.mean
        state = {k: v for k, v in mha.state_dict().items() if not k.startswith(KEY_VALUE)}
        state |= {
            "linear_kv_down.weight": down,
            "linear_k_up.weight": k_up,
            "linear_v_up.weight": v_up,
            "linear_v_up.bias": bias,
        }
        return state, share(squares[self.kv_lora_rank :].sum(), squares.sum()).item()

    @staticmethod
    def spectrum(mha: Any, moments: Any = None) -> Tensor:
        """Error (2D,) that each next rank takes away, the largest first."""
        return directions(mha, moments)[1]


def directions(attention: Any, moments: Any = None) -> tuple[Tensor, Tensor]:
    """A latent's directions U (2D, 2D), the most important first, and what each is worth.

    That is their squared singular values (2D,), the error that leaving each out adds. Without
    ``moments`` all inputs count as equally likely.
    """
    weights = on_inputs(key_value_weights(attention), moments)
    u, s, _ = torch.linalg.svd(weights, full_matrices=True)
    return u, torch.cat([s**2, s.new_zeros(len(u) - len(s))])
