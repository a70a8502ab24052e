"""What the variants share: relative positions, chunk masks, offline and streaming attention.

A score is [(q_i + u) . k_j + (q_i + v) . p_{i-j}] / sqrt(d_k) (Dai et al. 2019, Transformer-XL;
ESPnet's ``rel_pos_type: latest``). The position term never touches k_j, so a variant is free to
keep keys, inputs or latents in its cache, and needs no rotary split.

Letters in shapes: B batch, H heads, G key-value heads, T frames, n query frames of one block or
step, K key frames it sees, d = d_k, D = n_feat, r width of a cached vector.
"""

import math
from typing import Any

import torch
from espnet2.legacy.nets.pytorch_backend.transformer.attention import MultiHeadedAttention
from torch import Tensor, nn

from espnet_ext.attention.blocked import (
    SCORES_BACKWARD,
    SCORES_FORWARD,
    Blocks,
    ChunkView,
    attend,
    attend_in_blocks,
    block_size,
    matmul_groups,
    shifted,
    softmax_weights,
)
from espnet_ext.attention.checks import check_at_least, check_choice  # noqa: F401 (for variants)
from espnet_ext.positions import dense_weight, relative_positions
from espnet_ext.state import FrameCache, RunningSums


def quantised(*linears: nn.Module) -> bool:
    """Whether any of these layers has no weight that is a tensor."""
    return not all(isinstance(linear.weight, Tensor) for linear in linears)


def position_scores(q_v: Tensor, p: Tensor) -> Tensor:
    """Scores (q_i + v) . p_{i-j} of n queries and K keys, each a run of neighbouring frames.

    Args:
        q_v: Queries with position bias (B, H, n, d).
        p: Projected positions (H, d, K+n-1), from the distance between the last query and the
            first key down to the distance between the first query and the last key.

    Returns:
        Scores (B, H, n, K).
    """
    batch, _, n, _ = q_v.shape
    rows = q_v.transpose(0, 1).flatten(1, 2)  # (H, B*n, d): all streams meet one p, uncopied
    products = torch.bmm(rows, p.to(rows.dtype)).unflatten(1, (batch, n))  # (H, B, n, K+n-1)
    return shifted(products.transpose(0, 1))


class Attention(MultiHeadedAttention):
    """What every variant, softmax or not, offers to an encoder.

    It is an ESPnet ``MultiHeadedAttention`` so that ESPnet's attention plots find it; nothing of
    that class is run. A variant defines ``forward``, ``init_cache``, ``forward_chunk`` and
    ``cache_values``.

    Args:
        n_head: Number of query heads.
        n_feat: Width of the model; ``n_head`` divides it.
        dropout_rate: Dropout of attention weights.

    Raises:
        ValueError: A value breaks its rule; the message names key, rule and value.
    """

    #: False for a variant that cannot forget a frame, and so ignores a left context
    has_left_context = True
    #: whether a decoder may have it, see ``attention/decoder.py``
    has_decoder_form = False
    #: method that gives the parameters by name that come nearest to a multi-head attention's, and
    #: the share of keys and values that is lost, None where it is only a start (``gqa.py``); it may
    #: take ``moments`` of the layer's inputs, and ``similar`` to group heads that are alike
    from_mha: Any = None
    #: options that no attention which comes from multi-head attention can have
    not_from_mha: tuple[str, ...] = ()
    #: option that a budget of bytes chooses layer by layer, by the errors that ``spectrum`` gives
    ranked: str | None = None
    #: MB that scores of whole utterances may take at once; see ``StreamingEncoder``
    attention_memory_mb = 256

    def __init__(self, n_head: int, n_feat: int, dropout_rate: float = 0.0) -> None:
        nn.Module.__init__(self)
        check_at_least("attention_heads", n_head, 1)
        check_at_least("output_size", n_feat, 1)
        if n_feat % n_head:
            raise ValueError(f"attention_heads: must divide output_size {n_feat}, got {n_head}")
        if not 0 <= dropout_rate < 1:
            raise ValueError(f"attention_dropout_rate: must be in [0, 1), got {dropout_rate!r}")
        self.h = n_head
        self.n_feat = n_feat
        self.d_k = n_feat // n_head
        self.dropout_rate = dropout_rate
        self.attn: Tensor | None = None

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, pos_emb: Any, mask: Tensor | None
    ) -> Tensor:
        """Self-attention over whole utterances.

        Args:
            query: Layer input (B, T, n_feat); ``key`` and ``value`` are the same tensor.
            key: Not read: self-attention.
            value: Not read.
            pos_emb: Position embeddings (1, 2T-1, n_feat), or a ``ChunkView`` of them.
            mask: True on real frames (B, 1, T), or None.

        Returns:
            Layer output (B, T, n_feat).
        """
        raise NotImplementedError

    def init_cache(
        self, batch_size: int, chunk_size: int, left_context: int, dtype: torch.dtype, device: Any
    ) -> FrameCache | RunningSums:
        """Empty cache of a stream.

        Args:
            batch_size: Streams side by side.
            chunk_size: Most frames per chunk.
            left_context: Frames seen before a chunk, -1 for all.
            dtype: What the cache is stored in.
            device: Where it lives.

        Returns:
            A ``FrameCache`` or ``RunningSums``.
        """
        raise NotImplementedError

    def forward_chunk(self, x: Tensor, past: Any) -> Tensor:
        """Self-attention of one chunk that also sees the past.

        Args:
            x: Layer input (B, n, n_feat).
            past: What ``init_cache`` returned as it is during a step (``step.py``): it takes what
                the chunk leaves behind, and is unchanged until the whole step is done.

        Returns:
            Layer output (B, n, n_feat).
        """
        raise NotImplementedError

    def cache_values(self, frames: int) -> int:
        """Numbers that one stream keeps after ``frames`` frames, by formula."""
        raise NotImplementedError

    @staticmethod
    def cache_kind(conf: dict) -> str:
        """One word for what the report says a frame leaves behind, under options ``conf``."""
        return conf.get("cache", "kv")

    def plotting(self) -> bool:
        """Whether somebody listens for attention weights (ESPnet's plots hook the module)."""
        return bool(self._forward_hooks)

    def split_heads(self, x: Tensor) -> Tensor:
        """(B, T, heads * d_k) -> (B, heads, T, d_k)."""
        return x.unflatten(-1, (-1, self.d_k)).transpose(1, 2)

    def merge_heads(self, x: Tensor) -> Tensor:
        """(B, H, T, d_k) -> (B, T, n_feat)."""
        return x.transpose(1, 2).flatten(2)


