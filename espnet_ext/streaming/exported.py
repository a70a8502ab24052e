"""Streams of an exported model in onnxruntime: numpy alone, neither PyTorch nor ESPnet."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from espnet_ext.audio import checked_samples
from espnet_ext.errors import UserError
from espnet_ext.streaming.searches import make_search
from espnet_ext.streaming.transcriber import Result, Transcriber, Transcript

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
        #: bytes of a stream's past by kind; ``container`` is what only the file's form asks for
        self.sizes = {"attention": 0, "convolution": 0, "container": 0}
        for name, x in zip(self._names, self.zeros(), strict=True):
            what = name.partition(".")[2]  # of a layer
            if not what or what.startswith("unused"):
                kind = "container"
            else:
                kind = "convolution" if what.startswith("convolution") else "attention"
            self.sizes[kind] += x.nbytes
        # where the streams of a batch are, in each of them
        self._axes = [
            next(i for i, n in enumerate(shape) if isinstance(n, str)) for shape, _ in self._forms
        ]
        folder = Path(path).parent
        self.tokens = read_tokens(folder / "tokens.txt")
        self.features = folder / "features.npz"

    def zeros(self, streams: int = 1) -> list[np.ndarray]:
        """The past of streams that have not begun."""
        return [
            np.zeros([streams if isinstance(n, str) else n for n in shape], dtype)
            for shape, dtype in self._forms
        ]

    def stack(self, pasts: list[list[np.ndarray]]) -> list[np.ndarray]:
        """The pasts of several streams as one."""
        if len(pasts) == 1:
            return pasts[0]
        return [
            np.concatenate(same, axis)
            for same, axis in zip(zip(*pasts, strict=True), self._axes, strict=True)
        ]

    def unstack(self, past: list[np.ndarray], streams: int) -> list[list[np.ndarray]]:
        """Each stream's own part of a past, which keeps nothing of the others alive."""
        if streams == 1:
            return [past]
        parts = [np.split(x, streams, axis) for x, axis in zip(past, self._axes, strict=True)]
        return [[x.copy() for x in own] for own in zip(*parts, strict=True)]

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


def read_arrays(path) -> tuple[np.ndarray, np.ndarray]:
    """The window and the mel bands of a ``features.npz``.

    Raises:
        UserError: They are not there.
    """
    try:
        with np.load(path) as arrays:
            return arrays["window"], arrays["bands"]
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None


def text_of(symbols) -> str:
    """Text of symbols as in ``tokens.txt``, where a word begins with a low line."""
    return "".join(symbols).replace("\u2581", " ").strip()


class Features:
    """Features of one stream, those of the exported model.

    Args:
        arrays: Of ``features.npz``: the window and the mel bands.
        info: The rest: lengths in samples and what is done with a frame.
    """

    def __init__(self, arrays, info):
        self.window, self.bands = arrays
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
class ExportedStream(Transcript):
    """One recording on its way through ``ExportedSpeech2Text``.

    Attributes:
        features: State of the features.
        pending: Feature frames that have not filled a chunk (n, n_mels).
        past: Tensors of the encoder's past.
        frames: Encoder frames so far.
        ended: The last packet was final.
    """

    features: Features
    pending: np.ndarray
    past: list[np.ndarray]
    sizes: dict[str, int]
    frames: int = 0
    ended: bool = False

    @property
    def received(self) -> int:
        """Samples so far."""
        return self.features.received

    def ledger(self) -> dict[str, int]:
        """Bytes in use by kind."""
        return {
            **self.sizes,
            "subsampling": self.pending.nbytes,
            "frontend": self.features.nbytes,
        }

    @property
    def nbytes(self) -> int:
        """Bytes in use."""
        return sum(self.ledger().values())


