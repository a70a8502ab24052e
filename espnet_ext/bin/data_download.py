"""Download LibriSpeech's splits, check them and extract them to DIR/LibriSpeech."""

from espnet_ext.errors import UserError, cli
from espnet_ext.options import Parser, output, positive


@cli
def main(argv=None):
    parser = Parser(description=__doc__)
    parser.option(
        "url",
        help="where <split>.tar.gz is, commas between mirrors [OpenSLR and its mirrors]",
    )
    parser.option(
        "checksums",
        help="lines 'md5 bytes split' [those of the published archives]",
        metavar="FILE",
    )
    parser.option(
        "timeout", positive, 60, "seconds without a byte until a connection counts as broken"
    )
    parser.add_argument("output", type=output, metavar="DIR")
    parser.add_argument("splits", metavar="SPLIT", nargs="+", help="such as dev-clean")
    args = parser.parse_args(argv)
    from espnet_ext.data import download, librispeech

    urls = args.url.split(",") if args.url else list(librispeech.MIRRORS)
    wrong = [url for url in urls if not url.startswith(("http://", "https://"))]
    if wrong:
        raise UserError(f"--url {wrong[0]!r}: give http://... or https://..., commas between")
    known = librispeech.ARCHIVES
    if args.checksums:
        known = download.read_checksums(args.checksums)
    unknown = [split for split in args.splits if split not in known]
    if unknown:
        raise UserError(f"{' '.join(unknown)}: unknown split; known are {' '.join(known)}")
    archives = [known[split] for split in args.splits]
    download.get(archives, args.output, urls, args.timeout)


if __name__ == "__main__":
    main()
