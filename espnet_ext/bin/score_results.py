"""Gather the scores below a model's directory in its RESULTS.md, and print the word error rates."""

from espnet_ext.errors import cli
from espnet_ext.options import Parser


@cli
def main(argv=None):
    """Write ``EXPDIR/RESULTS.md`` for the arguments in ``argv``."""
    parser = Parser(description=__doc__)
    parser.add_argument("expdir", help="model directory, e.g. exp/asr_train_asr_raw_en_bpe5000_sp")
    args = parser.parse_args(argv)
    from espnet_ext.scoring import write_results

    print(write_results(args.expdir), end="")


if __name__ == "__main__":
    main()
