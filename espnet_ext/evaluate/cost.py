"""Latency, memory and arithmetic of a model, measured on recordings in a fresh process."""

import inspect
import os
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import yaml
from torch.nn.attention import SDPBackend, sdpa_kernel

from espnet_ext.audio import read_audio
from espnet_ext.config import read_config
from espnet_ext.data.kaldi import read_wavs
from espnet_ext.errors import UserError, about
from espnet_ext.evaluate.cache import chunk_samples, measure_cache, stream_noise
from espnet_ext.evaluate.models import (
    VERSION,
    build_encoder,
    complete,
    describe,
    read_model_config,
    with_encoder_conf,
    with_input_cache,
)
from espnet_ext.evaluate.process import PeakMemory, commit, device_name
from espnet_ext.evaluate.products import ProductCounter
from espnet_ext.evaluate.training import sampling_rate
from espnet_ext.frontend import FrontEnd, known_front_end
from espnet_ext.relocate import check_files

#: seconds of noise that stand in for recordings where none are given
NOISE_SECONDS = (2.0, 4.0, 8.0)
#: tokens per encoder frame of hypotheses of random weights, which would never end by themselves
RANDOM_TOKENS = 0.1
#: seconds of audio that multiply-adds are counted on
COUNTED_SECONDS = 10


def profile(
    path,
    model_file=None,
    wav_scp=None,
    inference_config=None,
    frames=1000,
    chunk_size=16,
    left_contexts=(64,),
    num_utts=20,
    decoder_tokens=100,
    vocab_size=5000,
    device="cpu",
    threads=1,
) -> dict:
    """Measure everything about one model. Call it in a process that has done nothing else.

    Args:
        path: config.yaml of a training run, or a YAML of conf/ for random weights.
        model_file: Checkpoint; random weights without one.
        wav_scp: Recordings; noise without it.
        inference_config: YAML of decoding options for the offline pass.
        frames: Encoder frames of the cache figures.
        chunk_size: Encoder frames per chunk where the config says none.
        left_contexts: Encoder frames before a chunk, -1 for all; the last one is timed.
        num_utts: Recordings timed, spread evenly over ``wav_scp``.
        decoder_tokens: Tokens per hypothesis of the decoder's ledger.
        vocab_size: Tokens of a model from conf/.
        device: ``cpu`` or ``cuda``.
        threads: Of the CPU.

    Returns:
        The object that docs/profiling.md describes.

    Raises:
        UserError: The config, checkpoint or a recording is of no use; the message names it.
    """
    load_average = os.getloadavg()[0]
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    config = read_model_config(path)
    check_files(config, path)
    full = complete(config, vocab_size)
    recordings = _recordings(wav_scp, sampling_rate(full), num_utts)
    decoding = read_config(inference_config) if inference_config else {}
    speech2text = _load_offline(full, model_file, decoding, device)
    with about(path):
        front = known_front_end(speech2text.asr_model.frontend)
    offline = _offline(speech2text, recordings, front.fs, device)
    model_parameters = sum(p.numel() for p in speech2text.asr_model.parameters())
    decoder = _decoder_ledger(speech2text, frames, decoder_tokens)
    del speech2text

    def stream_costs(config, full):
        cache = measure_cache(config, frames, chunk_size, list(left_contexts))
        timed = cache["streams"][-1]
        return {
            "cache": cache,
            **_streaming(full, model_file, recordings, timed, device),
            "multiply_adds": multiply_adds(config, timed, front),
        }

    result = {
        "version": VERSION,
        **describe(config, path),
        "parameters": {"model": model_parameters},
        "offline": offline,
        "decoder": decoder,
        **stream_costs(config, full),
    }
    result["parameters"]["encoder"] = result["cache"].pop("parameters")
    if lossless := with_input_cache(config):
        result["input_cache"] = stream_costs(lossless, with_input_cache(full))
    return result | {
        "commit": commit(),
        "device": device_name(device),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "load_average": load_average,
    }


def _recordings(wav_scp, fs, num_utts):
    """Waveforms, the longest first: it is the one whose memory counts."""
    if wav_scp is None:
        generator = np.random.default_rng(0)
        waves = [generator.normal(0, 0.1, int(s * fs)).astype(np.float32) for s in NOISE_SECONDS]
    else:
        paths = list(read_wavs(wav_scp).values())
        if not paths:
            raise UserError(f"{wav_scp}: has no recordings")
        chosen = np.linspace(0, len(paths) - 1, min(num_utts, len(paths))).astype(int)
        waves = [wave for i in chosen if len(wave := read_audio(paths[i], fs))]
        if not waves:
            raise UserError(f"{wav_scp}: has no samples in any recording")
    return sorted(waves, key=len, reverse=True)


def _timed(device, function, *args):
    """Milliseconds of a call."""
    begun = time.perf_counter()
    function(*args)
    if device != "cpu":
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - begun)


