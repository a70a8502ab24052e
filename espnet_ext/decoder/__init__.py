"""Beam search with cached keys and values: decoder, language model, CTC prefix scores."""

from espnet_ext.decoder.ctc_prefix import FastCTCPrefixScorer
from espnet_ext.decoder.lm import TransformerLM
from espnet_ext.decoder.search import use_kv_cache
from espnet_ext.decoder.transformer import TransformerDecoder

__all__ = ["FastCTCPrefixScorer", "TransformerDecoder", "TransformerLM", "use_kv_cache"]
