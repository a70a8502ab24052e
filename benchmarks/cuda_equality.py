"""What a card says must be what the CPU says: every attention in every encoder, and the rest.

The models are those of the tests, with weights large enough for an error to show. A check yields
what was compared, in which precision, and the error; ``benchmarks/cuda_card.py`` runs them.
"""

import contextlib
import math
import traceback
from argparse import Namespace

import torch
from espnet2.asr.frontend.default import DefaultFrontend

from benchmarks.beam_search import make_search, same
from benchmarks.common import one_line
from espnet_ext.attention import build_attention
from espnet_ext.attention.registry import convertible
from espnet_ext.decoder import use_kv_cache
from espnet_ext.frontend import KaldiFbank, StreamingFrontend
from espnet_ext.state import StreamState
from tiny import (
    ATTENTION_CONF,
    FS,
    INPUT_SIZE,
    N_FEAT,
    N_HEAD,
    VARIANTS,
    build_encoder,
    build_tiny_attention,
    positions,
    speech,
)

CHUNK, LEFT, FRAMES, SHORTER = 4, 8, 151, 86
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
#: largest difference allowed, relative to the largest value; autocast and small caches round
ALLOWED = {"float64": 1e-4, "float32": 1e-4, "bfloat16": 0.05, "float16": 0.01, "int8": 0.01}


def autocast(device, dtype):
    """Autocast to a dtype, or nothing for None."""
    return contextlib.nullcontext() if dtype is None else torch.autocast(device, dtype)


def relative_error(a, b):
    """Largest difference over the largest value of ``b``; infinite for NaN and other shapes."""
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    if a.shape != b.shape or not (a.isfinite().all() and b.isfinite().all()):
        return math.inf
    return ((a - b).abs().max() / b.abs().max()).item()


def cases(encoders, **options):
    """Every encoder with every attention: its name and a function that builds it, ever the same."""
    for encoder in encoders:
        for variant in VARIANTS:

            def build(device, encoder=encoder, variant=variant):
                torch.manual_seed(0)
                return build_encoder(encoder, variant, **options).eval().to(device)

            yield f"{encoder} {variant}", build


def batch(device="cpu"):
    """Features of two utterances (2, T, INPUT_SIZE) and their lengths."""
    feats = torch.randn(2, FRAMES, INPUT_SIZE, generator=torch.Generator().manual_seed(1))
    feats[1, SHORTER:] = 0
    return feats.to(device), torch.tensor([FRAMES, SHORTER], device=device)


def only_speech(y, lengths):
    """Frames that are no padding: (B, T, D) -> (sum of lengths, D)."""
    return torch.cat([row[:n] for row, n in zip(y, lengths, strict=True)])


@torch.no_grad()
def encode(encoder, device, dtype=None):
    """Output of whole utterances, without padding."""
    with autocast(device, dtype):
        y, lengths, _ = encoder(*batch(device))
    return only_speech(y, lengths.tolist())


def stream(encoder, device, dtype=None, cache_dtype=None, move_to=None, packet=7):
    """Output of the same utterances as streams, without padding.

    Args:
        encoder: The encoder.
        device: Where it is.
        dtype: Autocast to this.
        cache_dtype: What the caches are stored in.
        move_to: Another encoder and its device, which take over in the middle.
        packet: Feature frames per packet.
    """
    feats, lengths = batch(device)
    state, outputs = encoder.init_state(2, dtype=cache_dtype), []
    for start in range(0, FRAMES, packet):
        if move_to and start >= FRAMES // 2:
            (encoder, device), move_to = move_to, None
            state, feats = state.to(device), feats.to(device)
        part = feats[:, start : start + packet]
        received = [max(0, min(n - start, part.size(1))) for n in lengths.tolist()]
        with autocast(device, dtype):
            y, state = encoder.forward_chunk(part, state, start + packet >= FRAMES, received)
        outputs.append(y.float().cpu())
    return only_speech(torch.cat(outputs, dim=1), state.lengths)


def offline(device, encoders):
    """Whole utterances, with full context and in chunks."""
    for view in ({}, {"chunk_size": CHUNK, "left_context": LEFT}):
        for name, build in cases(encoders, **view):
            want = encode(build("cpu"), "cpu")
            for precision, dtype in PRECISIONS.items():
                error = relative_error(encode(build(device), device, dtype), want)
                yield f"{name} {'chunks' if view else ''}", precision, error


