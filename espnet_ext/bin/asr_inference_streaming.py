"""Decode a data set as streams, with ESPnet's options and files for decoding.

Each recording is fed in packets; hypotheses are written as ESPnet's asr_inference writes them,
OUTPUT_DIR/1best_recog/{token,token_int,score,text}.
"""

import logging

from espnet_ext import model_options as shared
from espnet_ext.config import parse_with_file
from espnet_ext.data.kaldi import read_lines
from espnet_ext.errors import cli
from espnet_ext.options import Parser, count, output


@cli
def main(argv=None):
    parser = Parser(description=__doc__)
    shared.add_model(parser)
    shared.add_device(parser)
    parser.option("config", help="YAML file of options; the command line goes first")
    parser.option("output_dir", output, required=True)
    parser.option("data_path_and_name_and_type", help="WAV_SCP,speech,sound", required=True)
    parser.option("key_file", help="recordings to decode, one id per line [all]")
    shared.add_decoding(parser)
    parser.option("ngpu", count, 0, "0 for --device")
    parser.option("log_level", default="INFO", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
    args = parse_with_file(parser, argv, "config")
    model = shared.model_files(args) | shared.stream_options(args)
    if args.ngpu:
        model["device"] = "cuda"
    scp, ids = args.data_path_and_name_and_type.rsplit(",", 2)[0], None
    if args.key_file:
        ids = [line.split()[0] for line in read_lines(args.key_file) if line.strip()]
    from espnet_ext.evaluate.streams import decode

    logging.basicConfig(level=args.log_level, format="%(asctime)s %(levelname)s: %(message)s")
    decode(model, scp, args.output_dir, ids, args.packet_ms, args.offline, args.threads)


if __name__ == "__main__":
    main()
