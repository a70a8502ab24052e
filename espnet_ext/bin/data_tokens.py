"""Make a token list from text: BPE (with its sentencepiece model), characters or words."""

import argparse
import sys
from pathlib import Path

from espnet_ext.errors import cli
from espnet_ext.options import Parser, positive_int, probability


@cli
def main(argv=None):
    parser = Parser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument(
        "--token_type", choices=("bpe", "char", "word"), default="bpe", help="kind of token"
    )
    parser.add_argument(
        "--text", nargs="+", required=True, metavar="FILE", help="Kaldi-style text files"
    )
    parser.add_argument(
        "--transcripts", nargs="*", default=[], metavar="FILE", help="more files, only checked"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="where tokens.txt goes")
    parser.add_argument(
        "--nlsyms_txt", metavar="FILE", help="symbols that count as one character, one per line"
    )
    bpe = parser.add_argument_group("for bpe; writes bpe.model, bpe.vocab and train.txt too")
    bpe.add_argument("--nbpe", type=positive_int, default=30, help="number of tokens")
    bpe.add_argument(
        "--bpemode",
        choices=("unigram", "bpe"),
        default="unigram",
        help="sentencepiece's model type",
    )
    bpe.add_argument(
        "--bpe_nlsyms", metavar="A,B", help="symbols that are never split, separated by commas"
    )
    bpe.add_argument(
        "--bpe_char_cover", type=probability, default=1.0, help="fraction of characters covered"
    )
    bpe.add_argument(
        "--bpe_input_sentence_size",
        type=positive_int,
        default=100_000_000,
        help="sentences used at most",
    )
    args = parser.parse_args(argv)
    from espnet_ext.data import tokens
    from espnet_ext.data.kaldi import read_lines, write_atomic

    texts, files = tokens.read_texts(args.text), {}
    checked = {path: tokens.read_transcripts(path) for path in (*args.text, *args.transcripts)}
    if args.token_type == "bpe":
        symbols = args.bpe_nlsyms.split(",") if args.bpe_nlsyms else ()
        size = args.bpe_input_sentence_size
        model, vocabulary = tokens.train_bpe(
            texts, args.nbpe, args.bpemode, args.bpe_char_cover, size, symbols
        )
        files["train.txt"] = "".join(f"{text}\n" for text in texts).encode()
        files["bpe.model"] = model
        files["bpe.vocab"] = "".join(f"{token}\t{n:.6g}\n" for token, n in vocabulary).encode()
        found = [token for token, _ in vocabulary[tokens.SPM_SPECIALS :]]
    else:
        lines = read_lines(args.nlsyms_txt) if args.nlsyms_txt else []
        found = tokens.count_tokens(
            texts, args.token_type, [line.rstrip() for line in lines if line.strip()]
        )
    listed = tokens.token_list(found)
    files["tokens.txt"] = "".join(f"{token}\n" for token in listed).encode()
    for name, content in files.items():
        write_atomic(Path(args.output) / name, content)
    for path, transcripts in checked.items():
        for warning in tokens.text_warnings(transcripts, files.get("bpe.model")):
            print(f"data_tokens: warning: {path}: {warning}", file=sys.stderr)


if __name__ == "__main__":
    main()
