"""Word error rate, bytes and latency of trained models at many chunk sizes and left contexts.

Writes EXPDIR/grid.json of each. A cell is decoded by the chunk-masked offline pass and greedy CTC
search, whose text is a live stream's: the first cell is streamed as well. Run it in the directory
of the recipe. Exit status 1 if a model could not be decoded.
"""

from pathlib import Path

from espnet_ext import model_options as shared
from espnet_ext.errors import cli, each
from espnet_ext.files import KB, write_atomic
from espnet_ext.options import Parser, context, count, path, positive_int
from espnet_ext.results import to_json


def announce(cell: dict) -> None:
    """Print a line about a cell."""
    left = "all" if cell["left_context"] < 0 else cell["left_context"]
    wers = ", ".join(
        f"{name} {wer['wer']:.2f} [{wer['interval_95'][0]:.2f}, {wer['interval_95'][1]:.2f}]"
        for name, wer in cell["wer"].items()
    )
    outside = "" if cell["in_trained_range"] else ", outside the trained range"
    if live := cell.get("streamed"):
        outside += f"; streamed, {live['same_text']} of {live['utterances']} with the same text"
    for dtype, live in cell.get("cache_dtypes", {}).items():
        [wer] = live["wer"].values()
        outside += f"; caches of {dtype}: WER {wer['wer']:.2f}, {live['bytes'] / KB:.1f} KB"
    print(
        f"  chunk {cell['chunk_size']}, left context {left}: WER {wers}; "
        f"{cell['bytes'] / KB:.1f} KB, {cell['latency_ms']:.0f} ms{outside}",
        flush=True,
    )


@cli
def main(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument("expdir", nargs="+", type=path, metavar="EXPDIR", help="models")
    parser.option(
        "data_dir", path, help="test sets, e.g. dump/raw/test_clean", nargs="+", required=True
    )
    parser.option("chunk_sizes", positive_int, [8, 16, 24], "encoder frames per chunk", nargs="+")
    parser.option(
        "left_contexts",
        context,
        [16, 32, 64, 128, -1],
        "encoder frames before a chunk, -1 is all",
        nargs="+",
    )
    parser.option(
        "cache_dtypes",
        default=[],
        help="stream all of the first test set in the first cell with caches of these",
        choices=shared.CACHE_DTYPES,
        nargs="+",
    )
    parser.option("streamed", count, 10, "recordings that are streamed too, in the first cell")
    shared.add_checkpoint(parser)
    shared.add_device(parser)
    args = parser.parse_args(argv)
    import torch

    from espnet_ext.evaluate.grid import grid
    from espnet_ext.report.compare import GRID

    torch.set_num_threads(args.threads)

    def measure(expdir):
        print(expdir, flush=True)
        sizes = args.chunk_sizes, args.left_contexts
        where = args.inference_asr_model, args.device
        found = grid(
            expdir, args.data_dir, *sizes, *where, announce, args.streamed, args.cache_dtypes
        )
        write_atomic(Path(expdir) / GRID, to_json(found).encode())

    return each(args.expdir, measure)


if __name__ == "__main__":
    raise SystemExit(main())
