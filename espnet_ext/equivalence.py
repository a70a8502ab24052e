"""Proof on a trained model and real audio that streaming equals the chunk-masked offline pass."""

from contextlib import contextmanager

import torch

from espnet_ext.inference import StreamingSpeech2Text

#: largest error allowed anywhere from the features on, by the dtype of the comparison. float32 sums
#: taken in another order differ by what the model makes of their rounding, so the verdict is
#: float64's, where that is far below any real difference.
TOLERANCE = {"float32": 1e-4, "float64": 1e-9}


@contextmanager
def _layer_outputs(encoder):
    """Collect what every layer puts out, offline (B, T, n_feat) or chunk by chunk."""
    outputs = [[] for _ in encoder.encoders]
    index = {id(layer): i for i, layer in enumerate(encoder.encoders)}
    hooks = [
        layer.register_forward_hook(lambda _, __, out, i=i: outputs[i].append(out[0][0]))
        for i, layer in enumerate(encoder.encoders)
    ]
    layer_chunk = encoder.layer_chunk

    def recorded(layer, x, state, padding):
        y = layer_chunk(layer, x, state, padding)
        outputs[index[id(layer)]].append(y)
        return y

    encoder.layer_chunk = recorded
    try:
        yield outputs
    finally:
        del encoder.layer_chunk
        for hook in hooks:
            hook.remove()


def _error(chunks, whole):
    """Largest difference between chunks put together and the whole; infinite if lengths differ."""
    joined = torch.cat(chunks, dim=1) if chunks else whole[:, :0]
    if joined.shape != whole.shape:
        return float("inf")
    return (joined - whole).abs().max().item() if whole.numel() else 0.0


def to_float64(speech2text: StreamingSpeech2Text) -> None:
    """Turn a model, and what its streams will keep, into float64."""
    speech2text.model.double()
    speech2text.options["dtype"] = torch.float64


@torch.no_grad()
def compare(speech2text: StreamingSpeech2Text, samples, packet: int) -> dict:
    """Largest errors of streaming one recording in packets of ``packet`` samples.

    Args:
        speech2text: The model with its chunk size, left context and cache dtype.
        samples: Mono waveform (n,) at the model's rate, long enough for one encoder frame.
        packet: Samples per packet.

    Returns:
        ``features``, ``layers`` (a list), ``encoder``, ``logits`` (log probabilities of the CTC
        output): largest absolute differences; ``text`` and ``offline_text``.
    """
    model, encoder = speech2text.model, speech2text.model.encoder
    samples = torch.as_tensor(samples, dtype=model.frontend.logmel.melmat.dtype)
    feats, lengths = model.frontend(samples[None], torch.tensor([samples.numel()]))
    if model.normalize is not None:
        feats, lengths = model.normalize(feats, lengths)
    with _layer_outputs(encoder) as whole_layers:
        whole = speech2text.encode_offline(samples)
    stream = speech2text.start()
    streamed_feats, streamed = [], []
    with _layer_outputs(encoder) as layers:
        for start in range(0, samples.numel(), packet):
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
        "layers": [
            _error(chunks, torch.cat(whole_layer, dim=1))
            for chunks, whole_layer in zip(layers, whole_layers, strict=True)
        ],
        "encoder": _error(streamed, whole),
        "logits": _error(logits, model.ctc.log_softmax(whole)),
        "text": result.text,
        "offline_text": speech2text.read(speech2text.start(), whole, is_final=True).text,
    }
