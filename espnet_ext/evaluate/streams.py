"""Decode the recordings of a data set as streams, and certify that this equals the offline pass."""

import logging
import math
import time

import numpy as np
import torch
from espnet2.fileio.datadir_writer import DatadirWriter

from espnet_ext.audio import read_audio, read_packets
from espnet_ext.data.kaldi import read_wavs
from espnet_ext.errors import UserError, about
from espnet_ext.streaming.equivalence import TOLERANCE, compare
from espnet_ext.streaming.speech2text import StreamingSpeech2Text, packet_samples
from espnet_ext.streaming.transcriber import Result


def decode(
    model: dict,
    wav_scp,
    output_dir,
    ids: list[str] | None = None,
    packet_ms: float = 100,
    offline: bool = False,
    threads: int = 1,
) -> dict[str, Result]:
    """Decode recordings as streams and write ``OUTPUT_DIR/1best_recog`` as ESPnet does.

    Args:
        model: Arguments of ``StreamingSpeech2Text``.
        wav_scp: Table of the recordings.
        output_dir: Gets ``1best_recog/{token,token_int,score,text}``.
        ids: Of the recordings to decode; all without it.
        packet_ms: Length of a packet in milliseconds.
        offline: Decode by the chunk-masked offline pass instead.
        threads: Of the CPU.

    Returns:
        The result of every recording.

    Raises:
        UserError: The model cannot stream, or a recording is of no use; the message names it.
    """
    torch.set_num_threads(threads)
    speech2text = StreamingSpeech2Text(**model)
    fs, wavs, results = speech2text.fs, read_wavs(wav_scp), {}
    ids = list(wavs) if ids is None else ids
    if missing := [utt for utt in ids if utt not in wavs]:
        raise UserError(f"{wav_scp}: has no {missing[0]}, which is to be decoded")
    packet = packet_samples(packet_ms, fs)
    with DatadirWriter(output_dir) as writer:
        for utt in ids:
            with about(utt):
                packets = list(read_packets(wavs[utt], fs, packet))
                begun, audio = time.perf_counter(), sum(map(len, packets)) / fs
                result = results[utt] = recognise(speech2text, packets, offline)
            seconds = time.perf_counter() - begun
            out = writer["1best_recog"]
            out["token"][utt] = " ".join(speech2text.converter.ids2tokens(result.tokens))
            out["token_int"][utt] = " ".join(map(str, result.tokens))
            out["score"][utt] = str(result.score)
            out["text"][utt] = result.text
            logging.info("%s: %.2f s in %.2f s: %s", utt, audio, seconds, result.text)
    return results


def recognise(speech2text, packets, offline: bool = False) -> Result:
    """The text of a recording in packets; of one without samples, none."""
    if offline:
        return speech2text.offline(np.concatenate([np.zeros(0, np.float32), *packets]))
    stream = speech2text.start()
    for packet in packets:
        speech2text(stream, packet)
    return speech2text(stream, is_final=True)


def certify(
    model: dict,
    wav_scp,
    num_utts: int = 10,
    packet_ms: tuple[float, ...] = (10, 70, 640),
    threads: int = 1,
) -> dict:
    """Compare a model's streams with its chunk-masked offline pass on recordings.

    Args:
        model: Arguments of ``StreamingSpeech2Text``.
        wav_scp: Table of the recordings.
        num_utts: How many of them, the first ones; 0 for all.
        packet_ms: Lengths of packets in milliseconds, each tried on every recording.
        threads: Of the CPU.

    Returns:
        The content of ``equivalence.json``; ``equal`` is the verdict.

    Raises:
        UserError: The model cannot stream, or no recording is of use.
    """
    torch.set_num_threads(threads)
    speech2text = StreamingSpeech2Text(**model)
    wavs = dict(list(read_wavs(wav_scp).items())[: num_utts or None])
    if not wavs:
        raise UserError(f"{wav_scp}: has no recordings")
    packets = [packet_samples(ms, speech2text.fs) for ms in packet_ms]
    differing, compared = set(), set()

    def errors():
        worst = {"features": 0.0, "encoder": 0.0, "logits": 0.0}
        layers = [0.0] * len(speech2text.model.encoder.encoders)
        for utt, path in wavs.items():
            samples = read_audio(path, speech2text.fs)
            for packet in packets:
                with about(utt):
                    found = compare(speech2text, samples, packet)
                if found["frames"]:
                    compared.add(utt)
                worst = {name: max(error, found[name]) for name, error in worst.items()}
                layers = [max(pair) for pair in zip(layers, found["layers"], strict=True)]
                if found["text"] != found["offline_text"]:
                    differing.add(utt)
        return worst | {"layers": layers}

    found, verdict = {"float32": errors()}, "float32"
    if not compared:
        raise UserError(f"{wav_scp}: no recording is long enough for any text")
    cache_dtype = model.get("cache_dtype", "float32")
    if cache_dtype == verdict:
        verdict = "float64"
        speech2text.model.double()
        speech2text.options["dtype"] = torch.float64
        found[verdict] = errors()
    return {
        "version": 2,
        "equal": not differing and largest_error(found[verdict]) < TOLERANCE[verdict],
        "tolerance": {verdict: TOLERANCE[verdict]},
        "max_error": _finite(found["float32"]),
        "max_error_float64": _finite(found.get("float64")),
        "text_identical": not differing,
        "differing_texts": sorted(differing),
        "utterances": len(compared),
        "packet_ms": list(packet_ms),
        "chunk_size": speech2text.chunk_size,
        "left_context": speech2text.left_context,
        "cache_dtype": cache_dtype,
        "device": speech2text.device,
        "asr_train_config": str(model["asr_train_config"]),
        "asr_model_file": model.get("asr_model_file") and str(model["asr_model_file"]),
    }


def largest_error(errors: dict) -> float:
    """The largest of the errors that a certificate lists; infinite where one is missing."""
    values = [errors["features"], errors["encoder"], errors["logits"], *errors["layers"]]
    return max(math.inf if value is None else value for value in values)


def _finite(errors):
    """The errors as JSON takes them: null for what is not finite."""
    if isinstance(errors, dict):
        return {key: _finite(error) for key, error in errors.items()}
    if isinstance(errors, list):
        return [_finite(error) for error in errors]
    return errors if errors is None or math.isfinite(errors) else None
