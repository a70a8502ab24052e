"""Make the data directories train, dev, kathleen and speechocean of the recipe read_english."""

from espnet_ext.errors import cli, printable
from espnet_ext.options import Parser, output, positive_int


@cli
def main(argv=None):
    parser = Parser(description=__doc__)
    parser.option("nj", positive_int, 32, "worker processes")
    parser.add_argument("kathleen", help="clone of github.com/rhasspy/dataset-voice-kathleen")
    parser.add_argument("speechocean762", help="clone of github.com/jimbozhang/speechocean762")
    parser.add_argument("out", type=output, help="directory that receives the sets")
    args = parser.parse_args(argv)
    from espnet_ext.data.read_english import prepare

    print(printable("\n".join(prepare(args.kathleen, args.speechocean762, args.out, args.nj))))


if __name__ == "__main__":
    main()
