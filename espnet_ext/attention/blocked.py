"""Exact relative-position attention in blocks of queries, forward and backward.

No tensor here has a query axis and a key axis of the whole utterance: a block's scores are made,
used and dropped, and the backward pass makes them again. So memory grows with the length, not with
its square, in training too, as in FlashAttention (Dao et al. 2022); the relative positions are what
a fused kernel cannot make for itself.

Letters in shapes are those of ``base.py``; R is the number of distances that positions are given
for.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from espnet_ext.cpu import by_head
from espnet_ext.cpu.dropout import draw_kept, drop_factor
from espnet_ext.files import MB

# Most queries per block on a CPU: their scores stay in its cache.
CPU_BLOCK_QUERIES = 256
# Tensors of a block's queries times its keys that are alive at once, at most.
SCORES_FORWARD, SCORES_BACKWARD = 2, 5


@dataclass(frozen=True)
class ChunkView:
    """Relative positions together with the frames that a frame may see.

    Frame i of the chunk that starts at s sees frame j with
    s - left_context <= j < s + chunk_size.

    Attributes:
        pos_emb: Position embeddings (1, R, n_feat), the largest distance i - j first and distance
            zero in the middle; all that can be seen, so R <= 2T-1.
        chunk_size: Frames per chunk.
        left_context: Frames before the chunk, -1 for all.
    """

    pos_emb: torch.Tensor
    chunk_size: int
    left_context: int

    @staticmethod
    def needed_positions(length: int, chunk_size: int, left_context: int) -> int:
        """How many distances, from zero on, blocks of queries may ask positions for."""
        if left_context < 0:
            return length
        return min(length, 2 * (left_context + chunk_size) + CPU_BLOCK_QUERIES)

    def visible_range(self, start: int, stop: int, length: int) -> tuple[int, int]:
        """Keys lo..hi-1 that the queries start..stop-1 of ``length`` frames may see."""
        first_chunk = start - start % self.chunk_size
        lo = 0 if self.left_context < 0 else max(0, first_chunk - self.left_context)
        last_chunk = (stop - 1) - (stop - 1) % self.chunk_size
        return lo, min(length, last_chunk + self.chunk_size)

    def mask(self, start: int, stop: int, lo: int, hi: int, device) -> torch.Tensor:
        """True where query start..stop-1 may see key lo..hi-1 (n, K)."""
        query = torch.arange(start, stop, device=device)
        chunk = (query - query % self.chunk_size)[:, None]  # (n, 1)
        key = torch.arange(lo, hi, device=device)
        visible = key < chunk + self.chunk_size
        if self.left_context >= 0:
            visible = visible & (key >= chunk - self.left_context)
        return visible


class Blocks:
    """Blocks of neighbouring queries and the keys that each of them sees.

    Args:
        length: Frames T.
        size: Most queries per block.
        mask: True on real frames (B, 1, T), or None.
        view: What a frame may see, or None for all.

    Attributes:
        spans: Queries start..stop-1 and keys lo..hi-1 of each block, as (start, stop, lo, hi).
        past: Largest distance i - j that any block asks for.
        future: Largest distance j - i that any block asks for.
    """

    def __init__(self, length: int, size: int, mask=None, view: ChunkView | None = None):
        # a GPU is not asked whether a mask hides a frame: the answer would be waited for
        hides_none = mask is None or (mask.device.type == "cpu" and mask.all())
        self.mask, self.view = None if hides_none else mask, view
        self.spans = []
        for start in range(0, length, size):
            stop = min(start + size, length)
            keys = view.visible_range(start, stop, length) if view else (0, length)
            self.spans.append((start, stop, *keys))
        self.past = max(stop - 1 - lo for _, stop, lo, _ in self.spans)
        self.future = max(hi - 1 - start for start, _, _, hi in self.spans)

    def distances(self, span) -> slice:
        """Where the positions of one block are in those of all."""
        start, stop, lo, hi = span
        return slice(self.past - (stop - 1 - lo), self.past + hi - start)

    def position_scores(self, q_v, p, span, utterance=None):
        """Scaled position scores of a block, very low where it must not see.

        Args:
            q_v: Queries with position bias (B, H, T, d), or (T, d) of one head.
            p: Projected positions (H, d, R), or (d, R) of that head.
            span: One of ``spans``.
            utterance: Which one of the batch the one head belongs to.

        Returns:
            Scores (B, H, n, K), or (n, K) of the one head.
        """
        start, stop, _, _ = span
        queries = q_v[..., start:stop, :] / math.sqrt(q_v.size(-1))
        scores = shifted(torch.matmul(queries, p[..., self.distances(span)]))
        self._hide(scores, *span, utterance)
        return scores

    def _hide(self, scores, start, stop, lo, hi, utterance):
        # half the smallest number: adding a score to it cannot overflow in half precision
        low = torch.finfo(scores.dtype).min / 2
        if self.view:
            unseen = ~self.view.mask(start, stop, lo, hi, scores.device)  # (n, K)
            scores.masked_fill_(unseen, low)
        if self.mask is not None:
            mask = self.mask[:, None] if utterance is None else self.mask[utterance]
            scores.masked_fill_(mask[..., lo:hi].eq(0), low)


def block_size(
    length: int, score_bytes: int, view: ChunkView | None, memory_mb: float, device_type: str
) -> int:
    """Queries per block: as many as memory allows and the device likes.

    Args:
        length: Frames T.
        score_bytes: Bytes of all live scores of one query and one key, batch and heads included.
        view: What a frame may see, or None for all.
        memory_mb: Bound on the scores of a block, MB.
        device_type: ``cpu``, ``cuda``, ...
    """
    budget = memory_mb * MB / score_bytes  # queries times keys
    size = length
    if view is None or view.left_context < 0:
        size = min(size, int(budget // length))
    else:  # n queries see up to context + n keys
        context = view.left_context + view.chunk_size
        most = int(math.sqrt(context**2 / 4 + budget) - context / 2)
        size = min(size, most, max(CPU_BLOCK_QUERIES, context))
    if device_type == "cpu":
        size = min(size, CPU_BLOCK_QUERIES)
    if view is not None and size > view.chunk_size:
        size -= size % view.chunk_size  # whole chunks: the first one's past is everybody's
    return max(size, 1)


def shifted(products: torch.Tensor) -> torch.Tensor:
    """Bring the positions of queries into the order of keys: (..., n, K+n-1) -> view (..., n, K).

    Query a finds key c in column n-1-a+c. Dropping n-1 values in front and reading rows one value
    shorter moves every row into place without a copy.
    """
    n, rows = products.shape[-2:]
    if n == 1:
        return products
    flat = products.flatten(-2)[..., n - 1 : n * rows - 1]  # (..., n * (K+n-2))
    return flat.unflatten(-1, (n, rows - 1))[..., : rows - n + 1]


def aligned(bias: torch.Tensor) -> torch.Tensor:
    """A bias as a GPU's fused attention reads it: from an address of its own.

    The kernels read several numbers at once and do not look where a view begins.
    """
    if bias.device.type == "cpu" or (bias.is_contiguous() and bias.storage_offset() == 0):
        return bias
    return bias.clone(memory_format=torch.contiguous_format)


def fold(x, groups):
    """A group's query heads as rows: (B, H, n, r) -> (B, G, H/G*n, r)."""
    return x.reshape(x.size(0), groups, -1, x.size(-1))


