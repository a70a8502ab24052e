"""One hour of audio through a 12-layer encoder, in a process that may not use more than 4 GB.

Random features and weights; every row is a fresh process. The limit is on its data (RLIMIT_DATA:
heap and private mappings, what an allocation draws on); libraries mapped from disk are not counted
in it but are in the peak resident set that the table reports.

    OMP_NUM_THREADS=2 python benchmarks/long_audio.py --threads 2
"""

import argparse
import resource
import time
from pathlib import Path

import torch
from common import ENCODERS, features, in_fresh_process, make_encoder

STATUS = Path("/proc/self/status")


def encode(name, seconds, options, limit_gb, threads):
    """Seconds and processor seconds of the pass, and the process's peak resident set in 10^9 B."""
    limit = int(limit_gb * 1e9)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    torch.set_num_threads(threads)
    encoder = make_encoder(name, **options).eval()
    feats, lengths = features(seconds)
    begun, cpu = time.perf_counter(), time.process_time()
    with torch.no_grad():
        encoder(feats, lengths)
    took, cpu = time.perf_counter() - begun, time.process_time() - cpu
    peak = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return took, cpu, int(peak.split()[1]) * 1024 / 1e9


def main(argv=None):
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, nargs="+", default=[900, 1800, 3600])
    parser.add_argument("--encoders", nargs="+", choices=ENCODERS, default=["conformer"])
    parser.add_argument("--chunk", type=int, default=16, help="encoder frames; 0: full context")
    parser.add_argument("--left_context", type=int, default=64, help="encoder frames, -1 all")
    parser.add_argument("--attention", default="mha")
    parser.add_argument("--limit_gb", type=float, default=4)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(argv)
    options = {"attention": args.attention}
    seen = "all"
    if args.chunk:
        options |= {"chunk_size": args.chunk, "left_context": args.left_context}
        seen = f"chunk {args.chunk}, left {args.left_context}"
    print(f"torch {torch.__version__}, {args.threads} threads, data up to {args.limit_gb:g} GB")
    print(
        "\n| encoder | frames seen | audio s | took s | processor s | processor s per hour "
        "| peak RSS GB |\n|---|---|---|---|---|---|---|"
    )
    for name in args.encoders:
        for seconds in args.seconds:
            took, cpu, peak = in_fresh_process(
                encode, name, seconds, options, args.limit_gb, args.threads
            )
            print(
                f"| {name} {args.attention} | {seen} | {seconds:g} | {took:.1f} | {cpu:.1f} "
                f"| {cpu * 3600 / seconds:.0f} | {peak:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