def gradients(device, encoders):
    """Every gradient of a training step."""

    def of(encoder, device, dtype=None):
        feats, lengths = batch(device)
        with autocast(device, dtype):
            y, lengths, _ = encoder(feats, lengths)
            loss = only_speech(y, lengths.tolist()).float().square().mean()
        loss.backward()
        return torch.cat([p.grad.flatten().cpu() for p in encoder.parameters()])

    for name, build in cases(encoders):
        want = of(build("cpu"), "cpu")
        for precision, dtype in PRECISIONS.items():
            yield name, precision, relative_error(of(build(device), device, dtype), want)


def streaming(device, encoders):
    """Streams in packets of 7 frames, against the whole on the CPU."""
    for name, build in cases(encoders, causal=True, chunk_size=CHUNK, left_context=LEFT):
        want = encode(build("cpu"), "cpu")
        for precision, dtype in PRECISIONS.items():
            yield name, precision, relative_error(stream(build(device), device, dtype), want)


def cache_dtypes(device, encoders):
    """Streams whose caches are stored in another dtype."""
    for name, build in cases(encoders, causal=True, chunk_size=CHUNK, left_context=LEFT):
        want = encode(build("cpu"), "cpu")
        for precision in ("float64", "bfloat16", "float16", "int8"):
            got = stream(build(device), device, cache_dtype=getattr(torch, precision))
            yield name, precision, relative_error(got, want)


def moved(device, encoders):
    """Streams that go on elsewhere: begun on the CPU and ended on the card, and the reverse."""
    for name, build in cases(encoders, causal=True, chunk_size=CHUNK, left_context=LEFT):
        want = encode(build("cpu"), "cpu")
        for there, here in ((device, "cpu"), ("cpu", device)):
            got = stream(build(there), there, move_to=(build(here), here))
            yield f"{name} from {there}", "float32", relative_error(got, want)


def different_ages(device, encoders):
    """Streams that began at different times, some steps in one batch, then alone to their end."""
    packet, together = 4 * CHUNK, 3  # feature frames, steps in a batch
    ages, lengths = (5, 2, 1), (FRAMES, SHORTER, 72)  # the first has filled its left context
    generator = torch.Generator().manual_seed(3)
    feats = [torch.randn(1, n, INPUT_SIZE, generator=generator) for n in lengths]
    for name, build in cases(encoders, causal=True, chunk_size=CHUNK, left_context=LEFT):
        with torch.no_grad():
            alone = build("cpu")
            want = [alone(x, torch.tensor([x.size(1)]))[0][0] for x in feats]
        for precision, dtype in PRECISIONS.items():
            encoder, outputs = build(device), [[] for _ in feats]
            packets = [iter(x.to(device).split(packet, dim=1)) for x in feats]
            states = [encoder.init_state() for _ in feats]
            with autocast(device, dtype):
                for i, age in enumerate(ages):
                    for _ in range(age):
                        y, states[i] = encoder.forward_chunk(next(packets[i]), states[i])
                        outputs[i].append(y[0])
                state = StreamState.stack(states)
                for _ in range(together):
                    x = torch.cat([next(stream) for stream in packets])
                    y, state = encoder.forward_chunk(x, state)
                    for i, row in enumerate(y):
                        outputs[i].append(row)
                for i, one in enumerate(state.unstack()):
                    for x in (*packets[i], feats[i][:, :0].to(device)):
                        y, one = encoder.forward_chunk(x, one, is_final=not x.size(1))
                        outputs[i].append(y[0])
            got = torch.cat([torch.cat([y.float() for y in parts]) for parts in outputs])
            yield name, precision, relative_error(got, torch.cat(want))


