"""Self-attention variants, one per file, and the registry of their names."""

from espnet_ext.attention.registry import (
    ATTENTIONS,
    attention_label,
    build_attention,
    layer_attentions,
)

__all__ = ["ATTENTIONS", "attention_label", "build_attention", "layer_attentions"]
