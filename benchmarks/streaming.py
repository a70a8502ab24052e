"""One streaming step against the length of its left context, ours and the peers' way.

The peers' way is a plain reference on the same weights: it concatenates the whole past at every
step, and projects the positions of the whole context again at every step. The first table is a step
of a whole encoder, the second a step of one attention layer: what attending to the cached vectors
themselves saves over building keys and values from them.

Each row alternates the two sides and reports the ratio of times per pair: median, and quartiles.

    OMP_NUM_THREADS=2 python benchmarks/streaming.py --threads 2

``--wenet DIR`` adds rows against WeNet (eager and TorchScript) from a checkout of it, ``--old DIR``
rows against another commit of this repository, in a process that takes turns with this one.
"""

import argparse
import math
import os
import statistics
import subprocess
import sys
import time
import warnings

import torch
from common import pair_times

from espnet_ext.encoder import ConformerEncoder

VARIANTS = {
    "mha": ("mha", {}),
    "gqa, 2 kv heads": ("gqa", {"n_kv_head": 2}),
    "gqa, 1 kv head": ("gqa", {"n_kv_head": 1}),
    "mha, input cache": ("mha", {"cache": "input"}),
    "mla, rank 128": ("mla", {"kv_lora_rank": 128}),
    "linear": ("linear", {}),
}


def reference_chunk(attention, x, cache):
    """A step of multi-head attention that concatenates and re-projects, as the peers do.

    Args:
        attention: Whose weights are used.
        x: Layer input (1, n, n_feat).
        cache: Keys and values of the left context, (1, H, context, d) each, as it is at every step.
    """
    from espnet_ext.positions import relative_positions

    q_u, q_v = attention.query(x)
    record = attention.record(x)
    seen = {name: torch.cat([cache[name], new], dim=2) for name, new in record.items()}
    kept = {name: t[:, :, x.size(1) :] for name, t in seen.items()}
    n, keys = x.size(1), seen["k"].size(2)
    distances = torch.arange(keys - 1, -n, -1)
    embedded = relative_positions(distances, attention.n_feat, x.dtype)
    p = attention.split_heads(attention.linear_pos(embedded)[None])[0]  # (H, K+n-1, d)
    products = torch.matmul(q_v, p.transpose(1, 2))
    bias = products.flatten(-2)[..., n - 1 : n * (keys + n - 1) - 1]
    bias = bias.unflatten(-1, (n, keys + n - 2))[..., :keys]
    scores = (torch.matmul(q_u, seen["k"].transpose(-2, -1)) + bias) / math.sqrt(attention.d_k)
    context = torch.matmul(torch.softmax(scores, dim=-1), seen["v"])
    cache.update(kept)
    return attention.linear_out(attention.merge_heads(context))


def sizes(args):
    """Options of a Conformer that ours and WeNet's have in common."""
    return {
        "output_size": args.width,
        "attention_heads": args.heads,
        "num_blocks": args.layers,
        "linear_units": args.units,
        "cnn_module_kernel": args.kernel,
        "macaron_style": True,
        "causal": True,
    }


def make_encoder(variant, args, variants=VARIANTS):
    """The published Conformer size by default, causal, with random weights."""
    torch.manual_seed(0)
    attention, attention_conf = variants[variant]
    return ConformerEncoder(
        80,
        chunk_size=args.chunk,
        attention=attention,
        attention_conf=attention_conf,
        **sizes(args),
    ).eval()


def filled_state(encoder, context):
    """State of a stream that has run long enough to fill its left context."""
    state = encoder.init_state(left_context=context)
    for layer in state.layers:
        cache = layer.attention
        if hasattr(cache, "buffers"):
            for buffer in cache.buffers.values():
                buffer.normal_()
            cache.lengths, cache.heads = (context,), (context % cache.capacity,)
        else:
            cache.s.normal_().abs_()
            cache.z.normal_().abs_()
    _, state = encoder.forward_chunk(torch.zeros(1, 3, 80), state)  # what subsampling looks back at
    return state


def row(name, context, pairs, digits=1):
    """A table row: median times in milliseconds, and the ratio first / second with quartiles."""
    first, second = ([1000 * pair[i] for pair in pairs] for i in (0, 1))
    ratios = [a / b for a, b in pairs]
    low, ratio, high = statistics.quantiles(ratios, n=4)
    return (
        f"| {name} | {context} | {statistics.median(first):.{digits}f} "
        f"| {statistics.median(second):.{digits}f} | {ratio:.2f} ({low:.2f} to {high:.2f}) |"
    )


