"""Transcribe a recording as it arrives and show what the stream holds in memory.

FILE is mono audio at the model's rate; - reads WAV, or raw 16-bit little-endian PCM, of that kind
from standard input. Without EXPDIR the small model in the package is run, which knows the digits in
English at 8 kHz, and without FILE its own recording. Each line: seconds heard, bytes of state, the
end of the text. The last line is the whole text, with --endpoint a line for each utterance. With
--output json every line is an object: heard, ledger (bytes by kind), and what is known of the
utterance, with its words, their times and confidence.
"""

import os
from dataclasses import asdict

from espnet_ext import model_options as shared
from espnet_ext.errors import UserError, about, cli
from espnet_ext.options import Parser, positive
from espnet_ext.pretrained import RECORDING
from espnet_ext.results import to_json

SHOWN = 60


def _choose_model(args):
    """Of two words one is a file, and without a model the package's own is meant."""
    if args.source is None and args.expdir and not os.path.isdir(args.expdir):
        args.expdir, args.source = None, "-" if args.expdir == "./-" else args.expdir
    if not (args.expdir or args.asr_train_config or args.asr_model_file):
        args.expdir, args.source = RECORDING.parent, args.source or RECORDING
    if args.source is None:
        raise UserError("FILE: missing; only the model in the package has a recording of its own")


@cli
def main(argv=None):
    """Run the command line."""
    parser = Parser(description=__doc__)
    shared.add_model(parser)
    shared.add_device(parser)
    parser.add_argument("source", metavar="FILE|-", nargs="?")
    shared.add_stream(parser)
    shared.add_search(parser)
    parser.option("endpoint", positive, help="seconds of blank that end an utterance [its end]")
    parser.option("output", default="text", choices=("text", "json"))
    args = parser.parse_args(argv)
    _choose_model(args)
    model = shared.model_files(args) | shared.stream_options(args)
    import torch

    from espnet_ext.audio import STANDARD_INPUT, read_packets, standard_input
    from espnet_ext.streaming.speech2text import StreamingSpeech2Text, packet_samples

    torch.set_num_threads(args.threads)
    speech2text = StreamingSpeech2Text(**model)
    fs = speech2text.fs
    packet = packet_samples(args.packet_ms, fs)
    stream, heard, shown, texts = speech2text.start(), 0, None, []

    def show(result):
        """Print what is new."""
        nonlocal shown
        found = [ended.text for ended in result.utterances]
        texts.extend(found)
        if args.output == "json":
            if found or result.is_final or result.text != shown:
                known = {"heard": heard / fs, "ledger": stream.ledger()}
                print(to_json(known | asdict(result)), end="", flush=True)
        elif result.is_final:
            print("\n".join(filter(None, [*texts, result.text])))
        else:
            for text in filter(None, [*found, result.text]):
                if text != shown:
                    tail = text if len(text) <= SHOWN else "..." + text[-SHOWN:]
                    size = f"{stream.nbytes / 1024:9.1f} KiB"
                    print(f"{heard / fs:9.2f} s {size}  {tail}", flush=True)
        shown = result.text

    source, name = args.source, args.source
    if source == "-":
        source, name = standard_input(), STANDARD_INPUT
    for samples in read_packets(source, fs, packet):
        with about(f"{name}: from {heard / fs:.2f} s on"):
            result = speech2text(stream, samples)
        heard += len(samples)
        show(result)
    if not heard:
        raise UserError(f"{name}: has no samples, so there is nothing to transcribe")
    with about(name):
        result = speech2text(stream, is_final=True)
    if not stream.encoder.frames:
        raise UserError(f"{name}: {heard} samples ({heard / fs:.4f} s) are too short for any text")
    show(result)


if __name__ == "__main__":
    main()
