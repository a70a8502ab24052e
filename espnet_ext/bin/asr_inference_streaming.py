"""Decode a data set as streams, with ESPnet's options and files for decoding.

Each recording is fed in packets; hypotheses are written as ESPnet's ``asr_inference`` writes them,
OUTPUT_DIR/{n}best_recog/{token,token_int,score,text}.
"""

import logging
import os
import sys
import time

import numpy as np
import torch
from espnet2.fileio.datadir_writer import DatadirWriter

import espnet_ext  # noqa: F401
from espnet_ext.audio import read_packets
from espnet_ext.config import read_config
from espnet_ext.data.kaldi import read_scp
from espnet_ext.errors import UserError, about, cli
from espnet_ext.inference import (
    StreamingSpeech2Text,
    add_model_options,
    add_search_options,
    model_options,
    packet_samples,
)
from espnet_ext.options import Parser, boolean, count, output, probability


def get_parser() -> Parser:
    """Options of this command line."""
    parser = Parser(description=__doc__.splitlines()[0])
    add_model_options(parser)
    parser.add_argument("--config", help="YAML file of options; the command line goes first")
    parser.add_argument("--output_dir", required=True, type=output)
    parser.add_argument("--ngpu", type=count, default=0, help="0 for CPU [%(default)s]")
    parser.add_argument("--data_path_and_name_and_type", required=True, help="WAV_SCP,speech,sound")
    parser.add_argument("--key_file", help="recordings to decode, one id per line [all]")
    add_search_options(parser)
    parser.add_argument(
        "--ctc_weight", type=probability, default=0.3, help="in rescoring [%(default)s]"
    )
    parser.add_argument("--rescore", type=boolean, default=False, help="attention rescoring")
    parser.add_argument(
        "--offline", type=boolean, default=False, help="the chunk-masked offline pass instead"
    )
    parser.add_argument(
        "--log_level", choices=("DEBUG", "INFO", "WARNING", "ERROR"), default="INFO"
    )
    return parser


def _with_config(parser, argv):
    """Arguments with the YAML file's values as defaults."""
    known, _ = parser.parse_known_args(argv)
    if known.config:
        parser.take_defaults(read_config(known.config), known.config)
    return parser.parse_args(argv)


def _recognise(speech2text, packets, offline):
    """The text of a recording in packets; of one without samples, none."""
    if offline:
        return speech2text.offline(np.concatenate([np.zeros(0, np.float32), *packets]))
    stream = speech2text.start()
    for packet in packets:
        speech2text(stream, packet)
    return speech2text(stream, is_final=True)


@cli
def main(argv=None):
    """Run the command line."""
    args = _with_config(get_parser(), argv)
    logging.basicConfig(level=args.log_level, format="%(asctime)s %(levelname)s: %(message)s")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    args.device = "cuda" if args.ngpu else args.device
    speech2text = StreamingSpeech2Text(
        **model_options(args),
        search=args.search,
        beam_size=args.beam_size,
        rescore=args.rescore,
        ctc_weight=args.ctc_weight,
    )
    fs, scp = speech2text.fs, args.data_path_and_name_and_type.rsplit(",", 2)[0]
    wavs = read_scp(scp)
    if args.key_file:
        with open(args.key_file, encoding="utf-8") as file:
            keys = [line.split()[0] for line in file if line.strip()]
        missing = [key for key in keys if key not in wavs]
        if missing:
            raise UserError(f"{scp}: has no {missing[0]}, which {args.key_file} asks for")
        wavs = {key: wavs[key] for key in keys}
    packet = packet_samples(args.packet_ms, fs)
    with DatadirWriter(args.output_dir) as writer:
        for utt, path in wavs.items():
            with about(utt):
                packets = list(read_packets(path, fs, packet))
                begun, audio = time.perf_counter(), sum(map(len, packets)) / fs
                result = _recognise(speech2text, packets, args.offline)
            seconds = time.perf_counter() - begun
            out = writer["1best_recog"]
            out["token"][utt] = " ".join(speech2text.converter.ids2tokens(result.tokens))
            out["token_int"][utt] = " ".join(map(str, result.tokens))
            out["score"][utt] = str(result.score)
            out["text"][utt] = result.text
            logging.info("%s: %.2f s in %.2f s: %s", utt, audio, seconds, result.text)


if __name__ == "__main__":
    sys.exit(main())
