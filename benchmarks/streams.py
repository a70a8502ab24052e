"""Many streams on one machine: steps together, streams per core, streams per GB.

The first table alternates one step of many streams (``step_together``) with a step of each alone,
in one process: streams of different ages whose left context is full. The second is what a stream
holds: resident memory of a fresh process, before and after it opens streams, next to the bytes that
``most_bytes`` counts on. The last runs a server of the small model in the package, and clients that
speak in real time: how late an answer is, after the sound that it is about.

    OMP_NUM_THREADS=2 python benchmarks/streams.py --threads 2

``--wenet DIR`` adds rows against WeNet's batched encoder from a checkout of it.
"""

import argparse
import asyncio
import ctypes
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
from common import in_fresh_process, pair_times

from espnet_ext.encoder import ConformerEncoder
from espnet_ext.state import FrameCache
from streaming import filled_state

VARIANTS = {
    "mha": ("mha", {}),
    "gqa, 1 kv head": ("gqa", {"n_kv_head": 1}),
    "mla, rank 64": ("mla", {"kv_lora_rank": 64}),
    "linear": ("linear", {}),
}
FRAME_SECONDS = 0.04
ENOUGH = 2**30  # bytes of streams that are opened to measure one
SIZES = {
    "output_size": 256,
    "attention_heads": 4,
    "num_blocks": 12,
    "linear_units": 2048,
    "cnn_module_kernel": 31,
    "macaron_style": True,
    "causal": True,
}


def make_encoder(variant, chunk):
    """The published Conformer size, causal, with random weights."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    attention, conf = VARIANTS[variant]
    encoder = ConformerEncoder(
        80, chunk_size=chunk, attention=attention, attention_conf=conf, **SIZES
    )
    encoder.eval().lay_out_weights()
    return encoder


def streams_of(encoder, number, context):
    """States of streams of different ages whose left context is full."""
    states = [filled_state(encoder, context) for _ in range(number)]
    for i, state in enumerate(states):
        for layer in state.layers:
            cache = layer.attention
            if isinstance(cache, FrameCache):
                cache.heads = ((context + state.chunk_size * i) % cache.capacity,)
    return states


def stepping(encoder, number, context, chunk):
    """Functions that take streams a chunk further, together and one by one."""
    states = streams_of(encoder, number, context)
    packets = torch.randn(number, 1, 4 * chunk, 80)

    def together():
        for packet, state in zip(packets, states, strict=True):
            encoder.take(packet, state)
        encoder.step_together(states)

    def alone():
        for packet, state in zip(packets, states, strict=True):
            encoder.forward_chunk(packet, state)

    return together, alone


def quartiles(values):
    """Median and quartiles of ratios as text."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def batch_rows(args):
    """One step of many streams against a step of each."""
    print(
        "\n| attention | left context | streams | ms together | ms one by one | ratio "
        "| real-time streams per core |\n|---|---|---|---|---|---|---|"
    )
    for variant in args.variants:
        encoder = make_encoder(variant, args.chunk)
        for context in args.contexts:
            for number in args.streams:
                together, alone = stepping(encoder, number, context, args.chunk)
                pairs = pair_times(together, alone, args.repeats)
                ours, theirs = (statistics.median(pair[i] for pair in pairs) for i in (0, 1))
                live = args.chunk * FRAME_SECONDS * number / ours / args.threads
                print(
                    f"| {variant} | {context} | {number} | {1000 * ours:.0f} | {1000 * theirs:.0f} "
                    f"| {quartiles([a / b for a, b in pairs])} | {live:.1f} |",
                    flush=True,
                )


def wenet_rows(args):
    """One step of many streams against WeNet's batched encoder, its faster form."""
    from wenet_step import batched_steps

    print(
        "\n| attention | left context | streams | ms | ms of WeNet | ratio |\n"
        "|---|---|---|---|---|---|"
    )
    for context in args.contexts:
        for number in args.streams:
            peers = batched_steps(args.wenet, SIZES, args.chunk, context, number)
            for variant in args.variants:
                encoder = make_encoder(variant, args.chunk)
                together, _ = stepping(encoder, number, context, args.chunk)
                for name, peer in peers.items():
                    pairs = pair_times(together, peer, args.repeats)
                    ours, theirs = (statistics.median(pair[i] for pair in pairs) for i in (0, 1))
                    print(
                        f"| {variant} / WeNet, {name} | {context} | {number} | {1000 * ours:.0f} "
                        f"| {1000 * theirs:.0f} | {quartiles([a / b for a, b in pairs])} |",
                        flush=True,
                    )


