"""Streams of an exported model in onnxruntime: numpy alone, neither PyTorch nor ESPnet."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from espnet_ext.audio import checked_samples
from espnet_ext.errors import UserError
from espnet_ext.streaming.searches import GreedySearch, PrefixBeamSearch, make_search
from espnet_ext.streaming.speech2text import Result, StreamingSpeech2Text

#: of the file's metadata that is this package's own
KEY, VERSION = "espnet_ext", 1
#: options that an export does not have, and their defaults
ONLY_TORCH = {
    "asr_train_config": None,
    "cache_dtype": "float32",
    "rescore": False,
    "ctc_weight": 0.3,
    "device": "cpu",
}
DTYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64}


class ExportedStep:
    """The step of an exported model.

    Args:
        path: ``model.onnx`` or ``model.int8.onnx``; ``features.npz`` and ``tokens.txt`` are beside.
        threads: Of one step.

    Attributes:
        chunk_size: Encoder frames per step, n.
        left_context: Encoder frames seen before a chunk, -1 where the model forgets none.
        frames: Feature frames of a step, T.
        shift: Feature frames from one step to the next.
        step: Feature frames from one encoder frame to the next.
        info: All of the file's own metadata.
        tokens: Symbols by their number, as in ``tokens.txt``.

    Raises:
        UserError: onnxruntime is missing, or the file is none of an export.
    """

    def __init__(self, path, threads: int = 1):
        try:
            import onnxruntime
        except ImportError:
            how = "pip install 'espnet-ext[export]'"
            raise UserError(f"onnxruntime: not installed; {how}") from None
        if not Path(path).is_file():
            raise UserError(f"{path}: no such file; espnet-ext export makes it")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's own kinds have no common one
            reason = str(error).splitlines()[0][:120]
            raise UserError(f"{path}: no model for onnxruntime ({reason})") from None
        properties = self.session.get_modelmeta().custom_metadata_map
        if KEY not in properties:
            raise UserError(f"{path}: was not made by espnet-ext export")
        self.info = json.loads(properties[KEY])
        if self.info["version"] != VERSION:
            raise UserError(f"{path}: of version {self.info['version']}, this reads {VERSION}")
        for name in ("chunk_size", "left_context", "frames", "shift", "step"):
            setattr(self, name, self.info[name])
        _, *past = self.session.get_inputs()
        self._names = [value.name for value in past]
        self._forms = [(value.shape, DTYPES[value.type]) for value in past]
        folder = Path(path).parent
        self.tokens = read_tokens(folder / "tokens.txt")
        self.features = folder / "features.npz"

    def zeros(self, streams: int = 1) -> list[np.ndarray]:
        """The past of streams that have not begun."""
        return [
            np.zeros([streams if isinstance(n, str) else n for n in shape], dtype)
            for shape, dtype in self._forms
        ]

    def __call__(self, feats, past, padding=0):
        """One step.

        Args:
            feats: Features (B, T, n_mels), float32.
            past: From ``zeros`` or the step before; it is left as it was.
            padding: Encoder frames at the end of the chunk that are not speech, a number or (B,).

        Returns:
            Log probabilities (B, n, tokens) and the past after the step.
        """
        inputs = dict(zip(self._names, past, strict=True)) | {"feats": feats}
        inputs["padding"] = np.broadcast_to(
            np.asarray(padding, np.float32).reshape(1, -1, 1, 1), inputs["padding"].shape
        )
        log_probs, *past = self.session.run(None, inputs)
        return log_probs, past


def read_tokens(path) -> list[str]:
    """Symbols of a ``tokens.txt`` by their number.

    Raises:
        UserError: It is not there, or a line is not ``symbol number``, or a number is missing.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
        pairs = [line.rsplit(" ", 1) for line in lines if line]
        found = {int(number): symbol for symbol, number in pairs}
        return [found[number] for number in range(len(pairs))]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError):
        raise UserError(f"{path}: must have a line 'symbol number' for each number") from None


def text_of(symbols) -> str:
    """Text of symbols as in ``tokens.txt``, where a word begins with a low line."""
    return "".join(symbols).replace("\u2581", " ").strip()


