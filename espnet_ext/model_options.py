"""Options about a model, its streams and its costs, each declared once for every command."""

import os
from argparse import Namespace

from espnet_ext.config import read_config
from espnet_ext.errors import UserError
from espnet_ext.options import (
    Parser,
    boolean,
    context,
    device,
    listed,
    maybe,
    name,
    packet_length,
    path,
    positive,
    positive_int,
    probability,
    take_defaults,
    text,
)
from espnet_ext.packing import CHECKPOINT, find_model

CACHE_DTYPES = ("float32", "bfloat16", "float16", "int8")


def add_device(parser: Parser) -> None:
    """Where a model runs."""
    parser.option("device", device, "cpu", "cpu or cuda")
    add_threads(parser)


def add_threads(parser: Parser) -> None:
    """How many threads there are."""
    parser.option(
        "threads",
        positive_int,
        os.environ.get("OMP_NUM_THREADS", "1"),
        "threads of a process on the CPU, as OMP_NUM_THREADS says",
    )


def add_checkpoint(parser: Parser) -> None:
    """Which checkpoint of a model's directory."""
    parser.option(
        "inference_asr_model", name, CHECKPOINT, "checkpoint in the directory of a trained model"
    )


def add_model(parser: Parser) -> None:
    """Which model: its directory, or ESPnet's two options."""
    parser.add_argument(
        "expdir",
        nargs="?",
        type=path,
        metavar="EXPDIR",
        help="directory of a trained or unpacked model",
    )
    add_checkpoint(parser)
    parser.option("asr_train_config", path, help="in place of EXPDIR: its config.yaml")
    parser.option("asr_model_file", path, help="and its checkpoint; random weights without one")


def model_files(args) -> dict:
    """The values of ``add_model`` as ``asr_train_config`` and ``asr_model_file``."""
    if bool(args.expdir) == bool(args.asr_train_config):
        raise UserError("give EXPDIR, or --asr_train_config with --asr_model_file")
    if args.expdir:
        return trained_files(args, args.expdir)
    return {"asr_train_config": args.asr_train_config, "asr_model_file": args.asr_model_file}


def trained_files(args, folder) -> dict:
    """What ``StreamingSpeech2Text`` takes of the directory of a trained or unpacked model."""
    config, checkpoint = find_model(folder, args.inference_asr_model)
    return {"asr_train_config": config, "asr_model_file": checkpoint}


def exported_files(args, folder) -> dict:
    """What ``StreamingSpeech2Text`` takes of the directory of an export."""
    name = args.inference_asr_model
    return {"asr_model_file": os.path.join(folder, "model.onnx" if name == CHECKPOINT else name)}


def add_stream(parser: Parser) -> None:
    """How a model streams."""
    parser.option("chunk_size", positive_int, help="encoder frames per chunk [the model's own]")
    parser.option(
        "left_context", context, help="encoder frames before a chunk, -1 all [the model's own]"
    )
    parser.option(
        "cache_dtype",
        default="float32",
        help="of keys and values",
        choices=CACHE_DTYPES,
    )


def add_ctc_search(parser: Parser) -> None:
    """How text is searched for while a stream runs."""
    parser.option("search", default="greedy", choices=("greedy", "beam"))
    parser.option("beam_size", positive_int, 10, "hypotheses")


def add_runtime(parser: Parser) -> None:
    """What computes."""
    parser.option("runtime", default="torch", choices=("torch", "onnxruntime"))


def add_endpoint(parser: Parser) -> None:
    """What ends an utterance."""
    parser.option("endpoint", positive, help="seconds of blank that end an utterance [its end]")


def add_search(parser: Parser) -> None:
    """In what packets a recording arrives, and how text is searched for."""
    parser.option("packet_ms", packet_length, 100, "packet length")
    add_ctc_search(parser)
    parser.option("rescore", boolean, False, "attention rescoring")
    parser.option("ctc_weight", probability, 0.3, "in rescoring")


def stream_options(args) -> dict:
    """The values of the options of streams as ``StreamingSpeech2Text`` takes them."""
    names = (
        "chunk_size left_context cache_dtype search beam_size rescore ctc_weight endpoint device "
        "runtime"
    )
    options = {key: getattr(args, key) for key in names.split() if hasattr(args, key)}
    if options.get("runtime") == "onnxruntime":  # PyTorch's threads are the whole process's
        options["threads"] = args.threads
    return options


def add_decoding(parser: Parser) -> None:
    """How a data set is decoded as streams."""
    add_stream(parser)
    add_search(parser)
    parser.option("offline", boolean, False, "the chunk-masked offline pass instead")


def add_costs(parser: Parser) -> None:
    """What is measured of a model."""
    parser.option("frames", positive_int, 1000, "encoder frames that fill the cache")
    parser.option("chunk_size", positive_int, 16, "encoder frames, where a config has none")
    parser.option("left_contexts", context, [64], "-1 is all; the last one is timed", nargs="+")
    parser.option("vocab_size", positive_int, 5000, "tokens, where a config has none")
    parser.option("num_utts", positive_int, 20, "recordings timed")
    parser.option("decoder_tokens", positive_int, 100, "for the decoder's ledger")
    parser.option("wav_scp", help="recordings to time; noise without it")
    parser.option("inference_config", help="YAML of decoding options")


def add_recipe(parser: Parser) -> None:
    """Which recipe, and how its models are decoded and measured."""
    parser.option(
        "corpus",
        name,
        help="the recipe egs2/<corpus>/asr1; librispeech_100 is the repository's own [that of the "
        "current directory, or librispeech_100]",
    )
    parser.option("expdir", path, "exp", "models")
    parser.option("dumpdir", path, "dump", "formatted data")
    add_checkpoint(parser)
    parser.option("inference_config", path, "conf/decode_asr.yaml", "decoding of whole recordings")
    parser.option("streaming_config", maybe(path), help="decoding of streams [greedy CTC search]")
    parser.option(
        "profile_config",
        maybe(path),
        help="what is measured [the recipe's conf/profile.yaml, or the repository's]",
    )
    parser.option("nj", positive_int, 2, "processes that decode streams")
    parser.option("run_args", listed(text), [], "more options of run.sh, in one word")
    add_device(parser)


def read_values(add, file=None) -> Namespace:
    """Values of the options that ``add`` declares, those of a YAML file first."""
    parser = Parser()
    add(parser)
    if file:
        take_defaults(parser, read_config(file), file)
    return parser.parse_args([])
