"""Text of whole recordings: ESPnet's recogniser, with this package's caches and checks."""

import logging
import math
from contextlib import nullcontext
from functools import partial

import torch
from espnet2.bin import asr_inference
from espnet2.legacy.nets.beam_search import Hypothesis
from espnet2.legacy.nets.pytorch_backend.transformer.subsampling import TooShortUttError
from espnet2.legacy.nets.scorers.ctc import CTCPrefixScorer
from espnet2.text.sentencepiece_tokenizer import SentencepiecesTokenizer
from espnet2.torch_utils.device_funcs import is_out_of_memory_error, release_accelerator_memory
from torch.nn.utils.rnn import pad_sequence

import espnet_ext  # noqa: F401
from espnet_ext.audio import mono, read_channels, waveform
from espnet_ext.checkpoint import StrictASRTask, StrictLMTask
from espnet_ext.config import building
from espnet_ext.data.tokens import load_bpe
from espnet_ext.decoder import use_kv_cache
from espnet_ext.errors import UserError, about, check_number
from espnet_ext.frontend import front_end
from espnet_ext.streaming.long_audio import LongAudio
from espnet_ext.utterance import check_finite, encode, has_features

ESPnetSpeech2Text = asr_inference.Speech2Text


def hears_one_channel(args) -> bool:
    """Whether the model of a training run's options reads recordings of one channel."""
    conf = (args.frontend_conf or {}).get("frontend_conf") or {}
    return bool(args.frontend) and not (conf.get("use_wpe") or conf.get("use_beamformer"))


class Speech2Text(ESPnetSpeech2Text):
    """ESPnet's ``Speech2Text`` with cached scorers, for recordings of any length.

    What is too short for an encoder frame has no text, alone and in a batch, and the channels of a
    recording are averaged. A batch is encoded one by one, as padding would change what the encoder
    makes of the ends, and searched together: its texts are those of the utterances alone.

    Attributes:
        names: Of the utterances that are decoded next, for messages; None to count them.
        rate: Hz of recordings, of the model that was loaded last; None where it is not known.
    """

    kv_cache = True
    max_segment = 40.0
    names = None
    rate = None

    def __init__(self, *args, **kwargs):
        if kwargs.get("lm_file") and not kwargs.get("lm_train_config"):
            raise UserError(f"{kwargs['lm_file']}: lm_file: needs lm_train_config beside it")
        with building(args[0] if args else kwargs.get("asr_train_config")):
            super().__init__(*args, **kwargs)
            if isinstance(self.tokenizer, SentencepiecesTokenizer):
                load_bpe(self.tokenizer.model)
        self._check_options()
        use_kv_cache(self, self.kv_cache)
        scorers = getattr(self.beam_search, "scorers", {}).values()
        if self.dtype == "float16" and any(type(s) is CTCPrefixScorer for s in scorers):
            raise UserError("dtype: float16 is too narrow for ESPnet's CTC scores, use float32")
        self.long_audio = LongAudio(self, self.max_segment)
        front = front_end(self.asr_model.frontend)
        Speech2Text.rate = front and front.fs

    def _check_options(self):
        weights = getattr(self.beam_search, "weights", {})
        if not 0 <= weights.get("ctc", 0) <= 1:
            raise UserError(f"ctc_weight: must be 0 to 1, got {weights['ctc']:g}")
        numbers = {"penalty": weights.get("length_bonus", 0)}
        numbers |= {f"{name}_weight": weights.get(name, 0) for name in ("lm", "ngram")}
        numbers |= {"maxlenratio": self.maxlenratio, "minlenratio": self.minlenratio}
        for name, value in numbers.items():
            if not math.isfinite(value):
                raise UserError(f"{name}: must be a number, got {value:g}")
        beam_size = getattr(self.beam_search or self.beam_search_transducer, "beam_size", 1)
        for name, value in {"beam_size": beam_size, "nbest": self.nbest}.items():
            if value < 1:
                raise UserError(f"{name}: must be at least 1, got {value}")

    def __call__(self, speech):
        """Decode one waveform (n,) or (n, channels), or a list of them; see ESPnet's method.

        Raises:
            UserError: Samples or scores are not numbers, or the recording cannot be decoded.
        """
        if isinstance(speech, (list, tuple)):
            return self.batch_decode(speech)
        with about(self.names[0]) if self.names else nullcontext():
            return self._decode(self._input(speech))

    @torch.no_grad()
    def batch_decode(self, speech, speech_lengths=None):
        """Decode several waveforms; see ESPnet's method. Long ones are decoded one by one.

        Raises:
            UserError: As above; the message names the utterance, or counts it from 1.
        """
        if speech_lengths is not None:
            speech = [w[: int(n)] for w, n in zip(speech, speech_lengths, strict=True)]
        names = self.names or [f"utterance {i + 1}" for i in range(len(speech))]
        results, encoded = [None] * len(speech), {}
        for i, (name, wave) in enumerate(zip(names, speech, strict=True)):
            with about(name):
                wave = self._input(wave)
                if self.long_audio.takes(len(wave)) or not self._can_batch_decode():
                    results[i] = self._decode(wave)
                    continue
                logging.info(f"speech length: {len(wave)}")  # ESPnet's calculate_rtf.py reads it
                y = encode(self.asr_model, wave.to(self.device))
                check_finite(y)
                if len(y):
                    encoded[i] = y
                else:
                    results[i] = self._no_text()
        for i, hyps in zip(encoded, self._search(list(encoded.values())), strict=True):
            with about(names[i]):
                results[i] = self._checked(self._hyps_to_results(hyps))
        return results

    def _search(self, encoded):
        """One beam search over encoder outputs (T, n_feat), or two where memory is too small."""
        if not encoded:
            return []
        for module in self.beam_search.modules():  # as ESPnet prepares its S4 decoder
            if hasattr(module, "setup_step"):
                module.setup_step()
        try:
            return self.beam_search(
                x=pad_sequence(encoded, batch_first=True),
                x_lengths=torch.tensor([len(y) for y in encoded], device=self.device),
                maxlenratio=self.maxlenratio,
                minlenratio=self.minlenratio,
            )
        except RuntimeError as error:
            if len(encoded) == 1 or not is_out_of_memory_error(error):
                raise
        release_accelerator_memory()
        half = len(encoded) // 2
        logging.warning(f"out of memory: a batch of {len(encoded)} is searched in two halves")
        return self._search(encoded[:half]) + self._search(encoded[half:])

    def _input(self, speech):
        if hears_one_channel(self.asr_train_args):
            return waveform(speech, getattr(torch, self.dtype))
        return torch.as_tensor(speech).to(getattr(torch, self.dtype))

    def _decode(self, wave):
        """N-best list of what ``_input`` has made of an utterance."""
        if self.long_audio.takes(len(wave)):
            return self._checked(self.long_audio(wave))
        several = self.enh_s2t_task or self.multi_asr
        try:
            if several or has_features(self.asr_model, len(wave)):
                found = super().__call__(wave)
                return found if several else self._checked(found)
        except TooShortUttError:
            if several:
                raise
        return self._no_text()

    def _decode_single_sample(self, enc):
        check_finite(enc)
        return super()._decode_single_sample(enc)

    def _hyps_to_results(self, nbest_hyps):
        if not nbest_hyps:
            logging.warning("no hypothesis has ended: no text; lower minlenratio")
            return self._no_text()
        return super()._hyps_to_results(nbest_hyps)

    def _no_text(self):
        """The n-best list of an utterance in which there is nothing to hear."""
        hyp = Hypothesis(yseq=torch.tensor([], dtype=torch.long), score=0.0)
        return [(None if self.tokenizer is None else "", [], [], hyp)]

    def _checked(self, found):
        """An n-best list, with what an encoder's inner layers found, less scores of no number."""
        nbest = found[0] if isinstance(found, tuple) else found
        check_number(float(nbest[0][3].score))
        nbest[:] = [result for result in nbest if math.isfinite(result[3].score)]
        return found


