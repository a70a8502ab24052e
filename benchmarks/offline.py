"""Whole recordings: time and memory of our encoders against ESPnet's with ``use_sdpa: true``.

Both have the published size (``conf/tuning/train_asr_*_mha.yaml``) and random weights. The forward
pass is timed at several lengths, the training step (forward, backward) at one. Times are of pairs
that alternate in a process that does nothing else: ESPnet's scores are faster where earlier work
has left freed memory behind. The ratio is ours / ESPnet's. Memory is the peak resident set of a
fresh process above what it holds before the pass, weights included in the latter.

    OMP_NUM_THREADS=2 python benchmarks/offline.py --threads 2
"""

import argparse
import statistics
import time

import torch
from common import ENCODERS, features, in_fresh_process, make_encoder, pair_times, ratio

from espnet_ext.evaluate.process import PeakMemory

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


def make_pass(encoder, seconds, training):
    """Function that runs one forward pass, or one training step without the optimiser."""
    feats, lengths = features(seconds)
    if not training:
        encoder.eval()

        @torch.no_grad()
        def forward():
            encoder(feats, lengths)

        return forward
    encoder.train()

    def step():
        encoder.zero_grad()
        encoder(feats, lengths)[0].square().sum().backward()

    return step


def peak_mb(stock, name, seconds, training, threads):
    """Peak memory in MB (10^6 bytes) of one pass over what the process holds before it."""
    torch.set_num_threads(threads)
    run = make_pass(make_encoder(name, stock), seconds, training)
    if training:
        make_pass(make_encoder(name, stock), 1, training)()  # gradients and libraries are held
    memory = PeakMemory()
    run()
    return memory.read()["peak_mb"] * 2**20 / 1e6


def seconds_of(name, seconds, training, threads, pairs, clock):
    """Pairs of times, ours and ESPnet's."""
    torch.set_num_threads(threads)
    ours, stock = (make_pass(make_encoder(name, s), seconds, training) for s in (False, True))
    return pair_times(ours, stock, pairs, CLOCKS[clock])


def report(name, seconds, training, args):
    """One row: times, their ratio, memory of both sides."""
    what = name, seconds, training, args.threads
    pairs = in_fresh_process(seconds_of, *what, args.pairs, args.clock)
    first, second = (statistics.median(p[i] for p in pairs) for i in (0, 1))
    peaks = [in_fresh_process(peak_mb, stock, *what) for stock in (False, True)]
    print(
        f"| {name} | {'training step' if training else 'forward'} | {seconds:g} "
        f"| {first:.3f} | {second:.3f} | {ratio(pairs)} "
        f"| {peaks[0]:.0f} | {peaks[1]:.0f} | {peaks[0] / peaks[1]:.2f} |",
        flush=True,
    )


def main(argv=None):
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, nargs="*", default=[10, 60, 240])
    parser.add_argument("--training_seconds", type=float, nargs="*", default=[30])
    parser.add_argument("--encoders", nargs="+", choices=ENCODERS, default=list(ENCODERS))
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(argv)
    print(f"torch {torch.__version__}, {args.threads} threads, {args.clock} time, one recording\n")
    print(
        "| encoder | pass | audio s | ours s | ESPnet s | ratio "
        "| ours MB | ESPnet MB | ratio |\n|---|---|---|---|---|---|---|---|---|"
    )
    for name in args.encoders:
        for seconds in args.seconds:
            report(name, seconds, False, args)
        for seconds in args.training_seconds:
            report(name, seconds, True, args)


if __name__ == "__main__":
    main()