class ExportedSpeech2Text(Transcriber):
    """An exported model in onnxruntime; see ``StreamingSpeech2Text``.

    Args:
        asr_model_file: ``model.onnx`` or ``model.int8.onnx`` of an export.
        chunk_size: None, or what the export was made with.
        left_context: The same.
        search: See ``StreamingSpeech2Text``.
        beam_size: The same.
        endpoint: The same.
        threads: Of one step.
        others: What only PyTorch has; anything but its default is refused.

    Raises:
        UserError: onnxruntime is missing, the file is none of an export or was made with other
            sizes, or an option cannot be had.
    """

    token_type = "bpe"  # in tokens.txt words begin as with bpe, whatever the tokens are

    def __init__(
        self,
        asr_train_config=None,
        asr_model_file=None,
        chunk_size=None,
        left_context=None,
        search="greedy",
        beam_size=10,
        endpoint=None,
        threads=1,
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
        self.model = ExportedStep(asr_model_file, threads)
        for name, value in (("chunk_size", chunk_size), ("left_context", left_context)):
            own = getattr(self.model, name)
            if value not in (None, own):
                raise UserError(
                    f"{name}: {asr_model_file} was exported with {own}, got {value}; export it "
                    "again with that"
                )
        self.chunk_size, self.left_context = self.model.chunk_size, self.model.left_context
        self.attention = self.model.info.get("attention", "exported")  # older ones do not say
        self.fs = self.model.info["features"]["fs"]
        self.frame_seconds = self.model.step * self.model.info["features"]["hop"] / self.fs
        self._set_search(search, beam_size, endpoint)
        self._arrays = read_arrays(self.model.features)

    def start(self) -> ExportedStream:
        """See ``StreamingSpeech2Text``."""
        features = Features(self._arrays, self.model.info["features"])
        pending = np.zeros((0, features.bands.shape[1]), np.float32)
        search = make_search(self.search, self.beam_size)
        past, sizes = self.model.zeros(), self.model.sizes
        return ExportedStream(features, pending, past, sizes, search=search)

    def __call__(self, stream, samples=(), is_final: bool = False) -> Result:
        """See ``StreamingSpeech2Text``."""
        self.take(stream, samples, is_final)
        utterances = []
        while self.ready(stream):
            utterances += self._extend(stream, self._encode([stream])[0])
        return self._result(stream, is_final, utterances)

    def take(self, stream, samples=(), is_final: bool = False) -> None:
        """See ``StreamingSpeech2Text``."""
        if stream.ended:
            raise UserError("stream: has ended; start() begins another")
        feats = stream.features(checked_samples(samples), is_final)
        self._keep(stream, feats, is_final)

    @staticmethod
    def _keep(stream, feats, is_final):
        stream.pending, stream.ended = np.concatenate([stream.pending, feats]), is_final

    def ready(self, stream) -> bool:
        """See ``StreamingSpeech2Text``."""
        return self._frames(stream) >= (1 if stream.ended else self.chunk_size)

    def lacking(self, stream) -> int:
        """See ``StreamingSpeech2Text``."""
        frames = self.model.frames - len(stream.pending)
        return (frames - 1) * stream.features.hop - len(stream.features.held)

    def _frames(self, stream):
        """Encoder frames that what is kept gives, a chunk at most."""
        step = self.model
        sees = step.frames - (step.chunk_size - 1) * step.step
        return min(step.chunk_size, (len(stream.pending) - sees) // step.step + 1)

    def step(self, streams) -> list[Result | UserError]:
        """See ``StreamingSpeech2Text``."""
        results: list[Result | UserError] = []
        for stream, log_probs in zip(streams, self._encode(streams), strict=True):
            try:
                utterances = self._extend(stream, log_probs)
                is_final = stream.ended and not self.ready(stream)
                results.append(self._result(stream, is_final, utterances))
            except UserError as error:
                results.append(error)
        return results

    def read(self, stream, feats, is_final=False) -> np.ndarray:
        """Encode features (n, n_mels), not normalised -> new log probabilities (m, tokens)."""
        self._keep(stream, feats, is_final)
        found = [np.zeros((0, len(self.model.tokens)), np.float32)]
        while self.ready(stream):
            found += self._encode([stream])
            self._extend(stream, found[-1])
        return np.concatenate(found)

    def _encode(self, streams) -> list[np.ndarray]:
        """Log probabilities (frames, tokens) of the next chunk of each stream, in one step."""
        step = self.model
        frames = [self._frames(stream) for stream in streams]
        feats = np.zeros((len(streams), step.frames, streams[0].pending.shape[1]), np.float32)
        for row, stream in zip(feats, streams, strict=True):
            part = stream.pending[: step.frames]
            row[: len(part)] = part
        padding = [step.chunk_size - n for n in frames]
        log_probs, pasts = step(feats, step.stack([s.past for s in streams]), padding)
        for stream, past, n in zip(streams, step.unstack(pasts, len(streams)), frames, strict=True):
            stream.past = past
            stream.pending = stream.pending[step.shift :].copy()
            stream.frames += n
        return [rows[:n] for rows, n in zip(log_probs, frames, strict=True)]

    def most_bytes(self, max_seconds=None) -> int:
        """See ``StreamingSpeech2Text``."""
        past = sum(x.nbytes for x in self.model.zeros())
        feats = self.start().pending.itemsize * self._arrays[1].shape[1]
        held = 8 * (self.model.info["features"]["length"] + self.samples(self.chunk_seconds))
        return past + feats * (self.model.frames + self.model.shift) + held

    def _symbols(self, tokens: list[int]) -> list[str]:
        return [self.model.tokens[token] for token in tokens]

    def _text(self, symbols: list[str]) -> str:
        return text_of(symbols)
