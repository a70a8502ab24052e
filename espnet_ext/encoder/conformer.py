"""ESPnet's Conformer (Gulati et al. 2020) with a choice of attention, offline and streaming."""

from typing import Any

import torch
from espnet2.asr.encoder.conformer_encoder import ConformerEncoder as ESPnetConformerEncoder
from torch import Tensor

from espnet_ext.encoder.conv import convolution_chunk
from espnet_ext.encoder.streaming import StreamingEncoder


class ConformerEncoder(StreamingEncoder, ESPnetConformerEncoder):
    """Conformer; see ``StreamingEncoder`` for what it adds to ESPnet's options."""

    attention_name = "self_attn"
    required_conf = StreamingEncoder.required_conf | {"selfattention_layer_type": "rel_selfattn"}
    required_streaming_conf = {
        "normalize_before": True,
        "concat_after": False,
        "positionwise_layer_type": "linear",
        "interctc_use_conditioning": False,
        "ctc_trim": False,
    }

    @staticmethod
    def convolutions(layer: Any) -> dict[str, tuple[Any, str]]:
        if layer.conv_module is None:
            return {}
        return {"conv_module": (layer.conv_module, "depthwise_conv")}

    @staticmethod
    def layer_chunk(layer: Any, x: Tensor, past: Any) -> Tensor:
        if layer.feed_forward_macaron is not None:
            y = layer.feed_forward_macaron(layer.norm_ff_macaron(x))
            x = torch.add(x, y, alpha=layer.ff_scale)
        x = x + layer.self_attn.forward_chunk(layer.norm_mha(x), past.attention)
        if layer.conv_module is not None:
            x = x + convolution_chunk(
                layer.conv_module, layer.norm_conv(x), past.convolution["conv_module"]
            )
        x = torch.add(x, layer.feed_forward(layer.norm_ff(x)), alpha=layer.ff_scale)
        return x if layer.conv_module is None else layer.norm_final(x)
