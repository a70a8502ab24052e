"""What the benchmarks share: alternating pairs, ratios with their spread, encoders to compare."""

import multiprocessing
import statistics
import time
import warnings
from pathlib import Path

import torch
import yaml

from espnet_ext import register

CONF = Path(__file__).parents[1] / "conf" / "tuning"
#: name -> our class and the one of ESPnet that it derives from
ENCODERS = {
    name.removeprefix("kv_"): (cls, cls.__bases__[1]) for name, cls in register.ENCODERS.items()
}
N_MELS = 80
FEATS_PER_SECOND = 100


def make_encoder(name, stock=False, **options):
    """An encoder of the published size (``conf/tuning/train_asr_*_mha.yaml``), random weights.

    Args:
        name: One of ``ENCODERS``.
        stock: ESPnet's own with ``use_sdpa: true``, its fastest, instead of ours.
        options: Changes to the ``encoder_conf`` of the file.
    """
    conf = yaml.safe_load((CONF / f"train_asr_{name}_mha.yaml").read_text())["encoder_conf"]
    if stock:
        conf = stock_conf(conf)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    return ENCODERS[name][stock](N_MELS, **(conf | options))


def stock_conf(conf):
    """The ``encoder_conf`` of ESPnet's own encoder of the same size, with its SDPA."""
    return {k: v for k, v in conf.items() if k not in ("attention", "attention_conf")} | {
        "use_sdpa": True
    }


def features(seconds, batch_size=1):
    """Random features of so many seconds (B, T, 80) and their lengths (B,)."""
    frames = round(seconds * FEATS_PER_SECOND)
    return torch.randn(batch_size, frames, N_MELS), torch.full((batch_size,), frames)


def pair_times(first, second, repeats, clock=time.perf_counter):
    """Seconds of two functions run in turn: pairs, after one pair that is not counted.

    On a machine that others use, ``time.process_time`` with one thread is the steadier clock.
    """
    pairs = []
    for _ in range(repeats + 1):
        pair = []
        for run in (first, second):
            begun = clock()
            run()
            pair.append(clock() - begun)
        pairs.append(pair)
    return pairs[1:]


def ratio(pairs, digits=2):
    """Ratio first / second of pairs as text: median, lowest to highest."""
    ratios = sorted(a / b for a, b in pairs)
    return (
        f"{statistics.median(ratios):.{digits}f} "
        f"({ratios[0]:.{digits}f} to {ratios[-1]:.{digits}f})"
    )


def in_fresh_process(function, *args):
    """Call a module's function in a process of its own, so that its peak memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, args)


def one_line(error):
    """An exception as one line that fits a table."""
    text = " ".join(str(error).split()).replace("|", "/")
    return f"{type(error).__name__}: {text}"[:300]
