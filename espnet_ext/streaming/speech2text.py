"""Text from a live stream: feed packets of samples, get partial text, then the final one."""

from abc import ABCMeta
from pathlib import Path
from typing import Any

from espnet_ext.errors import UserError
from espnet_ext.pretrained import PRETRAINED, model_files
from espnet_ext.streaming.transcriber import Result, Transcriber

__all__ = ["Result", "StreamingSpeech2Text", "packet_samples"]

RUNTIMES = ("torch", "onnxruntime")


class StreamingSpeech2Text(Transcriber, metaclass=ABCMeta):
    """A trained model that transcribes streams.

        stream = speech2text.start()
        for packet in packets:
            print(speech2text(stream, packet).text)
        print(speech2text(stream, is_final=True).text)

    Args:
        asr_train_config: ``config.yaml`` of the training run; an exported model has none.
        asr_model_file: Checkpoint, such as ``valid.acc.ave.pth``, or ``model.onnx`` of an export.
        chunk_size: Encoder frames per chunk; the model's own by default, and an export's only one.
        left_context: Encoder frames seen before a chunk; the same.
        cache_dtype: What the attention caches are stored in: float32, bfloat16, float16, int8.
        search: ``greedy`` or ``beam``, the CTC search that runs with the packets.
        beam_size: Hypotheses of the beam search.
        rescore: Let the attention decoder choose among the beam's hypotheses when a stream ends. It
            keeps the encoder output, so memory grows with the stream.
        ctc_weight: Weight of the CTC score in that choice; the decoder has the rest.
        endpoint: Seconds of blank after a token that end an utterance, looked for after every
            chunk; None, so that only the stream's end does. Front end and encoder go on, and a
            new search begins.
        device: ``cpu`` or ``cuda``.
        runtime: ``torch``, or ``onnxruntime`` for an exported model, which imports neither PyTorch
            nor ESPnet: ``EagerSpeech2Text`` or ``ExportedSpeech2Text`` is made.

    Raises:
        UserError: The model cannot stream, or an option breaks its rule; the message says which.
    """

    def __new__(cls, *args: Any, runtime: str = "torch", **options: Any) -> Any:
        """A ``Transcriber`` of the runtime."""
        if runtime not in RUNTIMES:
            raise UserError(f"runtime: must be {' or '.join(RUNTIMES)}, got {runtime!r}")
        kind: type[Transcriber]
        if runtime == "onnxruntime":
            from espnet_ext.streaming.exported import ExportedSpeech2Text as kind
        else:
            from espnet_ext.streaming.eager import EagerSpeech2Text as kind
        cls.register(kind)  # so that isinstance knows it
        return kind(*args, **options)

    @classmethod
    def from_pretrained(
        cls, model: str | Path = PRETRAINED, **options: Any
    ) -> "StreamingSpeech2Text":
        """A trained model by the directory of its files.

        Args:
            model: Directory with ``config.yaml`` and ``valid.acc.ave.pth``, or
                ``fsdd_conformer_mla``, the small one in the package (English digits, 8 kHz); with
                ``runtime="onnxruntime"`` that of an export.
            options: As those of the class.

        Raises:
            UserError: It is not there, or it cannot stream.
        """
        if options.get("runtime") == "onnxruntime":
            return cls(asr_model_file=Path(model) / "model.onnx", **options)
        return cls(**model_files(model), **options)


def packet_samples(milliseconds: float, fs: int) -> int:
    """Samples of a packet, at least one."""
    return max(1, int(milliseconds * fs / 1000))
