"""Linear attention (Katharopoulos et al. 2020): the past is two sums, whatever its length."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espnet_ext.attention.base import Attention
from espnet_ext.attention.blocked import ChunkView
from espnet_ext.attention.checks import check_choice
from espnet_ext.state import RunningSums


def elu_plus_one(x: Tensor) -> Tensor:
    """elu(x) + 1, which is positive."""
    return F.elu(x) + 1


FEATURE_MAPS = {"elu": elu_plus_one}
EPS = 1e-6
BLOCK_FRAMES = 64  # d_k of common sizes: sums and weights of a block are then alike in size


class LinearAttention(Attention):
    """y_i = (phi(q_i) S) / (phi(q_i) . z) with S = sum_j phi(k_j) v_j^T and z = sum_j phi(k_j).

    The sums run over all frames offline, and over all frames up to the end of the chunk when
    chunk-masked or streaming. It takes ``pos_emb`` and does not use it: the order of frames reaches
    it through the convolutions. A sum cannot forget, so a finite left context is ignored.

    Args:
        n_head: Number of heads.
        n_feat: Width of the model.
        dropout_rate: Accepted for the sake of one signature; there are no weights to drop.
        feature_map: phi; ``elu`` is elu(x) + 1.

    Raises:
        ValueError: A value breaks its rule; the message names key, rule and value.
    """

    has_left_context = False

    def __init__(
        self, n_head: int, n_feat: int, dropout_rate: float = 0.0, feature_map: str = "elu"
    ) -> None:
        super().__init__(n_head, n_feat, dropout_rate)
        check_choice("feature_map", feature_map, FEATURE_MAPS)
        self.phi = FEATURE_MAPS[feature_map]
        self.linear_q = nn.Linear(n_feat, n_feat)
        self.linear_k = nn.Linear(n_feat, n_feat)
        self.linear_v = nn.Linear(n_feat, n_feat)
        self.linear_out = nn.Linear(n_feat, n_feat)

    def features(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """phi(q), phi(k), v, each (B, H, T, d_k); phi(k) is zero where ``mask`` (B, T) is False."""
        # sums over thousands of frames: float32 also under AMP
        dtype = torch.promote_types(x.dtype, torch.float32)
        q = self.phi(self.split_heads(self.linear_q(x)).to(dtype))
        k = self.phi(self.split_heads(self.linear_k(x)).to(dtype))
        v = self.split_heads(self.linear_v(x)).to(dtype)
        return q, k if mask is None else k * mask[:, None, :, None], v

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, pos_emb: Any, mask: Tensor | None
    ) -> Tensor:
        q, k, v = self.features(query, None if mask is None else mask[:, 0].ne(0))
        with torch.autocast(query.device.type, enabled=False):
            chunk = pos_emb.chunk_size if isinstance(pos_emb, ChunkView) else q.size(2)
            if self.plotting():
                self.attn = self._weights(q, k, chunk)
            context = self._chunked(q, k, v, chunk)
        return self.linear_out(self.merge_heads(context).to(query.dtype))

    @staticmethod
    def _chunked(q: Tensor, k: Tensor, v: Tensor, chunk: int) -> Tensor:
        """Context of frames that see all chunks up to their own (B, H, T, d_k).

        Sums of d_k * d_k values are kept once per block of whole chunks, not per chunk: memory
        stays that of the input for chunks of one frame, too. Chunks of one block see each other by
        their weights.
        """
        length = q.size(2)
        chunk = min(chunk, length)
        block = chunk * max(1, BLOCK_FRAMES // chunk)
        # (B, H, T, d) -> (B, H, N, block, d), zeros after the end add nothing to a sum
        q, k, v = (
            F.pad(t, (0, 0, 0, -length % block)).unflatten(2, (-1, block)) for t in (q, k, v)
        )
        s = torch.einsum("bhncd,bhnce->bhnde", k, v).cumsum(2)  # (B, H, N, d, d)
        z = k.sum(3).cumsum(2)  # (B, H, N, d)
        if block > chunk:  # sums of the blocks before
            s = F.pad(s[:, :, :-1], (0, 0, 0, 0, 1, 0))
            z = F.pad(z[:, :, :-1], (0, 0, 1, 0))
        total, norm = torch.matmul(q, s), torch.matmul(q, z[..., None])
        if block > chunk:
            frame = torch.arange(block, device=q.device) // chunk
            weights = torch.matmul(q, k.transpose(-2, -1)) * (frame[None, :] <= frame[:, None])
            total, norm = total + torch.matmul(weights, v), norm + weights.sum(-1, keepdim=True)
        return (total / (norm + EPS)).flatten(2, 3)[:, :, :length]

    @staticmethod
    def _weights(q: Tensor, k: Tensor, chunk: int) -> Tensor:
        """The weights that the sums stand for (B, H, T, T), for attention plots only."""
        weights = torch.matmul(q, k.transpose(-2, -1))
        frame = torch.arange(q.size(2), device=q.device) // chunk
        weights = weights * (frame[None, :] <= frame[:, None])
        return weights / (weights.sum(-1, keepdim=True) + EPS)

    def init_cache(
        self, batch_size: int, chunk_size: int, left_context: int, dtype: torch.dtype, device: Any
    ) -> RunningSums:
        # an accumulator in half precision would stop growing, so the sums stay in float32
        weight = next(self.parameters(), None)  # none where layers are quantised
        double = weight is not None and weight.dtype == torch.float64
        dtype = torch.float64 if double else torch.float32
        s = torch.zeros(batch_size, self.h, self.d_k, self.d_k, dtype=dtype, device=device)
        return RunningSums(s=s, z=s.new_zeros(batch_size, self.h, self.d_k))

    def forward_chunk(self, x: Tensor, past: Any) -> Tensor:
        q, k, v = self.features(x, past.real)
        with torch.autocast(x.device.type, enabled=False):
            sums = past.add(s=torch.matmul(k.transpose(-2, -1), v), z=k.sum(2))
            # (B, H, n, d) x (B, H, d, d), and x (B, H, d, 1)
            total, norm = torch.matmul(q, sums["s"]), torch.matmul(q, sums["z"][..., None])
            context = total / (norm + EPS)
        return self.linear_out(self.merge_heads(context).to(x.dtype))

    def cache_values(self, frames: int) -> int:
        return self.h * (self.d_k * self.d_k + self.d_k)

    @staticmethod
    def cache_kind(conf: dict) -> str:
        return "sums"

    def from_mha(self, mha: Any) -> tuple[dict[str, Tensor], float | None]:
        """The same projections, to begin with."""
        names = tuple(f"{name}." for name, _ in self.named_children())
        return {k: v for k, v in mha.state_dict().items() if k.startswith(names)}, None