class DecodingTask(StrictASRTask):
    """The ASR task as the decoding loop asks it for a model and for data."""

    tokens = ()

    @classmethod
    def build_model_from_file(cls, *args, **kwargs):
        """Build and load a model, whose tokens a language model must have; see ESPnet's method."""
        model, options = super().build_model_from_file(*args, **kwargs)
        DecodingTask.tokens = model.token_list
        return model, options

    @classmethod
    def build_preprocess_fn(cls, args, train):
        """Recordings, as one channel where the model hears one, and ESPnet's preprocessing."""
        preprocess = super().build_preprocess_fn(args, train)
        return partial(_read, preprocess, hears_one_channel(args), Speech2Text.rate)

    @classmethod
    def build_streaming_iterator(cls, *args, **kwargs):
        """ESPnet's batches, whose ids are told to ``Speech2Text``."""
        for keys, batch in super().build_streaming_iterator(*args, **kwargs):
            Speech2Text.names = keys
            yield keys, batch


class DecodingLMTask(StrictLMTask):
    """The task of language models, of those that know the tokens of the model beside them."""

    @classmethod
    def build_model_from_file(cls, config_file=None, model_file=None, device="cpu"):
        """Build and load a language model; see ESPnet's method."""
        model, args = super().build_model_from_file(config_file, model_file, device)
        if list(args.token_list) != list(DecodingTask.tokens):
            raise UserError(
                f"{config_file}: token_list: differs from the ASR model's; train the language "
                "model on the same tokens"
            )
        return model, args


def _read(preprocess, to_mono, rate, uid, data):
    if isinstance(data.get("speech"), str):
        with about(uid):
            data["speech"] = read_channels(data["speech"], rate)
    if to_mono and "speech" in data:
        data["speech"] = mono(data["speech"])
    return data if preprocess is None else preprocess(uid, data)


asr_inference.ASRTask = DecodingTask  # where its recogniser and its loop look the task up
asr_inference.LMTask = DecodingLMTask
