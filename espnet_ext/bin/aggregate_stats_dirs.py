"""Sum the statistics and join the shape files that parallel ``--collect_stats`` jobs wrote.

ESPnet's own command, and for token sequences a second shape file with the vocabulary's size
(``length,n_tokens``), which is what ``batch_type: numel`` counts.
"""

from pathlib import Path

import numpy as np
from espnet2.bin.aggregate_stats_dirs import aggregate_stats_dirs

from espnet_ext.errors import cli, refuse_not_finite
from espnet_ext.options import Parser, output


@cli
def main(argv=None):
    """Aggregate the directories in ``argv``."""
    parser = Parser(description=__doc__)
    parser.add_argument("--input_dir", action="append", required=True, help="one per job")
    parser.option("output_dir", output, required=True)
    parser.add_argument("--skip_sum_stats", action="store_true", help="there are no features")
    parser.option("token_list", help="its lines are counted", required=True)
    parser.option("token_type", help="suffix of the second shape file", required=True)
    args = parser.parse_args(argv)
    for path in (path for folder in args.input_dir for path in Path(folder).glob("*/*_stats.npz")):
        with np.load(path) as statistics:
            advice = f"one of the utterances in {path.parent}/speech_shape has broken audio"
            refuse_not_finite(statistics, path, advice)
    aggregate_stats_dirs(args.input_dir, args.output_dir, "WARNING", args.skip_sum_stats)
    with open(args.token_list, encoding="utf-8") as file:
        size = sum(1 for _ in file)
    for part in ("train", "valid"):
        shapes = Path(args.output_dir, part, "text_shape")
        lines = shapes.read_text(encoding="utf-8").splitlines()
        text = "".join(f"{line},{size}\n" for line in lines)
        shapes.with_name(f"text_shape.{args.token_type}").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