class SoftmaxAttention(Attention):
    """Softmax attention with relative positions; a subclass says what a frame leaves behind.

    Subclasses implement ``record`` (what is cached), ``key_value`` (keys and values from it) and,
    where the cache can be attended to directly, ``absorbed_weights``.
    """

    has_decoder_form = True

    def __init__(self, n_head: int, n_feat: int, dropout_rate: float = 0.0) -> None:
        super().__init__(n_head, n_feat, dropout_rate)
        self.linear_q: nn.Module = nn.Linear(n_feat, n_feat)
        self.linear_out = nn.Linear(n_feat, n_feat)
        self._add_relative_positions()

    def _add_relative_positions(self) -> None:
        self.linear_pos = nn.Linear(self.n_feat, self.n_feat, bias=False)
        self.pos_bias_u = nn.Parameter(torch.empty(self.h, self.d_k))
        self.pos_bias_v = nn.Parameter(torch.empty(self.h, self.d_k))
        nn.init.xavier_uniform_(self.pos_bias_u)
        nn.init.xavier_uniform_(self.pos_bias_v)

    # what a variant defines

    def record(self, x: Tensor) -> dict[str, Tensor]:
        """What frames leave in the cache: (B, T, n_feat) -> name to (B, ..., T, width)."""
        raise NotImplementedError

    def record_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name to the shape of one frame of ``record``, batch and time left out."""
        raise NotImplementedError

    def key_value(self, record: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Keys and values (B, G, T, d_k) each, from what ``record`` returned."""
        raise NotImplementedError

    def absorbed_weights(self) -> tuple[Tensor, Tensor, Tensor | None] | None:
        """Weights that let queries meet the cached vectors themselves, where that is possible.

        Returns:
            None, or W_K (G, d_k, r), W_V (G, r, d_k) and the value bias (G, 1, d_k) or None, for a
            ``record`` of one tensor of width r.
        """
        return None

    # what all share

    def query(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Queries with content and with position bias: (B, T, n_feat) -> two of (B, H, T, d_k)."""
        q = self.linear_q(x).unflatten(-1, (self.h, self.d_k))  # (B, T, D) -> (B, T, H, d)
        q_u = (q + self.pos_bias_u.to(q.dtype)).transpose(1, 2)  # (B, T, H, d) -> (B, H, T, d)
        q_v = (q + self.pos_bias_v.to(q.dtype)).transpose(1, 2)
        return q_u, q_v

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, pos_emb: Any, mask: Tensor | None
    ) -> Tensor:
        view = pos_emb if isinstance(pos_emb, ChunkView) else None
        pos_emb = view.pos_emb if view else pos_emb
        batch, length = query.shape[:2]
        dropout = self.dropout_rate if self.training else 0.0
        q_u, q_v = self.query(query)
        k, v = self.key_value(self.record(query))
        live = SCORES_BACKWARD if torch.is_grad_enabled() else SCORES_FORWARD
        score_bytes = live * batch * self.h * q_u.element_size()
        device_type = query.device.type
        size = block_size(length, score_bytes, view, self.attention_memory_mb, device_type)
        blocks = Blocks(length, size, mask, view)
        zero = pos_emb.size(1) // 2  # row of distance zero
        pos_emb = pos_emb[:, zero - blocks.past : zero + blocks.future + 1]
        # (1, R, D) -> (H, d, R), rows of distances in a row: how the products read them
        p = self.linear_pos(pos_emb)[0].T.contiguous().unflatten(0, (self.h, self.d_k))
        if self.plotting():
            self.attn = self._weights(q_u, q_v, k, p, blocks)
        return self.linear_out(attend_in_blocks(q_u, q_v, k, v, p, blocks, dropout))

    @torch.no_grad()
    def _weights(self, q_u: Tensor, q_v: Tensor, k: Tensor, p: Tensor, blocks: Blocks) -> Tensor:
        """The weights of ``attend_in_blocks`` before dropout (B, H, T, T), for attention plots."""
        length = q_u.size(2)
        weights = q_u.new_zeros(*q_u.shape[:2], length, length)
        for span in blocks.spans:
            start, stop, lo, hi = span
            bias = blocks.position_scores(q_v, p, span)
            weights[:, :, start:stop, lo:hi] = softmax_weights(
                q_u[:, :, start:stop], k[:, :, lo:hi], bias
            )
        return weights

    def init_cache(
        self, batch_size: int, chunk_size: int, left_context: int, dtype: torch.dtype, device: Any
    ) -> FrameCache:
        shapes = {name: (batch_size, *shape) for name, shape in self.record_shapes().items()}
        return FrameCache.allocate(shapes, left_context, chunk_size, dtype, device)

    def cache_values(self, frames: int) -> int:
        return frames * sum(math.prod(shape) for shape in self.record_shapes().values())

    def forward_chunk(self, x: Tensor, past: Any) -> Tensor:
        q_u, q_v = self.query(x)
        scores = position_scores(q_v, past.positions)
        context = past.attend(self.context, q_u, self.record(x), scores)
        return self.linear_out(self.merge_heads(context))

    def attend(self, q: Tensor, seen: dict[str, Tensor], bias: Tensor | None) -> Tensor:
        """Layer output (B, n, n_feat) of queries that meet what is cached; see ``context``."""
        return self.linear_out(self.merge_heads(self.context(q, seen, bias)))

    def context(self, q: Tensor, seen: dict[str, Tensor], bias: Tensor | None) -> Tensor:
        """Context (B, H, n, d_k) of queries that meet what is cached.

        Args:
            q: Queries (B, H, n, d_k).
            seen: What ``record`` returned of S frames.
            bias: Added to the scaled scores (B, H, n, S), or a mask that is True where a query may
                see (B, 1, 1, S), or None.
        """
        scale, weights = 1 / math.sqrt(self.d_k), self.absorbed_weights()
        if weights is not None and self._absorb(q.size(2), weights[0]):
            (cached,) = seen.values()
            return self._attend_absorbed(q, cached, weights, bias, scale)
        return attend(q, *self.key_value(seen), bias, scale)

    def _absorb(self, n: int, w_k: Tensor) -> bool:
        """Whether n queries are cheaper against the cached vectors than against rebuilt keys.

        Multiplications per cached frame: the absorbed form meets a vector of width r in all H heads
        of n queries, twice; the expanded form rebuilds G keys and values from it, and meets d_k.
        """
        groups, _, width = w_k.shape
        return n * self.h * width < groups * self.d_k * width + n * self.h * self.d_k

    def _attend_absorbed(
        self, q: Tensor, cached: Tensor, weights: tuple, bias: Tensor | None, scale: float
    ) -> Tensor:
        """Attention of n queries to the cached vectors (B, K, r) as they are."""
        w_k, w_v, bias_v = weights
        cached = cached.unsqueeze(1)  # (B, K, r) -> (B, 1, K, r): one key-value head for all
        context = attend(matmul_groups(q, w_k), cached, cached, bias, scale)  # (B, H, n, r)
        context = matmul_groups(context, w_v)  # (B, H, n, d)
        if bias_v is not None:  # weights sum to one, so the bias passes straight through
            context = context + bias_v.repeat_interleave(self.h // bias_v.size(0), 0)
        return context

    def project_positions(self, distances: Tensor) -> Tensor:
        """Positions of distances i - j (R,), scaled by 1 / sqrt(d_k) -> (H, d_k, R)."""
        weight = dense_weight(self.linear_pos)
        p = relative_positions(distances.to(weight.device), self.n_feat, weight.dtype)
        p = self.linear_pos(p) / math.sqrt(self.d_k)
        return p.T.unflatten(0, (self.h, self.d_k)).contiguous()  # (R, D) -> (H, d, R)
