"""Make Mini LibriSpeech: a small synthetic corpus, spoken by eSpeak NG, in LibriSpeech's layout."""

from espnet_ext.data.mini_librispeech import make
from espnet_ext.errors import cli
from espnet_ext.options import Parser, output, positive_int


@cli
def main(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument("out", type=output, help="directory that receives LibriSpeech/")
    parser.option("nj", positive_int, 2, "worker processes")
    args = parser.parse_args(argv)
    print(f"{args.out}/LibriSpeech: {make(args.out, args.nj)}")


if __name__ == "__main__":
    main()
