"""Self-attention variants, one per file, and the registry of their names."""

from espnet_ext.attention.registry import ATTENTIONS, build_attention, layer_conf

__all__ = ["ATTENTIONS", "build_attention", "layer_conf"]
