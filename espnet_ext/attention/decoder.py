"""Attention of the Transformer decoder, each variant with the keys and values it caches.

Training runs ESPnet's own attention: a variant only says how queries, keys and values are made
(``forward_qkv``). Decoding hands the layer a ``Keys`` instead of a mask (self-attention) or instead
of the memory (source attention); then ``project`` makes what a frame leaves in the cache and
``attend`` uses it without expanding it. ESPnet's layers pass both through untouched, so their
code (normalisation, concatenation, residuals) runs as it is.

Letters: B sequences, L queries, S cached frames, H heads, G key-value heads, d = d_k,
r = kv_lora_rank.
"""

import math
from typing import NamedTuple

import torch
from espnet2.legacy.nets.pytorch_backend.transformer.attention import (
    MultiHeadedAttention as StockAttention,
)
from torch.nn.functional import scaled_dot_product_attention

from espnet_ext.attention.base import check_at_least, check_choice


class Keys(NamedTuple):
    """What one attention layer has cached, as a decoding step sees it.

    Attributes:
        kv: ``(B, P, G, S, W)``: P tensors (keys and values, or one latent) of width W.
        mask: ``(B, 1, 1, S)``, true where a frame may be attended to; None for all of them.
    """

    kv: torch.Tensor
    mask: torch.Tensor | None = None


class MultiHeadedAttention(StockAttention):
    """ESPnet's multi-head attention, same parameters, that can decode from cached keys and values.

    It has no state of its own, so an ESPnet instance becomes one by assigning ``__class__``.
    """

    @property
    def n_kv_head(self):
        """Number of key-value heads."""
        return self.h

    @property
    def cache_shape(self):
        """``(P, G, W)``: P tensors of G heads of W values are cached per frame."""
        return 2, self.n_kv_head, self.d_k

    def forward(self, query, key, value, mask, expand_kv=False):
        """Attend; from the cache if ``mask`` (self) or ``key`` (source attention) is a ``Keys``.

        Args:
            query: ``(B, L, n_feat)``.
            key: ``(B, S, n_feat)``, or the memory's ``Keys``, whose sequences serve B / len(kv)
                consecutive queries each.
            value: As ``key``.
            mask: ``(B, 1 or L, S)``, or the ``Keys`` of the prefix, whose last slot is free.
            expand_kv: ESPnet's: ``key`` and ``value`` are the same for the whole batch.

        Returns:
            ``(B, L, n_feat)``.
        """
        if isinstance(mask, Keys):
            mask.kv[..., -1:, :] = self.project(key)
            return self.attend(query, *mask)
        if isinstance(key, Keys):
            # (B, 1, D) -> (utterances, hypotheses, D): one product serves all hypotheses
            per_utt = query.view(key.kv.size(0), -1, query.size(-1))
            return self.attend(per_utt, *key).view_as(query)
        return super().forward(query, key, value, mask, expand_kv)

    def project(self, x):
        """Make what frames leave in the cache: ``(B, S, n_feat) -> (B, P, G, S, W)``."""
        shape = *x.shape[:2], self.n_kv_head, self.d_k
        k = self.linear_k(x).view(shape).transpose(1, 2)
        v = self.linear_v(x).view(shape).transpose(1, 2)
        return torch.stack((self.k_norm(k), v), dim=1)

    def attend(self, query, kv, mask=None):
        """Attend from ``query`` (B, L, n_feat) to ``kv`` (B, P, G, S, W): (B, L, n_feat)."""
        k, v = kv.unbind(1)
        q = self.q_norm(self._query(query))  # (B, H, L, d)
        # heads that share keys become rows of one product: (B, H, L, d) -> (B, G, H/G * L, d)
        context = scaled_dot_product_attention(
            q.reshape(len(q), k.size(1), -1, self.d_k), k, v, mask
        )
        return self._output(context.view_as(q))

    def _query(self, x):
        # (B, L, D) -> (B, H, L, d)
        return self.linear_q(x).view(*x.shape[:2], self.h, self.d_k).transpose(1, 2)

    def _output(self, context):
        # (B, H, L, d) -> (B, L, D)
        return self.linear_out(context.transpose(1, 2).flatten(2))


