"""Divide an own corpus into the data directories train, dev and test."""

from pathlib import Path

from espnet_ext.errors import UserError, cli, printable
from espnet_ext.options import Parser, one_of, output, path, positive_int

SOURCE = ("wavs", "text", "data", "speakers", "speaker_from")


def rule(word):
    """Where a speaker's name is in a file's."""
    from espnet_ext.data.corpus import RULES

    return one_of(*RULES)(word)


def add_source(parser):
    """Add the options that say what a corpus is."""
    parser.option(
        "wavs", path, help="recordings, in folders or not; any rate and depth", metavar="DIR"
    )
    parser.option(
        "text",
        path,
        help="lines of an id or file name, a tab or comma, and the transcript [a .txt beside each "
        "recording]",
        metavar="FILE",
    )
    parser.option(
        "data",
        path,
        help="in place of both a Kaldi-style directory, or one that holds train, test, perhaps dev",
        metavar="DIR",
    )
    parser.option(
        "speakers",
        path,
        help="lines of an id or file name, a tab or comma, and the speaker",
        metavar="FILE",
    )
    parser.option(
        "speaker_from",
        rule,
        help="directory: each folder of DIR is a speaker; field1: the file name up to the first - "
        "or _ is, field2: the next part, ...; one: do not tell speakers apart",
        metavar="RULE",
    )
    parser.option("nj", positive_int, 32, "worker processes, at most one per core")


def source(args):
    """Options of ``add_source`` that have a value and go together; paths are absolute."""
    if bool(args.wavs) == bool(args.data):
        raise UserError("give --wavs DIR with --text FILE, or --data DIR")
    if args.data and args.text:
        raise UserError("--text goes with --wavs: the transcripts of --data DIR are in DIR/text")
    if args.speakers and args.speaker_from:
        raise UserError("give --speakers FILE or --speaker_from RULE, not both")
    found = {key: getattr(args, key) for key in SOURCE if getattr(args, key)}
    return {k: v if k == "speaker_from" else str(Path(v).absolute()) for k, v in found.items()}


@cli
def main(argv=None):
    parser = Parser(description=__doc__)
    add_source(parser)
    parser.add_argument("out", type=output, metavar="OUT", help="receives train, dev and test")
    args = parser.parse_args(argv)
    from espnet_ext.data import corpus

    _, notes = corpus.prepare(corpus.read(**source(args), nj=args.nj), args.out)
    print(printable("\n".join(notes)))


if __name__ == "__main__":
    main()
