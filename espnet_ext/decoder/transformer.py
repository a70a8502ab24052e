"""Transformer decoder that caches its keys and values during beam search."""

import torch
from espnet2.asr.decoder.transformer_decoder import TransformerDecoder as StockDecoder

from espnet_ext.attention.decoder import Keys, decoder_attention, use_cache
from espnet_ext.decoder.cache import Handle, PrefixCache, embed_from, handles, resume


class DecoderCache(PrefixCache):
    """Keys and values of a beam search: those of the prefixes, and the memory's of each utterance.

    Args:
        decoder: The decoder.
        memory: ``(utterances, T, n_feat)`` encoder output.
        lengths: ``(utterances,)`` frames of each; None if all have T.
    """

    def __init__(self, decoder, memory, lengths=None):
        super().__init__([layer.self_attn for layer in decoder.decoders], memory)
        mask = None
        if lengths is not None and bool((lengths < memory.size(1)).any()):
            frames = torch.arange(memory.size(1), device=memory.device)
            mask = (frames < lengths.to(memory.device)[:, None])[:, None, None]
        self.memory = [Keys(layer.src_attn.project(memory), mask) for layer in decoder.decoders]

    @property
    def n_frames(self):
        """Frames of the memory."""
        return self.memory[0].kv.size(-2)

    def ledger(self):
        """Bytes in use: ``{"self_attention": n, "src_attention": n}``."""
        return {
            "self_attention": self.nbytes,
            "src_attention": sum(keys.kv.nbytes for keys in self.memory),
        }


class TransformerDecoder(StockDecoder):
    """ESPnet's Transformer decoder with cached keys and values and a choice of attention.

    Parameter names are ESPnet's; with ``mha`` its checkpoints load. ``batch_score``, which ESPnet's
    ``BatchBeamSearch`` calls, projects an utterance's memory once for all layers and hypotheses
    and each token once; everything else (training, ``score``) is ESPnet's.

    Args:
        vocab_size: Number of tokens.
        encoder_output_size: Model width, n_feat.
        self_attention: One of ``espnet_ext.attention.ATTENTIONS`` that has a decoder form.
        self_attention_conf: Its options, as in an encoder.
        src_attention: As ``self_attention``, for the attention to the encoder output.
        src_attention_conf: As ``self_attention_conf``.
        **kwargs: Options of ESPnet's ``TransformerDecoder``.

    Raises:
        ValueError: If an attention or an option of it is unknown or impossible.
    """

    kv_cache = True  # false: score as ESPnet does, to compare

    def __init__(
        self,
        vocab_size: int,
        encoder_output_size: int,
        self_attention: str = "mha",
        self_attention_conf: dict | None = None,
        src_attention: str = "mha",
        src_attention_conf: dict | None = None,
        **kwargs,
    ):
        super().__init__(vocab_size, encoder_output_size, **kwargs)
        for layer in self.decoders:
            layer.self_attn = decoder_attention(
                "self_attention", self_attention, self_attention_conf, layer.self_attn
            )
            layer.src_attn = decoder_attention(
                "src_attention", src_attention, src_attention_conf, layer.src_attn
            )

    @staticmethod
    def adopt(decoder):
        """Turn a decoder built by ESPnet (``decoder: transformer``) into this class, in place."""
        decoder.__class__ = TransformerDecoder
        for layer in decoder.decoders:
            use_cache(layer.self_attn)
            use_cache(layer.src_attn)

    @torch.no_grad()
    def batch_init_state(self, x, xs_lengths=None):
        """Project the memory of one utterance or several.

        Args:
            x: Encoder output ``(T, n_feat)`` or ``(utterances, T, n_feat)``.
            xs_lengths: ``(utterances,)`` frames of each; None if all have T.

        Returns:
            The state that every hypothesis starts from.
        """
        if not self.kv_cache:
            return None
        return Handle(DecoderCache(self, x if x.dim() == 3 else x[None], xs_lengths), 0)

    @torch.no_grad()
    def batch_score(self, ys, states, xs, return_hs=False, xs_mask=None):
        """Score the next token of each hypothesis.

        Args:
            ys: ``(N, L)`` prefixes.
            states: N states, from ``batch_init_state`` or an earlier call.
            xs: ``(N, T, n_feat)`` encoder output; the utterances of ``batch_init_state`` in order,
                each N / utterances times in a row.
            return_hs: Also return the hidden states before the output layer.
            xs_mask: ``(N, 1, T)``, true where ``xs`` is not padding.

        Returns:
            Log-probabilities ``(N, vocab_size)`` (with ``return_hs`` a pair of them and the hidden
            states ``(N, n_feat)``), and N states.
        """
        if not self.kv_cache:
            return super().batch_score(ys, states, xs, return_hs, xs_mask)
        cache, rows = resume(states)
        if cache is None or cache.n_frames != xs.size(1):
            if xs.stride(0) == 0:  # one utterance, expanded over its hypotheses
                xs, xs_mask = xs[:1], None if xs_mask is None else xs_mask[:1]
            lengths = None if xs_mask is None else xs_mask.sum((1, 2))
            cache, rows = DecoderCache(self, xs, lengths), list(range(len(ys)))
        for end in range(cache.length + 1, ys.size(1) + 1):
            x = embed_from(self.embed, ys[:, :end], end - 1)
            cache.advance(rows)
            rows = list(range(len(ys)))
            for number, (layer, memory) in enumerate(zip(self.decoders, cache.memory, strict=True)):
                x = layer(x, cache.layer(number), memory, None)[0]
        hidden = x[:, -1]
        if self.normalize_before:
            hidden = self.after_norm(hidden)
        scores = hidden
        if self.output_layer is not None:
            scores = torch.log_softmax(self.output_layer(hidden), dim=-1)
        return ((scores, hidden) if return_hs else scores), handles(cache)

    def ledger(self, n_frames, n_tokens, n_hyp=1):
        """Measure the cache of an utterance, from the tensors of a search over one.

        Args:
            n_frames: Encoder frames of the utterance.
            n_tokens: Tokens of each hypothesis.
            n_hyp: Hypotheses, the beam.

        Returns:
            Bytes ``{"self_attention": n, "src_attention": n}``; all hypotheses share the latter.
        """
        weight = self.decoders[0].norm1.weight
        memory = weight.new_zeros(n_frames, len(weight))
        state = self.batch_init_state(memory)
        tokens = torch.zeros(n_hyp, n_tokens, dtype=torch.long, device=weight.device)
        self.batch_score(tokens, [state] * n_hyp, memory.expand(n_hyp, -1, -1))
        return state.owner.ledger()
