"""A trained model as files that onnxruntime and sherpa-onnx stream, with a proof beside them."""

import json
from pathlib import Path

import numpy as np
import torch

from espnet_ext.audio import read_audio
from espnet_ext.errors import UserError, about
from espnet_ext.export.adapt import Adapter, word_error_rates
from espnet_ext.files import whole
from espnet_ext.frontend import KaldiFbank, StreamingFrontend
from espnet_ext.frontend.kaldi_fbank import FLOOR, PREEMPHASIS, constants
from espnet_ext.results import to_json
from espnet_ext.streaming.eager import EagerSpeech2Text
from espnet_ext.streaming.exported import KEY, VERSION, ExportedSpeech2Text

#: largest difference of log probabilities from our own streaming that is rounding
TOLERANCE = 1e-4
#: what sherpa-onnx's time stamps are made for: a step of ESPnet's conv2d, and what it looks at
CONV2D = 4, 7
BLANK = "<blank>"


def export(
    output, model, quantize="none", client="sherpa-onnx", recordings=(), commit="", adapt=None
):
    """Write ``model.onnx``, ``tokens.txt``, ``features.npz``, ``README.md`` and a certificate.

    Args:
        output: Directory that is not there yet; it is written whole or not at all.
        model: Arguments of ``StreamingSpeech2Text``: files, ``chunk_size``, ``left_context``.
        quantize: ``int8`` adds ``model.int8.onnx`` with 8-bit weights, ``int8_dynamic`` one whose
            products are of 8-bit numbers.
        client: ``sherpa-onnx``, or ``onnxruntime`` for what sherpa-onnx cannot run.
        recordings: Files that the certificate compares on; noise without any.
        commit: Of this package, for the certificate.
        adapt: Gives the recordings to fit a map from Kaldi's features to the model's own log-mel
            on, and those to count words of, id to path and text; None to take features as they are.

    Returns:
        The certificate.

    Raises:
        UserError: The model cannot be exported, or the files cannot be written; the message says
            why.
    """
    try:
        import onnx
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"{error.name}: not installed; pip install 'espnet-ext[export]'") from None
    if Path(output).exists():
        raise UserError(f"{output}: is there already; give a directory that is not")
    speech2text = EagerSpeech2Text(**model)
    with about(model["asr_train_config"]):
        check(speech2text, client, adapt is not None)
        tokens = token_lines(speech2text.model.token_list, speech2text.token_type)
        front, adapter = speech2text.frontend.front, None
        if adapt:
            adapter = Adapter(front)
            front = adapter.frontend
        info, arrays = features_of(front)
    if adapt:
        train, valid = adapt()
        adapted = adapter.fit(StreamingFrontend(speech2text.model.frontend), train)
    graph = _graph(speech2text, client, info, adapter)
    graphs = {"model.onnx": graph}
    if quantize != "none":
        from espnet_ext.export.quantize import quantized

        graphs["model.int8.onnx"] = quantized(graph, quantize)
    with whole(output) as folder:
        folder.mkdir()
        (folder / "tokens.txt").write_text(tokens, encoding="utf-8")
        np.savez(folder / "features.npz", **arrays)
        for name, made in graphs.items():
            onnx.save(made, folder / name)
        certificate = {
            "version": 1,
            "commit": commit,
            "client": client,
            "quantize": quantize,
            "chunk_size": speech2text.chunk_size,
            "left_context": speech2text.left_context,
            "sample_rate": info["fs"],
            "feature_dim": arrays["bands"].shape[1],
        } | compare(speech2text, [folder / name for name in graphs], recordings, adapter)
        if adapt:
            path = folder / "model.onnx"  # what 8 bits cost is another matter
            wer = word_error_rates(speech2text, path, valid) if valid else None
            certificate["adapted"] = adapted | {"wer": wer}
        _refuse_unequal(certificate)
        (folder / "certificate.json").write_text(to_json(certificate, indent=1))
        readme = readme_of(certificate, list(graphs), speech2text)
        (folder / "README.md").write_text(readme, encoding="utf-8")
    return certificate


def check(speech2text, client, adapt=False):
    """Refuse a model that the client cannot run, or none can.

    Raises:
        UserError: It says why.
    """
    encoder = speech2text.model.encoder
    if speech2text.left_context < 0 and any(a.has_left_context for a in encoder.attentions):
        raise UserError(
            "left_context: an exported step has a cache of one size; give --left_context of at "
            "least 0, only linear attention can see everything"
        )
    if adapt and isinstance(speech2text.model.frontend, KaldiFbank):
        raise UserError("adapt_features: the front end is kaldi_fbank, there is nothing to adapt")
    if client != "sherpa-onnx":
        if adapt:
            raise UserError(f"adapt_features: {client} is given the model's own features, drop it")
        return
    other = "; --client onnxruntime exports it for onnxruntime alone"
    if not adapt and not isinstance(speech2text.model.frontend, KaldiFbank):
        raise UserError(
            "frontend: sherpa-onnx calculates Kaldi's features alone, frontend: kaldi_fbank; "
            f"--adapt_features maps them to the model's own{other}"
        )
    if encoder.subsampling != CONV2D:
        raise UserError(
            f"input_layer: sherpa-onnx's time stamps are for conv2d, a step of {CONV2D[0]} frames, "
            f"got one of {encoder.subsampling[0]}{other}"
        )


