"""Word error rates of a trained model at many chunk sizes and left contexts.

Each cell is decoded by the chunk-masked offline pass and greedy CTC search, whose text is that of a
live stream (``certify`` shows it of a model), in a small part of a stream's time. The first cell is
streamed as well.
"""

import itertools
from functools import partial
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence

from espnet_ext.audio import read_audio, waveform
from espnet_ext.data.kaldi import read_scp, read_wavs
from espnet_ext.encoder.streaming import MAX_DYNAMIC_CHUNK, MAX_DYNAMIC_LEFT_CHUNKS
from espnet_ext.errors import UserError, about
from espnet_ext.evaluate.cache import chunk_samples, measure_cache, stream_noise
from espnet_ext.evaluate.models import (
    describe,
    read_model_config,
    with_encoder_conf,
    with_input_cache,
)
from espnet_ext.evaluate.process import commit, device_name
from espnet_ext.packing import find_model
from espnet_ext.report.schema import rounded
from espnet_ext.scoring import nesting, score
from espnet_ext.streaming import GreedySearch, StreamingSpeech2Text
from espnet_ext.streaming.pool import StreamPool
from espnet_ext.utterance import has_features

VERSION = 1
#: feature frames of a batch, padding included
BATCH_FRAMES = 8000
TOGETHER = 32  # streams
#: encoder frames that a stream has had whose left context is unlimited, where its bytes are counted
FRAMES = 1000


def in_trained_range(encoder_conf: dict, chunk_size: int, left_context: int) -> bool:
    """Whether the training of a model with such options saw this chunk size and left context."""
    if encoder_conf.get("dynamic_chunk"):
        widest = MAX_DYNAMIC_LEFT_CHUNKS * chunk_size
        return chunk_size <= MAX_DYNAMIC_CHUNK and left_context <= widest
    own = encoder_conf.get("chunk_size"), encoder_conf.get("left_context", -1)
    return own == (chunk_size, left_context)


@torch.no_grad()
def features(speech2text: StreamingSpeech2Text, wavs: dict) -> dict[str, torch.Tensor]:
    """Normalised features (t, n_mels) of recordings, none of what is too short for a frame.

    Raises:
        UserError: A recording is of no use; the message names it.
    """
    model, front = speech2text.model, speech2text.frontend.front
    found = {}
    for utt, path in wavs.items():
        with about(utt):
            samples = waveform(read_audio(path, front.fs), front.dtype, speech2text.device)
        if has_features(model, len(samples)):
            length = torch.tensor([len(samples)], device=samples.device)
            feats, frames = model._extract_feats(samples[None], length)
            if model.normalize is not None:
                feats, _ = model.normalize(feats, frames)
            found[utt] = feats[0]
        else:
            found[utt] = samples.new_zeros(0, front.n_mels)
    return found


def batches(feats: dict[str, torch.Tensor], most: int = BATCH_FRAMES) -> list[list[str]]:
    """Ids of utterances of like length, of at most so many frames with padding, or one of more."""
    made, batch = [], []
    for utt in sorted(feats, key=lambda utt: len(feats[utt])):
        if batch and (len(batch) + 1) * len(feats[utt]) > most:
            made.append(batch)
            batch = []
        batch.append(utt)
    return [*made, batch] if batch else made


@torch.no_grad()
def decode(speech2text, feats, chunk_size: int, left_context: int) -> dict[str, str]:
    """Text of each utterance by the chunk-masked offline pass and greedy CTC search.

    The model is causal, so that what follows an utterance changes nothing.

    Raises:
        UserError: The model's output is not a number; the message names the utterance.
    """
    model = speech2text.model
    encoder = model.encoder
    encoder.chunk_size, encoder.left_context = chunk_size, left_context
    texts = {utt: "" for utt in feats}  # what is too short for an encoder frame keeps that
    heard = {utt: x for utt, x in feats.items() if encoder.output_length(len(x))}
    for batch in batches(heard):
        rows = [heard[utt] for utt in batch]
        lengths = torch.tensor([len(row) for row in rows], device=rows[0].device)
        y, frames, _ = encoder(pad_sequence(rows, batch_first=True), lengths)
        y = y[0] if isinstance(y, tuple) else y
        log_probs = model.ctc.log_softmax(y).float().cpu().numpy()
        for utt, row, n in zip(batch, log_probs, frames.tolist(), strict=True):
            search = GreedySearch()
            with about(utt):
                search.extend(row[:n])
            words = speech2text.converter.ids2tokens(search.tokens)
            texts[utt] = speech2text.tokenizer.tokens2text(words)
    return texts


