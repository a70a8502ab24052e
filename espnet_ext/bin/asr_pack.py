"""Pack a trained model, its config and what decoding needs in one archive, in ESPnet's format."""

from pathlib import Path

from espnet_ext import model_options as shared
from espnet_ext import packing
from espnet_ext.errors import cli
from espnet_ext.options import Parser, output
from espnet_ext.relocate import read_training_config


@cli
def main(argv=None):
    parser = Parser(description=__doc__)
    shared.add_model(parser)
    parser.option("lm_train_config", help="config.yaml of the language model")
    parser.option("lm_file", help="its checkpoint")
    parser.add_argument(
        "--option", action="append", default=[], help="another file to pack; may be repeated"
    )
    parser.option("outpath", output, help="the .zip to write", required=True)
    args = parser.parse_args(argv)
    files = shared.model_files(args) | {"lm_file": args.lm_file}
    configs = {"asr_train_config": files.pop("asr_train_config")}
    configs |= {"lm_train_config": args.lm_train_config}
    path = Path(configs["asr_train_config"])
    config = read_training_config(path)
    needed = [config.get("normalize_conf", {}).get("stats_file"), config.get("bpemodel")]
    results = path.with_name("RESULTS.md")
    needed += [results if results.is_file() else None]
    chosen = ({key: file for key, file in kind.items() if file} for kind in (configs, files))
    packing.pack(args.outpath, *chosen, args.option + [file for file in needed if file])


if __name__ == "__main__":
    main()