def token_lines(symbols, token_type) -> str:
    """``tokens.txt`` of sherpa-onnx: where words are joined, each begins with a low line.

    Raises:
        UserError: The kind of tokens is one that cannot be written so.
    """
    if symbols[0] != BLANK:
        raise UserError(f"token_list: must begin with {BLANK}, got {symbols[0]}")
    if token_type not in ("bpe", "char", "word"):
        raise UserError(f"token_type: must be bpe, char or word to be exported, got {token_type}")
    lines = []
    for number, symbol in enumerate(symbols):
        if token_type == "word" and symbol != BLANK:
            symbol = f"\u2581{symbol}"
        elif token_type == "char" and symbol == "<space>":
            symbol = "\u2581"
        lines.append(f"{symbol} {number}\n")
    return "".join(lines)


def features_of(front):
    """What ``Features`` needs of a front end: numbers, and arrays."""
    info = {
        "fs": front.fs,
        "length": front.window,
        "hop": front.hop,
        "left": front.left,
        "repeats_edge": front.repeats_edge,
    }
    if isinstance(front, KaldiFbank):
        window, bands = constants(front.fs, front.window, front.n_fft, front.n_mels, "cpu")
        bands = np.pad(bands.numpy(), ((0, 1), (0, 0)))  # Kaldi leaves out the highest bin
        info |= {
            "kind": "kaldi_fbank",
            "n_fft": front.n_fft,
            "remove_mean": True,
            "preemphasis": PREEMPHASIS,
            "floor": FLOOR,
            "scale": 1.0,
            "centred": False,
        }
        return info, {"window": window.numpy(), "bands": bands}
    stft, logmel = front.stft, front.frontend.logmel
    if stft.normalized or not stft.onesided:
        raise UserError("frontend_conf: normalized and twosided spectra are not exported")
    kind = getattr(torch, f"{stft.window}_window") if stft.window else torch.ones
    window = np.zeros(stft.n_fft)
    begin = (stft.n_fft - stft.win_length) // 2
    window[begin : begin + stft.win_length] = kind(stft.win_length, dtype=torch.float64).numpy()
    info |= {
        "kind": "default",
        "n_fft": stft.n_fft,
        "remove_mean": False,
        "preemphasis": 0.0,
        "floor": 1e-10,
        "scale": 1 / np.log(logmel.log_base) if logmel.log_base else 1.0,
        "centred": True,
    }
    return info, {"window": window, "bands": logmel.melmat.double().numpy()}


def _graph(speech2text, client, features, adapter=None):
    from espnet_ext.export.container import Container
    from espnet_ext.export.graph import to_onnx
    from espnet_ext.export.step import Step

    step = Step(speech2text.model, speech2text.chunk_size, speech2text.left_context, adapter)
    container = Container(step.shapes)
    own = {
        "version": VERSION,
        "attention": speech2text.attention,
        "chunk_size": step.chunk_size,
        "left_context": step.left_context,
        "frames": step.frames,
        "shift": step.shift,
        "step": step.encoder.subsampling[0],
        "features": features,
    }
    metadata = {KEY: json.dumps(own)}
    if client == "sherpa-onnx":
        metadata |= container.metadata(step.frames, step.shift)
    return to_onnx(step, container, metadata)


