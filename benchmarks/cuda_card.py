"""Everything that needs a CUDA card: equality with the CPU, speed, memory, the recipe itself.

    benchmarks/cuda.sh                            all, in eight minutes, into RESULTS_cuda.md
    benchmarks/cuda.sh --only equality training   some parts; the page then holds only these
    benchmarks/cuda.sh --device cpu --tiny --output /tmp/twin.md    the same code without a card

Each part runs in a process of its own with a time limit. What does not fit the card's memory or the
time is skipped in one line, and the rest goes on; the exit status is 1 if a part has failed.
Without a card nothing is run or written.
"""

import argparse
import gc
import json
import logging
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch
import yaml
from espnet2.tasks.asr import ASRTask
from espnet2.train.trainer import GradScaler, autocast_args

from benchmarks.common import CONF, N_MELS, make_encoder, one_line, pair_times, ratio, stock_conf
from benchmarks.cuda_equality import equality
from copies import copy_mini_an4, kill_when, run
from espnet_ext.evaluate.models import complete, read_model_config, with_encoder_conf
from espnet_ext.evaluate.process import commit, device_name
from espnet_ext.state import FrameCache
from espnet_ext.step import RaggedWindow
from tiny import ATTENTION_CONF, ENCODERS

CHUNK, LEFT = 16, 64  # of the streams that are timed, in encoder frames
RESULTS = Path(__file__).with_name("RESULTS_cuda.md")
SKIPPED = 77  # exit status of a part that does not fit the memory
MIB = 2**20
WARM_UP = 30  # steps that a loss scale may need until gradients in float16 are finite


@dataclass(frozen=True)
class Sizes:
    """How large each part is; ``TINY`` is what a test can wait for.

    Attributes:
        encoders: Encoders compared with the CPU.
        training: Configs of conf/tuning and utterances per batch.
        shrink: Changes to their ``encoder_conf``, ``decoder_conf`` and so on.
        seconds: Length of those utterances.
        tokens: Their vocabulary.
        pairs: Training steps timed of either side.
        streams: Streams side by side.
        streaming: Changes to the published Conformer that streams.
        steps: Streaming steps timed.
        attentions: Attentions that stream and are trained by run.sh.
    """

    encoders: tuple = tuple(ENCODERS)
    training: tuple = (
        ("conformer_mha", 30),  # about what batch_bins makes of utterances of 15 s
        ("conformer_mha_large", 16),
        ("branchformer_mha_large", 16),
        ("conformer_mla", 30),
        ("conformer_gqa", 30),
        ("conformer_linear", 30),
        ("conformer_mla_large", 16),
        ("branchformer_mla_large", 16),
    )
    shrink: tuple = ()
    seconds: float = 15.0
    tokens: int = 5000
    pairs: int = 5
    streams: tuple = (1, 64, 256)
    streaming: tuple = ()
    steps: int = 30
    attentions: tuple = ("mha", "gqa", "mla", "linear")


FULL = Sizes()
TINY = Sizes(
    encoders=("conformer",),
    training=(("conformer_mha", 2),),
    shrink=(
        ("encoder_conf", {"output_size": 32, "linear_units": 32, "num_blocks": 1}),
        ("decoder_conf", {"linear_units": 32, "num_blocks": 1}),
    ),
    seconds=2.0,
    tokens=30,
    pairs=1,
    streams=(1, 3),
    streaming=(
        ("output_size", 32),
        ("linear_units", 32),
        ("num_blocks", 1),
        ("attention_conf", {}),
    ),
    steps=2,
    attentions=("mla",),
)


def synchronize(device):
    """Wait for the card."""
    if device != "cpu":
        torch.cuda.synchronize()


def allocated(device):
    """Bytes of the card that tensors take."""
    return 0 if device == "cpu" else torch.cuda.memory_allocated()


def amp(device):
    """Options of autocast as ESPnet's trainer chooses them on a card."""
    return {"dtype": torch.float16 if device != "cpu" else torch.bfloat16} | autocast_args


def row(cells, device, *args):
    """Cells of a table's row, and whether they are right; after a failure the next row goes on."""
    try:
        return cells(device, *args), True
    except torch.OutOfMemoryError:
        return "skipped: does not fit the memory |", True
    except Exception as error:
        traceback.print_exc()
        return f"**failed**: {one_line(error)} |", False
    finally:
        gc.collect()
        if device != "cpu":
            torch.cuda.empty_cache()


# Training