def matmul_groups(x, y):
    """(B, H, n, r) times its group's (G, r, w) or (B, G, r, w) -> (B, H, n, w)."""
    return torch.matmul(fold(x, y.size(-3)), y).reshape(*x.shape[:3], -1)


def attend(q, k, v, bias, scale):
    """Attention of query heads to the keys of their groups.

    Args:
        q: Queries (B, H, n, r).
        k: Keys (B, G, K, r), G divides H.
        v: Values (B, G, K, w).
        bias: Added to the scaled scores, large negative where masked (B, H, n, K); or a mask that
            is True where a query may see (B, 1, 1, K); or None.
        scale: Factor of the scores.

    Returns:
        Context (B, H, n, w).
    """
    n_head, n = q.shape[1:3]
    groups = k.size(1)
    if bias is not None:
        bias = aligned(bias)
        if groups != bias.size(1) == n_head:
            bias = fold(bias, groups)
    if groups != n_head:
        q = fold(q, groups)
    context = F.scaled_dot_product_attention(q, k, v, bias, scale=scale)
    return context.reshape(context.size(0), n_head, n, -1)


def attend_in_blocks(q_u, q_v, k, v, p, blocks: Blocks, dropout: float = 0.0):
    """Attention of whole utterances, block by block.

    Args:
        q_u: Queries with content bias (B, H, T, d).
        q_v: Queries with position bias (B, H, T, d).
        k: Keys (B, G, T, d), G divides H.
        v: Values (B, G, T, d).
        p: Projected positions (H, d, R), from distance ``blocks.past`` down to
            ``-blocks.future``.
        blocks: Blocks of queries.
        dropout: Probability of dropping a weight.

    Returns:
        Context (B, T, H*d).
    """
    return _BlockedAttention.apply(q_u, q_v, k, v, p, blocks, dropout)


