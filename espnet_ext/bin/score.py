"""Score decoded text: CER and WER, and TER when the tokens are BPE pieces."""

import sys

from espnet_ext.errors import cli
from espnet_ext.options import Parser, output


@cli
def main(argv=None):
    """Write ``OUTPUT/score_{cer,wer,ter}`` for the arguments in ``argv``."""
    parser = Parser(description=__doc__)
    parser.option("ref", help="Kaldi-style text file of the references", required=True)
    parser.option("hyp", help="Kaldi-style text file of the hypotheses", required=True)
    parser.option("utt2spk", help="speakers for the tables (default: one speaker)")
    parser.option("output", output, help="directory of the scores", required=True)
    parser.option("token_type", default="bpe", choices=("bpe", "char", "word"))
    parser.option("bpemodel", help="sentencepiece model, needed with --token_type bpe")
    args = parser.parse_args(argv)
    from espnet_ext.data.kaldi import normal_space, read_scp
    from espnet_ext.data.tokens import text_warnings
    from espnet_ext.scoring import score_files

    texts = [normal_space(text) for text in read_scp(args.ref).values()]
    for warning in text_warnings(texts, args.bpemodel if args.token_type == "bpe" else None):
        print(f"score: warning: {args.ref}: {warning}", file=sys.stderr)
    score_files(args.ref, args.hyp, args.output, args.utt2spk, args.token_type, args.bpemodel)


if __name__ == "__main__":
    main()