def make_model(name, stock, sizes):
    """A whole model of conf/tuning, with random weights.

    Args:
        name: ``conf/tuning/train_asr_<name>.yaml``.
        stock: ESPnet's encoder of the same size, with its SDPA, instead of ours.
        sizes: A ``Sizes``.
    """
    config = read_model_config(CONF / f"train_asr_{name}.yaml")
    if stock:
        config["encoder"] = config["encoder"].removeprefix("kv_")
        config["encoder_conf"] = stock_conf(config["encoder_conf"])
    for key, changes in sizes.shrink:
        config[key] = config[key] | changes
    torch.manual_seed(0)
    return ASRTask.build_model(Namespace(**complete(config, sizes.tokens) | {"init": None}))


class TrainingStep:
    """A model, its optimiser and a batch; a call is a step as ESPnet's trainer runs it with AMP."""

    def __init__(self, name, stock, utterances, device, sizes):
        held = allocated(device)
        self.device = device
        self.model = make_model(name, stock, sizes).to(device).train()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-5)
        self.scaler = GradScaler(device)
        samples, length = int(16000 * sizes.seconds), int(3 * sizes.seconds)
        self.batch = {
            "speech": torch.randn(utterances, samples),
            "speech_lengths": torch.full((utterances,), samples),
            "text": torch.randint(2, sizes.tokens - 1, (utterances, length)),
            "text_lengths": torch.full((utterances,), length),
        }
        self.batch = {key: value.to(device) for key, value in self.batch.items()}
        for _ in range(WARM_UP):
            if self.optimizer.state:  # Adam's moments are held from here on
                break
            self()
        else:
            raise FloatingPointError(f"no finite gradients in {WARM_UP} steps")
        if device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        self()
        self.peak = 0 if device == "cpu" else (torch.cuda.max_memory_allocated() - held) / MIB

    def __call__(self):
        with torch.autocast(self.device, **amp(self.device)):
            loss, _, _ = self.model(**self.batch)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        if not loss.isfinite():
            raise FloatingPointError(f"the loss is {loss.item()}")
        synchronize(self.device)


