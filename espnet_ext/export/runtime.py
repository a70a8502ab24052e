"""Streams on onnxruntime: numpy alone, neither PyTorch nor ESPnet is imported.

    speech2text = OnnxSpeech2Text("export/model.onnx")
    stream = speech2text.start()
    for packet in packets:
        print(speech2text(stream, packet).text)
    print(speech2text(stream, is_final=True).text)
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from espnet_ext.errors import UserError

BLANK = 0
#: of the file's metadata that is this package's own
KEY, VERSION = "espnet_ext", 1
DTYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64}


class OnnxStep:
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
            raise UserError(f"{path}: no such file; make it with asr_export")
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
            raise UserError(f"{path}: was not made by asr_export")
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
class Result:
    """What is known of a stream so far: see ``espnet_ext.inference.Result``."""

    text: str
    tokens: list[int]
    score: float
    is_final: bool


@dataclass
class OnnxStream:
    """One recording on its way through ``OnnxSpeech2Text``.

    Attributes:
        features: State of the features.
        pending: Feature frames that have not filled a chunk (n, n_mels).
        past: Tensors of the encoder's past.
        produced: Encoder frames so far.
        tokens: Token ids so far.
        last: The likeliest token of the last frame.
        score: Log probability of the best path.
        ended: The last packet was final.
    """

    features: Features
    pending: np.ndarray
    past: list[np.ndarray]
    produced: int = 0
    tokens: list[int] = field(default_factory=list)
    last: int = BLANK
    score: float = 0.0
    ended: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes in use."""
        return self.features.nbytes + self.pending.nbytes + sum(x.nbytes for x in self.past)


class OnnxSpeech2Text:
    """An exported model that transcribes streams by the CTC best path.

    It is used as ``StreamingSpeech2Text`` is, and its texts are the same.

    Args:
        asr_model_file: ``model.onnx`` or ``model.int8.onnx`` of an export.
        chunk_size: None, or what the export was made with.
        left_context: The same.
        threads: Of one step.

    Raises:
        UserError: onnxruntime is missing, the file is none of an export, or was made with other
            sizes.
    """

    def __init__(self, asr_model_file, chunk_size=None, left_context=None, threads=1):
        self.model = OnnxStep(asr_model_file, threads)
        for name, value in (("chunk_size", chunk_size), ("left_context", left_context)):
            own = getattr(self.model, name)
            if value not in (None, own):
                raise UserError(
                    f"{name}: {asr_model_file} was exported with {own}, got {value}; export it "
                    "again with that"
                )
        self.chunk_size, self.left_context = self.model.chunk_size, self.model.left_context
        self.fs = self.model.info["features"]["fs"]

    def start(self) -> OnnxStream:
        """State of a new recording."""
        features = Features(self.model.features, self.model.info["features"])
        pending = np.zeros((0, features.bands.shape[1]), np.float32)
        return OnnxStream(features, pending, self.model.zeros())

    def __call__(self, stream: OnnxStream, samples=(), is_final: bool = False) -> Result:
        """Read a packet.

        Args:
            stream: From ``start``; it is updated in place.
            samples: Mono waveform at the model's rate (n,), floats in [-1, 1], any length.
            is_final: No packet follows: also the frames of a last chunk that is not full.

        Raises:
            UserError: The samples are not a mono waveform of finite floats, or the stream has
                ended; or the model's output is not a number.
        """
        samples = np.asarray(samples)
        if stream.ended:
            raise UserError("stream: has ended; start() begins another")
        if samples.ndim != 1 or samples.size and samples.dtype.kind != "f":
            raise UserError(
                f"samples: must be mono floats (n,), got {samples.shape} of {samples.dtype}"
            )
        if not np.isfinite(samples).all():
            raise UserError("samples: must be finite numbers in [-1, 1]")
        self.read(stream, stream.features(samples, is_final), is_final)
        symbols = [self.model.tokens[token] for token in stream.tokens]
        return Result(text_of(symbols), list(stream.tokens), stream.score, is_final)

    def read(self, stream, feats, is_final=False) -> np.ndarray:
        """Encode features (n, n_mels), not normalised -> new log probabilities (m, tokens)."""
        model = self.model
        stream.pending = np.concatenate([stream.pending, feats])
        found = [np.zeros((0, len(model.tokens)), np.float32)]
        while len(stream.pending) >= model.frames:
            self._step(stream, stream.pending[: model.frames], model.chunk_size, found)
        if is_final:
            sees = model.frames - (model.chunk_size - 1) * model.step
            frames = (len(stream.pending) - sees) // model.step + 1
            if frames > 0:
                rest = ((0, model.frames - len(stream.pending)), (0, 0))
                self._step(stream, np.pad(stream.pending, rest), frames, found)
            stream.pending, stream.ended = stream.pending[:0], True
        return np.concatenate(found)

    def _step(self, stream, feats, frames, found):
        model = self.model
        log_probs, stream.past = model(feats[None], stream.past, model.chunk_size - frames)
        log_probs = log_probs[0, :frames]
        if not np.isfinite(log_probs.max(-1).sum()):
            raise UserError(
                f"the model's output is not a number ({math.nan}): the checkpoint is of no use"
            )
        stream.pending = stream.pending[model.shift :]
        stream.produced += frames
        stream.score += float(log_probs.max(axis=1).sum())
        for token in log_probs.argmax(axis=1).tolist():
            if token not in (BLANK, stream.last):
                stream.tokens.append(token)
            stream.last = token
        found.append(log_probs)