class Features:
    """Features of one stream, those of the exported model.

    Args:
        path: ``features.npz``: the window and the mel bands.
        info: The rest: lengths in samples and what is done with a frame.
    """

    def __init__(self, path, info):
        try:
            with np.load(path) as arrays:
                self.window, self.bands = arrays["window"], arrays["bands"]
        except (OSError, KeyError, ValueError) as error:
            raise UserError(f"{path}: cannot be read ({error})") from None
        self.fs, self.length, self.hop, self.left = (
            info[name] for name in ("fs", "length", "hop", "left")
        )
        self.repeats_edge, self.info = info["repeats_edge"], info
        self.held = np.zeros(0, np.float64)  # samples from the first that is still needed on
        self.received = self.frames = 0

    @property
    def nbytes(self):
        """Bytes in use."""
        return self.held.nbytes

    def __call__(self, samples, is_final=False):
        """Features (t, n_mels) of what a packet of samples (n,) completes."""
        self.held = np.concatenate([self.held, samples])
        start = self.received + len(samples) - len(self.held)  # of what is held
        self.received += len(samples)
        total = self.received
        if is_final:
            ready = self._all_frames(total)
        elif total < self.left + (not self.repeats_edge):
            ready = 0
        else:
            ready = max(0, (total + self.left - self.length) // self.hop + 1)
        first = self.frames * self.hop - self.left
        self.frames = max(self.frames, ready)
        last = self.frames * self.hop - self.left  # of the frames to come
        starts = np.arange(first, last, self.hop)
        feats = np.zeros((0, self.bands.shape[1]), np.float32)
        if len(starts):
            positions = starts[:, None] + np.arange(self.length)
            period = 2 * total - (0 if self.repeats_edge else 2)
            positions %= period
            positions = np.minimum(positions, period - int(self.repeats_edge) - positions)
            feats = self._frames(self.held[positions - start])
        # the mirrored end may go back to one sample before the next frame
        self.held = self.held[max(0, last - 1 - start) :].copy()
        return feats

    def _all_frames(self, samples):
        if self.info["centred"]:
            return max(0, (samples + 2 * self.left - self.length) // self.hop + 1) * (
                samples > self.left
            )
        return (samples + self.hop // 2) // self.hop

    def _frames(self, frames):
        info = self.info
        if info["remove_mean"]:
            frames = frames - frames.mean(-1, keepdims=True)
        if info["preemphasis"]:
            before = np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
            frames = frames - info["preemphasis"] * before
        spectrum = np.fft.rfft(frames * self.window, n=info["n_fft"])
        energies = (spectrum.real**2 + spectrum.imag**2) @ self.bands
        return (np.log(np.maximum(energies, info["floor"])) * info["scale"]).astype(np.float32)


@dataclass
class ExportedStream:
    """One recording on its way through ``ExportedSpeech2Text``.

    Attributes:
        features: State of the features.
        pending: Feature frames that have not filled a chunk (n, n_mels).
        past: Tensors of the encoder's past.
        search: State of the CTC search.
        frames: Encoder frames so far.
        ended: The last packet was final.
    """

    features: Features
    pending: np.ndarray
    past: list[np.ndarray]
    search: GreedySearch | PrefixBeamSearch
    frames: int = 0
    ended: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes in use."""
        return self.features.nbytes + self.pending.nbytes + sum(x.nbytes for x in self.past)


class ExportedSpeech2Text(StreamingSpeech2Text):
    """An exported model in onnxruntime; see ``StreamingSpeech2Text``.

    Args:
        asr_model_file: ``model.onnx`` or ``model.int8.onnx`` of an export.
        chunk_size: None, or what the export was made with.
        left_context: The same.
        search: See ``StreamingSpeech2Text``.
        beam_size: The same.
        threads: Of one step.
        runtime: ``onnxruntime``.
        others: What only PyTorch has; anything but its default is refused.

    Raises:
        UserError: onnxruntime is missing, the file is none of an export or was made with other
            sizes, or an option cannot be had.
    """

    def __init__(
        self,
        asr_train_config=None,
        asr_model_file=None,
        chunk_size=None,
        left_context=None,
        search="greedy",
        beam_size=10,
        threads=1,
        runtime="onnxruntime",
        **others,
    ):
        others["asr_train_config"] = asr_train_config
        for name, value in others.items():
            if name not in ONLY_TORCH:
                raise TypeError(f"{name}: no option of StreamingSpeech2Text")
            if value != ONLY_TORCH[name] and name != "ctc_weight":
                raise UserError(f"{name}: an exported model has none (runtime: onnxruntime)")
        if asr_model_file is None:
            raise UserError("asr_model_file: must be the model.onnx of an export")
        self.step = ExportedStep(asr_model_file, threads)
        for name, value in (("chunk_size", chunk_size), ("left_context", left_context)):
            own = getattr(self.step, name)
            if value not in (None, own):
                raise UserError(
                    f"{name}: {asr_model_file} was exported with {own}, got {value}; export it "
                    "again with that"
                )
        self.chunk_size, self.left_context = self.step.chunk_size, self.step.left_context
        self.fs = self.step.info["features"]["fs"]
        self.search, self.beam_size = search, beam_size
        self.start()

    def start(self) -> ExportedStream:
        """See ``StreamingSpeech2Text``."""
        features = Features(self.step.features, self.step.info["features"])
        pending = np.zeros((0, features.bands.shape[1]), np.float32)
        search = make_search(self.search, self.beam_size)
        return ExportedStream(features, pending, self.step.zeros(), search)

    def __call__(self, stream, samples=(), is_final: bool = False) -> Result:
        """See ``StreamingSpeech2Text``."""
        if stream.ended:
            raise UserError("stream: has ended; start() begins another")
        if np.ndim(samples) != 1:
            raise UserError(f"samples: must be mono (n,), got shape {np.shape(samples)}")
        samples = checked_samples(np.asarray(samples))
        self.read(stream, stream.features(samples, is_final), is_final)
        tokens, score = stream.search.nbest()[0]
        text = text_of(self.step.tokens[token] for token in tokens)
        return Result(text, list(tokens), score, is_final)

    def read(self, stream, feats, is_final=False) -> np.ndarray:
        """Encode features (n, n_mels), not normalised -> new log probabilities (m, tokens)."""
        step = self.step
        stream.pending = np.concatenate([stream.pending, feats])
        found = [np.zeros((0, len(step.tokens)), np.float32)]
        while len(stream.pending) >= step.frames:
            found.append(self._chunk(stream, stream.pending[: step.frames], step.chunk_size))
        if is_final:
            sees = step.frames - (step.chunk_size - 1) * step.step
            frames = (len(stream.pending) - sees) // step.step + 1
            if frames > 0:
                rest = ((0, step.frames - len(stream.pending)), (0, 0))
                found.append(self._chunk(stream, np.pad(stream.pending, rest), frames))
            stream.pending, stream.ended = stream.pending[:0], True
        return np.concatenate(found)

    def _chunk(self, stream, feats, frames):
        """Log probabilities (frames, tokens) of a chunk, of which so many frames are speech."""
        padding = self.step.chunk_size - frames
        log_probs, stream.past = self.step(feats[None], stream.past, padding)
        log_probs = log_probs[0, :frames]
        stream.search.extend(log_probs)
        stream.pending = stream.pending[self.step.shift :]
        stream.frames += frames
        return log_probs