def training(device, sizes):
    """Print a step's time and memory, ours and ESPnet's in turn; False if one is wrong."""
    print(
        f"A step is forward, backward and Adam under AMP as ESPnet's trainer runs it "
        f"({amp(device)['dtype']}), {sizes.seconds:g} s per utterance, against "
        "ESPnet's encoder with `use_sdpa: true`.\nThe two sides alternate. Peak memory has the "
        "weights, the gradients and Adam's moments in it.\n\n"
        "| config | utterances | ours ms | ESPnet ms | ratio | ours MB | ESPnet MB | ratio |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    good = True
    for name, utterances in sizes.training:
        cells, right = row(training_cells, device, name, utterances, sizes)
        print(f"| {name} | {utterances} | {cells}", flush=True)
        good = good and right
    return good


def training_cells(device, name, utterances, sizes):
    """Cells of one row of ``training``."""
    ours, stock = (TrainingStep(name, side, utterances, device, sizes) for side in (False, True))
    pairs = pair_times(ours, stock, sizes.pairs)
    first, second = (1000 * statistics.median(pair[i] for pair in pairs) for i in (0, 1))
    memory = "| |"
    if device != "cpu":
        memory = f"{ours.peak:.0f} | {stock.peak:.0f} | {ours.peak / stock.peak:.2f}"
    return f"{first:.0f} | {second:.0f} | {ratio(pairs)} | {memory} |"


# Streaming


def filled(encoder, streams, feats):
    """A state of so many streams whose left context is full."""
    state = encoder.init_state(streams)
    for _ in range(state.left_context // state.chunk_size + 3):
        _, state = encoder.forward_chunk(feats, state)
    return state


def step_ms(device, step, repeats):
    """Median milliseconds of a step, after three that are not counted."""
    times = []
    for _ in range(repeats + 3):
        synchronize(device)
        begun = time.perf_counter()
        step()
        synchronize(device)
        times.append(1000 * (time.perf_counter() - begun))
    return statistics.median(times[3:])


def steps(device, sizes):
    """Print a streaming step's time and what a stream takes of the card."""
    print(
        f"The published Conformer (`conf/tuning/train_asr_conformer_mha.yaml`), causal, in float32 "
        f"with PyTorch's defaults; chunks of {CHUNK} frames (0.64 s), left context {LEFT}.\n"
        "KB per stream: by the allocator, and as the state counts it.\n\n"
        "| attention | streams | ms per step | of a CUDA graph | times real time "
        "| KB, allocator | KB, counted |\n|---|---|---|---|---|---|---|"
    )
    good = True
    for attention in sizes.attentions:
        conf = read_model_config(CONF / f"train_asr_conformer_{attention}.yaml")["encoder_conf"]
        options = {key: conf[key] for key in ("attention", "attention_conf")}
        options |= {"causal": True, "chunk_size": CHUNK, "left_context": LEFT}
        options |= dict(sizes.streaming)
        encoder = make_encoder("conformer", **options)
        encoder.eval().to(device)
        sizes_of = ", ".join(f"{key} {value}" for key, value in options["attention_conf"].items())
        name = f"{attention} {sizes_of}".strip()
        for streams in sizes.streams:
            cells, right = row(step_cells, device, encoder, streams, sizes.steps)
            print(f"| {name} | {streams} | {cells}", flush=True)
            good = good and right
    return good


def step_cells(device, encoder, streams, repeats):
    """Cells of one row of ``steps``."""
    feats = torch.randn(streams, 4 * CHUNK, N_MELS, device=device)
    first = filled(encoder, 1, feats[:1])  # what all streams share is there before
    held = allocated(device)
    state = filled(encoder, streams, feats)
    per_stream = (allocated(device) - held) / streams / 1024
    del first
    counted = state.capacity_bytes / streams / 1024
    ms = step_ms(device, partial(encoder.forward_chunk, feats, state), repeats)
    try:
        graph = graph_ms(device, encoder, state, feats, repeats)
    except Exception as error:  # the row says at least what was measured
        raise RuntimeError(f"{ms:.2f} ms per step; as a graph: {one_line(error)}") from error
    return (
        f"{ms:.2f} | {'' if graph is None else f'{graph:.2f}'} "
        f"| {streams * 40 * CHUNK / (graph or ms):.0f} "
        f"| {'' if device == 'cpu' else f'{per_stream:.0f}'} | {counted:.0f} |"
    )


class PureStep:
    """``encoder.step`` on tensors that stay where they are, as a graph needs it.

    Attributes:
        feats: What the next step reads (B, T, n_mels).
        y: What the last one gave (B, n, n_feat).
    """

    def __init__(self, encoder, state):
        self.encoder, self.state = encoder, state.clone()
        step, sees = encoder.subsampling
        batch, weight = len(state.produced), next(encoder.parameters())
        frames = step * (state.chunk_size - 1) + sees
        self.feats = weight.new_zeros(batch, frames, N_MELS)
        self.y = weight.new_zeros(batch, state.chunk_size, encoder.output_size())
        rings = [r.attention for r in self.state.layers if isinstance(r.attention, FrameCache)]
        none = (0,) * batch
        heads, lengths = (rings[0].heads, rings[0].lengths) if rings else (none, none)
        counters = (heads, lengths, (state.chunk_size,) * batch)
        self.heads, self.lengths, self.real = (
            torch.tensor(values, device=weight.device) for values in counters
        )
        self.capacity = rings[0].capacity if rings else state.chunk_size
        self.positions = state.positions.rows(self.capacity, state.chunk_size)

    @torch.no_grad()
    def __call__(self):
        """Make one step; the state's tensors are those of the streams after it."""
        layers, n = self.state.layers, self.state.chunk_size
        window = RaggedWindow(self.heads, self.lengths, self.real, n, self.capacity)
        y, pasts = self.encoder.step(self.feats, layers, window, self.positions)
        self.y.copy_(y)
        for layer, past in zip(layers, pasts, strict=True):
            after = past.after((), ())
            for name, convolution in layer.convolution.items():
                convolution.past.copy_(after.convolution[name].past)
            if not isinstance(layer.attention, FrameCache):  # a ring was written in place
                layer.attention.s.copy_(after.attention.s)
                layer.attention.z.copy_(after.attention.z)
        self.heads.add_(n).remainder_(self.capacity)
        self.lengths.add_(n).clamp_(max=max(0, self.state.left_context))


def graph_ms(device, encoder, state, feats, repeats):
    """Milliseconds of the same step as a CUDA graph; None on a CPU, which has none.

    Raises:
        ArithmeticError: A replay does not say what the step says.
    """
    eager, pure = state.clone(), PureStep(encoder, state)
    replay = pure
    if device != "cpu":
        aside = torch.cuda.Stream()  # libraries get their workspaces before the capture
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            PureStep(encoder, state)()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            pure()
        replay = graph.replay
    for _ in range(3):  # the capture has run nothing: both begin with the same state
        chunk = torch.cat([torch.stack(eager.pending), feats], dim=1)
        pure.feats.copy_(chunk[:, : pure.feats.size(1)])
        replay()
        want, eager = encoder.forward_chunk(feats, eager)
        error = ((pure.y - want).abs().max() / want.abs().max()).item()
        if not error < 1e-3:
            raise ArithmeticError(f"a replay of the step is wrong by {error:.0e}")
    return None if device == "cpu" else step_ms(device, replay, repeats)


# The recipe


def write_configs(recipe, device, sizes):
    """One training config per attention in the recipe's conf/, and what stage 16 measures."""
    base = read_model_config(recipe / "conf/train_asr_conformer_mla.yaml")
    for attention in sizes.attentions:
        config = with_encoder_conf(
            base,
            attention=attention,
            attention_conf=ATTENTION_CONF.get(attention, {}),
            causal=True,
            dynamic_chunk=True,
        )
        config |= {"use_amp": device != "cpu", "num_workers": 0}
        (recipe / f"conf/train_asr_{attention}.yaml").write_text(yaml.safe_dump(config))
    profile = {"device": device, "chunk_size": 8, "left_contexts": [16], "num_utts": 2}
    (recipe / "conf/profile.yaml").write_text(yaml.safe_dump(profile))


def run_options(attention, device, steps_per_epoch=20, epochs=5):
    """Options of run.sh for one attention: a hundred steps, decoding and profiling on the card."""
    args = f"--batch_type sorted --batch_size 2 --num_iters_per_epoch {steps_per_epoch}"
    on_card = str(device != "cpu").lower()
    return [
        *("--asr_config", f"conf/train_asr_{attention}.yaml", "--asr_tag", attention),
        *("--asr_args", f"{args} --max_epoch {epochs}", "--ngpu", str(int(device != "cpu"))),
        *("--inference_nj", "1", "--gpu_inference", on_card),
    ]


def stages(recipe, *options):
    """Run stages of a recipe; returns what they print, and raises its last line if they fail."""
    done = run(recipe, *options)
    if done.returncode:
        print(done.stdout, done.stderr, file=sys.stderr)
        lines = (done.stdout + done.stderr).strip().splitlines()
        raise RuntimeError(f"run.sh {' '.join(options)}: {lines[-1]}")
    return done.stdout


def killed_and_resumed(recipe, expdir, *options):
    """Kill a training after an epoch and run it again to its end, decode and score.

    Args:
        recipe: Directory of the recipe, stages 1 to 10 done.
        expdir: Directory of the model, from there.
        options: Of run.sh.

    Returns:
        The epoch after which it was killed, and what the second run prints.

    Raises:
        RuntimeError: It did not go on from there.
    """
    checkpoint = recipe / expdir / "checkpoint.pth"
    kill_when(recipe, checkpoint.exists, *options, "--stage", "11")
    epoch = torch.load(checkpoint, weights_only=False, map_location="cpu")["reporter"]["epoch"]
    # ESPnet writes the epoch's model after the checkpoint: as if killed in between
    (recipe / expdir / f"{epoch}epoch.pth").unlink(missing_ok=True)
    output = stages(recipe, *options, "--stage", "11", "--stop_stage", "13")
    log = (recipe / expdir / "train.log").read_text()
    started = re.findall(r"(\d+)/\d+epoch started", log)
    if "The training was resumed using" not in log or started[:1] != [str(epoch + 1)]:
        raise RuntimeError(f"{expdir}: killed after epoch {epoch}, went on with {started[:1]}")
    return epoch, output


def recipe_cells(device, prepared, attention):
    """Train, decode and profile one attention in a copy of the recipe: cells of its row."""
    copy = prepared.with_name(attention)
    shutil.copytree(prepared, copy, symlinks=True)
    options, expdir = run_options(attention, device), f"exp/asr_{attention}"
    epoch, _ = killed_and_resumed(copy, expdir, *options)
    (text,) = (copy / expdir).glob("decode_*/test/text")
    stages(copy, *options, "--stage", "16", "--stop_stage", "16")
    profile = json.loads((copy / expdir / "profile.json").read_text())
    if profile["device"] != device_name(device):
        raise RuntimeError(f"stage 16 ran on {profile['device']}")
    peak = profile["offline"]["memory"]["cuda_peak_mb"]
    return (
        f"{epoch} of 5 | {len(text.read_text().splitlines())} "
        f"| {profile['offline']['ms_per_utterance']:.0f} "
        f"| {profile['streaming']['ms_per_chunk_median']:.1f} "
        f"| {'' if peak is None else f'{peak:.0f}'} |"
    )


def recipe(device, sizes):
    """Run mini_an4 with each attention: trained, killed, resumed, decoded, profiled."""
    print(
        "`run.sh` of egs2/mini_an4: 100 steps, killed after an epoch and resumed, stages 12 and 16 "
        "on the card. The models are tiny and several run at once.\n\n"
        "| attention | killed after epoch | utterances decoded | stage 16: ms per utterance "
        "| ms per chunk | peak MB |\n|---|---|---|---|---|---|"
    )
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        prepared = copy_mini_an4(Path(folder))
        write_configs(prepared, device, sizes)
        options = run_options(sizes.attentions[0], device)
        stages(prepared, *options, "--nj", str(min(cores, 8)), "--stop_stage", "10")

        one = partial(row, recipe_cells, device, prepared)
        good = True
        with ThreadPoolExecutor(max(1, cores // 2)) as pool:
            rows = pool.map(one, sizes.attentions)
            for attention, (cells, right) in zip(sizes.attentions, rows, strict=True):
                print(f"| {attention} | {cells}", flush=True)
                good = good and right
    return good


# All parts

#: name: (function, title, seconds at most)
PARTS = {
    "equality": (equality, "The card says what the CPU says", 100),
    "streaming": (steps, "Streaming steps", 70),
    "training": (training, "The training step against ESPnet", 150),
    "recipe": (recipe, "The recipe", 160),
}


def run_part(name, device, sizes):
    """Run one part in this process; returns its exit status."""
    try:
        return 0 if PARTS[name][0](device, sizes) else 1
    except torch.OutOfMemoryError:
        print("\nSkipped: does not fit the memory of this card.", flush=True)
        return SKIPPED
    except Exception as error:
        traceback.print_exc()
        print(f"\n**Failed**: {one_line(error)}", flush=True)
        return 1


def in_process(name, seconds, args):
    """Run one part in a process of its own; returns what it printed and whether it failed."""
    if seconds < 1:
        return "Skipped: no time left.\n", False
    command = [sys.executable, "-m", "benchmarks.cuda_card", "--part", name]
    command += ["--device", args.device] + ["--tiny"] * args.tiny
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        text, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        text, _ = process.communicate()
        return f"{text}\nSkipped from here on: did not fit {seconds:.0f} s.\n", False
    finally:
        if process.poll() is None:  # this process is being stopped
            os.killpg(process.pid, signal.SIGKILL)
    if process.returncode < 0:
        text += f"\n**Failed**: ended by signal {-process.returncode}.\n"
    return text, process.returncode not in (0, SKIPPED)


def where(device):
    """The card, its driver, the commit and PyTorch, in a line."""
    parts = [device_name(device)]
    if device != "cpu":
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True).stdout.split("\n")[0]
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        parts += [f"{memory:.0f} GiB", f"driver {driver or 'unknown'}", device_name()]
    parts += [f"commit {commit()}", f"torch {torch.__version__}", f"{datetime.now(UTC):%Y-%m-%d}"]
    return "; ".join(parts)


def write(path, sections, device):
    """Write the page, whole or not at all."""
    text = f"# On a CUDA card\n\nWritten by `benchmarks/cuda.sh`.\n{where(device)}.\n"
    text += "".join(f"\n## {title}\n\n{body.strip()}\n" for title, body in sections.items())
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text)
    temporary.replace(path)


def main(argv=None):
    """Run the parts one after the other; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="cuda.sh",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--minutes", type=float, default=8, help="for all parts [%(default)s]")
    parser.add_argument("--output", type=Path, default=RESULTS, help="the page [%(default)s]")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes that a test can wait for")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        print("cuda.sh: no CUDA card here: nothing was run, nothing was written")
        return 0
    if args.part:
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        return run_part(args.part, args.device, TINY if args.tiny else FULL)
    end = time.monotonic() + 60 * args.minutes
    sections, failed = {}, []
    for name in args.only:
        _, title, seconds = PARTS[name]
        text, wrong = in_process(name, min(seconds, end - time.monotonic()), args)
        print(f"{title}\n\n{text}", flush=True)
        sections[title] = text
        failed += [name] * wrong
        write(args.output, sections, args.device)
    print(f"wrote {args.output}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
