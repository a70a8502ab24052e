"""Export a trained model as ONNX files that onnxruntime and the stock sherpa-onnx stream.

OUTPUT gets model.onnx (with --quantize int8 also model.int8.onnx), tokens.txt, features.npz, a
README with the commands that run it, and a certificate of how it compares with the model's own
streaming; whole or not at all. The attention decoder is left out: text is the CTC's.
"""

from espnet_ext import model_options as shared
from espnet_ext.errors import cli
from espnet_ext.options import Parser, context, count, output, path, positive_int

QUANTIZE = ("none", "int8", "int8_dynamic")
CLIENTS = ("sherpa-onnx", "onnxruntime")


@cli
def main(argv=None):
    """Run the command line."""
    parser = Parser(description=__doc__)
    shared.add_model(parser)
    shared.add_threads(parser)
    parser.option("output", output, help="directory to make", required=True)
    parser.option("chunk_size", positive_int, help="encoder frames per step [the model's own]")
    parser.option("left_context", context, help="encoder frames before [the model's own]")
    parser.option("quantize", default="none", choices=QUANTIZE, help="also model.int8.onnx")
    parser.option("client", default=CLIENTS[0], choices=CLIENTS, help="what will run it")
    parser.option("wav_scp", path, help="recordings to compare on [the model's validation set]")
    parser.option("num_utts", count, 10, "of them, 0 for all")
    args = parser.parse_args(argv)
    model = shared.model_files(args)
    model |= {"chunk_size": args.chunk_size, "left_context": args.left_context}
    import torch

    from espnet_ext.evaluate.process import commit
    from espnet_ext.export.model import export

    torch.set_num_threads(args.threads)
    certificate = export(
        args.output,
        model,
        quantize=args.quantize,
        client=args.client,
        recordings=_recordings(args, model["asr_train_config"]),
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
    from pathlib import Path

    from espnet_ext.data.kaldi import read_wavs
    from espnet_ext.relocate import read_training_config, validation_recordings

    scp = args.wav_scp
    if scp is None:
        scp = validation_recordings(read_training_config(config))
        if not Path(scp).is_file():
            return []
    return list(read_wavs(scp).values())[: args.num_utts or None]


if __name__ == "__main__":
    main()
