"""Certify a trained model: streaming equals its chunk-masked offline pass on real audio.

Writes ``equivalence.json``: the largest error of features, of every layer, of the encoder output
and of the CTC log probabilities, in float32 as the model runs and again in float64, and whether
every text is identical. An error is null where something was not a number or of another length.
The two are equal if the texts are and the errors in float64 are rounding;
with caches in another dtype, errors in float32 are what counts. Exit status 1 if not equal.
"""

import math
import os

import torch

import espnet_ext  # noqa: F401
from espnet_ext.audio import read_audio
from espnet_ext.data.kaldi import read_scp, write_atomic
from espnet_ext.equivalence import TOLERANCE, compare, to_float64
from espnet_ext.errors import UserError, about, cli
from espnet_ext.inference import (
    StreamingSpeech2Text,
    add_model_options,
    model_options,
    packet_samples,
)
from espnet_ext.options import Parser, count, output, packet_length
from espnet_ext.results import to_json


def get_parser() -> Parser:
    """Options of this command line."""
    parser = Parser(description=__doc__.splitlines()[0])
    add_model_options(parser)
    parser.add_argument("--wav_scp", required=True, help="recordings to certify on")
    parser.add_argument("--num_utts", type=count, default=10, help="how many of them, 0 for all")
    parser.add_argument(
        "--packet_ms",
        type=packet_length,
        nargs="+",
        default=[10, 70, 640],
        help="packet lengths to try",
    )
    parser.add_argument("--output", required=True, type=output, help="the JSON file to write")
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
    packets = [packet_samples(ms, speech2text.fs) for ms in args.packet_ms]
    differing, compared = set(), set()

    def errors():
        worst = {"features": 0.0, "encoder": 0.0, "logits": 0.0}
        layers = [0.0] * len(speech2text.model.encoder.encoders)
        for utt, path in wavs:
            samples = read_audio(path, speech2text.fs)
            for packet in packets:
                with about(utt):
                    found = compare(speech2text, samples, packet)
                if found["frames"]:
                    compared.add(utt)
                worst = {name: max(error, found[name]) for name, error in worst.items()}
                layers = [max(pair) for pair in zip(layers, found["layers"], strict=True)]
                if found["text"] != found["offline_text"]:
                    differing.add(utt)
        return worst | {"layers": layers}

    found = {"float32": errors()}
    if not compared:
        raise UserError(f"{args.wav_scp}: no recording is long enough for any text")
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
        "max_error": _finite(found["float32"]),
        "max_error_float64": _finite(found.get("float64")),
        "text_identical": not differing,
        "differing_texts": sorted(differing),
        "utterances": len(compared),
        "packet_ms": args.packet_ms,
        "chunk_size": speech2text.chunk_size,
        "left_context": speech2text.left_context,
        "cache_dtype": args.cache_dtype,
        "device": args.device,
        "asr_train_config": args.asr_train_config,
        "asr_model_file": args.asr_model_file,
    }
    write_atomic(args.output, to_json(report, indent=1).encode())
    said = ", ".join(f"{error:.1e} in {dtype}" for dtype, error in largest.items())
    print(
        f"{'equal' if equal else 'NOT EQUAL'}: {len(compared)} recordings, largest error {said}, "
        f"{len(differing)} texts differ; {args.output}"
    )
    return 0 if equal else 1


def _finite(errors):
    """The errors as JSON takes them: null for what is not finite."""
    if isinstance(errors, dict):
        return {key: _finite(error) for key, error in errors.items()}
    if isinstance(errors, list):
        return [_finite(error) for error in errors]
    return errors if errors is None or math.isfinite(errors) else None


def _numbers(errors: dict) -> list[float]:
    return [errors["features"], errors["encoder"], errors["logits"], *errors["layers"]]


if __name__ == "__main__":
    raise SystemExit(main())
