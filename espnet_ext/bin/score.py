"""Score decoded text: CER and WER, and TER when the tokens are BPE pieces."""

import sys
from pathlib import Path

from espnet_ext.data.kaldi import normal_space, read_scp
from espnet_ext.data.tokens import text_warnings
from espnet_ext.errors import UserError, cli
from espnet_ext.options import Parser, output
from espnet_ext.scoring import UNITS, score, tokenizer, write_score


@cli
def main(argv=None):
    """Write ``OUTPUT/score_{cer,wer,ter}`` for the arguments in ``argv``."""
    parser = Parser(description=__doc__)
    parser.add_argument("--ref", required=True, help="Kaldi-style text file of the references")
    parser.add_argument("--hyp", required=True, help="Kaldi-style text file of the hypotheses")
    parser.add_argument("--utt2spk", help="speakers for the tables (default: one speaker)")
    parser.add_argument("--output", required=True, type=output, help="directory of the scores")
    parser.add_argument("--token_type", default="bpe", choices=("bpe", "char", "word"))
    parser.add_argument("--bpemodel", help="sentencepiece model, needed with --token_type bpe")
    args = parser.parse_args(argv)
    if args.token_type == "bpe" and not args.bpemodel:
        raise UserError("--token_type bpe needs --bpemodel")
    references, hypotheses = read_scp(args.ref), read_scp(args.hyp)
    speakers = read_scp(args.utt2spk) if args.utt2spk else dict.fromkeys(references, "all")
    if unknown := references.keys() - speakers.keys():
        raise UserError(f"{args.utt2spk}: no speaker for {min(unknown)}")
    model = args.bpemodel if args.token_type == "bpe" else None
    for warning in text_warnings([normal_space(text) for text in references.values()], model):
        print(f"score: warning: {args.ref}: {warning}", file=sys.stderr)
    for unit in UNITS:
        if unit == "ter" and args.token_type != "bpe":
            continue
        try:
            counted = score(references, hypotheses, tokenizer(unit, args.bpemodel))
        except UserError as error:
            raise UserError(f"{args.hyp}: {error}") from None
        write_score(Path(args.output) / f"score_{unit}", counted, speakers)


if __name__ == "__main__":
    main()
