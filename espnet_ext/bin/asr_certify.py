"""Certify a trained model: streaming equals its chunk-masked offline pass on real audio.

Writes ``equivalence.json``: the largest error of features, of every layer, of the encoder output
and of the CTC log probabilities, in float32 as the model runs and again in float64, and whether
every text is identical. The two are equal if the texts are and the errors in float64 are rounding;
with caches in another dtype, errors in float32 are what counts. Exit status 1 if not equal.
"""

import json
import os

import torch

import espnet_ext  # noqa: F401
from espnet_ext.data.kaldi import read_scp
from espnet_ext.data.packets import read_whole
from espnet_ext.equivalence import TOLERANCE, compare, to_float64
from espnet_ext.errors import UserError, cli
from espnet_ext.inference import StreamingSpeech2Text, add_model_options, model_options
from espnet_ext.options import Parser, count, positive


def get_parser() -> Parser:
    """Options of this command line."""
    parser = Parser(description=__doc__.splitlines()[0])
    add_model_options(parser)
    parser.add_argument("--wav_scp", required=True, help="recordings to certify on")
    parser.add_argument("--num_utts", type=count, default=10, help="how many of them, 0 for all")
    parser.add_argument(
        "--packet_ms", type=positive, nargs="+", default=[10, 70, 640], help="packet lengths to try"
    )
    parser.add_argument("--output", required=True, help="the JSON file to write")
    return parser


@cli
def main(argv=None):
    """Run the command line."""
    args = get_parser().parse_args(argv)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    speech2text = StreamingSpeech2Text(**model_options(args))
    wavs = list(read_scp(args.wav_scp).items())
    wavs = wavs[: args.num_utts] if args.num_utts else wavs
    if not wavs:
        raise UserError(f"{args.wav_scp}: has no recordings")
    differing = set()

    def errors():
        worst = {"features": 0.0, "encoder": 0.0, "logits": 0.0}
        layers = [0.0] * len(speech2text.model.encoder.encoders)
        for utt, path in wavs:
            samples = read_whole(path, speech2text.fs)
            for ms in args.packet_ms:
                found = compare(speech2text, samples, max(1, int(ms * speech2text.fs / 1000)))
                worst = {name: max(error, found[name]) for name, error in worst.items()}
                layers = [max(pair) for pair in zip(layers, found["layers"], strict=True)]
                if found["text"] != found["offline_text"]:
                    differing.add(utt)
        return worst | {"layers": layers}

    found = {"float32": errors()}
    verdict = "float32"
    if args.cache_dtype == verdict:
        verdict = "float64"
        to_float64(speech2text)
        found[verdict] = errors()
    largest = {dtype: max(_numbers(worst)) for dtype, worst in found.items()}
    equal = not differing and largest[verdict] < TOLERANCE[verdict]
    report = {
        "version": 2,
        "equal": equal,
        "tolerance": {verdict: TOLERANCE[verdict]},
        "max_error": found["float32"],
        "max_error_float64": found.get("float64"),
        "text_identical": not differing,
        "differing_texts": sorted(differing),
        "utterances": len(wavs),
        "packet_ms": args.packet_ms,
        "chunk_size": speech2text.chunk_size,
        "left_context": speech2text.left_context,
        "cache_dtype": args.cache_dtype,
        "device": args.device,
        "asr_train_config": args.asr_train_config,
        "asr_model_file": args.asr_model_file,
    }
    with open(f"{args.output}.tmp", "w", encoding="utf-8") as file:
        json.dump(report, file, indent=1)
        file.write("\n")
    os.replace(f"{args.output}.tmp", args.output)
    said = ", ".join(f"{error:.1e} in {dtype}" for dtype, error in largest.items())
    print(
        f"{'equal' if equal else 'NOT EQUAL'}: {len(wavs)} recordings, largest error {said}, "
        f"{len(differing)} texts differ; {args.output}"
    )
    return 0 if equal else 1


def _numbers(errors: dict) -> list[float]:
    return [errors["features"], errors["encoder"], errors["logits"], *errors["layers"]]


if __name__ == "__main__":
    raise SystemExit(main())
