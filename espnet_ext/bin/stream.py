"""Transcribe a recording as it arrives and show what the stream holds in memory.

FILE is mono audio at the model's rate; - reads WAV, or raw 16-bit little-endian PCM, of that kind
from standard input. Without EXPDIR the small model in the package is run, which knows the digits in
English at 8 kHz, and without FILE its own recording. Each line: seconds heard, bytes of state, the
end of the text. The last line is the whole text, with --endpoint a line for each utterance. With
--output json every line is an object: heard, ledger (bytes by kind), and what is known of the
utterance, with its words, their times and confidence. --picture draws all of that on a page. With
--runtime onnxruntime EXPDIR is what espnet-ext export has made, and neither PyTorch nor ESPnet is
imported. With --server the models of espnet-ext serve hear it, and each line names one.
"""

import os
import time
from dataclasses import asdict
from functools import partial

from espnet_ext import model_options as shared
from espnet_ext.errors import UserError, cli
from espnet_ext.files import KB, write_atomic
from espnet_ext.options import Parser, boolean, output, positive_int
from espnet_ext.pretrained import PRETRAINED, RECORDING
from espnet_ext.results import to_json

SHOWN = 60


def _choose_model(args):
    """Of two words one is a file, and without a model the package's own is meant."""
    if args.source is None and args.expdir and not os.path.isdir(args.expdir):
        args.expdir, args.source = None, "-" if args.expdir == "./-" else args.expdir
    if args.server:
        if args.expdir or args.asr_train_config or args.asr_model_file:
            raise UserError("--server: has its own models; give FILE or - alone")
        args.source = args.source or RECORDING
        return
    if not (args.expdir or args.asr_train_config or args.asr_model_file):
        if args.runtime != "torch":
            raise UserError("EXPDIR: missing; give the directory that espnet-ext export has made")
        args.expdir, args.source = RECORDING.parent, args.source or RECORDING
    if args.source is None:
        raise UserError("FILE: missing; only the model in the package has a recording of its own")


def _loaded(args):
    """The model in its runtime; the other one is not imported."""
    from espnet_ext.streaming.speech2text import StreamingSpeech2Text

    if args.runtime == "torch":
        import torch

        torch.set_num_threads(args.threads)
        files = shared.model_files(args)
    else:
        files = {"asr_train_config": args.asr_train_config, "asr_model_file": args.asr_model_file}
        if args.expdir:
            files |= shared.exported_files(args, args.expdir)
    return StreamingSpeech2Text(**files, **shared.stream_options(args))


def _packets(args, recording, fs):
    """Samples (n,) as they come, which the picture hears too."""
    from espnet_ext.audio import read_packets, standard_input
    from espnet_ext.streaming.speech2text import packet_samples

    source = standard_input() if args.source == "-" else args.source
    heard, began = 0, time.monotonic()
    for samples in read_packets(source, fs, packet_samples(args.packet_ms, fs)):
        heard += len(samples)
        if args.real_time:
            time.sleep(max(0, began + heard / fs - time.monotonic()))
        if recording:
            recording.hear(samples, fs)
        yield samples
    if not heard:
        raise UserError(f"{args.name}: has no samples, so there is nothing to transcribe")


def _line(heard, ledger, text):
    kb = sum(n for kind, n in ledger.items() if kind != "positions") / KB
    tail = text if len(text) <= SHOWN else "..." + text[-SHOWN:]
    print(f"{heard:9.2f} s {kb:9.1f} KB  {tail}", flush=True)


def _through_server(args, packets, recording):
    """Let a server's models hear the source, and print what they say."""
    try:
        from espnet_ext.serve.client import transcribe
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name}: missing; pip install 'espnet-ext[serve]'") from None
    from espnet_ext.audio import open_audio

    fs = args.rate if args.source == "-" else open_audio(args.source).rate
    shown, finals, failed = {}, {}, []
    for message in transcribe(args.server, packets(fs), fs, args.token, args.real_time):
        name = message.get("model")
        if message["type"] == "started" and recording:
            recording.expect(model["name"] for model in message["models"])
        if message["type"] == "failed":
            failed.append(f"{name}: {message['message']}")
        if message["type"] != "result":
            continue
        text, heard, state = message["text"], message["heard"], message["bytes"]
        if recording:
            ms = message["ms"] / message["batch"]
            recording.add(name, text, message["words"], heard, ms, state)
        if args.output == "json":
            print(to_json(message), end="", flush=True)
        elif not message["is_final"] and text != shown.get(name):
            _line(heard, state, f"{name}: {text}")
        shown[name] = text
        if message["is_final"]:
            finals[name] = text
    for name, text in finals.items() if args.output == "text" else ():
        print(text if len(finals) == 1 else f"{name}: {text}")
    if failed:
        raise UserError("; ".join(failed))


def _through_model(args, packets, recording):
    """Let a model hear the source, and print what it says."""
    from espnet_ext.streaming.live import hear

    speech2text, shown = _loaded(args), None
    own = args.expdir == RECORDING.parent
    name = PRETRAINED if own else str(args.expdir or args.asr_train_config)
    for heard in hear(speech2text, packets(speech2text.fs), args.name):
        result = heard.utterances[-1]
        if recording and (heard.has_stepped or result.is_final):
            text = " ".join(heard.texts)
            recording.add(name, text, heard.words, heard.seconds, heard.ms, heard.ledger)
        if args.output == "json":
            if result.utterances or result.is_final or result.text != shown:
                known = {"heard": heard.seconds, "ledger": heard.ledger}
                print(to_json(known | asdict(result)), end="", flush=True)
        elif result.is_final:
            print("\n".join(heard.texts))
        else:
            for text in (*(ended.text for ended in result.utterances), result.text):
                if text and text != shown:
                    _line(heard.seconds, heard.ledger, text)
        shown = result.text


@cli
def main(argv=None):
    parser = Parser(description=__doc__)
    shared.add_model(parser)
    shared.add_device(parser)
    parser.add_argument("source", metavar="FILE|-", nargs="?")
    shared.add_stream(parser)
    shared.add_search(parser)
    shared.add_endpoint(parser)
    parser.option("output", default="text", choices=("text", "json"))
    shared.add_runtime(parser)
    parser.option("picture", output, help="HTML file: words, bytes and time per chunk over time")
    parser.option("real_time", boolean, False, "read FILE at the speed of speech")
    parser.option("server", help="ws://HOST:PORT of espnet-ext serve, instead of a model")
    parser.option("token", help="that the server asks for")
    parser.option("rate", positive_int, 16000, "Hz of - for a server")
    args = parser.parse_args(argv)
    _choose_model(args)
    if args.picture and os.path.exists(args.source) and os.path.exists(args.picture):
        if os.path.samefile(args.source, args.picture):
            raise UserError(f"--picture: {args.picture} is the recording")
    from espnet_ext.audio import STANDARD_INPUT
    from espnet_ext.serve.picture import Recording, picture

    args.name = STANDARD_INPUT if args.source == "-" else str(args.source)
    recording = Recording(os.path.basename(args.name)) if args.picture else None
    packets = partial(_packets, args, recording)
    (_through_server if args.server else _through_model)(args, packets, recording)
    if recording:
        write_atomic(args.picture, picture(recording).encode())


if __name__ == "__main__":
    main()
