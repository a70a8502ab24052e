"""Beam search with cached keys and values against ESPnet's, in one process, alternating.

A Transformer decoder and a CTC layer with random weights decode random encoder output for a fixed
number of steps. Each row runs ESPnet's scorers and ours in turn and reports the ratio of times per
pair: median, and lowest to highest. The n-best lists are compared as well.

    OMP_NUM_THREADS=2 python benchmarks/beam_search.py --threads 2
"""

import argparse
import logging
import statistics
import time

import torch
from espnet2.asr.ctc import CTC
from espnet2.asr.decoder.transformer_decoder import TransformerDecoder
from espnet2.legacy.nets.batch_beam_search import BatchBeamSearch
from espnet2.legacy.nets.scorers.ctc import CTCPrefixScorer

from espnet_ext.decoder import use_kv_cache

MODES = {  # name: (weight of the CTC scores, ctc_window_margin)
    "joint, exact": (0.3, 0),
    "joint, margin 100": (0.3, 100),
    "attention only": (0.0, 0),
}


def make_search(args, beam, ctc_weight, margin):
    """Build ESPnet's beam search; the same weights every time.

    Args:
        args: Sizes of the decoder.
        beam: Hypotheses kept.
        ctc_weight: Weight of the CTC scores, 0 to 1.
        margin: ESPnet's ``ctc_window_margin`` (frames).

    Returns:
        The ``BatchBeamSearch``.
    """
    torch.manual_seed(0)
    decoder = TransformerDecoder(
        args.vocab_size,
        args.width,
        attention_heads=args.heads,
        linear_units=args.linear_units,
        num_blocks=args.layers,
    )
    ctc = CTC(args.vocab_size, args.width)
    eos = args.vocab_size - 1
    # the end of the sentence is never worth it, so that every search takes all its steps
    decoder.output_layer.bias.data[eos] = -1e4
    search = BatchBeamSearch(
        scorers={"decoder": decoder, "ctc": CTCPrefixScorer(ctc.eval(), eos, margin)},
        weights={"decoder": 1 - ctc_weight, "ctc": ctc_weight},
        beam_size=beam,
        vocab_size=args.vocab_size,
        sos=eos,
        eos=eos,
        pre_beam_score_key="full",
    )
    return search.eval()


def timed(search, memory, steps):
    """Decode once; returns seconds and the n-best list."""
    start = time.perf_counter()
    nbest = search(memory, maxlenratio=-steps)
    return time.perf_counter() - start, nbest


def same(ours, stock):
    """Whether two n-best lists hold the same tokens, and the largest difference of scores."""
    tokens = [h.yseq.tolist() for h in ours] == [h.yseq.tolist() for h in stock]
    scores = torch.tensor([[float(h.score) for h in nbest] for nbest in (ours, stock)])
    return tokens, scores.diff(dim=0).abs().max().item()


def profile(search, memory, steps):
    """Share of each part in the time of one of our searches, in percent.

    Returns:
        ``{part: percent}``; ``search`` is what is left for ESPnet's own code.
    """
    parts = {"source attention": 0.0, "self-attention": 0.0, "feed-forward": 0.0, "output": 0.0}
    parts |= {"CTC": 0.0, "memory projection": 0.0, "other decoder": 0.0}

    def clock(part, call):
        def run(*inputs, **options):
            start = time.perf_counter()
            result = call(*inputs, **options)
            parts[part] += time.perf_counter() - start
            return result

        return run

    decoder = search.scorers["decoder"]
    for layer in decoder.decoders:
        layer.src_attn.forward = clock("source attention", layer.src_attn.forward)
        layer.self_attn.forward = clock("self-attention", layer.self_attn.forward)
        layer.feed_forward.forward = clock("feed-forward", layer.feed_forward.forward)
    decoder.output_layer.forward = clock("output", decoder.output_layer.forward)
    decoder.batch_init_state = clock("memory projection", decoder.batch_init_state)
    inner = ("source attention", "self-attention", "feed-forward", "output")
    decoder.batch_score = clock("other decoder", decoder.batch_score)
    if "ctc" in search.scorers:
        ctc = search.scorers["ctc"]
        for name in ("batch_init_state", "batch_score_partial", "batch_select_state"):
            setattr(ctc, name, clock("CTC", getattr(ctc, name)))
    seconds, _ = timed(search, memory, steps)
    parts["other decoder"] -= sum(parts[name] for name in inner)
    parts["search"] = seconds - sum(parts.values())
    return {name: 100 * value / seconds for name, value in parts.items()}


def main(argv=None):
    """Print a Markdown table of ratios and, per row, where our time goes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, nargs="+", default=[250, 500, 1000])
    parser.add_argument("--beams", type=int, nargs="+", default=[10, 20])
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=list(MODES))
    parser.add_argument("--steps", type=int, default=60, help="tokens decoded")
    parser.add_argument("--pairs", type=int, default=5, help="times each search is run")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--linear_units", type=int, default=2048)
    parser.add_argument("--vocab_size", type=int, default=5000)
    args = parser.parse_args(argv)
    logging.disable(logging.WARNING)
    torch.set_num_threads(args.threads)
    profiles = []
    print(f"torch {torch.__version__}, {args.threads} threads, {args.steps} steps\n")
    print(
        "| frames | beam | scores | ESPnet s | cached s | times faster | same n-best, difference |"
    )
    print("|---|---|---|---|---|---|---|")
    for mode in args.modes:
        for beam in args.beams:
            stock, ours = (make_search(args, beam, *MODES[mode]) for _ in range(2))
            use_kv_cache(ours)
            for frames in args.frames:
                memory = torch.randn(frames, args.width)
                pairs = []
                for _ in range(args.pairs):
                    a, stock_nbest = timed(stock, memory, args.steps)
                    b, our_nbest = timed(ours, memory, args.steps)
                    pairs.append((a, b))
                ratios = [a / b for a, b in pairs]
                tokens, difference = same(our_nbest, stock_nbest)
                print(
                    f"| {frames} | {beam} | {mode} "
                    f"| {statistics.median(a for a, _ in pairs):.2f} "
                    f"| {statistics.median(b for _, b in pairs):.2f} "
                    f"| {statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f}) "
                    f"| {'yes' if tokens else 'NO'}, {difference:.0e} |",
                    flush=True,
                )
            shares = profile(ours, memory, args.steps)
            profiles.append((frames, beam, mode, shares))
    print("\nWhere the time of the cached search goes, percent:\n")
    for frames, beam, mode, shares in profiles:
        line = ", ".join(f"{name} {share:.0f}" for name, share in shares.items())
        print(f"- {frames} frames, beam {beam}, {mode}: {line}")


if __name__ == "__main__":
    with torch.no_grad():
        main()
