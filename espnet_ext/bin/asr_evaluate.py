"""Measure trained models and write EXPDIR/evaluation_results.json of each.

Run it in the directory of the recipe, after stages 12 and 13. What is there already and younger
than the checkpoint is kept: profile.json (costs), equivalence.json (streaming equals offline) and,
for causal models, the streaming decodings streaming_C<chunk>_L<left context>/. Exit status 1 if a
model could not be evaluated.
"""

import argparse
import sys

from espnet_ext.errors import UserError, cli
from espnet_ext.evaluate.evaluation import evaluate
from espnet_ext.options import Parser, device, positive_int
from espnet_ext.report.schema import text


def get_parser() -> Parser:
    """Options of this command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("expdir", nargs="+", help="model directories")
    parser.add_argument(
        "--inference_tag",
        default="decode_asr_asr_model_valid.acc.ave",
        help="directory of the offline decoding [%(default)s]",
    )
    parser.add_argument("--inference_asr_model", default="valid.acc.ave.pth", help="[%(default)s]")
    parser.add_argument("--inference_config", help="decoding options of the timed offline pass")
    parser.add_argument("--streaming_config", help="decoding options of streams; greedy without it")
    parser.add_argument("--profile_config", help="what is measured, e.g. conf/profile.yaml")
    parser.add_argument("--dumpdir", default="dump", help="formatted data [%(default)s]")
    parser.add_argument(
        "--nj", type=positive_int, default=1, help="processes that decode [%(default)s]"
    )
    parser.add_argument("--device", type=device, default="cpu", help="cpu or cuda [%(default)s]")
    return parser


def row(results: dict) -> str:
    """One line of what matters most."""
    wers = [
        f"{name} {text(wer['wer'])} [{text(wer['interval_95'][0])}, {text(wer['interval_95'][1])}] "
        f"({wer['drawn']} drawn)"
        for name, wer in results["wer"].items()
    ]
    ratio, cache = text(results["compression_ratio"]), text(results["kv_cache_kb"])
    return (
        f"{results['encoder']} {results['attention']}: WER {', '.join(wers)}; cache {cache} KB, "
        f"MHA keeps {ratio} times as much; {text(results['inference_time_ms'])} ms per utterance, "
        f"{text(results['memory_mb'])} MB"
    )


@cli
def main(argv=None):
    """Run the command line."""
    args = get_parser().parse_args(argv)
    failed = 0
    for expdir in args.expdir:
        try:
            evaluate(expdir, args, lambda results: print(row(results), flush=True))
        except UserError as error:
            print(f"asr_evaluate: error: {error}", file=sys.stderr)
            failed = 1
    return failed


if __name__ == "__main__":
    raise SystemExit(main())
