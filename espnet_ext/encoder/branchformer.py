"""ESPnet's Branchformer (Peng et al. 2022) with a choice of attention, offline and streaming."""

from typing import Any

import torch
from espnet2.asr.encoder.branchformer_encoder import (
    BranchformerEncoder as ESPnetBranchformerEncoder,
)
from espnet2.legacy.nets.pytorch_backend.transformer.subsampling import (
    TooShortUttError,
    check_short_utt,
)
from torch import Tensor

from espnet_ext.encoder.conv import gating_chunk
from espnet_ext.encoder.streaming import StreamingEncoder, padded_frames


class BranchformerEncoder(StreamingEncoder, ESPnetBranchformerEncoder):
    """Branchformer; see ``StreamingEncoder`` for what it adds to ESPnet's options.

    Both branches are needed. ``merge_method: learned_ave`` pools over the whole utterance, so it
    cannot stream.
    """

    attention_name = "attn"
    required_conf = StreamingEncoder.required_conf | {
        "attention_layer_type": "rel_selfattn",
        "use_attn": True,
        "use_cgmlp": True,
    }
    required_streaming_conf = {"merge_method": "concat"}

    @staticmethod
    def convolutions(layer: Any) -> dict[str, tuple[Any, str]]:
        return {"cgmlp": (layer.cgmlp.csgu, "conv")}

    def forward(  # type: ignore[override]
        self, xs_pad: Tensor, ilens: Tensor, prev_states: Any = None
    ) -> tuple[Tensor, Tensor, None]:
        """As ESPnet's, whose padding mask costs the square of the length.

        Args:
            xs_pad: Features (B, T, input_size).
            ilens: Frames that are speech (B,).
            prev_states: Not used.

        Returns:
            Encoder output (B, T', output_size), output lengths (B,) and None.

        Raises:
            TooShortUttError: No encoder frame comes of so few features.
        """
        mask = ~padded_frames(ilens, xs_pad.device)[:, None]  # (B, 1, T)
        if self.subsampling[1] > 1:
            too_short, limit = check_short_utt(self.embed, xs_pad.size(1))
            if too_short:
                raise TooShortUttError(
                    f"{xs_pad.size(1)} frames are too short: subsampling needs {limit}",
                    xs_pad.size(1),
                    limit,
                )
            x, mask = self.embed(xs_pad, mask)
        else:
            x = self.embed(xs_pad)
        (x, _), mask = self.encoders(x, mask)
        return self.after_norm(x), mask.squeeze(1).sum(1), None

    @staticmethod
    def layer_chunk(layer: Any, x: Tensor, past: Any) -> Tensor:
        attended = layer.attn.forward_chunk(layer.norm_mha(x), past.attention)
        gated = gating_chunk(layer.cgmlp, layer.norm_mlp(x), past.convolution["cgmlp"])
        x = x + layer.merge_proj(torch.cat([attended, gated], dim=-1))
        return layer.norm_final(x)
