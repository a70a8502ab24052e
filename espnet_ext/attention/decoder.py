"""The attentions in a Transformer decoder, where positions are in the tokens.

A variant is the class that an encoder has, without relative positions: same names, options, checks
and records. Training runs ESPnet's own attention on the variant's keys and values. Decoding hands
the layer a ``Keys`` in place of a mask (self-attention) or of the memory (source attention); then
frames leave in the cache what the variant's ``record`` makes, and queries meet that unexpanded.
ESPnet's layers pass both through untouched, so their code (normalisation, concatenation, residuals)
runs as it is.

Letters: B sequences, L queries, S cached frames, H heads, G key-value heads, d = d_k; P tensors of
width W are cached per frame and key-value head.
"""

import functools
from typing import NamedTuple

import torch
from espnet2.legacy.nets.pytorch_backend.transformer.attention import (
    MultiHeadedAttention as StockAttention,
)

from espnet_ext.attention.base import SoftmaxAttention
from espnet_ext.attention.checks import check_choice
from espnet_ext.attention.registry import ATTENTIONS, layer_attentions


class Keys(NamedTuple):
    """What one attention layer has cached, as a decoding step sees it.

    Attributes:
        kv: ``(B, P, G, S, W)``: P tensors (keys and values, or one latent) of width W.
        mask: ``(B, 1, 1, S)``, true where a frame may be attended to; None for all of them.
    """

    kv: torch.Tensor
    mask: torch.Tensor | None = None


class DecoderAttention(SoftmaxAttention):
    """Mixed into a variant before its class, see ``decoder_form``; ESPnet's options are kept."""

    def _add_relative_positions(self):
        # none; what ESPnet's forward pass asks for instead
        self.dropout = torch.nn.Dropout(self.dropout_rate)
        self.q_norm, self.k_norm = torch.nn.Identity(), torch.nn.Identity()
        self.use_flash_attn = self.use_sdpa = False

    def __reduce__(self):
        # the class has no name that a pickle could find
        return _unpickled, (type(self).__mro__[2],), self.__getstate__()

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
            return self._attend_cached(query, *mask)
        if isinstance(key, Keys):
            # (B, 1, D) -> (utterances, hypotheses, D): one product serves all hypotheses
            per_utt = query.view(key.kv.size(0), -1, query.size(-1))
            return self._attend_cached(per_utt, *key).view_as(query)
        return StockAttention.forward(self, query, key, value, mask, expand_kv)

    def forward_qkv(self, query, key, value, expand_kv=False):
        """Queries, keys and values of all heads: three of ``(B, H, L or S, d)``."""
        k, v = self.key_value(self.record(key[:1] if expand_kv else key))  # (B, G, S, d)
        k, v = (
            x.repeat_interleave(self.h // x.size(1), dim=1).expand(len(query), -1, -1, -1)
            for x in (k, v)
        )
        return self.query(query), k, v

    def query(self, x):
        """Queries: ``(B, L, n_feat) -> (B, H, L, d)``."""
        return self.q_norm(self.split_heads(self.linear_q(x)))

    def record(self, x):
        """The variant's, its keys normalised where ESPnet's ``qk_norm`` is set."""
        record = super().record(x)
        return record | {"k": self.k_norm(record["k"])} if "k" in record else record

    @property
    def cache_shape(self):
        """``(P, G, W)`` of one cached frame."""
        shapes = list(self.record_shapes().values())
        return len(shapes), *(shapes[0] if len(shapes[0]) == 2 else (1, *shapes[0]))

    def project(self, x):
        """Make what frames leave in the cache: ``(B, S, n_feat) -> (B, P, G, S, W)``."""
        record = torch.stack(list(self.record(x).values()), dim=1)
        return record if record.dim() == 5 else record.unsqueeze(2)

    def _attend_cached(self, query, kv, mask):
        shapes = self.record_shapes()
        seen = {
            name: x if len(shape) == 2 else x.squeeze(1)
            for (name, shape), x in zip(shapes.items(), kv.unbind(1), strict=True)
        }
        return self.attend(self.query(query), seen, mask)


@functools.cache
def decoder_form(variant: type[SoftmaxAttention]) -> type[DecoderAttention]:
    """Class of a variant in a decoder."""
    return type(f"Decoder{variant.__name__}", (DecoderAttention, variant), {})


def _unpickled(variant):
    cls = decoder_form(variant)
    return cls.__new__(cls)


def use_cache(attention):
    """Let an attention built by ESPnet decode from a cache, in place.

    Raises:
        TypeError: If it is not ESPnet's ``MultiHeadedAttention`` or one of this module.
    """
    if type(attention) is StockAttention:
        attention.__class__ = decoder_form(ATTENTIONS["mha"])
        attention.n_feat = attention.linear_q.in_features
        attention.n_kv_head, attention.cache = attention.h, "kv"
    elif not isinstance(attention, DecoderAttention):
        raise TypeError(f"cannot cache keys and values of {type(attention).__name__}")


def decoder_attention(key: str, name: str, conf: dict | None, stock):
    """Make the attention a configuration asks for, in place of the one ESPnet built.

    Args:
        key: The configuration key, ``self_attention`` or ``src_attention``, for messages.
        name: One of ``ATTENTIONS`` that has a decoder form.
        conf: Its options, as in an encoder.
        stock: Multi-head attention, whose sizes, dropout and options of ESPnet are kept.

    Returns:
        The attention module; for ``mha`` without options it is ``stock`` itself.

    Raises:
        ValueError: If a name or an option is unknown or impossible.
    """
    if isinstance(name, str) and name in ATTENTIONS and not ATTENTIONS[name].has_decoder_form:
        raise ValueError(f"{key}: {name} has no decoder form, use one of {', '.join(_names())}")
    check_choice(key, name, _names())
    ((_, conf),) = layer_attentions(name, conf, 1, key)
    if name == "mha" and not conf:
        use_cache(stock)
        return stock
    n_feat = stock.linear_q.in_features
    try:
        made = decoder_form(ATTENTIONS[name])(stock.h, n_feat, stock.dropout_rate, **conf)
    except ValueError as error:
        raise ValueError(f"{key}_conf: {error}") from error
    if not isinstance(stock.q_norm, torch.nn.Identity):
        if "k" not in made.record_shapes():
            raise ValueError(f"qk_norm: must be false with {key} {name}, which caches no keys")
        made.q_norm, made.k_norm = stock.q_norm, stock.k_norm
    made.use_sdpa = stock.use_sdpa
    return made


def _names():
    return [name for name, variant in ATTENTIONS.items() if variant.has_decoder_form]
