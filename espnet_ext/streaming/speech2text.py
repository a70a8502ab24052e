"""Text from a live stream: feed packets of samples, get partial text, then the final one."""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from espnet2.text.build_tokenizer import build_tokenizer
from espnet2.text.token_id_converter import TokenIDConverter
from torch.nn.utils.rnn import pad_sequence

from espnet_ext.audio import waveform
from espnet_ext.checkpoint import StrictASRTask
from espnet_ext.config import building
from espnet_ext.encoder.streaming import StreamingEncoder
from espnet_ext.errors import UserError
from espnet_ext.frontend import FrontendState, StreamingFrontend
from espnet_ext.pretrained import PRETRAINED, model_files
from espnet_ext.register import ENCODERS
from espnet_ext.state import FrameCache, StreamState
from espnet_ext.streaming.searches import (
    BLANK,
    GreedySearch,
    Hypothesis,
    PrefixBeamSearch,
    Span,
)
from espnet_ext.streaming.words import Word, words_of
from espnet_ext.utterance import check_number, encode


@dataclass
class Result:
    """What is known so far of an utterance, which is the whole stream unless ``endpoint`` is set.

    Attributes:
        text: The text.
        tokens: Its token ids.
        score: Log probability of the hypothesis.
        is_final: The utterance has ended, and nothing of it will change any more.
        words: Its words with their times.
        utterances: Utterances that ended before it since the last result.
    """

    text: str
    tokens: list[int]
    score: float
    is_final: bool
    words: list[Word] = field(default_factory=list)
    utterances: tuple["Result", ...] = ()


@dataclass
class Stream:
    """One recording on its way through ``StreamingSpeech2Text``.

    Attributes:
        frontend: State of the features.
        encoder: State of the encoder.
        search: State of the CTC search.
        encoded: Encoder output kept for attention rescoring, empty without it.
        before: Encoder frames of the utterances before this one.
        blanks: Encoder frames since the last token.
        appeared: Of each word of the utterance, what it was last and since when, see ``Word``.
    """

    frontend: FrontendState
    encoder: StreamState
    search: GreedySearch | PrefixBeamSearch
    encoded: list[torch.Tensor] = field(default_factory=list)
    before: int = 0
    blanks: int = 0
    appeared: list[tuple[str, float]] = field(default_factory=list)

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


