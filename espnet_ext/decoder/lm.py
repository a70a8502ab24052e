"""Transformer language model that caches its keys and values during beam search."""

import torch
from espnet2.lm.transformer_lm import TransformerLM as StockLM

from espnet_ext.attention.decoder import use_cache
from espnet_ext.decoder.cache import PrefixCache, embed_from, handles, resume


class TransformerLM(StockLM):
    """ESPnet's Transformer language model, same parameters, whose ``batch_score`` caches."""

    @staticmethod
    def adopt(lm):
        """Turn a language model built by ESPnet (``lm: transformer``) into this class, in place."""
        lm.__class__ = TransformerLM
        for layer in lm.encoder.encoders:
            use_cache(layer.self_attn)

    @torch.no_grad()
    def batch_score(self, ys, states, xs):
        """Score the next token of each hypothesis.

        Args:
            ys: ``(N, L)`` prefixes.
            states: N states: None at first, later those of the last call.
            xs: Not used.

        Returns:
            Log-probabilities ``(N, vocab_size)`` and N states.
        """
        encoder = self.encoder
        cache, rows = resume(states)
        if cache is None:
            attentions = [layer.self_attn for layer in encoder.encoders]
            cache, rows = PrefixCache(attentions, self.decoder.weight), list(range(len(ys)))
        # ESPnet hides the tokens with id 0, its padding, from the attention
        visible = (ys != 0)[:, None, None]  # (N, 1, 1, L)
        for end in range(cache.length + 1, ys.size(1) + 1):
            x = embed_from(encoder.embed, self.embed(ys[:, :end]), end - 1)
            cache.advance(rows)
            rows = list(range(len(ys)))
            for number, layer in enumerate(encoder.encoders):
                x = layer(x, cache.layer(number, visible[..., :end]))[0]
        if encoder.normalize_before:
            x = encoder.after_norm(x)
        return self.decoder(x[:, -1]).log_softmax(dim=-1), handles(cache)