class GroupedQueryAttention(MultiHeadedAttention):
    """Grouped-query attention (Ainslie et al. 2023): ``n_kv_head`` heads of keys and values.

    Args:
        n_head: Number of query heads.
        n_feat: Model width.
        dropout_rate: Dropout of the attention weights.
        n_kv_head: Number of key-value heads, a divisor of ``n_head``; 1 is multi-query attention.
        qk_norm: Normalise queries and keys per head.

    Raises:
        ValueError: A value breaks its rule; the message names key, rule and value.
    """

    def __init__(self, n_head, n_feat, dropout_rate, n_kv_head, qk_norm=False):
        super().__init__(n_head, n_feat, dropout_rate, qk_norm)
        check_at_least("n_kv_head", n_kv_head, 1)
        if n_head % n_kv_head:
            raise ValueError(f"n_kv_head: must divide attention_heads {n_head}, got {n_kv_head}")
        self._n_kv_head = n_kv_head
        self.linear_k = torch.nn.Linear(n_feat, n_kv_head * self.d_k)
        self.linear_v = torch.nn.Linear(n_feat, n_kv_head * self.d_k)

    @property
    def n_kv_head(self):
        """Number of key-value heads."""
        return self._n_kv_head

    def forward_qkv(self, query, key, value, expand_kv=False):
        """Make queries, keys and values of all heads: three of ``(B, H, L or S, d)``."""
        kv = self.project(key[:1] if expand_kv else key)
        kv = kv.repeat_interleave(self.h // self.n_kv_head, dim=2)
        k, v = kv.expand(len(query), -1, -1, -1, -1).unbind(1)
        return self.q_norm(self._query(query)), k, v


class MultiHeadLatentAttention(MultiHeadedAttention):
    """Multi-head latent attention (DeepSeek-AI 2024): keys and values from a latent per frame.

    Training expands the latent; a decoding step does not: the key matrix is applied to the query
    and the value matrix to the context.

    Args:
        n_head: Number of heads.
        n_feat: Model width.
        dropout_rate: Dropout of the attention weights.
        kv_lora_rank: Width of the latent, 1 to 2 * n_feat.
        q_lora_rank: Width of a query bottleneck; None for none.
        kv_norm: Normalise the latent (RMSNorm); the normalised latent is cached.

    Raises:
        ValueError: A value breaks its rule; the message names key, rule and value.
    """

    def __init__(self, n_head, n_feat, dropout_rate, kv_lora_rank, q_lora_rank=None, kv_norm=False):
        super().__init__(n_head, n_feat, dropout_rate)
        check_at_least("kv_lora_rank", kv_lora_rank, 1)
        if kv_lora_rank > 2 * n_feat:
            raise ValueError(
                f"kv_lora_rank: must be at most 2 * encoder_output_size = {2 * n_feat}, "
                f"got {kv_lora_rank}"
            )
        check_choice("kv_norm", kv_norm, (True, False))
        del self.linear_k, self.linear_v
        self.kv_lora_rank = kv_lora_rank
        if q_lora_rank is not None:
            check_at_least("q_lora_rank", q_lora_rank, 1)
            self.linear_q = torch.nn.Sequential(
                torch.nn.Linear(n_feat, q_lora_rank, bias=False),
                torch.nn.Linear(q_lora_rank, n_feat),
            )
        self.linear_kv_down = torch.nn.Linear(n_feat, kv_lora_rank, bias=False)
        self.kv_norm = torch.nn.RMSNorm(kv_lora_rank) if kv_norm else torch.nn.Identity()
        # a key bias would add the same to every score of a query: softmax cannot see it
        self.linear_k_up = torch.nn.Linear(kv_lora_rank, n_feat, bias=False)
        self.linear_v_up = torch.nn.Linear(kv_lora_rank, n_feat)

    @property
    def cache_shape(self):
        """``(P, G, W)``: one latent of ``kv_lora_rank`` values is cached per frame."""
        return 1, 1, self.kv_lora_rank

    def forward_qkv(self, query, key, value, expand_kv=False):
        """Make queries, keys and values of all heads: three of ``(B, H, L or S, d)``."""
        latent = self.kv_norm(self.linear_kv_down(key[:1] if expand_kv else key))
        shape = *latent.shape[:2], self.h, self.d_k
        k, v = (
            up(latent).view(shape).transpose(1, 2).expand(len(query), -1, -1, -1)
            for up in (self.linear_k_up, self.linear_v_up)
        )
        return self._query(query), k, v

    def project(self, x):
        """Make the latents: ``(B, S, n_feat) -> (B, 1, 1, S, r)``."""
        return self.kv_norm(self.linear_kv_down(x))[:, None, None]

    def attend(self, query, kv, mask=None):
        """Attend from ``query`` (B, L, n_feat) to latents (B, 1, 1, S, r): (B, L, n_feat)."""
        latent = kv[:, 0]  # (B, 1, S, r)
        w_k = self.linear_k_up.weight.view(self.h, self.d_k, -1)  # (H, d, r)
        w_v = self.linear_v_up.weight.view(self.h, self.d_k, -1)  # (H, d, r)
        q = self._query(query) @ w_k  # (B, H, L, r)
        context = scaled_dot_product_attention(
            q.flatten(1, 2)[:, None], latent, latent, mask, scale=1 / math.sqrt(self.d_k)
        ).view_as(q)
        bias = self.linear_v_up.bias.view(self.h, 1, self.d_k)
        return self._output(context @ w_v.transpose(1, 2) + bias)


def use_cache(attention):
    """Let an attention built by ESPnet decode from a cache, in place.

    Raises:
        TypeError: If it is not ESPnet's ``MultiHeadedAttention`` or one of this module.
    """
    if type(attention) is StockAttention:
        attention.__class__ = MultiHeadedAttention
    elif not isinstance(attention, MultiHeadedAttention):
        raise TypeError(f"cannot cache keys and values of {type(attention).__name__}")


VARIANTS = {
    "gqa": (GroupedQueryAttention, {"n_kv_head"}, {"n_kv_head"}),
    "mla": (MultiHeadLatentAttention, {"kv_lora_rank"}, {"kv_lora_rank", "q_lora_rank", "kv_norm"}),
}


def build(key, name, conf, stock):
    """Make the attention a configuration asks for, in place of the one ESPnet built.

    Args:
        key: The configuration key, ``self_attention`` or ``src_attention``, for messages.
        name: ``mha``, ``gqa`` or ``mla``.
        conf: gqa ``{n_kv_head}``; mla ``{kv_lora_rank, q_lora_rank, kv_norm}``; mha ``{}``.
        stock: ESPnet's ``MultiHeadedAttention``, whose sizes and dropout are kept.

    Returns:
        The attention module; for ``mha`` it is ``stock`` itself.

    Raises:
        ValueError: If a name or an option is unknown, missing or impossible.
    """
    check_choice(key, name, ("mha", *VARIANTS))
    variant, required, known = VARIANTS.get(name, (None, set(), set()))
    if "latent_dim" in conf:
        raise ValueError(f"{key}_conf: latent_dim is called kv_lora_rank here")
    for option in sorted(set(conf) - known):
        options = ", ".join(sorted(known)) or "no options"
        raise ValueError(f"{key}_conf: {name} takes {options}, got {option}")
    for option in sorted(required - set(conf)):
        raise ValueError(f"{key}_conf: {name} needs {option}, got {conf}")
    if name == "mha":
        use_cache(stock)
        return stock
    qk_norm = not isinstance(stock.q_norm, torch.nn.Identity)
    if qk_norm and name == "mla":
        raise ValueError(f"qk_norm: must be false with {key} mla, which never makes keys, got True")
    conf = {**conf, "qk_norm": True} if qk_norm else conf
    try:
        attention = variant(stock.h, stock.linear_q.in_features, stock.dropout_rate, **conf)
    except ValueError as error:
        raise ValueError(f"{key}_conf: {error}") from error
    attention.use_sdpa = stock.use_sdpa
    return attention
