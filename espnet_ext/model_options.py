"""Options about a model, its streams and its costs, each declared once for every command."""

import os
from argparse import Namespace

from espnet_ext.config import read_yaml
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
    positive_int,
    probability,
    text,
)
from espnet_ext.packing import CHECKPOINT, find_model


def add_device(parser: Parser) -> None:
    """Where a model runs."""
    parser.add_argument("--device", type=device, default="cpu", help="cpu or cuda [%(default)s]")
    parser.add_argument(
        "--threads",
        type=positive_int,
        default=os.environ.get("OMP_NUM_THREADS", "1"),
        help="threads of a process on the CPU [OMP_NUM_THREADS, or 1]",
    )


def add_checkpoint(parser: Parser) -> None:
    """Which checkpoint of a model's directory."""
    parser.add_argument(
        "--inference_asr_model",
        type=name,
        default=CHECKPOINT,
        help="checkpoint in the directory of a trained model [%(default)s]",
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
    parser.add_argument("--asr_train_config", type=path, help="in place of EXPDIR: its config.yaml")
    parser.add_argument(
        "--asr_model_file", type=path, help="and its checkpoint; random weights without one"
    )


def model_files(args) -> dict:
    """The values of ``add_model`` as ``asr_train_config`` and ``asr_model_file``."""
    if bool(args.expdir) == bool(args.asr_train_config):
        raise UserError("give EXPDIR, or --asr_train_config with --asr_model_file")
    files = args.asr_train_config, args.asr_model_file
    if args.expdir:
        files = find_model(args.expdir, args.inference_asr_model)
    return dict(zip(("asr_train_config", "asr_model_file"), files, strict=True))


def add_stream(parser: Parser) -> None:
    """How a model streams."""
    parser.add_argument(
        "--chunk_size", type=positive_int, help="encoder frames per step [the model's own]"
    )
    parser.add_argument(
        "--left_context",
        type=context,
        help="encoder frames before a chunk, -1 all [the model's own]",
    )
    parser.add_argument(
        "--cache_dtype",
        choices=("float32", "bfloat16", "float16", "int8"),
        default="float32",
        help="of keys and values [%(default)s]",
    )


def add_search(parser: Parser) -> None:
    """In what packets a recording arrives, and how text is searched for."""
    parser.add_argument(
        "--packet_ms", type=packet_length, default=100, help="packet length [%(default)s]"
    )
    parser.add_argument(
        "--search", choices=("greedy", "beam"), default="greedy", help="[%(default)s]"
    )
    parser.add_argument(
        "--beam_size", type=positive_int, default=10, help="hypotheses [%(default)s]"
    )
    parser.add_argument("--rescore", type=boolean, default=False, help="attention rescoring")
    parser.add_argument(
        "--ctc_weight", type=probability, default=0.3, help="in rescoring [%(default)s]"
    )


def stream_options(args) -> dict:
    """The values of ``add_stream`` and ``add_search`` as ``StreamingSpeech2Text`` takes them."""
    names = "chunk_size left_context cache_dtype search beam_size rescore ctc_weight device".split()
    return {key: getattr(args, key) for key in names if hasattr(args, key)}


def add_decoding(parser: Parser) -> None:
    """How a data set is decoded as streams."""
    add_stream(parser)
    add_search(parser)
    parser.add_argument(
        "--offline", type=boolean, default=False, help="the chunk-masked offline pass instead"
    )


def add_costs(parser: Parser) -> None:
    """What is measured of a model."""
    parser.add_argument(
        "--frames", type=positive_int, default=1000, help="encoder frames [%(default)s]"
    )
    parser.add_argument(
        "--chunk_size", type=positive_int, default=16, help="where a config has none"
    )
    parser.add_argument("--left_contexts", type=context, nargs="+", default=[64], help="-1 is all")
    parser.add_argument(
        "--vocab_size", type=positive_int, default=5000, help="tokens [%(default)s]"
    )
    parser.add_argument(
        "--num_utts", type=positive_int, default=20, help="recordings timed [%(default)s]"
    )
    parser.add_argument(
        "--decoder_tokens", type=positive_int, default=100, help="for the decoder's ledger"
    )
    parser.add_argument("--wav_scp", help="recordings to time; noise without it")
    parser.add_argument("--inference_config", help="YAML of decoding options")


def add_recipe(parser: Parser) -> None:
    """Which recipe, and how its models are decoded and measured."""
    parser.add_argument(
        "--corpus",
        type=name,
        default="librispeech_100",
        help="the recipe egs2/<corpus>/asr1, or the repository's own [%(default)s]",
    )
    parser.add_argument("--expdir", type=path, default="exp", help="models [%(default)s]")
    parser.add_argument("--dumpdir", type=path, default="dump", help="formatted data [%(default)s]")
    add_checkpoint(parser)
    parser.add_argument(
        "--inference_config",
        type=path,
        default="conf/decode_asr.yaml",
        help="decoding of whole recordings [%(default)s]",
    )
    parser.add_argument(
        "--streaming_config", type=maybe(path), help="decoding of streams [greedy CTC search]"
    )
    parser.add_argument(
        "--profile_config",
        type=maybe(path),
        help="what is measured [the recipe's conf/profile.yaml, or the repository's]",
    )
    parser.add_argument(
        "--nj", type=positive_int, default=2, help="processes that decode streams [%(default)s]"
    )
    parser.add_argument(
        "--run_args", type=listed(text), default=[], help="more options of run.sh, in one word"
    )
    add_device(parser)


def read_values(add, file=None) -> Namespace:
    """Values of the options that ``add`` declares, those of a YAML file first."""
    parser = Parser()
    add(parser)
    if file:
        parser.take_defaults(read_yaml(file), file)
    return parser.parse_args([])
