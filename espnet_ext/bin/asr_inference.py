"""ESPnet's ASR decoding with strict loading and cached keys and values.

A checkpoint that does not fit its config's model is refused. Beam search runs with the cached
scorers of ``espnet_ext.decoder``, which give ESPnet's hypotheses faster; ``--kv_cache false`` runs
ESPnet's own.
"""

from espnet2.bin import asr_inference
from espnet2.utils.types import str2bool

import espnet_ext  # noqa: F401
from espnet_ext.checkpoint import StrictASRTask
from espnet_ext.decoder import use_kv_cache
from espnet_ext.errors import cli

espnet_parser = asr_inference.get_parser
espnet_inference = asr_inference.inference
ESPnetSpeech2Text = asr_inference.Speech2Text


def get_parser():
    """ESPnet's parser, the percent signs of its help texts made printable, and ``--kv_cache``."""
    parser = espnet_parser()
    for action in parser._actions:
        if action.help and "%(" not in action.help:
            action.help = action.help.replace("%", "%%")
    parser.add_argument(
        "--kv_cache", type=str2bool, default=True, help="cache keys and values in beam search"
    )
    return parser


class Speech2Text(ESPnetSpeech2Text):
    """ESPnet's ``Speech2Text`` with cached scorers."""

    kv_cache = True

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        use_kv_cache(self, self.kv_cache)


def inference(kv_cache: bool = True, **kwargs):
    """ESPnet's ``inference`` with the option of this command line."""
    Speech2Text.kv_cache = kv_cache
    espnet_inference(**kwargs)


asr_inference.get_parser = get_parser
asr_inference.inference = inference
asr_inference.Speech2Text = Speech2Text
asr_inference.ASRTask = StrictASRTask
main = cli(asr_inference.main)

if __name__ == "__main__":
    main()
