"""Transcribe a recording as it arrives and show what the stream holds in memory.

FILE is mono audio at the model's rate; - reads raw 16-bit little-endian mono PCM of that rate from
standard input. Without --asr_train_config the small model in the package is run, which knows the
digits in English at 8 kHz, and without FILE its own recording. Each line: seconds heard, bytes of
state, the end of the text. The last line is the whole text.
"""

import argparse
import os
import sys

import torch

import espnet_ext  # noqa: F401
from espnet_ext.data.packets import read_packets
from espnet_ext.errors import UserError, about, cli
from espnet_ext.inference import (
    StreamingSpeech2Text,
    add_model_options,
    add_search_options,
    model_options,
    packet_samples,
)
from espnet_ext.options import Parser
from espnet_ext.pretrained import RECORDING, model_files

SHOWN = 60


@cli
def main(argv=None):
    """Run the command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="FILE|-", nargs="?")
    add_model_options(parser, needed=False)
    add_search_options(parser)
    args = parser.parse_args(argv)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    options = model_options(args)
    if not args.asr_train_config:
        if args.asr_model_file:
            raise UserError("--asr_model_file: belongs to an --asr_train_config, give it too")
        options |= model_files()
        args.source = args.source or str(RECORDING)
    if not args.source:
        raise UserError("FILE: missing; only the model in the package has a recording of its own")
    speech2text = StreamingSpeech2Text(**options, search=args.search, beam_size=args.beam_size)
    fs = speech2text.fs
    packet = packet_samples(args.packet_ms, fs)
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
    if not stream.encoder.frames:
        raise UserError(f"{name}: {heard} samples ({heard / fs:.4f} s) are too short for any text")
    print(result.text)


if __name__ == "__main__":
    main()
