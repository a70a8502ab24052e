"""Export a trained model as ONNX files that onnxruntime and the stock sherpa-onnx stream.

OUTPUT gets model.onnx (with --quantize int8 also model.int8.onnx), tokens.txt, features.npz, a
README with the commands that run it, and a certificate of how it compares with the model's own
streaming; whole or not at all. The attention decoder is left out: text is the CTC's.
"""

from espnet_ext import model_options as shared
from espnet_ext.errors import UserError, cli
from espnet_ext.options import Parser, boolean, context, count, output, path, positive_int

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
    parser.option(
        "adapt_features",
        boolean,
        False,
        "map Kaldi's features to the model's log-mel, and print the WER before and after",
        nargs="?",
        const=True,
    )
    parser.option(
        "wav_scp",
        path,
        help="recordings to compare on [the model's validation set], or to adapt on [its training "
        "set]",
    )
    parser.option("num_utts", count, help="of them, 0 for all [10, to adapt 500]")
    args = parser.parse_args(argv)
    model = shared.model_files(args)
    model |= {"chunk_size": args.chunk_size, "left_context": args.left_context}
    import torch

    from espnet_ext.evaluate.process import commit
    from espnet_ext.export.model import adapted_words, export

    torch.set_num_threads(args.threads)
    certificate = export(
        args.output,
        model,
        quantize=args.quantize,
        client=args.client,
        commit=commit(args.output),
        **_data(args, model["asr_train_config"]),
    )
    print("The attention decoder is left out: text is the CTC's.")
    adapted = " of adapted features" if args.adapt_features else ""
    for name, worst in certificate["max_error"].items():
        print(
            f"{args.output}/{name}: log probabilities within {worst['log_probs']:.1e} of the "
            f"model's own streaming{adapted}, tokens of {worst['tokens_differ']} recordings differ "
            f"({certificate['recordings'] or 'noise, no'} recordings, {certificate['seconds']} s)"
        )
    if args.adapt_features:
        print(adapted_words(certificate["adapted"]))


def _data(args, config):
    """Files to compare on and to adapt on."""
    from pathlib import Path

    from espnet_ext.data.kaldi import read_scp, read_wavs
    from espnet_ext.relocate import read_training_config

    content = read_training_config(config)

    def table(part, name):
        """One of the tables that the model was trained with."""
        rows = content.get(f"{part}_data_path_and_name_and_type") or []
        found = next((path for path, kind, *_ in rows if kind == name), "")
        return read_scp(found) if Path(found).is_file() else {}

    if not args.adapt_features:
        most = 10 if args.num_utts is None else args.num_utts
        wavs = read_wavs(args.wav_scp) if args.wav_scp else table("valid", "speech")
        return {"recordings": list(wavs.values())[: most or None]}
    most = 500 if args.num_utts is None else args.num_utts
    wavs, texts = table("valid", "speech"), table("valid", "text")
    train = read_wavs(args.wav_scp) if args.wav_scp else table("train", "speech")
    if not train:
        raise UserError(
            f"{config}: train_data_path_and_name_and_type: no recordings here to adapt on; go to "
            "the recipe's directory, or name some with --wav_scp"
        )
    valid = {key: (wavs[key], texts[key]) for key in _spread(wavs, most) if texts.get(key)}
    train = [train[key] for key in _spread(train, most)]
    return {"recordings": list(wavs.values())[:10], "adapt": (train, valid)}


def _spread(table, most):
    """At most so many keys, of all speakers of a sorted table; 0 for all."""
    keys = list(table)
    return keys[:: -(-len(keys) // most)] if most and keys else keys


if __name__ == "__main__":
    main()