@contextmanager
def _config_file(config):
    """Path of a file that holds a config."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "config.yaml"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        yield path


def _load_offline(full, model_file, decoding, device):
    """ESPnet's recogniser, loaded strictly, with this package's caches in the beam search."""
    from espnet_ext.streaming.offline import ESPnetSpeech2Text, Speech2Text

    known = inspect.signature(ESPnetSpeech2Text.__init__).parameters
    options = {key: value for key, value in decoding.items() if key in known}
    if model_file is None:
        options["maxlenratio"] = RANDOM_TOKENS
    with _config_file(full) as path:
        return Speech2Text(path, model_file, device=device, **options)


def _offline(speech2text, recordings, fs, device):
    """What recognising whole recordings costs."""
    memory = PeakMemory(device)
    speech2text(recordings[0])
    memory = memory.read()
    times = [_timed(device, speech2text, wave) for wave in recordings]
    audio_seconds = sum(map(len, recordings)) / fs
    return {
        "ms_per_utterance": float(np.mean(times)),
        "real_time_factor": sum(times) / 1000 / audio_seconds,
        "utterances": len(recordings),
        "audio_seconds": audio_seconds,
        "memory": memory,
    }


def _decoder_ledger(speech2text, frames, tokens):
    """Bytes of the decoder's caches in a beam search, or None for a decoder without them."""
    from espnet_ext.decoder import TransformerDecoder

    decoder = speech2text.asr_model.decoder
    if not isinstance(decoder, TransformerDecoder):
        return None
    beam = speech2text.beam_search.beam_size
    sizes = {"frames": frames, "tokens": tokens, "hypotheses": beam}
    return sizes | decoder.ledger(frames, tokens, beam)


def _streaming(full, model_file, recordings, timed, device):
    """``streaming``: what a live stream costs, or None and the reason in ``streaming_missing``."""
    from espnet_ext.streaming.speech2text import StreamingSpeech2Text

    try:
        with _config_file(with_encoder_conf(full, causal=True)) as path:
            speech2text = StreamingSpeech2Text(
                path,
                model_file,
                chunk_size=timed["chunk_size"],
                left_context=timed["left_context"],
                device=device,
            )
    except UserError as error:  # such as utterance_mvn, which needs the end to begin
        return {"streaming": None, "streaming_missing": str(error).partition(": ")[2]}
    encoder, front, fs = speech2text.model.encoder, speech2text.frontend.front, speech2text.fs
    chunk, waits = chunk_samples(encoder, front, speech2text.chunk_size)
    memory = PeakMemory(device)
    _stream(speech2text, recordings[0], chunk, device)
    memory = memory.read()
    packets = [p for wave in recordings for p in _stream(speech2text, wave, chunk, device)]
    steps = [ms for ms, frames in packets if frames == speech2text.chunk_size]
    if not steps:
        return {"streaming": None, "streaming_missing": "no recording is as long as two chunks"}
    median, p95 = (float(ms) for ms in np.percentile(steps, [50, 95]))
    audio_ms = 1000 * sum(map(len, recordings)) / fs
    streaming = {
        "chunk_size": speech2text.chunk_size,
        "left_context": speech2text.left_context,
        "rebuilt_causal": not full["encoder_conf"].get("causal", False),
        "ms_per_chunk_median": median,
        "ms_per_chunk_p95": p95,
        "chunks": len(steps),
        "real_time_factor": sum(ms for ms, _ in packets) / audio_ms,
        "first_token_ms": {
            "chunk": 1000 * chunk / fs,
            "lookahead": 1000 * (waits - chunk) / fs,
            "compute": median,
            "total": 1000 * waits / fs + median,
        },
        "memory": memory,
    }
    return {"streaming": streaming}


def _stream(speech2text, wave, chunk, device):
    """Feed one recording in packets: milliseconds of each, and the encoder frames it gave."""
    stream, packets = speech2text.start(), []
    for start in range(0, len(wave), chunk):
        stop, before = start + chunk, stream.encoder.frames
        ms = _timed(device, speech2text, stream, wave[start:stop], stop >= len(wave))
        packets.append((ms, stream.encoder.frames - before))
    return packets


@torch.no_grad()
def multiply_adds(config: dict, stream: dict, front: FrontEnd) -> dict:
    """Multiply-adds of the encoder per second of audio, matrix products and convolutions.

    Args:
        config: See ``read_model_config``.
        stream: ``chunk_size`` and ``left_context`` of the stream that is counted.
        front: The front end, whose frames the encoder reads.

    Returns:
        ``offline`` (one recording of 10 s, full context) and ``streaming`` (a chunk whose left
        context is full, or has 10 s where it is unlimited).
    """
    encoder = build_encoder(with_encoder_conf(config, causal=True, chunk_size=None))
    second = front.fs / front.hop  # feature frames
    n = int(COUNTED_SECONDS * second)
    feats = torch.randn(1, n, encoder.input_size)
    chunk_size, left = stream["chunk_size"], stream["left_context"]
    with sdpa_kernel(SDPBackend.MATH):  # fused attention is not counted on a CPU
        with ProductCounter() as offline:
            encoder(feats, torch.tensor([n]))
        past = left if left >= 0 else encoder.output_length(n)
        counts = []
        chunks = stream_noise(encoder, (-(-past // chunk_size) + 1) * chunk_size, chunk_size, left)
        while True:
            with ProductCounter() as counter:
                if next(chunks, None) is None:
                    break
            counts.append(counter.multiply_adds)
    step = encoder.input_length(2 * chunk_size) - encoder.input_length(chunk_size)
    return {
        "offline": offline.multiply_adds // COUNTED_SECONDS,
        "streaming": int(counts[-1] / (step / second)),
    }
