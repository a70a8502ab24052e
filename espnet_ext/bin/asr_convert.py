"""Give a trained model another attention without training it again.

EXPDIR is the directory of a model with multi-head attention, of this package or of stock ESPnet
(conformer, branchformer, e_branchformer). --output is a directory of the same kind, which every
other command takes. mla at kv_lora_rank = output_size, gqa at n_kv_head = attention_heads and mha
with cache=input give the source's outputs; what else is lost, the table says. linear is an
initialisation and needs fine-tuning.
"""

from espnet_ext import model_options as shared
from espnet_ext.attention import ATTENTIONS
from espnet_ext.config import parse_value
from espnet_ext.errors import UserError, about, cli
from espnet_ext.options import Parser, output, path, positive, positive_int


def get_parser() -> Parser:
    """Options of this command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("expdir", nargs="?", type=path, metavar="EXPDIR", help="model to convert")
    parser.option("from", path, help="in place of EXPDIR: the same", dest="source")
    parser.option("output", output, help="new directory to write", required=True)
    shared.add_checkpoint(parser)
    parser.option(
        "attention",
        help=f"{', '.join(ATTENTIONS)}; A,B,... is one per layer [the encoder stays as it is]",
    )
    parser.option(
        "attention_conf",
        default=[],
        help="e.g. kv_lora_rank=64, n_kv_head=2, cache=input; [64,32,...] is a value per layer",
        nargs="+",
        metavar="KEY=VALUE",
    )
    parser.option(
        "budget_kb",
        positive,
        help="KB (1024 bytes) of 1000 frames in float32, shared among the layers where each "
        "rank saves most, in place of kv_lora_rank",
    )
    parser.option(
        "grouping",
        default="neighbours",
        help="heads that share keys and values, with n_kv_head",
        choices=("neighbours", "similar"),
    )
    parser.option(
        "calibration_scp",
        help="wav.scp whose recordings the new weights fit best; the decoder reads them with the "
        "text beside it, or with what greedy CTC search finds",
    )
    parser.option("num_utts", positive_int, 50, "how many of them")
    parser.option("decoder_attention", help="as --attention [the decoder stays as it is]")
    parser.option("decoder_attention_conf", default=[], nargs="+", metavar="KEY=VALUE")
    return parser


def options(name: str, words: list[str]) -> dict:
    """``KEY=VALUE`` words as a mapping, the values in YAML."""
    conf = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"--{name}: must be KEY=VALUE, got {word}")
        with about(f"--{name}: {key}"):
            conf[key] = parse_value(value)
    return conf


def table(report: dict) -> str:
    """What the new attention keeps and loses, layer by layer."""
    lines = []
    if report["calibration"]:
        lines.append(f"fitted to {report['calibration_utts']} recordings, {report['calibration']}")
    if report["calibration"] and "decoder_attention" in report:
        lines[-1] += f"; {report['calibration_texts']} have a text in the model's tokens, for any "
        lines[-1] += "other the decoder reads what greedy CTC search finds"
    if "attention" in report:
        lines.append(f"encoder: {report['attention']} {report['attention_conf']}")
        lines += [_line(f"layer {n}", lost) for n, lost in enumerate(report["lost"])]
        lines.append(f"attention cache: {report['kb_per_1000_frames']:.10g} KB of 1000 frames")
    if "decoder_attention" in report:
        lines.append(f"decoder: {report['decoder_attention']} {report['decoder_attention_conf']}")
        for n, lost in enumerate(report["decoder_lost"]):
            lines.append(_line(f"layer {n // 2}, {'source' if n % 2 else 'self'}", lost))
    if None in report.get("lost", []):
        lines.append(f"{report['attention']} only starts from these weights: fine-tune it.")
    return "\n".join(lines)


def _line(name, lost):
    return f"  {name}: " + ("" if lost is None else f"{lost:.2%} of keys and values lost")


@cli
def main(argv=None):
    args = get_parser().parse_args(argv)
    if bool(args.expdir) == bool(args.source):
        raise UserError("give EXPDIR, or --from, the model to convert")
    if not args.attention and not args.decoder_attention:
        raise UserError("give --attention or --decoder_attention: there is nothing to convert")
    from espnet_ext.convert.model import Request, convert_model

    names = (args.attention or "").split(",")
    request = Request(
        attention=names if len(names) > 1 else args.attention,
        attention_conf=options("attention_conf", args.attention_conf),
        budget_kb=args.budget_kb,
        similar=args.grouping == "similar",
        calibration_scp=args.calibration_scp,
        num_utts=args.num_utts,
        decoder_attention=args.decoder_attention,
        decoder_attention_conf=options("decoder_attention_conf", args.decoder_attention_conf),
    )
    config, checkpoint = shared.find_model(args.expdir or args.source, args.inference_asr_model)
    report = convert_model(config.parent, args.output, request, checkpoint.name)
    print(table(report))
    print(f"written: {args.output}")


if __name__ == "__main__":
    main()
