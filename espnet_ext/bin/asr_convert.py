"""Give a trained model another attention without training it again.

--from is the directory of a model with multi-head attention, of this package or of stock ESPnet
(conformer, branchformer, e_branchformer). --output is a directory of the same kind, which every
other command takes. mla at kv_lora_rank = output_size, gqa at n_kv_head = attention_heads and mha
with cache=input give the source's outputs; what else is lost, the table says. linear is an
initialisation and needs fine-tuning.
"""

import argparse

from espnet_ext.config import parse_value
from espnet_ext.errors import UserError, about, cli
from espnet_ext.options import Parser, output, positive, positive_int


def get_parser() -> Parser:
    """Options of this command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="source", required=True, help="directory of the model")
    parser.add_argument("--output", required=True, type=output, help="new directory to write")
    parser.add_argument("--inference_asr_model", default="valid.acc.ave.pth", help="[%(default)s]")
    parser.add_argument(
        "--attention",
        help="mha, gqa, mla or linear; A,B,... is one per layer [the encoder stays as it is]",
    )
    parser.add_argument(
        "--attention_conf",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="e.g. kv_lora_rank=64, n_kv_head=2, cache=input; [64,32,...] is a value per layer",
    )
    parser.add_argument(
        "--budget_kb",
        type=positive,
        help="mla: KB (1024 bytes) of 1000 frames in float32, shared among the layers where each "
        "rank saves most, in place of kv_lora_rank",
    )
    parser.add_argument(
        "--grouping",
        choices=("neighbours", "similar"),
        default="neighbours",
        help="gqa: heads that share keys and values [%(default)s]",
    )
    parser.add_argument(
        "--calibration_scp", help="gqa, mla: wav.scp whose recordings the new weights fit best"
    )
    parser.add_argument(
        "--num_utts", type=positive_int, default=50, help="how many of them [%(default)s]"
    )
    parser.add_argument("--decoder_attention", help="gqa or mla [the decoder stays as it is]")
    parser.add_argument("--decoder_attention_conf", nargs="+", default=[], metavar="KEY=VALUE")
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
    if "attention" in report:
        lines.append(f"encoder: {report['attention']} {report['attention_conf']}")
        lines += [_line(f"layer {n}", lost) for n, lost in enumerate(report["lost"])]
        lines.append(f"attention cache: {report['kb_per_1000_frames']:.10g} KB of 1000 frames")
    if "decoder_attention" in report:
        lines.append(f"decoder: {report['decoder_attention']} {report['decoder_attention_conf']}")
        for n, lost in enumerate(report["decoder_lost"]):
            lines.append(_line(f"layer {n // 2}, {'source' if n % 2 else 'self'}", lost))
    if report.get("attention") == "linear":
        lines.append("Linear attention only starts from these weights: fine-tune it.")
    return "\n".join(lines)


def _line(name, lost):
    return f"  {name}: " + ("" if lost is None else f"{lost:.2%} of keys and values lost")


@cli
def main(argv=None):
    """Run the command line."""
    args = get_parser().parse_args(argv)
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
    report = convert_model(args.source, args.output, request, args.inference_asr_model)
    print(table(report))
    print(f"written: {args.output}")


if __name__ == "__main__":
    main()
