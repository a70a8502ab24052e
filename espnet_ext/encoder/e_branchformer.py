"""ESPnet's E-Branchformer (Kim et al. 2023) with a choice of attention, offline and streaming."""

from typing import Any

import torch
from espnet2.asr.encoder.e_branchformer_encoder import (
    EBranchformerEncoder as ESPnetEBranchformerEncoder,
)
from torch import Tensor

from espnet_ext.encoder.conv import gating_chunk
from espnet_ext.encoder.streaming import StreamingEncoder


class EBranchformerEncoder(StreamingEncoder, ESPnetEBranchformerEncoder):
    """E-Branchformer; see ``StreamingEncoder`` for what it adds to ESPnet's options."""

    attention_name = "attn"
    required_conf = StreamingEncoder.required_conf | {"attention_layer_type": "rel_selfattn"}
    required_streaming_conf = {
        "positionwise_layer_type": "linear",
        "interctc_use_conditioning": False,
    }

    @staticmethod
    def convolutions(layer: Any) -> dict[str, tuple[Any, str]]:
        return {"cgmlp": (layer.cgmlp.csgu, "conv"), "merge": (layer, "depthwise_conv_fusion")}

    @staticmethod
    def layer_chunk(layer: Any, x: Tensor, past: Any) -> Tensor:
        if layer.feed_forward_macaron is not None:
            y = layer.feed_forward_macaron(layer.norm_ff_macaron(x))
            x = torch.add(x, y, alpha=layer.ff_scale)
        attended = layer.attn.forward_chunk(layer.norm_mha(x), past.attention)
        gated = gating_chunk(layer.cgmlp, layer.norm_mlp(x), past.convolution["cgmlp"])
        both = torch.cat([attended, gated], dim=-1)  # (B, n, 2 * n_feat)
        fused = layer.depthwise_conv_fusion.forward_chunk(
            both.transpose(1, 2), past.convolution["merge"]
        ).transpose(1, 2)
        x = x + layer.merge_proj(both + fused)
        if layer.feed_forward is not None:
            x = torch.add(x, layer.feed_forward(layer.norm_ff(x)), alpha=layer.ff_scale)
        return layer.norm_final(x)
