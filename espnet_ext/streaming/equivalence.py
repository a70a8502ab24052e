"""What a certificate measures: on real audio, streaming beside the chunk-masked offline pass."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from espnet_ext.streaming.eager import EagerSpeech2Text
from espnet_ext.utterance import has_features

#: largest error allowed anywhere from the features on, by the dtype of the comparison. float32 sums
#: taken in another order differ by what the model makes of their rounding, so the verdict is
#: float64's, where that is far below any real difference.
TOLERANCE = {"float32": 1e-4, "float64": 1e-9}


@contextmanager
def _layer_outputs(encoder: Any) -> Iterator[list[list[torch.Tensor]]]:
    """Collect what every layer puts out, offline (B, T, n_feat) or chunk by chunk."""
    outputs: list[list[torch.Tensor]] = [[] for _ in encoder.encoders]
    index = {id(layer): i for i, layer in enumerate(encoder.encoders)}
    hooks = [
        layer.register_forward_hook(lambda _, __, out, i=i: outputs[i].append(out[0][0]))
        for i, layer in enumerate(encoder.encoders)
    ]
    layer_chunk = encoder.layer_chunk

    def recorded(layer: torch.nn.Module, x: torch.Tensor, past: Any) -> torch.Tensor:
        y = layer_chunk(layer, x, past)
        outputs[index[id(layer)]].append(y)
        return y

    encoder.layer_chunk = recorded
    try:
        yield outputs
    finally:
        del encoder.layer_chunk
        for hook in hooks:
            hook.remove()


def _error(chunks: Sequence[torch.Tensor], whole: Sequence[torch.Tensor]) -> float:
    """Largest difference between what streaming and the offline pass put out, two lists of parts.

    Infinite if lengths differ or any of it is not a number: no comparison lets that pass.
    """
    if not chunks or not whole:
        return 0.0 if sum(part.numel() for part in (*chunks, *whole)) == 0 else math.inf
    streamed, offline = torch.cat(list(chunks), dim=1), torch.cat(list(whole), dim=1)
    if streamed.shape != offline.shape:
        return math.inf
    error = (streamed - offline).abs().max().item() if offline.numel() else 0.0
    return error if math.isfinite(error) else math.inf


@torch.no_grad()
def compare(speech2text: EagerSpeech2Text, samples: Any, packet: int) -> dict[str, Any]:
    """Largest errors of streaming one recording in packets of ``packet`` samples.

    Args:
        speech2text: The model with its chunk size, left context and cache dtype.
        samples: Mono waveform (n,) at the model's rate.
        packet: Samples per packet.

    Returns:
        ``features``, ``layers`` (a list), ``encoder``, ``logits`` (log probabilities of the CTC
        output): largest absolute differences, infinite where something is not a number; ``text``
        and ``offline_text``; ``frames`` of the encoder that were compared.
    """
    model, encoder = speech2text.model, speech2text.model.encoder
    samples = torch.as_tensor(samples, dtype=speech2text.frontend.front.dtype)
    feats = []
    if has_features(model, len(samples)):
        made, lengths = model.frontend(samples[None], torch.tensor([samples.numel()]))
        feats = [made if model.normalize is None else model.normalize(made, lengths)[0]]
    with _layer_outputs(encoder) as whole_layers:
        whole = speech2text.encode_offline(samples)
    stream = speech2text.start()
    streamed_feats, streamed = [], []
    with _layer_outputs(encoder) as layers:
        for start in range(0, max(1, samples.numel()), packet):
            is_final = start + packet >= samples.numel()
            part, _, stream.frontend = speech2text.frontend.forward_chunk(
                samples[None, start : start + packet], stream.frontend, is_final
            )
            y, stream.encoder = encoder.forward_chunk(part, stream.encoder, is_final)
            streamed_feats.append(part)
            streamed.append(y)
            result = speech2text.read(stream, y, is_final)
    logits = [model.ctc.log_softmax(y) for y in streamed]
    return {
        "features": _error(streamed_feats, feats),
        "layers": [_error(*parts) for parts in zip(layers, whole_layers, strict=True)],
        "encoder": _error(streamed, [whole]),
        "logits": _error(logits, [model.ctc.log_softmax(whole)]),
        "text": result.text,
        "offline_text": speech2text.read(speech2text.start(), whole, is_final=True).text,
        "frames": whole.size(1),
    }
