"""Make the digit-string data directories of the FSDD recipe."""

from espnet_ext.errors import cli
from espnet_ext.options import Parser, output


@cli
def main(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument("source", help="FSDD directory or .tar.gz archive")
    parser.add_argument("out", type=output, help="directory that receives train/, dev/ and test/")
    args = parser.parse_args(argv)
    from espnet_ext.data.fsdd import prepare

    for name, (strings, hours) in prepare(args.source, args.out).items():
        print(f"{args.out}/{name}: {strings} strings, {hours:.2f} h")


if __name__ == "__main__":
    main()