def encoder_rows(args):
    """Whole encoders: multi-head attention against the peers' way, the others against it."""
    mha = make_encoder("mha", args)
    packet = torch.randn(1, 4 * args.chunk, 80)
    mha.lay_out_weights()
    for variant in args.variants:
        encoder = mha if variant == "mha" else make_encoder(variant, args)
        encoder.lay_out_weights()
        for context in args.contexts:
            state = filled_state(encoder, context)

            def step(encoder=encoder, state=state):
                encoder.forward_chunk(packet, state)

            if variant == "mha":
                peer = make_encoder("mha", args)
                peer.load_state_dict(mha.state_dict())
                peer.lay_out_weights()
                peer_state = filled_state(peer, context)
                for layer, layer_state in zip(peer.encoders, peer_state.layers, strict=True):
                    att, buffers = layer.self_attn, layer_state.attention.buffers
                    kept = {name: b[:, :, :context].clone() for name, b in buffers.items()}
                    att.forward_chunk = lambda x, _, att=att, kept=kept: reference_chunk(
                        att, x, kept
                    )
                other, other_state, name = peer, peer_state, "mha / the peers' way"
            else:
                other, other_state, name = mha, filled_state(mha, context), f"{variant} / mha"

            def other_step(encoder=other, state=other_state):
                encoder.forward_chunk(packet, state)

            print(row(name, context, pair_times(step, other_step, args.repeats)), flush=True)


def stepping(args, variant, context):
    """Function that makes one step of an encoder whose left context is full."""
    encoder = make_encoder(variant, args)
    if hasattr(encoder, "lay_out_weights"):  # an older commit has none
        encoder.lay_out_weights()
    packet = torch.randn(1, 4 * args.chunk, 80)
    state = encoder.init_state(left_context=context)
    for _ in range(context // args.chunk + 3):
        _, state = encoder.forward_chunk(packet, state)
    return lambda: encoder.forward_chunk(packet, state)


def serve(args):
    """Make one step for each line read, and answer with its seconds."""
    step = stepping(args, args.variants[0], args.contexts[0])
    for _ in sys.stdin:
        begun = time.perf_counter()
        step()
        print(time.perf_counter() - begun, flush=True)


def old_rows(args):
    """This commit against the one checked out in ``args.old``, in turns."""
    for variant in args.variants:
        for context in args.contexts:
            words = sys.argv[1:] + ["--serve", "--variants", variant, "--contexts", str(context)]
            env = os.environ | {"PYTHONPATH": os.path.abspath(args.old)}
            with subprocess.Popen(
                [sys.executable, __file__, *words],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env,
            ) as child:  # fmt: skip
                step, times = stepping(args, variant, context), []

                def other(child=child):
                    child.stdin.write("\n")
                    child.stdin.flush()
                    return float(child.stdout.readline())

                for _ in range(args.repeats + 2):
                    begun = time.perf_counter()
                    step()
                    times.append((time.perf_counter() - begun, other()))
                child.stdin.close()
            print(row(f"{variant} / before", context, times[2:]), flush=True)


def wenet_rows(args):
    """Multi-head attention against WeNet."""
    from wenet_step import steps

    for context in args.contexts:
        ours = stepping(args, "mha", context)
        for name, theirs in steps(args.wenet, sizes(args), args.chunk, context).items():
            for _ in range(4):
                theirs()  # TorchScript specialises in its first runs
            pairs = pair_times(ours, theirs, args.repeats)
            print(row(f"mha / WeNet, {name}", context, pairs), flush=True)


def layer_rows(args):
    """Attending to the cached vectors of one layer: absorbed against expanded."""
    for variant in args.variants:
        attention = make_encoder(variant, argparse.Namespace(**vars(args) | {"layers": 1}))
        attention = attention.encoders[0].self_attn
        weights = getattr(attention, "absorbed_weights", lambda: None)()
        if weights is None:
            continue
        ((name, (width,)),) = attention.record_shapes().items()
        q_u = torch.randn(1, args.heads, args.chunk, attention.d_k)
        for context in args.contexts:
            keys = context + args.chunk
            cached = torch.randn(1, keys, width)
            bias = torch.randn(1, args.heads, args.chunk, keys)

            from espnet_ext.attention.blocked import attend

            def absorbed(att=attention, cached=cached, bias=bias, q_u=q_u, weights=weights):
                att._attend_absorbed(q_u, cached, weights, bias, att.d_k**-0.5)

            def expanded(att=attention, cached=cached, bias=bias, q_u=q_u, name=name):
                attend(q_u, *att.key_value({name: cached}), bias, att.d_k**-0.5)

            pairs = pair_times(absorbed, expanded, 3 * args.repeats)
            print(row(f"{variant}: absorbed / expanded", context, pairs, 2), flush=True)


@torch.no_grad()
def main(argv=None):
    """Print both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--contexts", type=int, nargs="+", default=[64, 256, 1500, 4500])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--chunk", type=int, default=16, help="encoder frames per step")
    parser.add_argument("--repeats", type=int, default=20, help="pairs per row")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--units", type=int, default=2048)
    parser.add_argument("--kernel", type=int, default=15)
    parser.add_argument("--old", metavar="DIR", help="a checkout of another commit")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--wenet", metavar="DIR", help="a checkout of WeNet, to be measured beside")
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    if args.serve:
        return serve(args)
    head = "| step | left context | ms | ms of the other | ratio |\n|---|---|---|---|---|"
    print(f"torch {torch.__version__}, {args.threads} threads, chunks of {args.chunk} frames")
    print(f"\n{args.layers}-layer Conformer, {args.width}-d, {args.heads} heads\n\n{head}")
    encoder_rows(args)
    if args.old:
        old_rows(args)
    if args.wenet:
        wenet_rows(args)
    print(f"\nCore of one attention layer\n\n{head}")
    layer_rows(args)


if __name__ == "__main__":
    main()
