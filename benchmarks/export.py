"""One streaming step in the exported graph against the eager step, and against WeNet's TorchScript.

All sides are in one process and take turns; ``--wenet DIR`` adds WeNet's step from a checkout. With
one thread, times are processor time, which other work on the machine disturbs least.
Columns: milliseconds of the onnxruntime step, of the other side, and the ratio of times per pair,
median and quartiles. ``--streams`` adds sherpa-onnx end to end, the numbers of streams in turns:
processor time, and its ratio to that of the first number given.

    OMP_NUM_THREADS=1 python benchmarks/export.py --threads 1 --wenet DIR
"""

import argparse
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import sherpa_onnx
import torch
from common import pair_times, ratio

from espnet_ext.export.container import Container
from espnet_ext.export.graph import to_onnx
from espnet_ext.export.quantize import quantized
from espnet_ext.export.step import Step
from streaming import VARIANTS, filled_state, make_encoder, row, sizes

VARIANTS = VARIANTS | {"mla, rank 64": ("mla", {"kv_lora_rank": 64})}
HEAD = "| step | left context | ms | ms of the other | ratio |\n|---|---|---|---|---|"


class CTC(torch.nn.Module):
    """The output layer of ESPnet's CTC."""

    def __init__(self, width, tokens):
        super().__init__()
        self.ctc_lo = torch.nn.Linear(width, tokens)

    def log_softmax(self, x):
        """(B, n, width) -> (B, n, tokens)."""
        return self.ctc_lo(x).log_softmax(-1)


def session(model, threads):
    """An onnxruntime session of a graph."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def stepping(runtime, container, feats):
    """Function that makes one step of a stream, fed with what the step before gave."""
    names = [value.name for value in runtime.get_inputs()]
    past = [x.numpy() for x in container.zeros(1)]

    def step():
        nonlocal past
        _, *past = runtime.run(None, dict(zip(names, [feats, *past], strict=True)))

    return step


def client_rows(model, name, context, args):
    """sherpa-onnx with so many streams: milliseconds of a step of one stream, and its bytes."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        onnx.save(model, folder / "model.onnx")
        symbols = ["<blk>", *range(1, args.tokens)]
        (folder / "tokens.txt").write_text("".join(f"{s} {i}\n" for i, s in enumerate(symbols)))
        recognizer = sherpa_onnx.OnlineRecognizer.from_zipformer2_ctc(
            tokens=str(folder / "tokens.txt"), model=str(folder / "model.onnx"),
            num_threads=args.threads,
        )  # fmt: skip
    wave = np.random.default_rng(0).normal(size=16000 * 3).astype(np.float32) / 10
    times = {streams: [] for streams in args.streams}
    for _ in range(args.rounds + 1):
        for streams, found in times.items():
            made = [recognizer.create_stream() for _ in range(streams)]
            for stream in made:
                stream.accept_waveform(16000, wave)
            steps, begun = 0, time.process_time()
            while all(recognizer.is_ready(stream) for stream in made):
                recognizer.decode_streams(made)
                steps += 1
            found.append(1000 * (time.process_time() - begun) / (steps * streams))
    state = sum(
        4 * np.prod([d.dim_value or 1 for d in value.type.tensor_type.shape.dim])
        for value in model.graph.input[1:]
    )
    alone = times[args.streams[0]]
    for streams, found in times.items():
        pairs = list(zip(found[1:], alone[1:], strict=True))  # the first round warms up
        print(
            f"| {name} | {context} | {streams} | {statistics.median(found[1:]):.1f} | "
            f"{ratio(pairs)} | {state / 1024:.0f} |",
            flush=True,
        )


@torch.no_grad()
def main(argv=None):
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--contexts", type=int, nargs="+", default=[64, 256, 1500, 4500])
    chosen = ["mha", "gqa, 2 kv heads", "mha, input cache", "mla, rank 64", "linear"]
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=chosen)
    parser.add_argument("--streams", type=int, nargs="*", default=[], help="such as 1 8 32")
    parser.add_argument("--rounds", type=int, default=3, help="of them")
    parser.add_argument("--chunk", type=int, default=16, help="encoder frames per step")
    parser.add_argument("--repeats", type=int, default=20, help="pairs per row")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--units", type=int, default=2048)
    parser.add_argument("--kernel", type=int, default=15)
    parser.add_argument("--tokens", type=int, default=500)
    parser.add_argument("--quantize", nargs="*", default=["int8", "int8_dynamic"])
    parser.add_argument("--wenet", metavar="DIR", help="a checkout of WeNet, to be measured beside")
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.threads} threads, chunks of {args.chunk} frames")
    print(f"\n{args.layers}-layer Conformer, {args.width}-d, {args.heads} heads\n\n{HEAD}")
    # two threads that wait for each other on a busy machine say nothing of the work
    clock = time.process_time if args.threads == 1 else time.perf_counter
    clients = []
    for variant in args.variants:
        for context in args.contexts:
            encoder = make_encoder(variant, args, VARIANTS)
            encoder.lay_out_weights()
            model = SimpleNamespace(
                encoder=encoder, ctc=CTC(args.width, args.tokens).eval(), normalize=None
            )
            step = Step(model, args.chunk, -1 if variant == "linear" else context)
            container = Container(step.shapes)
            made = to_onnx(step, container, container.metadata(step.frames, step.shift))
            feats = np.random.default_rng(0).normal(size=(1, step.frames, 80)).astype(np.float32)
            ours = stepping(session(made, args.threads), container, feats)
            packet, state = torch.randn(1, 4 * args.chunk, 80), filled_state(encoder, context)

            def eager(encoder=encoder, state=state, ctc=model.ctc, packet=packet):
                ctc.log_softmax(encoder.forward_chunk(packet, state)[0])

            others = {"our eager step": eager}
            for kind in args.quantize:
                runtime = session(quantized(made, kind), args.threads)
                others[f"onnxruntime {kind}"] = stepping(runtime, container, feats)
            if args.wenet:
                from wenet_step import steps

                theirs = steps(args.wenet, sizes(args), args.chunk, context)["TorchScript"]
                for _ in range(4):
                    theirs()  # TorchScript specialises in its first runs
                others["WeNet's TorchScript"] = theirs
            for name, other in others.items():
                pairs = pair_times(ours, other, args.repeats, clock)
                print(row(f"{variant} / {name}", context, pairs), flush=True)
            clients.append((made, variant, context))
    if args.streams:
        print("\nsherpa-onnx, end to end\n")
        print("| attention | left context | streams | ms of a stream's step | ratio | state, KiB |")
        print("|---|---|---|---|---|---|")
        for model, variant, context in clients:
            client_rows(model, variant, context, args)


if __name__ == "__main__":
    main()
