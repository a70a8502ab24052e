"""Transcribe a recording as it arrives and show what the stream holds in memory.

FILE is mono audio at the model's rate; - reads raw 16-bit little-endian mono PCM of that rate from
standard input. Each line: seconds heard, bytes of state, the end of the text. The last line is the
whole text. --runtime onnxruntime runs a model.onnx of asr_export, without PyTorch and ESPnet.
"""

import argparse
import os
import sys

import espnet_ext  # noqa: F401
from espnet_ext.data.packets import read_packets
from espnet_ext.errors import UserError, about, cli
from espnet_ext.options import Parser, context, packet_length, positive_int

SHOWN = 60


def _parser(runtime):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="FILE|-")
    parser.add_argument(
        "--runtime", choices=("torch", "onnxruntime"), default="torch", help="[%(default)s]"
    )
    if runtime == "torch":
        from espnet_ext.inference import add_model_options, add_search_options

        add_model_options(parser)
        add_search_options(parser)
    else:
        parser.add_argument("--asr_model_file", required=True, help="model.onnx of an export")
        parser.add_argument("--chunk_size", type=positive_int, help="must be the export's")
        parser.add_argument("--left_context", type=context, help="must be the export's")
        parser.add_argument(
            "--packet_ms", type=packet_length, default=100, help="packet length [%(default)s]"
        )
    return parser


def _loaded(args, threads):
    """The model, by the runtime that is asked for; the other one is not imported."""
    if args.runtime == "onnxruntime":
        from espnet_ext.export.runtime import OnnxSpeech2Text

        return OnnxSpeech2Text(args.asr_model_file, args.chunk_size, args.left_context, threads)
    import torch

    from espnet_ext.inference import StreamingSpeech2Text, model_options

    torch.set_num_threads(threads)
    return StreamingSpeech2Text(
        **model_options(args), search=args.search, beam_size=args.beam_size
    )


@cli
def main(argv=None):
    """Run the command line."""
    which = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    which.add_argument("--runtime", default="torch")
    runtime = which.parse_known_args(argv)[0].runtime
    args = _parser(runtime).parse_args(argv)
    speech2text = _loaded(args, int(os.environ.get("OMP_NUM_THREADS", "1")))
    fs = speech2text.fs
    packet = max(1, int(args.packet_ms * fs / 1000))
    stream, heard, shown = speech2text.start(), 0, None
    source = sys.stdin.buffer if args.source == "-" else args.source
    name = "standard input" if args.source == "-" else args.source
    for samples in read_packets(source, fs, packet):
        with about(f"{name}: from {heard / fs:.2f} s on"):
            result = speech2text(stream, samples)
        heard += len(samples)
        if result.text != shown:
            shown = result.text
            tail = shown if len(shown) <= SHOWN else "..." + shown[-SHOWN:]
            print(f"{heard / fs:9.2f} s {stream.nbytes / 1024:9.1f} KiB  {tail}", flush=True)
    if not heard:
        raise UserError(f"{name}: has no samples, so there is nothing to transcribe")
    with about(name):
        result = speech2text(stream, is_final=True)
    if not (stream.encoder.frames if args.runtime == "torch" else stream.produced):
        raise UserError(f"{name}: {heard} samples ({heard / fs:.4f} s) are too short for any text")
    print(result.text)


if __name__ == "__main__":
    main()
