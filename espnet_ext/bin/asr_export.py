"""Export a trained model as ONNX files that onnxruntime and the stock sherpa-onnx stream.

OUTPUT gets model.onnx (with --quantize int8 also model.int8.onnx), tokens.txt, features.npz, a
README with the commands that run it, and a certificate of how it compares with the model's own
streaming; whole or not at all. The attention decoder is left out: text is the CTC's.
"""

import argparse
import os
from pathlib import Path

import torch

import espnet_ext  # noqa: F401
from espnet_ext.data.kaldi import read_scp
from espnet_ext.errors import UserError, cli, no_checkpoint
from espnet_ext.export.model import CLIENTS, QUANTIZE, export
from espnet_ext.options import Parser, context, count, path, positive_int
from espnet_ext.profiling.config import read_yaml
from espnet_ext.profiling.process import commit


def get_parser() -> Parser:
    """Options of this command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("expdir", metavar="EXPDIR", type=path, help="directory of a training run")
    parser.add_argument("--output", type=path, required=True, help="directory to make")
    parser.add_argument(
        "--asr_model_file", type=path, help="checkpoint [EXPDIR/valid.acc.ave.pth]"
    )
    parser.add_argument(
        "--chunk_size", type=positive_int, help="encoder frames per step [the model's own]"
    )
    parser.add_argument(
        "--left_context", type=context, help="encoder frames before a chunk [the model's own]"
    )
    parser.add_argument(
        "--inference_config", type=path, help="YAML of decoding options, whose sizes are taken"
    )
    parser.add_argument(
        "--quantize", choices=QUANTIZE, default="none", help="also model.int8.onnx [%(default)s]"
    )
    parser.add_argument(
        "--client", choices=CLIENTS, default=CLIENTS[0], help="what will run it [%(default)s]"
    )
    parser.add_argument(
        "--wav_scp", type=path, help="recordings to compare on [the training's validation set]"
    )
    parser.add_argument("--num_utts", type=count, default=10, help="of them [%(default)s]")
    return parser


@cli
def main(argv=None):
    """Run the command line."""
    args = get_parser().parse_args(argv)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    config = Path(args.expdir) / "config.yaml"
    if not config.is_file():
        raise UserError(f"{config}: no such file; EXPDIR is the directory of a training run")
    checkpoint = Path(args.asr_model_file or Path(args.expdir) / "valid.acc.ave.pth")
    if not checkpoint.is_file():
        raise no_checkpoint(checkpoint)
    decoding = read_yaml(args.inference_config) if args.inference_config else {}
    sizes = {
        name: decoding.get(name) if getattr(args, name) is None else getattr(args, name)
        for name in ("chunk_size", "left_context")
    }
    certificate = export(
        args.output,
        config,
        checkpoint,
        **sizes,
        quantize=args.quantize,
        client=args.client,
        recordings=_recordings(args, config),
        commit=commit(args.output),
    )
    print("The attention decoder is left out: text is the CTC's.")
    for name, worst in certificate["max_error"].items():
        print(
            f"{args.output}/{name}: log probabilities within {worst['log_probs']:.1e} of the "
            f"model's own streaming, tokens of {worst['tokens_differ']} recordings differ "
            f"({certificate['recordings'] or 'noise, no'} recordings, {certificate['seconds']} s)"
        )


def _recordings(args, config):
    """Files to compare on."""
    scp = args.wav_scp
    if scp is None:
        valid = read_yaml(config).get("valid_data_path_and_name_and_type") or [[""]]
        scp = valid[0][0]
        if not Path(scp).is_file():
            return []
    wavs = list(read_scp(scp).values())
    return wavs[: args.num_utts] if args.num_utts else wavs


if __name__ == "__main__":
    main()