class _BlockedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q_u, q_v, k, v, p, blocks, dropout):
        dropping = _Dropping.drawn(dropout, q_u.device)
        batch, n_head, length, d = q_u.shape
        context = q_u.new_empty(batch, length, n_head, d)
        with torch.autocast(q_u.device.type, enabled=False):
            if dropping is None and by_head.pays(q_u, blocks.spans):
                by_head.attend(q_u, q_v, k, v, p, blocks, context)
            else:
                _attend_by_block(q_u, q_v, k, v, p, blocks, dropping, context)
        context = context.flatten(2)
        ctx.save_for_backward(q_u, q_v, k, v, p, context)
        ctx.blocks, ctx.dropping = blocks, dropping
        return context

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        q_u, q_v, k, v, p, context = ctx.saved_tensors
        blocks = ctx.blocks
        batch, n_head, length, d = q_u.shape
        # (B, T, D) -> (B, H, T, d)
        grad, context = (x.unflatten(2, (n_head, d)).transpose(1, 2) for x in (grad, context))
        grad_q_u, grad_q_v = torch.empty_like(q_u), torch.empty_like(q_v)
        wide = torch.promote_types(q_u.dtype, torch.float32)  # what blocks add up to
        grad_k, grad_v, grad_p = (torch.zeros_like(x, dtype=wide) for x in (k, v, p))
        scale = 1 / math.sqrt(d)
        with torch.autocast(q_u.device.type, enabled=False):
            drop = ctx.dropping.begin() if ctx.dropping else None
            products = None
            for span in blocks.spans:
                start, stop, lo, hi = span
                n, distances = stop - start, blocks.distances(span)
                q, key, value = q_u[:, :, start:stop], k[:, :, lo:hi], v[:, :, lo:hi]
                g = grad[:, :, start:stop]
                # what the softmax takes from the gradient of each of its weights
                inner = (g.to(wide) * scale * context[:, :, start:stop]).sum(-1, keepdim=True)
                if drop is not None:
                    g = g * ctx.dropping.factor
                weights = softmax_weights(q, key, blocks.position_scores(q_v, p, span))
                grad_weights = matmul_groups(g * scale, value.transpose(-2, -1))  # (B, H, n, K)
                if drop is None:
                    grad_v[:, :, lo:hi] += _sum_groups(weights, g, k.size(1))
                else:
                    kept = drop(weights.shape).to(weights.dtype)
                    grad_v[:, :, lo:hi] += _sum_groups(weights * kept, g, k.size(1))
                    grad_weights *= kept
                shape = (batch, n_head, n, hi - lo + n - 1)
                if products is None or products.shape != shape:
                    products = weights.new_zeros(shape)  # zeros stay where no key is
                grad_scores = shifted(products)
                torch.mul(grad_weights.sub_(inner), weights, out=grad_scores)
                grad_q_u[:, :, start:stop] = matmul_groups(grad_scores, key)
                grad_k[:, :, lo:hi] += _sum_groups(grad_scores, q, k.size(1))
                grad_q_v[:, :, start:stop] = torch.matmul(
                    products, p[..., distances].transpose(-2, -1)
                )
                grad_p[..., distances] += torch.matmul(
                    q_v[:, :, start:stop].transpose(-2, -1), products
                ).sum(0)
        grads = (g.to(q_u.dtype) for g in (grad_k, grad_v, grad_p))
        return grad_q_u, grad_q_v, *grads, None, None


def _attend_by_block(q_u, q_v, k, v, p, blocks, dropping, context):
    """Fill the context (B, T, H, d), all heads of a block at once."""
    drop = dropping.begin() if dropping else None
    for span in blocks.spans:
        start, stop, lo, hi = span
        q, key, value = q_u[:, :, start:stop], k[:, :, lo:hi], v[:, :, lo:hi]
        bias = blocks.position_scores(q_v, p, span)
        if drop is None:
            y = attend(q, key, value, bias, 1 / math.sqrt(q.size(-1)))
        else:
            weights = softmax_weights(q, key, bias)
            y = matmul_groups(weights.mul_(drop(weights.shape)), value)
            y *= dropping.factor
        context[:, start:stop] = y.transpose(1, 2)


def _sum_groups(x, y, groups):
    """x^T y over the queries and heads of a group: (B, H, n, .) twice -> (B, G, ., .)."""
    return torch.matmul(fold(x, groups).transpose(-2, -1), fold(y, groups))


def softmax_weights(q, k, bias):
    """Weights (B, H, n, K) of queries (B, H, n, d) and keys (B, G, K, d) under scaled scores."""
    scale = 1 / math.sqrt(q.size(-1))
    scores = matmul_groups(q * scale, k.transpose(-2, -1)).add_(bias)
    wide = torch.promote_types(q.dtype, torch.float32)
    return torch.softmax(scores, dim=-1, dtype=wide).to(q.dtype)


class _Dropping:
    """Weights to drop, the same ones in both passes: all follow from one seed."""

    def __init__(self, rate, device, seed):
        self.rate, self.device, self.seed = rate, device, seed
        self.factor = drop_factor(rate)  # of the weights that are kept

    @classmethod
    def drawn(cls, rate, device):
        """With a seed from PyTorch's own generator, or None where nothing is dropped."""
        return cls(rate, device, int(torch.randint(2**62, ()))) if rate else None

    def begin(self):
        """Function of a shape that draws which of the next weights are kept."""
        generator = torch.Generator(self.device).manual_seed(self.seed)
        return lambda shape: draw_kept(shape, self.rate, self.device, generator)
