"""ESPnet's ASR decoding with strict loading and cached keys and values.

A checkpoint that does not fit its config's model is refused. Beam search runs with the cached
scorers of ``espnet_ext.decoder``, which give ESPnet's hypotheses faster; ``--kv_cache false`` runs
ESPnet's own. Recordings longer than ``--max_segment`` are encoded whole and searched in pieces that
end in pauses (docs/long_audio.md).
"""

from espnet2.bin import asr_inference
from espnet2.train.iterable_dataset import DATA_TYPES

import espnet_ext  # noqa: F401
from espnet_ext.data.kaldi import read_scp
from espnet_ext.errors import cli
from espnet_ext.options import boolean, data_triple, declare, non_negative
from espnet_ext.streaming.offline import ESPnetSpeech2Text, Speech2Text

__all__ = ["ESPnetSpeech2Text", "Speech2Text", "get_parser", "inference", "main"]

espnet_parser = asr_inference.get_parser
espnet_inference = asr_inference.inference


def get_parser():
    """ESPnet's parser, the percent signs of its help texts made printable, and ``--kv_cache``."""
    parser = espnet_parser()
    for action in parser._actions:
        if action.help and "%(" not in action.help:
            action.help = action.help.replace("%", "%%")
    parser.add_argument(
        "--kv_cache", type=boolean, default=True, help="cache keys and values in beam search"
    )
    parser.add_argument(
        "--max_segment",
        type=non_negative,
        default=40,
        help="seconds; longer recordings are searched in pieces that end in pauses, 0: never",
    )
    declare(parser)
    return parser


def inference(kv_cache: bool = True, max_segment: float = 40, **kwargs):
    """ESPnet's ``inference`` with the options of this command line."""
    for path, _, kind in kwargs["data_path_and_name_and_type"]:
        if kind == "sound":
            read_scp(path)  # what is wrong with it is found before the model is loaded
    Speech2Text.kv_cache = kv_cache
    Speech2Text.max_segment = max_segment
    try:
        espnet_inference(**kwargs)
    finally:
        Speech2Text.names = None


DATA_TYPES["sound"] = str  # of a path, read where the utterance is known
asr_inference.get_parser = get_parser
asr_inference.inference = inference
asr_inference.Speech2Text = Speech2Text
asr_inference.str2triple_str = data_triple  # a path may hold commas
main = cli(asr_inference.main)

if __name__ == "__main__":
    main()
