"""WER of exported models in sherpa-onnx against that of their own streaming, and 8-bit weights.

Each model is exported with float32, 8-bit weights (int8) and 8-bit products (int8_dynamic), and the
recordings, with a tail of silence, run in sherpa-onnx and in the model's own streaming (greedy CTC
search). A step is one chunk of one stream in onnxruntime, in turns, median and quartiles.

    python benchmarks/export_wer.py exp/asr_x ... --wav_scp dump/raw/test/wav.scp \
        --text dump/raw/test/text --chunk_size 16 --left_context 64

``--exports`` takes directories of exports as they are, such as a model's with its own features and
with adapted ones, and adds onnxruntime; words and their times are compared with the first one's.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import jiwer
import numpy as np
import onnx
import sherpa_onnx
import torch

from espnet_ext.audio import read_audio
from espnet_ext.data.kaldi import read_lines, read_scp
from espnet_ext.export.model import export
from espnet_ext.export.quantize import quantized
from espnet_ext.packing import find_model
from espnet_ext.streaming import StreamingSpeech2Text
from espnet_ext.streaming.exported import ExportedSpeech2Text, ExportedStep, text_of

HEAD = "| model | weights | file, KB | ms of a step | WER | WER, own | same tokens and times |"


@torch.no_grad()
def own_tokens(speech2text, samples):
    """Tokens and their times, by the steps that sherpa-onnx makes: whole chunks, one frame more."""
    encoder, stream = speech2text.model.encoder, speech2text.start()
    feats = speech2text.frontend.forward_chunk(
        torch.from_numpy(samples)[None], stream.frontend, is_final=True
    )[0]
    frames = encoder.input_length(speech2text.chunk_size)
    shift = speech2text.chunk_size * encoder.subsampling[0]
    steps = max(0, -(-(feats.size(1) - frames) // shift))
    seen = feats[:, : (steps - 1) * shift + frames] if steps else feats[:, :0]
    y, _ = encoder.forward_chunk(seen, stream.encoder)
    found, last = [], 0
    for frame, token in enumerate(speech2text.model.ctc.log_softmax(y)[0].argmax(-1).tolist()):
        if token not in (0, last):
            found.append((token, round(frame * 0.04, 2)))
        last = token
    return found


def client_tokens(folder, name, waves, rate, dim):
    """The same in sherpa-onnx."""
    symbols = {
        symbol: int(number)
        for symbol, number in (
            line.rsplit(" ", 1) for line in (folder / "tokens.txt").read_text().splitlines()
        )
    }
    recognizer = sherpa_onnx.OnlineRecognizer.from_zipformer2_ctc(
        tokens=str(folder / "tokens.txt"), model=str(folder / name), num_threads=1,
        sample_rate=rate, feature_dim=dim,
    )  # fmt: skip
    found = []
    for wave in waves:
        stream = recognizer.create_stream()
        stream.accept_waveform(rate, wave)
        stream.input_finished()
        while recognizer.is_ready(stream):
            recognizer.decode_stream(stream)
        tokens = [symbols[t.replace(" ", "\u2581")] for t in recognizer.tokens(stream)]
        found.append([*zip(tokens, np.round(recognizer.timestamps(stream), 2), strict=True)])
    return found


def export_rows(folders, read_waves, references):
    """Rows of exports as they are, in onnxruntime and in the client that each was made for."""
    first = None
    print(
        "| export | in | WER | texts of the first row | its words, later by ms |\n"
        + "|---" * 5
        + "|"
    )
    for folder in map(Path, folders):
        certificate = json.loads((folder / "certificate.json").read_text())
        model = ExportedSpeech2Text(asr_model_file=folder / "model.onnx")
        waves = read_waves(model.fs)
        results = [model(model.start(), wave, True) for wave in waves]
        clients = {"onnxruntime": [(r.text, [word.start for word in r.words]) for r in results]}
        if certificate["client"] == "sherpa-onnx":
            rate, dim, symbols = model.fs, certificate["feature_dim"], model.model.tokens
            clients["sherpa-onnx"] = [
                (
                    text_of(symbols[token] for token, _ in row),
                    [start for token, start in row if symbols[token].startswith("\u2581")],
                )
                for row in client_tokens(folder, "model.onnx", waves, rate, dim)
            ]
        for client, found in clients.items():
            first = first or found
            same = [pair for pair in zip(found, first, strict=True) if pair[0][0] == pair[1][0]]
            later = [np.subtract(a[1], b[1]) for a, b in same]
            print(
                f"| {folder.name} | {client} | "
                f"{100 * jiwer.wer(references, [text for text, _ in found]):.2f} | "
                f"{len(same)} of {len(first)} | {1000 * np.concatenate(later).mean():.1f} |",
                flush=True,
            )


def step_times(folder, names, repeats):
    """Milliseconds of a step by file, which take turns."""
    steps = {name: ExportedStep(folder / name) for name in names}
    past = {name: step.zeros() for name, step in steps.items()}
    times = {name: [] for name in names}
    dim = steps[names[0]].session.get_inputs()[0].shape[-1]
    feats = np.random.default_rng(0).normal(size=(1, steps[names[0]].frames, dim))
    for _ in range(repeats):
        for name, step in steps.items():
            begun = time.perf_counter()
            _, past[name] = step(feats.astype(np.float32), past[name])
            times[name].append(1000 * (time.perf_counter() - begun))
    return times


def main(argv=None):
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("expdirs", nargs="*", metavar="EXPDIR")
    parser.add_argument("--exports", nargs="+", metavar="DIR")
    parser.add_argument("--wav_scp", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--chunk_size", type=int, default=16)
    parser.add_argument("--left_context", type=int, default=64)
    parser.add_argument("--inference_asr_model", default="valid.acc.ave.pth")
    parser.add_argument("--repeats", type=int, default=200, help="steps that are timed")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    wavs = read_scp(args.wav_scp)
    texts = dict(line.split(" ", 1) for line in read_lines(args.text))
    references = [texts[utt] for utt in wavs]
    tail = args.chunk_size * 0.04 + 0.1  # seconds of silence

    def read_waves(rate):
        zeros = np.zeros(int(tail * rate), np.float32)
        return [np.concatenate([read_audio(path, rate), zeros]) for path in wavs.values()]

    if args.exports:
        export_rows(args.exports, read_waves, references)
        return
    print(HEAD + "\n" + "|---" * 7 + "|")
    for expdir in args.expdirs:
        config, checkpoint = find_model(expdir, args.inference_asr_model)
        model = {"asr_train_config": config, "asr_model_file": checkpoint}
        model |= {"chunk_size": args.chunk_size, "left_context": args.left_context}
        ours = StreamingSpeech2Text(**model)
        linear = not any(a.has_left_context for a in ours.model.encoder.attentions)
        model["left_context"] = -1 if linear else args.left_context
        ours = StreamingSpeech2Text(**model)
        rate = ours.fs
        waves = read_waves(rate)
        own = [own_tokens(ours, wave) for wave in waves]

        def wer(found, ours=ours):
            words = [ours.converter.ids2tokens([t for t, _ in tokens]) for tokens in found]
            return 100 * jiwer.wer(references, [ours.tokenizer.tokens2text(w) for w in words])

        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent) / "onnx"
            certificate = export(folder, model)
            kinds = {"model.onnx": "float32"}
            for kind in ("int8", "int8_dynamic"):
                kinds[f"{kind}.onnx"] = kind
                graph = quantized(onnx.load(folder / "model.onnx"), kind)
                onnx.save(graph, folder / f"{kind}.onnx")
            times = step_times(folder, list(kinds), args.repeats)
            for name, kind in kinds.items():
                found = client_tokens(folder, name, waves, rate, certificate["feature_dim"])
                same = sum(a == b for a, b in zip(found, own, strict=True))
                low, middle, high = statistics.quantiles(times[name], n=4)
                size = (folder / name).stat().st_size / 1000
                print(
                    f"| {Path(expdir).name} | {kind} | {size:.0f} | "
                    f"{middle:.2f} ({low:.2f}-{high:.2f}) | {wer(found):.2f} | {wer(own):.2f} | "
                    f"{same} of {len(own)} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