def streamed(speech2text, wavs: dict) -> dict[str, str]:
    """Text of each recording as a live stream, of which many are stepped together."""
    pool, texts = StreamPool(speech2text, max_batch=TOGETHER, max_waiting=10**9), {}
    for batch in itertools.batched(wavs.items(), TOGETHER):
        streams = {}
        for utt, path in batch:
            with about(utt):
                stream = pool.start()
                pool.push(stream, read_audio(path, speech2text.fs))
                pool.finish(stream)
                streams[stream] = utt
        while pool.streams:
            for stream, result in pool.step():
                with about(streams[stream]):
                    if isinstance(result, UserError):
                        raise result
                texts[streams[stream]] = result.text
    return texts


def same(texts: dict[str, str], others: dict[str, str]) -> dict[str, int]:
    """How many utterances there are, and how many have the same text in another decoding."""
    equal = sum(text == others[utt] for utt, text in texts.items())
    return {"utterances": len(texts), "same_text": equal}


@torch.no_grad()
def attention_bytes(speech2text, frames: int) -> int:
    """What the attention of a stream keeps after so many frames, with the model's options."""
    *_, state = stream_noise(speech2text.model.encoder, frames, **speech2text.options)
    return state.ledger()["attention"]


def as_streams(load, cell: dict, name: str, data, texts: dict, number: int, cache_dtypes) -> dict:
    """What a test set gives as live streams of a cell, beside the texts of the offline pass.

    Args:
        load: Makes the model with options of a stream.
        cell: Its sizes and bytes.
        name: Of the test set.
        data: The ``TestSet``.
        texts: Of the cell by the offline pass.
        number: So many recordings are streamed.
        cache_dtypes: All are streamed with caches of each of these.
    """
    sizes = {key: cell[key] for key in ("chunk_size", "left_context")}
    found = {}
    if number:
        first = dict(list(data.wavs.items())[:number])
        found["streamed"] = same(streamed(load(**sizes), first), texts)
    others = cell["bytes"] - cell["ledger"]["attention"]
    for dtype in cache_dtypes:
        live = load(**sizes, cache_dtype=dtype)
        heard = streamed(live, data.wavs)
        found.setdefault("cache_dtypes", {})[dtype] = {
            "bytes": others + attention_bytes(live, cell["frames"]),
            **same(heard, texts),
            "wer": {name: data.wer(heard)},
        }
    return found


class TestSet:
    """References of a test set, a Kaldi-style directory, and how hypotheses do against them."""

    __test__ = False  # no test of pytest's

    def __init__(self, directory):
        directory = Path(directory)
        self.wavs = read_wavs(directory / "wav.scp")
        self.texts, speakers = (read_scp(directory / name) for name in ("text", "utt2spk"))
        for name, table in (("text", self.texts), ("utt2spk", speakers)):
            if table.keys() != self.wavs.keys():
                raise UserError(f"{directory / name}: has other utterances than its wav.scp")
        self.speakers = {utt: speakers[utt] for utt in sorted(speakers)}

    def describe(self) -> dict:
        """Its utterances, sorted, with their speakers and their numbers of words."""
        return {
            "utterances": list(self.speakers),
            "speakers": list(self.speakers.values()),
            "words": [len(self.texts[utt].split()) for utt in self.speakers],
            "drawn": nesting(self.speakers)[1],
        }

    def wer(self, hypotheses: dict[str, str]) -> dict:
        """Error rate in percent with its interval, and the errors of each utterance, sorted."""
        counted = score(self.texts, hypotheses, str.split)
        _, substituted, deleted, inserted = counted.counts.sum(0).tolist()
        return {
            "wer": rounded(counted.summary()["err"], 2),
            "interval_95": [rounded(bound, 2) for bound in counted.interval(self.speakers)],
            "substituted": substituted,
            "deleted": deleted,
            "inserted": inserted,
            "errors": counted.counts[:, 1:].sum(1).tolist(),
        }


