"""Bytes that a stream keeps, read off its tensors while it streams."""

import torch

from espnet_ext.attention import ATTENTIONS
from espnet_ext.evaluate.models import build_encoder, build_frontend, with_encoder_conf
from espnet_ext.frontend import StreamingFrontend

#: encoder frames per step where only the bytes count: large chunks are cheap
CHUNK = 250


def chunk_samples(encoder, front, chunk_size: int) -> tuple[int, int]:
    """Samples from one chunk to the next, and those that the first chunk waits for.

    The first waits for all that its features look at, less what is mirrored before the start.
    """
    first = encoder.input_length(chunk_size)
    chunk = (encoder.input_length(2 * chunk_size) - first) * front.hop
    return chunk, (first - 1) * front.hop + front.window - front.left


def stream_noise(encoder, frames: int, chunk_size: int, left_context: int, **options):
    """Stream noise until ``frames`` encoder frames, a multiple of ``chunk_size``, are out.

    ``options`` are more of ``init_state``.

    Yields:
        The live state: before the first frame and after every chunk.
    """
    state = encoder.init_state(chunk_size=chunk_size, left_context=left_context, **options)
    yield state
    first = encoder.input_length(chunk_size)
    step = encoder.input_length(2 * chunk_size) - first
    for n in [first] + [step] * (frames // chunk_size - 1):
        feats = torch.randn(1, n, encoder.input_size, device=next(encoder.parameters()).device)
        _, state = encoder.forward_chunk(feats, state)
        yield state


def _formula_bytes(attentions, frames):
    """Bytes in float32 of the attention caches, by the variants' own formulas."""
    return 4 * sum(attention.cache_values(frames) for attention in attentions)


@torch.no_grad()
def measure_cache(config: dict, frames: int, chunk_size: int, left_contexts: list[int]) -> dict:
    """Measure the caches of a config's encoder, in float32, with random weights.

    An encoder that is not causal cannot stream; its sibling with ``causal: true``, which has the
    same weights and the same caches, is measured instead.

    Args:
        config: See ``read_model_config``.
        frames: Encoder frames streamed with an unlimited left context.
        chunk_size: Encoder frames per step of the streams with a finite left context; a config
            with a chunk size of its own keeps it, and has its own left context measured too.
        left_contexts: Encoder frames before a chunk, -1 for all.

    Returns:
        ``bytes`` of the attention caches after ``frames`` frames, ``formula_bytes`` and
        ``mha_bytes`` (multi-head attention with keys and values, by formula), ``bytes_per_frame``,
        ``parameters`` of the encoder, ``rebuilt_causal``, and ``streams``: for each left context
        ``ledger`` (the encoder's, and ``frontend``), ``bytes`` and ``capacity_bytes``, each the
        most that a stream keeps between two packets of one hop, and ``formula_bytes`` of the
        attention. ``frontend_missing`` says why ``frontend`` counts nothing, if so;
        ``differences`` where measurement and formula differ.
    """
    conf = config.get("encoder_conf", {})
    rebuilt = not conf.get("causal", False)
    encoder = build_encoder(with_encoder_conf(config, causal=True) if rebuilt else config)
    attentions = encoder.attentions
    mha = ATTENTIONS["mha"](attentions[0].h, attentions[0].n_feat)
    large = max(size for size in range(1, CHUNK + 1) if frames % size == 0)
    held = [state.ledger()["attention"] for state in stream_noise(encoder, frames, large, -1)]
    if encoder.chunk_size is not None:
        chunk_size = encoder.chunk_size
        left_contexts = sorted({*left_contexts, encoder.left_context}, key=lambda n: n % 2**32)
    if not any(attention.has_left_context for attention in attentions):
        left_contexts = [-1]
    frontend, frontend_missing = None, None
    try:
        frontend = StreamingFrontend(build_frontend(config))
    except ValueError as error:
        frontend_missing = str(error)
    cache = {
        "frames": frames,
        "dtype": "float32",
        "rebuilt_causal": rebuilt,
        "parameters": sum(p.numel() for p in encoder.parameters()),
        "layers": len(attentions),
        "bytes": held[-1],
        "formula_bytes": _formula_bytes(attentions, frames),
        "mha_bytes": _formula_bytes([mha] * len(attentions), frames),
        "bytes_per_frame": (held[-1] - held[0]) // frames,
        "streams": [_steady(encoder, frontend, chunk_size, n, frames) for n in left_contexts],
        "frontend_missing": frontend_missing,
    }
    return cache | {"differences": _differences(cache)}


def _steady(encoder, frontend, chunk_size, left_context, frames):
    """A stream that has run until its finite left context is full, or for ``frames`` frames.

    Just after a chunk it keeps least: what fills the next one is yet to come. So one hop of samples
    comes at a time until the next chunk is complete, and the most counts.
    """
    kept = frames if left_context < 0 else left_context
    chunks = -(-kept // chunk_size)
    *_, state = stream_noise(encoder, max(1, chunks) * chunk_size, chunk_size, left_context)
    moments, begun = [], state.frames
    packets = _hops(frontend, encoder.input_size)
    _, waiting = next(packets)
    while state.frames == begun:
        moments.append(
            {
                "ledger": state.ledger() | {"frontend": waiting},
                "bytes": state.nbytes + waiting,
                "capacity_bytes": state.capacity_bytes + waiting,
            }
        )
        feats, waiting = next(packets)
        _, state = encoder.forward_chunk(feats, state)
    return {
        "chunk_size": chunk_size,
        "left_context": left_context,
        "frames": begun,
        "formula_bytes": _formula_bytes(
            encoder.attentions, begun if left_context < 0 else left_context
        ),
        **max(moments, key=lambda moment: moment["bytes"]),
    }


def _hops(frontend, input_size):
    """Per hop of noise, its one frame (1, 1, input_size) and the bytes that the front end keeps."""
    if frontend is None:
        while True:
            yield torch.randn(1, 1, input_size), 0
    state = frontend.init_state()
    while True:
        feats, _, state = frontend.forward_chunk(torch.randn(1, frontend.front.hop), state)
        if feats.size(1):  # the first frames wait for what is mirrored
            yield feats, state.nbytes


def _differences(cache):
    """Where the measured bytes differ from the formula; empty where they agree."""
    figures = [("unlimited", cache["bytes"], cache["formula_bytes"])]
    figures += [
        (stream["left_context"], stream["ledger"]["attention"], stream["formula_bytes"])
        for stream in cache["streams"]
    ]
    return [
        f"left context {left}: {measured} B measured, {formula} B by formula"
        for left, measured, formula in figures
        if measured != formula
    ]
