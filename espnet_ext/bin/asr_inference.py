"""ESPnet's ASR decoding with strict loading and cached keys and values.

A checkpoint that does not fit its config's model is refused. Beam search runs with the cached
scorers of ``espnet_ext.decoder``, which give ESPnet's hypotheses faster; ``--kv_cache false`` runs
ESPnet's own. Recordings longer than ``--max_segment`` are encoded whole and searched in pieces that
end in pauses (docs/long_audio.md).
"""

import numpy as np
import torch
from espnet2.bin import asr_inference

import espnet_ext  # noqa: F401
from espnet_ext.checkpoint import StrictASRTask
from espnet_ext.decoder import use_kv_cache
from espnet_ext.errors import cli
from espnet_ext.long_audio import LongAudio
from espnet_ext.options import boolean, data_triple, declare, non_negative

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


class Speech2Text(ESPnetSpeech2Text):
    """ESPnet's ``Speech2Text`` with cached scorers, for recordings of any length."""

    kv_cache = True
    max_segment = 40.0

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        use_kv_cache(self, self.kv_cache)
        self.long_audio = LongAudio(self, self.max_segment)

    def __call__(self, speech):
        """Decode one waveform (n,), or a list of them; see ESPnet's method."""
        if isinstance(speech, (np.ndarray, torch.Tensor)):
            speech = torch.as_tensor(speech)
            if self.long_audio.takes(speech.size(0)):
                return self.long_audio(speech)
        return super().__call__(speech)

    def batch_decode(self, speech, speech_lengths=None):
        """Decode several waveforms; see ESPnet's method. Long ones are decoded one by one."""
        if speech_lengths is None:
            lengths = [len(wave) for wave in speech]
        else:
            lengths = [int(n) for n in speech_lengths]
        if any([self.long_audio.takes(n) for n in lengths]):
            return [self(torch.as_tensor(w)[:n]) for w, n in zip(speech, lengths, strict=True)]
        return super().batch_decode(speech, speech_lengths)


def inference(kv_cache: bool = True, max_segment: float = 40, **kwargs):
    """ESPnet's ``inference`` with the options of this command line."""
    Speech2Text.kv_cache = kv_cache
    Speech2Text.max_segment = max_segment
    espnet_inference(**kwargs)


asr_inference.get_parser = get_parser
asr_inference.inference = inference
asr_inference.Speech2Text = Speech2Text
asr_inference.ASRTask = StrictASRTask
asr_inference.str2triple_str = data_triple  # a path may hold commas
main = cli(asr_inference.main)

if __name__ == "__main__":
    main()