def front_end(device, encoders):
    """Features of a padded batch, and from packets of a waveform, against the CPU's.

    ESPnet's in float64: the logarithm of a faint band makes 1e-4 of float32's rounding, on a CPU as
    well. Kaldi's are computed so in any dtype.
    """
    default = DefaultFrontend(fs=FS, n_fft=256, hop_length=80, n_mels=INPUT_SIZE).double()
    # autocast is kept out of kaldi_fbank, and by ESPnet's model out of its front end
    for name, frontend, low in (
        ("default", default, None),
        ("kaldi_fbank", KaldiFbank(fs=FS, n_mels=INPUT_SIZE), torch.bfloat16),
    ):
        precision = "float64" if frontend is default else "float32"
        wave = torch.from_numpy(speech())[None].to(getattr(torch, precision))
        batch, lengths = wave.repeat(2, 1), torch.tensor([wave.size(1), wave.size(1) // 3])
        want, _ = frontend(batch, lengths)
        frontend.to(device)
        with autocast(device, low):
            feats, _ = frontend(batch.to(device), lengths.to(device))
        yield f"{name}, batch", precision, relative_error(feats, want)
        live = StreamingFrontend(frontend)
        state, parts = live.init_state(), []
        for packet in wave.to(device).split(333, dim=1):
            feats, _, state = live.forward_chunk(packet, state)
            parts.append(feats)
        parts.append(live.forward_chunk(wave[:, :0].to(device), state, is_final=True)[0])
        streamed = torch.cat(parts, dim=1)
        yield f"{name}, streaming", precision, relative_error(streamed, want[:1])


@torch.no_grad()
def beam_search(device, encoders):
    """ESPnet's beam search with our cached scorers: the same n-best list as on the CPU."""
    args = Namespace(vocab_size=30, width=32, heads=4, linear_units=64, layers=2)
    memory = 3 * torch.randn(40, 32, generator=torch.Generator().manual_seed(2))
    for name, ctc_weight in (("joint", 0.3), ("attention only", 0.0)):
        nbest = []
        for place in ("cpu", device):
            search = make_search(args, 5, ctc_weight, 0).to(place)
            if ctc_weight:
                search.scorers["ctc"].ctc.to(place)  # its scorer is no module
            use_kv_cache(search)
            nbest.append(search(memory.to(place), maxlenratio=-12))
        tokens, difference = same(*reversed(nbest))
        yield name, "float32", difference / 12 if tokens else math.inf  # per token


@torch.no_grad()
def conversion(device, encoders):
    """Weights rewritten from multi-head attention on the card, against the CPU's."""
    torch.manual_seed(0)
    old = build_tiny_attention("mha")
    x = torch.randn(1, 40, N_FEAT)

    def outputs(place):
        for name in convertible():
            conf = ATTENTION_CONF.get(name, {})
            new = build_attention(name, N_HEAD, N_FEAT, 0.0, conf).eval()
            new.load_state_dict(new.from_mha(old.to(place))[0])
            inputs = x.to(place)
            yield name, new.to(place)(inputs, inputs, inputs, positions(40).to(place), None)

    for (name, want), (_, got) in zip(list(outputs("cpu")), list(outputs(device)), strict=True):
        yield name, "float32", relative_error(got, want)


#: everything that must be the same on the card; a new one is a function and its name here
CHECKS = (
    offline,
    gradients,
    streaming,
    cache_dtypes,
    moved,
    different_ages,
    front_end,
    beam_search,
    conversion,
)


def equality(device, sizes):
    """Print the largest error of every check; False if one is larger than allowed."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    print(
        "Differences from the CPU in float32, without TF32, relative to the largest value. The "
        "precision is that of autocast, or of the caches.\n\n"
        "| check | precision | cases | largest error | allowed | where | |\n"
        "|---|---|---|---|---|---|---|"
    )
    good = True
    for check in CHECKS:
        worst = {}
        try:
            for name, precision, error in check(device, sizes.encoders):
                errors = worst.setdefault(precision, [])
                errors.append((error if error >= 0 else math.inf, name))  # NaN is no number
        except Exception as error:  # the other checks go on
            traceback.print_exc()
            print(f"| {check.__name__} | | | | | {one_line(error)} | **failed** |", flush=True)
            good = False
        for precision, errors in worst.items():
            error, name = max(errors)
            right = error <= ALLOWED[precision]
            good = good and right
            print(
                f"| {check.__name__} | {precision} | {len(errors)} | {error:.1e} "
                f"| {ALLOWED[precision]:g} | {name} | {'ok' if right else '**failed**'} |",
                flush=True,
            )
    return good
