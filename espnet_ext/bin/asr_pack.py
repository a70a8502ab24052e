"""Pack a trained model, its config and what decoding needs in one archive, in ESPnet's format."""

from pathlib import Path

from espnet_ext import packing
from espnet_ext.errors import cli
from espnet_ext.options import Parser
from espnet_ext.profiling.config import read_yaml
from espnet_ext.relocate import beside


@cli
def main(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument("--asr_train_config", required=True, help="config.yaml of the training")
    parser.add_argument("--asr_model_file", required=True, help="such as valid.acc.ave.pth")
    parser.add_argument("--lm_train_config", help="config.yaml of the language model")
    parser.add_argument("--lm_file", help="its checkpoint")
    parser.add_argument(
        "--option", action="append", default=[], help="another file to pack; may be repeated"
    )
    parser.add_argument("--outpath", required=True, help="the .zip to write")
    args = vars(parser.parse_args(argv))
    chosen = {key: path for key, path in args.items() if path and key not in ("option", "outpath")}
    configs = {key: path for key, path in chosen.items() if key.endswith("_config")}
    files = {key: path for key, path in chosen.items() if key not in configs}
    config = Path(args["asr_train_config"])
    normalize = beside(read_yaml(config), config.parent).get("normalize_conf") or {}
    statistics = [normalize["stats_file"]] if normalize.get("stats_file") else []
    packing.pack(args["outpath"], configs, files, args["option"] + statistics)


if __name__ == "__main__":
    main()