def costs(config: dict, chunk_size: int, left_contexts) -> list[dict]:
    """Bytes that a stream keeps at its most, per left context; one of -1 where none is forgotten.

    MHA says what its lossless input cache keeps as well.
    """
    config = with_encoder_conf(config, chunk_size=None, left_context=-1)

    def streams(config):
        return measure_cache(config, FRAMES, chunk_size, list(left_contexts))["streams"]

    cells = [
        {key: s[key] for key in ("chunk_size", "left_context", "frames", "bytes", "ledger")}
        for s in streams(config)
    ]
    if lossless := with_input_cache(config):
        for cell, stream in zip(cells, streams(lossless), strict=True):
            cell["input_cache_bytes"] = stream["bytes"]
    return cells


def grid(
    expdir,
    data_dirs,
    chunk_sizes,
    left_contexts,
    checkpoint: str = "valid.acc.ave.pth",
    device: str = "cpu",
    announce=lambda cell: None,
    stream: int = 0,
    cache_dtypes=(),
) -> dict:
    """Decode test sets in every cell, and say what a stream of that cell keeps and waits for.

    Args:
        expdir: Directory of a model that streams.
        data_dirs: Kaldi-style directories of test sets; a set is called as its directory.
        chunk_sizes: Encoder frames per chunk.
        left_contexts: Encoder frames before a chunk, -1 for all; linear attention has only -1.
        checkpoint: File name of the weights.
        device: ``cpu`` or ``cuda``.
        announce: Called with each cell as soon as it is done.
        stream: So many recordings of the first test set are streamed too, in the first cell.
        cache_dtypes: The whole first test set is streamed in the first cell with caches of each.

    Returns:
        What ``grid.json`` holds; docs/results.md describes it.

    Raises:
        UserError: The model does not stream, or its data are of no use; the message names them.
    """
    expdir = Path(expdir)
    config_file, model_file = find_model(expdir, checkpoint)
    config = read_model_config(config_file)
    chunk_sizes, left_contexts, cache_dtypes = (
        list(dict.fromkeys(given)) for given in (chunk_sizes, left_contexts, cache_dtypes)
    )
    sets = {}
    for directory in (Path(given).resolve() for given in data_dirs):
        if directory.name in sets:
            raise UserError(f"{directory}: another test set is called {directory.name}, too")
        sets[directory.name] = TestSet(directory)

    load = partial(StreamingSpeech2Text, config_file, model_file, device=device)
    speech2text = load(chunk_size=chunk_sizes[0])
    feats = {name: features(speech2text, data.wavs) for name, data in sets.items()}
    front, encoder = speech2text.frontend.front, speech2text.model.encoder
    cells = []
    for chunk_size in chunk_sizes:
        _, waits = chunk_samples(encoder, front, chunk_size)
        for cell in costs(config, chunk_size, left_contexts):
            left = cell["left_context"]
            texts = {n: decode(speech2text, feats[n], chunk_size, left) for n in sets}
            if not cells:
                name = next(iter(sets))
                cell |= as_streams(load, cell, name, sets[name], texts[name], stream, cache_dtypes)
            cell |= {
                "in_trained_range": in_trained_range(config["encoder_conf"], chunk_size, left),
                "latency_ms": rounded(1000 * waits / front.fs, 2),
                "wer": {name: data.wer(texts[name]) for name, data in sets.items()},
            }
            announce(cell)
            cells.append(cell)
    return {
        "version": VERSION,
        "model": expdir.name,
        **describe(config, config.get("config") or config_file),
        "seed": config.get("seed"),
        "checkpoint": checkpoint,
        "sets": {name: data.describe() for name, data in sets.items()},
        "cells": cells,
        "commit": commit(),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
