"""Measure trained models and write EXPDIR/evaluation_results.json of each.

Run it in the directory of the recipe, after stages 12 and 13. What is there already of the same
model, settings and data is kept: profile.json (costs), equivalence.json (streaming equals offline)
and, for causal models, the streaming decodings streaming_C<chunk>_L<left context>/. Exit status 1
if a model could not be evaluated.
"""

from espnet_ext import model_options as shared
from espnet_ext.errors import cli, each
from espnet_ext.options import Parser, positive_int


def announce(results: dict) -> None:
    """Print a line of what matters most."""
    from espnet_ext.report.schema import text

    wers = [
        f"{name} {text(wer['wer'])} [{text(wer['interval_95'][0])}, {text(wer['interval_95'][1])}] "
        f"({wer['drawn']} drawn)"
        for name, wer in results["wer"].items()
    ]
    ratio, cache = text(results["compression_ratio"]), text(results["kv_cache_kb"])
    print(
        f"{results['encoder']} {results['attention']}: WER {', '.join(wers)}; cache {cache} KB, "
        f"MHA keeps {ratio} times as much; {text(results['inference_time_ms'])} ms per utterance, "
        f"{text(results['memory_mb'])} MB",
        flush=True,
    )


@cli
def main(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument("expdir", nargs="+", help="model directories")
    parser.option(
        "inference_tag",
        default="decode_asr_asr_model_valid.acc.ave",
        help="directory of the offline decoding",
    )
    shared.add_checkpoint(parser)
    parser.option("inference_config", help="decoding options of the timed offline pass")
    parser.option("streaming_config", help="decoding options of streams; greedy without it")
    parser.option("profile_config", help="what is measured, e.g. conf/profile.yaml")
    parser.option("dumpdir", default="dump", help="formatted data")
    parser.option("nj", positive_int, 1, "processes that decode")
    shared.add_device(parser)
    args = vars(parser.parse_args(argv))
    from espnet_ext.evaluate.evaluation import Settings, evaluate

    expdirs = args.pop("expdir")
    return each(expdirs, lambda expdir: evaluate(expdir, Settings(**args), announce))


if __name__ == "__main__":
    raise SystemExit(main())
