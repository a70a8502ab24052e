"""Make a token list from text: BPE (with its sentencepiece model), characters or words.

Of BPE, bpe.model, bpe.vocab and train.txt are written too.
"""

import sys
from pathlib import Path

from espnet_ext.errors import cli
from espnet_ext.options import Parser, output, positive_int, probability


@cli
def main(argv=None):
    parser = Parser(description=__doc__)
    parser.option(
        "token_type", default="bpe", help="kind of token", choices=("bpe", "char", "word")
    )
    parser.option("text", help="Kaldi-style text files", nargs="+", required=True, metavar="FILE")
    parser.option(
        "transcripts", default=[], help="more files, only checked", nargs="*", metavar="FILE"
    )
    parser.option("output", output, help="where tokens.txt goes", required=True, metavar="DIR")
    parser.option(
        "nlsyms_txt", help="symbols that count as one character, one per line", metavar="FILE"
    )
    parser.option("nbpe", positive_int, 30, "bpe: number of tokens")
    parser.option(
        "bpemode", default="unigram", help="bpe: its model type", choices=("unigram", "bpe")
    )
    parser.option("bpe_nlsyms", help="bpe: symbols never split, commas between", metavar="A,B")
    parser.option("bpe_char_cover", probability, 1.0, "bpe: fraction of characters covered")
    parser.option("bpe_input_sentence_size", positive_int, 100_000_000, "bpe: sentences at most")
    args = parser.parse_args(argv)
    from espnet_ext.data import tokens
    from espnet_ext.data.kaldi import read_lines
    from espnet_ext.files import write_atomic

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
