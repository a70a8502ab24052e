"""Certify a trained model: streaming equals its chunk-masked offline pass on real audio.

Writes equivalence.json: the largest error of features, of every layer, of the encoder output
and of the CTC log probabilities, in float32 as the model runs and again in float64, and whether
every text is identical. An error is null where something was not a number or of another length.
The two are equal if the texts are and the errors in float64 are rounding;
with caches in another dtype, errors in float32 are what counts. Exit status 1 if not equal.
"""

from espnet_ext import model_options as shared
from espnet_ext.errors import cli
from espnet_ext.options import Parser, count, output, packet_length


@cli
def main(argv=None):
    parser = Parser(description=__doc__)
    shared.add_model(parser)
    shared.add_device(parser)
    shared.add_stream(parser)
    parser.option("wav_scp", help="recordings to certify on", required=True)
    parser.option("num_utts", count, 10, "how many, 0 for all")
    parser.option("packet_ms", packet_length, [10, 70, 640], "packet lengths to try", nargs="+")
    parser.option("output", output, help="the JSON file to write", required=True)
    args = parser.parse_args(argv)
    model = shared.model_files(args) | shared.stream_options(args)
    from espnet_ext.evaluate.streams import certify, largest_error
    from espnet_ext.files import write_atomic
    from espnet_ext.results import to_json

    report = certify(model, args.wav_scp, args.num_utts, args.packet_ms, args.threads)
    write_atomic(args.output, to_json(report, indent=1).encode())
    errors = {"float32": report["max_error"], "float64": report["max_error_float64"]}
    said = [f"{largest_error(found):.1e} in {dtype}" for dtype, found in errors.items() if found]
    print(
        f"{'equal' if report['equal'] else 'NOT EQUAL'}: {report['utterances']} recordings, "
        f"largest error {', '.join(said)}, {len(report['differing_texts'])} texts differ; "
        f"{args.output}"
    )
    return 0 if report["equal"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