@torch.no_grad()
def compare(speech2text, paths, recordings, adapter=None) -> dict:
    """Exported files against our own streaming of the same recordings, to the end of each.

    With an adapter, our own is that of adapted features.

    Returns:
        ``recordings`` (how many, 0 for noise), ``seconds``, and by file the largest differences of
        ``features``, made without PyTorch, and of ``log_probs`` of the same features, and in how
        many recordings ``tokens_differ``, all of it run without PyTorch.
    """
    fs, model = speech2text.fs, speech2text.model
    if recordings:
        waves = [read_audio(path, fs) for path in recordings]
    else:
        waves = [np.random.default_rng(0).normal(size=10 * fs).astype(np.float32) / 10]
    front, ours = StreamingFrontend(adapter.frontend if adapter else model.frontend), []
    for wave in waves:
        stream = speech2text.start()
        samples = torch.from_numpy(wave)[None]
        raw = front.forward_chunk(samples, front.init_state(), True)[0]
        # ESPnet's normalisation changes what it is given
        feats = adapter(raw, raw[:, :1]) if adapter else raw.clone()
        if model.normalize is not None:
            feats = model.normalize(feats, torch.tensor([feats.size(1)]))[0]
        y, stream.encoder = model.encoder.forward_chunk(feats, stream.encoder, True)
        speech2text.read(stream, y, True)
        log_probs = model.ctc.log_softmax(y)[0].numpy()
        ours.append((wave, raw[0].numpy(), log_probs, stream.search.tokens))
    found = {}
    for path in paths:
        theirs = ExportedSpeech2Text(asr_model_file=path)
        worst, differ = {"features": 0.0, "log_probs": 0.0}, 0
        for wave, raw, log_probs, tokens in ours:
            errors = {
                "features": _difference(theirs.start().features(wave, True), raw),
                "log_probs": _difference(theirs.read(theirs.start(), raw, True), log_probs),
            }
            worst = {name: max(worst[name], error) for name, error in errors.items()}
            differ += theirs(theirs.start(), wave, True).tokens != tokens
        found[path.name] = worst | {"tokens_differ": differ}
    seconds = sum(map(len, waves)) / fs
    return {"recordings": len(recordings), "seconds": round(seconds, 2), "max_error": found}


def _difference(a, b):
    if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("inf")
    return float(np.abs(a - b).max()) if a.size else 0.0


def _refuse_unequal(certificate):
    worst = certificate["max_error"]["model.onnx"]
    if not worst["log_probs"] <= TOLERANCE or not worst["features"] < float("inf"):
        raise UserError(
            f"model.onnx: its log probabilities are {worst['log_probs']:.1e} from those of our own "
            f"streaming, more than {TOLERANCE:.0e}, so it was not written"
        )


def adapted_words(adapted) -> str:
    """A sentence about what adapted features cost."""
    wer = adapted["wer"] or {}
    counted = (
        "WER {own:.2f} % with the model's own features, {adapted:.2f} % with adapted ones "
        "({utterances} utterances, {words} words)".format(**wer)
        if wer
        else "the WER was not counted, the validation data was not there"
    )
    return (
        f"Error of mapped features on held-out recordings: {adapted['residual']:.3f} of their "
        f"deviation; {counted}."
    )


def readme_of(certificate, names, speech2text) -> str:
    """What is in the directory, and the commands that run it."""
    rate, dim = certificate["sample_rate"], certificate["feature_dim"]
    shift = certificate["chunk_size"] * speech2text.model.encoder.subsampling[0] / 100
    sizes = f"chunks of {certificate['chunk_size']} encoder frames ({shift:g} s)"
    left = certificate["left_context"]
    sizes += " that see everything before them" if left < 0 else f" that see {left} before them"
    model = names[-1]
    lines = [
        "# A streaming CTC model",
        "",
        f"{', '.join(names)}: one step in {sizes}, as ONNX. The attention decoder is left out.",
        "tokens.txt: symbols. features.npz: window and mel bands, for Python on onnxruntime.",
        "certificate.json: differences from the trained model's own streaming.",
        "",
    ]
    if adapted := certificate.get("adapted"):
        lines += [
            "Kaldi's features are mapped to the log-mel that the model was trained on, so the text",
            "is not quite the model's own. certificate.json compares with its streaming of mapped",
            f"features. {adapted_words(adapted)}",
            "",
        ]
    if certificate["client"] == "sherpa-onnx":
        lines += [
            "sherpa-onnx (pip install sherpa-onnx), in Python:",
            "",
            "    import numpy as np, sherpa_onnx, soundfile",
            "    recognizer = sherpa_onnx.OnlineRecognizer.from_zipformer2_ctc(",
            f'        tokens="tokens.txt", model="{model}", num_threads=1,',
            f"        sample_rate={rate}, feature_dim={dim})",
            "    stream = recognizer.create_stream()",
            '    samples, rate = soundfile.read("speech.wav", dtype="float32")',
            "    stream.accept_waveform(rate, samples)",
            f"    tail = np.zeros(int({shift + 0.1:.2f} * rate), np.float32)",
            "    stream.accept_waveform(rate, tail)",
            "    stream.input_finished()",
            "    while recognizer.is_ready(stream):",
            "        recognizer.decode_stream(stream)",
            "    print(recognizer.get_result(stream))",
            "",
            "The zeros at the end fill the last chunk, which sherpa-onnx does not run otherwise.",
            "",
        ]
    lines += [
        "The same on onnxruntime, without sherpa-onnx and to the last frame:",
        "",
        "    espnet-ext stream . recording.wav --runtime onnxruntime"
        + (f" --inference_asr_model {model}" if model != "model.onnx" else ""),
        "",
    ]
    return "\n".join(lines)
