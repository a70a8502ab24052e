"""Write the YAML of a training that starts from a trained or converted model.

It has the model and the options of training of --init_from, and over them what --config says, which
may be anything but the shape of the model.
"""

from pathlib import Path

import yaml

from espnet_ext.config import read_config
from espnet_ext.errors import UserError, cli
from espnet_ext.files import write_atomic
from espnet_ext.options import Parser, output, path
from espnet_ext.packing import find_model
from espnet_ext.results import CONVERSION, read_json

#: what makes the parameters, and so cannot change
MODEL = (
    *("input_size", "frontend", "frontend_conf", "preencoder", "preencoder_conf"),
    *("encoder", "encoder_conf", "postencoder", "postencoder_conf"),
    *("decoder", "decoder_conf", "ctc_conf", "joint_net_conf"),
)
#: what a training goes on with where --config says nothing
TRAINING = (
    *("model_conf", "specaug", "specaug_conf", "optim", "optim_conf"),
    *("scheduler", "scheduler_conf", "seed", "num_workers", "batch_type", "batch_bins"),
    *("batch_size", "sort_in_batch", "accum_grad", "grad_clip", "use_amp", "num_att_plot"),
    *("best_model_criterion", "keep_nbest_models"),
)


def merged(expdir: Path, schedule: Path, checkpoint: str) -> dict:
    """The YAML's content; see the module."""
    config_file, _ = find_model(expdir, checkpoint)
    source = read_config(config_file)
    changes = read_config(schedule)
    for key in MODEL:
        if key in changes:
            raise UserError(f"{schedule}: {key}: comes from {expdir}, so leave it out")
    config = {k: source[k] for k in (*MODEL, *TRAINING) if k in source} | changes
    inherited = {
        k: v
        for k, v in (source.get("model_conf") or {}).items()
        if k not in ("teacher", "distill_weight")  # of an earlier fine-tuning
    }
    config["model_conf"] = inherited | (changes.get("model_conf") or {})
    if config.get("model") == "kv_distilled" and "teacher" not in config["model_conf"]:
        conversion = expdir / "conversion.json"
        if not conversion.is_file():
            raise UserError(
                f"{schedule}: model_conf: needs teacher, the checkpoint of the model to learn "
                f"from: {expdir} was not written by asr_convert"
            )
        report = read_json(conversion, CONVERSION)
        config["model_conf"]["teacher"] = str(Path(report["source"], report["checkpoint"]))
    return config


@cli
def main(argv=None):
    parser = Parser(description=__doc__)
    parser.option("init_from", path, help="directory of the model", required=True)
    parser.option("inference_asr_model", default="valid.acc.ave.pth")
    parser.option("config", path, help="e.g. conf/finetune_asr.yaml", required=True)
    parser.option("output", output, help="YAML to write", required=True)
    args = parser.parse_args(argv)
    config = merged(Path(args.init_from), Path(args.config), args.inference_asr_model)
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    write_atomic(args.output, text.encode())


if __name__ == "__main__":
    main()