def resident():
    """Bytes of memory that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def memory_of(variant, chunk, context):
    """Resident bytes of one of many streams that have been stepped, and the bytes counted."""
    torch.set_num_threads(1)
    encoder = make_encoder(variant, chunk)
    warm = streams_of(encoder, 2, context)
    for state in warm:
        encoder.take(torch.randn(1, 4 * chunk, 80), state)
    encoder.step_together(warm)
    number = min(512, ENOUGH // warm[0].capacity_bytes)
    del warm, state
    ctypes.CDLL(None).malloc_trim(0)
    begun = resident()
    states = streams_of(encoder, number, context)
    for state in states:
        encoder.take(torch.randn(1, 4 * chunk, 80), state)
    for i in range(0, number, 2):  # in steps as large as the warm one, which needs no more room
        encoder.step_together(states[i : i + 2])
    held = resident() - begun
    convolution = states[0].ledger()["convolution"]
    return held / number, states[0].capacity_bytes, convolution


def memory_rows(args):
    """What a stream holds, read off a process."""
    print(
        "\n| attention | left context | resident KB per stream | allocated KB by count "
        "| of which convolutions | streams per GB | times MHA's |\n|---|---|---|---|---|---|---|"
    )
    for context in args.contexts:
        base = None
        for variant in args.variants:
            held, counted, convolution = in_fresh_process(memory_of, variant, args.chunk, context)
            base = base or held
            print(
                f"| {variant} | {context} | {held / 1024:.0f} | {counted / 1024:.0f} "
                f"| {convolution / 1024:.0f} | {2**30 / held:.0f} | {base / held:.1f} |",
                flush=True,
            )


async def speak(url, pcm, rate, begin, seconds):
    """One client in real time: seconds that its answers were late, and its last text."""
    from websockets.asyncio.client import connect

    await asyncio.sleep(begin)
    async with connect(url, compression=None) as socket:
        await socket.send(json.dumps({"type": "start", "rate": rate}))
        json.loads(await socket.recv())
        packet, begun, late = rate // 10, time.monotonic(), []

        async def send():
            for n in range(round(10 * seconds)):
                await asyncio.sleep(max(0, begun + n / 10 - time.monotonic()))
                at = n * packet % len(pcm)
                await socket.send(pcm[at : at + packet].tobytes())
            await socket.send(json.dumps({"type": "finish"}))

        sending, text = asyncio.create_task(send()), None
        try:
            async for message in socket:
                answer = json.loads(message)
                if answer["type"] == "result":
                    late.append(time.monotonic() - begun - answer["heard"])
                    text = answer.get("text", text)
        finally:
            sending.cancel()
        return late, text


async def _speak_together(url, pcm, rate, clients, seconds):
    begins = [3 * n / clients for n in range(clients)]
    return await asyncio.gather(
        *(speak(url, pcm, rate, begin, seconds) for begin in begins), return_exceptions=True
    )


def client_rows(args):
    """Clients in real time on one server of the small model in the package."""
    import soundfile

    from espnet_ext.pretrained import RECORDING

    pcm, rate = soundfile.read(RECORDING, dtype="int16")
    package = [sys.executable, "-m", "espnet_ext"]
    command = [*package, "serve", "--port", "0"]
    command += ["--max_clients", str(args.clients + 8), "--threads", str(args.threads)]
    with tempfile.TemporaryDirectory() as folder:
        if args.runtime == "onnxruntime":
            made = f"{folder}/exported"
            export = [*package, "export", str(RECORDING.parent), "--output", made]
            subprocess.run([*export, "--client", "onnxruntime"], check=True, stdout=sys.stderr)
            command += [made, "--runtime", "onnxruntime"]
        _clients_row(args, command, pcm, rate)


def _clients_row(args, command, pcm, rate):
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        address = next(filter(None, (re.search(r"http://(\S+:[0-9]+)", x) for x in server.stdout)))
        url = f"ws://{address[1]}/stream"
        begun = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = asyncio.run(_speak_together(url, pcm, rate, args.clients, args.seconds))
        held = int(Path(f"/proc/{server.pid}/statm").read_text().split()[1])
        server.terminate()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = used.ru_utime + used.ru_stime - begun.ru_utime - begun.ru_stime
    whole = [result for result in done if not isinstance(result, BaseException)]
    if not whole:
        print(f"\nNone of {args.clients} clients was served to the end: {done[0]!r:.200}")
        return
    late = sorted(seconds for times, _ in whole for seconds in times)
    print(
        "\n| runtime | clients | with a last text | texts | answer late by, median | 95% | largest "
        "| processor s | resident MB |\n|---|---|---|---|---|---|---|---|---|"
    )
    print(
        f"| {args.runtime} | {args.clients} for {args.seconds} s | {len(whole)} "
        f"| {len({t for _, t in whole})} "
        f"| {statistics.median(late):.2f} s | {late[int(0.95 * len(late))]:.2f} s "
        f"| {late[-1]:.2f} s | {cpu:.0f} | {held * os.sysconf('SC_PAGE_SIZE') / 2**20:.0f} |"
    )


@torch.no_grad()
def main(argv=None):
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--contexts", type=int, nargs="+", default=[64, 256, 1500])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--chunk", type=int, default=16, help="encoder frames per step")
    parser.add_argument("--repeats", type=int, default=7, help="pairs per row")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--wenet", metavar="DIR", help="a checkout of WeNet, to be measured beside")
    parser.add_argument("--runtime", default="torch", choices=("torch", "onnxruntime"))
    parser.add_argument("--clients", type=int, default=200, help="that speak in real time")
    parser.add_argument("--seconds", type=int, default=60, help="that each of them speaks")
    parser.add_argument("--only", nargs="+", choices=("batch", "wenet", "memory", "clients"))
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.threads} threads, chunks of {args.chunk} frames")
    print("12-layer Conformer, 256-d, 4 heads, kernel 31, streams of different ages")
    begun = time.perf_counter()
    only = args.only or ("batch", "wenet", "memory", "clients")
    if "memory" in only:
        memory_rows(args)
    if "batch" in only:
        batch_rows(args)
    if "wenet" in only and args.wenet:
        wenet_rows(args)
    if "clients" in only:
        client_rows(args)
    print(f"\n{time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
