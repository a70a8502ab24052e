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
ADAPTED_ON = 500  # recordings, the most


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
    parser.option("train_scp", path, help="recordings to map on [the model's training set]")
    parser.option("wav_scp", path, help="recordings to compare on [the model's validation set]")
    parser.option("num_utts", count, 10, "of them, 0 for all")
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
    """Files to compare on, and those to adapt and to count words on."""
    from pathlib import Path

    from espnet_ext.data.kaldi import at_even_distances, read_scp, read_wavs
    from espnet_ext.relocate import data_table, read_training_config

    content = read_training_config(config)

    def table(read, *which):
        """A table that the model was trained with, empty where it is not here."""
        found = data_table(content, *which)
        return read(found) if Path(found).is_file() else {}

    def adapt():
        train = read_wavs(args.train_scp) if args.train_scp else table(read_wavs, "train")
        if not train:
            raise UserError(
                f"{config}: train_data_path_and_name_and_type: no recordings here to adapt on; go "
                "to the recipe's directory, or name some with --train_scp"
            )
        wavs, texts = table(read_wavs, "valid"), table(read_scp, "valid", "text")
        counted = at_even_distances(list(wavs), ADAPTED_ON)
        valid = {key: (wavs[key], texts[key]) for key in counted if texts.get(key)}
        return at_even_distances(list(train.values()), ADAPTED_ON), valid

    if args.train_scp and not args.adapt_features:
        raise UserError("train_scp: recordings to adapt on, give --adapt_features too")
    wavs = read_wavs(args.wav_scp) if args.wav_scp else table(read_wavs, "valid")
    recordings = list(wavs.values())[: args.num_utts or None]
    return {"recordings": recordings, "adapt": adapt if args.adapt_features else None}


if __name__ == "__main__":
    main()
