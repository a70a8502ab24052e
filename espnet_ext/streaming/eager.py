"""Streams of a trained model in PyTorch."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from espnet2.text.build_tokenizer import build_tokenizer
from espnet2.text.token_id_converter import TokenIDConverter
from torch.nn.utils.rnn import pad_sequence

from espnet_ext.attention import ATTENTIONS
from espnet_ext.audio import waveform
from espnet_ext.checkpoint import StrictASRTask
from espnet_ext.config import building
from espnet_ext.data.tokens import load_bpe
from espnet_ext.encoder.streaming import StreamingEncoder
from espnet_ext.errors import UserError, check_number
from espnet_ext.frontend import FrontendState, StreamingFrontend
from espnet_ext.register import ENCODERS
from espnet_ext.state import FrameCache, StreamState
from espnet_ext.streaming.searches import Hypothesis, make_search
from espnet_ext.streaming.transcriber import Result, Transcriber, Transcript
from espnet_ext.utterance import encode


@dataclass
class Stream(Transcript):
    """One recording on its way through ``StreamingSpeech2Text``.

    Attributes:
        frontend: State of the features.
        encoder: State of the encoder.
        encoded: Encoder output kept for attention rescoring, empty without it.
    """

    frontend: FrontendState
    encoder: StreamState
    encoded: list[torch.Tensor] = field(default_factory=list)

    @property
    def received(self) -> int:
        """Samples so far."""
        return self.frontend.received[0]

    @property
    def frames(self) -> int:
        """Encoder frames so far."""
        return self.encoder.frames

    @property
    def ended(self) -> bool:
        """No packet follows."""
        return self.encoder.ended[0]

    def ledger(self) -> dict[str, int]:
        """Bytes in use by kind; ``rescoring`` grows with the stream where rescoring is on.

        ``positions`` is shared by all streams of the model, so ``nbytes`` leaves it out.
        """
        kept = sum(y.numel() * y.element_size() for y in self.encoded)
        return self.encoder.ledger() | {"frontend": self.frontend.nbytes, "rescoring": kept}

    @property
    def nbytes(self) -> int:
        """Bytes in use: the sum of the ledger, the shared positions left out."""
        return sum(n for kind, n in self.ledger().items() if kind != "positions")


class EagerSpeech2Text(Transcriber):
    """A trained model in PyTorch; see ``StreamingSpeech2Text``."""

    def __init__(
        self,
        asr_train_config: str | Path,
        asr_model_file: str | Path | None = None,
        chunk_size: int | None = None,
        left_context: int | None = None,
        cache_dtype: str = "float32",
        search: str = "greedy",
        beam_size: int = 10,
        rescore: bool = False,
        ctc_weight: float = 0.3,
        endpoint: float | None = None,
        device: str = "cpu",
    ) -> None:
        self._set_search(search, beam_size, endpoint)
        if rescore and search != "beam":
            raise UserError("rescore: needs search: beam, it chooses among a beam's hypotheses")
        if not 0 <= ctc_weight <= 1:
            raise UserError(f"ctc_weight: must be 0 to 1, got {ctc_weight:g}")
        self.model, args = StrictASRTask.build_model_from_file(
            asr_train_config, asr_model_file, device
        )
        self.model.eval()
        if not isinstance(self.model.encoder, StreamingEncoder):
            raise UserError(
                f"{asr_train_config}: encoder: {args.encoder} does not stream; train one of "
                f"{', '.join(ENCODERS)} with causal: true"
            )
        if getattr(self.model, "preencoder", None) or getattr(self.model, "postencoder", None):
            raise UserError(f"{asr_train_config}: preencoder and postencoder do not stream")
        if getattr(self.model, "ctc", None) is None:
            raise UserError(f"{asr_train_config}: ctc_weight: streaming text needs a CTC output")
        if rescore and self.model.decoder is None:
            raise UserError(f"{asr_train_config}: rescore: the model has no attention decoder")
        self.options: dict[str, Any] = {
            "chunk_size": chunk_size,
            "left_context": left_context,
            "dtype": getattr(torch, cache_dtype, cache_dtype),
        }
        try:
            self.frontend = StreamingFrontend(self.model.frontend, self.model.normalize)
            state = self.model.encoder.init_state(**self.options)
        except ValueError as error:
            raise UserError(f"{asr_train_config}: {error}") from None
        self.model.encoder.lay_out_weights()
        names = {kind: name for name, kind in ATTENTIONS.items()}
        self.attention = " + ".join(
            dict.fromkeys(names[type(a)] for a in self.model.encoder.attentions)
        )
        self.chunk_size, self.left_context = state.chunk_size, state.left_context
        front, (step, _) = self.frontend.front, self.model.encoder.subsampling
        self.fs, self.frame_seconds = front.fs, step * front.hop / front.fs
        self.rescore, self.ctc_weight = rescore, ctc_weight
        self.device = device
        with building(asr_train_config):
            self.token_type = args.token_type
            if self.token_type == "bpe":
                load_bpe(args.bpemodel)
            self.tokenizer = build_tokenizer(token_type=args.token_type, bpemodel=args.bpemodel)
        self.converter = TokenIDConverter(token_list=self.model.token_list)

    def start(self) -> Stream:
        """See ``StreamingSpeech2Text``."""
        encoder = self.model.encoder.init_state(**self.options)
        search = make_search(self.search, self.beam_size)
        return Stream(self.frontend.init_state(), encoder, search=search)

    @torch.no_grad()
    def __call__(self, stream: Stream, samples: Any = (), is_final: bool = False) -> Result:
        """See ``StreamingSpeech2Text``."""
        y, stream.encoder = self._hear(stream, samples, is_final, self.model.encoder.forward_chunk)
        return self.read(stream, y, is_final)

    @torch.no_grad()
    def take(self, stream: Stream, samples: Any = (), is_final: bool = False) -> None:
        """See ``StreamingSpeech2Text``."""
        self._hear(stream, samples, is_final, self.model.encoder.take)

    def _hear(self, stream: Stream, samples: Any, is_final: bool, pass_on: Callable) -> Any:
        """Make features of a packet and pass them on; nothing of the stream changes in a fault."""
        samples = self._waveform(samples)[None]
        try:
            feats, _, frontend = self.frontend.forward_chunk(samples, stream.frontend, is_final)
            given = pass_on(feats, stream.encoder, is_final)
        except ValueError as error:
            raise UserError(str(error)) from None
        stream.frontend = frontend
        return given

    def ready(self, stream: Stream) -> bool:
        """See ``StreamingSpeech2Text``."""
        return self.model.encoder.ready(stream.encoder)

    def lacking(self, stream: Stream) -> int:
        """See ``StreamingSpeech2Text``."""
        needed = self.model.encoder.input_length(self.chunk_size)
        frames = needed - len(stream.encoder.pending[0])
        return (frames - 1) * self.frontend.front.hop - len(stream.frontend.samples[0])

    @torch.no_grad()
    def step(self, streams: list[Stream]) -> list[Result | UserError]:
        """See ``StreamingSpeech2Text``."""
        encoded = self.model.encoder.step_together([stream.encoder for stream in streams])
        results: list[Result | UserError] = []
        for stream, y in zip(streams, encoded, strict=True):
            try:
                if y is None:
                    raise UserError("samples: the model's output would be infinite or not a number")
                results.append(self.read(stream, y, stream.encoder.finished))
            except UserError as error:
                results.append(error)
        return results

    def most_bytes(self, max_seconds: float | None = None) -> int:
        """See ``StreamingSpeech2Text``."""
        encoder, front = self.model.encoder, self.frontend.front
        state = encoder.init_state(**self.options)
        grows = any(isinstance(layer.attention, FrameCache) for layer in state.layers)
        if max_seconds is None and grows and self.left_context < 0:
            raise UserError(
                "max_seconds: needed, since with left_context -1 a stream grows as it lasts"
            )
        frames = encoder.output_length(self.samples(max_seconds or 0) // front.hop + 1)
        attention = sum(
            layer.attention.most_bytes(frames + self.chunk_size) for layer in state.layers
        )
        pending = encoder.input_length(2 * self.chunk_size)  # a chunk, and a packet of one
        held = front.window + self.samples(self.chunk_seconds)
        return (
            attention
            + state.ledger()["convolution"]
            + pending * encoder.input_size * state.pending[0].element_size()
            + held * front.empty.element_size()
        )

    @torch.no_grad()
    def offline(self, samples: Any) -> Result:
        """Text of a whole recording by the chunk-masked offline pass and the same search."""
        return self.read(self.start(), self.encode_offline(samples), is_final=True)

    @torch.no_grad()
    def encode_offline(self, samples: Any) -> torch.Tensor:
        """Encoder output (1, T, n_feat) of the chunk-masked offline pass; T is 0 if too short."""
        samples, encoder = self._waveform(samples), self.model.encoder
        saved = encoder.chunk_size, encoder.left_context
        encoder.chunk_size, encoder.left_context = self.chunk_size, self.left_context
        try:
            return encode(self.model, samples)[None]
        finally:
            encoder.chunk_size, encoder.left_context = saved

    def _waveform(self, samples: Any) -> torch.Tensor:
        return waveform(samples, self.frontend.front.dtype, self.device, channels=False)

    def read(self, stream: Stream, y: torch.Tensor, is_final: bool) -> Result:
        """Search ``y`` (1, n, n_feat), the encoder output that has just come."""
        utterances: list[Result] = []
        size = self.chunk_size if self.endpoint else max(1, y.size(1))
        for part in y.split(size, dim=1) if y.size(1) else ():
            if self.rescore:
                stream.encoded.append(part)
            log_probs = self.model.ctc.log_softmax(part)[0].float().cpu().numpy()
            utterances += self._extend(stream, log_probs)
        return self._result(stream, is_final, utterances)

    def _begin(self, stream: Stream) -> None:
        super()._begin(stream)
        stream.encoded = []

    def _symbols(self, tokens: list[int]) -> list[str]:
        return self.converter.ids2tokens(tokens)

    def _text(self, symbols: list[str]) -> str:
        return self.tokenizer.tokens2text(symbols)

    def _best(self, stream: Stream, is_final: bool) -> Hypothesis:
        if is_final and self.rescore and stream.encoded:
            return self._rescored(stream.search.nbest(), torch.cat(stream.encoded, dim=1))[0]
        return super()._best(stream, is_final)

    def _rescored(self, nbest: list[Hypothesis], encoded: torch.Tensor) -> list[Hypothesis]:
        """Possible hypotheses in the order of CTC and attention decoder together.

        Where the decoder thinks none possible, that of CTC stands.
        """
        sos, eos = self.model.sos, self.model.eos
        hyps = [torch.tensor(t, dtype=torch.long, device=encoded.device) for t, *_ in nbest]
        inputs = pad_sequence([h.new_tensor([sos, *h]) for h in hyps], True, eos)  # (N, L+1)
        targets = pad_sequence([h.new_tensor([*h, eos]) for h in hyps], True, -1)
        lengths = torch.tensor([h.numel() + 1 for h in hyps], device=encoded.device)
        memory = encoded.expand(len(hyps), -1, -1)
        memory_lengths = lengths.new_full((len(hyps),), encoded.size(1))
        logits, _ = self.model.decoder(memory, memory_lengths, inputs, lengths)
        log_probs = logits.log_softmax(-1).gather(-1, targets.clamp_min(0)[..., None])[..., 0]
        attention = log_probs.masked_fill(targets < 0, 0).sum(1)
        if attention.isnan().any():
            check_number(math.nan)
        scored = [
            hyp._replace(score=self.ctc_weight * hyp.score + (1 - self.ctc_weight) * att)
            for hyp, att in zip(nbest, attention.tolist(), strict=True)
            if min(hyp.score, att) > -math.inf  # 0 times that is not a number
        ]
        return sorted(scored, key=lambda hyp: -hyp.score) or nbest