class StreamingSpeech2Text:
    """A trained model that transcribes streams.

        stream = speech2text.start()
        for packet in packets:
            print(speech2text(stream, packet).text)
        print(speech2text(stream, is_final=True).text)

    Args:
        asr_train_config: ``config.yaml`` of the training run.
        asr_model_file: Checkpoint, such as ``valid.acc.ave.pth``.
        chunk_size: Encoder frames per step; the model's own by default.
        left_context: Encoder frames seen before a chunk; the model's own by default.
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

    Raises:
        UserError: The model cannot stream, or an option breaks its rule; the message says which.
    """

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
        if search not in ("greedy", "beam"):
            raise UserError(f"search: must be greedy or beam, got {search!r}")
        if rescore and search != "beam":
            raise UserError("rescore: needs search: beam, it chooses among a beam's hypotheses")
        if beam_size < 1:
            raise UserError(f"beam_size: must be at least 1, got {beam_size}")
        if not 0 <= ctc_weight <= 1:
            raise UserError(f"ctc_weight: must be 0 to 1, got {ctc_weight:g}")
        if endpoint is not None and not endpoint > 0:
            raise UserError(f"endpoint: must be more than 0 seconds, got {endpoint:g}")
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
        self.options = {
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
        self.chunk_size, self.left_context = state.chunk_size, state.left_context
        self.fs = self.frontend.front.fs
        self.search, self.beam_size = search, beam_size
        self.rescore, self.ctc_weight, self.endpoint = rescore, ctc_weight, endpoint
        self.device = device
        with building(asr_train_config):
            self.tokenizer = build_tokenizer(token_type=args.token_type, bpemodel=args.bpemodel)
        self.token_type = args.token_type
        self.converter = TokenIDConverter(token_list=self.model.token_list)

    @classmethod
    def from_pretrained(
        cls, model: str | Path = PRETRAINED, **options: Any
    ) -> "StreamingSpeech2Text":
        """A trained model by the directory of its files.

        Args:
            model: Directory with ``config.yaml`` and ``valid.acc.ave.pth``, or
                ``fsdd_conformer_mla``, the small one in the package (English digits, 8 kHz).
            options: As those of the class.

        Raises:
            UserError: It is not there, or it cannot stream.
        """
        return cls(**model_files(model), **options)

    def start(self) -> Stream:
        """State of a new recording."""
        encoder = self.model.encoder.init_state(**self.options)
        return Stream(self.frontend.init_state(), encoder, self._new_search())

    def _new_search(self) -> GreedySearch | PrefixBeamSearch:
        return PrefixBeamSearch(self.beam_size) if self.search == "beam" else GreedySearch()

    @torch.no_grad()
    def __call__(self, stream: Stream, samples: Any = (), is_final: bool = False) -> Result:
        """Read a packet.

        Args:
            stream: From ``start``; it is updated in place.
            samples: Mono waveform at the model's rate (n,), floats in [-1, 1], any length.
            is_final: No packet follows.

        Returns:
            What is known so far.

        Raises:
            UserError: The samples are not a mono waveform of numbers in [-1, 1], or the stream has
                ended, which leaves it as it was; or the model's output is not a number.
        """
        samples = self._checked(samples)[None]
        try:
            feats, _, frontend = self.frontend.forward_chunk(samples, stream.frontend, is_final)
            y, stream.encoder = self.model.encoder.forward_chunk(feats, stream.encoder, is_final)
        except ValueError as error:
            raise UserError(str(error)) from None
        stream.frontend = frontend
        return self.read(stream, y, is_final)

    # many streams, see ``StreamPool``

    @torch.no_grad()
    def take(self, stream: Stream, samples: Any = (), is_final: bool = False) -> None:
        """Keep a packet for ``step``; as ``__call__`` but for what it gives."""
        samples = self._checked(samples)[None]
        try:
            feats, _, frontend = self.frontend.forward_chunk(samples, stream.frontend, is_final)
            self.model.encoder.take(feats, stream.encoder, is_final)
        except ValueError as error:
            raise UserError(str(error)) from None
        stream.frontend = frontend

    def ready(self, stream: Stream) -> bool:
        """Whether packets for a step of the stream were taken."""
        return self.model.encoder.ready(stream.encoder)

    @torch.no_grad()
    def step(self, streams: list[Stream]) -> list[Result | UserError]:
        """One chunk of each stream, in one step of the model.

        Args:
            streams: All ``ready``. They are updated in place.

        Returns:
            What is known of each so far, or what is wrong with it.
        """
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

    def last(self, stream: Stream) -> Result:
        """The final result of a stream that has nothing left to encode."""
        return self.read(stream, torch.zeros(1, 0, 0), is_final=True)

    @property
    def frame_seconds(self) -> float:
        """Seconds of an encoder frame."""
        step, _ = self.model.encoder.subsampling
        return step * self.frontend.front.hop / self.fs

    @property
    def chunk_seconds(self) -> float:
        """Seconds from one step of a stream to the next."""
        return self.chunk_size * self.frame_seconds

    def samples(self, seconds: float) -> int:
        """So many seconds in samples, rounded up."""
        return math.ceil(seconds * self.fs)

    def most_bytes(self, max_seconds: float | None = None) -> int:
        """Bytes that a stream holds at most, allocated ones, between steps and in one.

        Args:
            max_seconds: Its length; needed where it keeps all of its past.

        Raises:
            UserError: There is no such most without it.
        """
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
        step, sees = encoder.subsampling
        pending = (2 * self.chunk_size - 1) * step + sees  # a chunk, and a packet of one
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
        samples, encoder = self._checked(samples), self.model.encoder
        saved = encoder.chunk_size, encoder.left_context
        encoder.chunk_size, encoder.left_context = self.chunk_size, self.left_context
        try:
            return encode(self.model, samples)[None]
        finally:
            encoder.chunk_size, encoder.left_context = saved

    def _checked(self, samples: Any) -> torch.Tensor:
        if np.ndim(samples) != 1:
            raise UserError(f"samples: must be mono (n,), got shape {np.shape(samples)}")
        return waveform(samples, self.frontend.front.dtype, self.device)

    def read(self, stream: Stream, y: torch.Tensor, is_final: bool) -> Result:
        """Search ``y`` (1, n, n_feat), the encoder output that has just come."""
        utterances, chunk = [], self.chunk_size if self.endpoint else max(1, y.size(1))
        for part in y.split(chunk, dim=1) if y.size(1) else ():
            log_probs = self.model.ctc.log_softmax(part)[0].float().cpu().numpy()
            stream.search.extend(log_probs)
            if self.rescore:
                stream.encoded.append(part)
            spoken = np.flatnonzero(log_probs.argmax(axis=1) != BLANK)
            stream.blanks = (
                len(log_probs) - 1 - int(spoken[-1])
                if len(spoken)
                else stream.blanks + len(log_probs)
            )
            if self.endpoint and stream.blanks * self.frame_seconds >= self.endpoint:
                if (ended := self._result(stream, is_final=True)).tokens:
                    utterances.append(ended)
                    stream.before += stream.search.frames
                    stream.search, stream.encoded, stream.appeared = self._new_search(), [], []
        return replace(self._result(stream, is_final), utterances=tuple(utterances))

    def _result(self, stream: Stream, is_final: bool) -> Result:
        """What the search of a stream's utterance has found."""
        nbest = stream.search.nbest()
        if is_final and self.rescore and stream.encoded:
            nbest = self._rescored(nbest, torch.cat(stream.encoded, dim=1))
        best = nbest[0]
        tokens = self.converter.ids2tokens(best.tokens)
        return Result(
            self.tokenizer.tokens2text(tokens),
            list(best.tokens),
            best.score,
            is_final,
            self._words(stream, tokens, best.spans),
        )

    def _words(self, stream: Stream, tokens: list[str], spans: list[Span]) -> list[Word]:
        """Words of the utterance from its tokens and their spans."""
        words, before, seconds = [], stream.before, self.frame_seconds
        heard = stream.frontend.received[0] / self.fs
        for group in words_of(tokens, self.token_type):
            text = self.tokenizer.tokens2text(tokens[group]).strip()
            if not text:
                continue
            own = spans[group]
            start, end = (before + own[0].first) * seconds, (before + own[-1].last + 1) * seconds
            start, end, heard = round(start, 4), round(end, 4), round(heard, 4)
            confidence = math.exp(sum(span.log_prob for span in own))
            known = stream.appeared[len(words) : len(words) + 1]
            since = known[0][1] if known and known[0][0] == text else heard
            words.append(Word(text, start, end, confidence, since))
        stream.appeared = [(word.text, word.appeared) for word in words]
        return words

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
