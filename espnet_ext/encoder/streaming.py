"""What makes an ESPnet encoder stream: swapped attention, chunk view, and one ``forward_chunk``."""

import warnings
import zlib
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any

import torch
from espnet2.legacy.nets.pytorch_backend.transformer.embedding import RelPositionalEncoding
from torch import Tensor, nn

from espnet_ext.attention import build_attention, layer_attentions
from espnet_ext.attention.blocked import ChunkView
from espnet_ext.attention.checks import check_at_least, check_choice
from espnet_ext.cpu import replace
from espnet_ext.cpu.subsampling import stride_and_receptive_field
from espnet_ext.encoder.conv import CausalConv1d, like
from espnet_ext.positions import PositionTable, plain_tensors
from espnet_ext.state import (
    FrameCache,
    LayerState,
    StreamState,
    check_cache_dtype,
    check_finite,
    checked_lengths,
)
from espnet_ext.step import PastOfLayer, PastOfStreams, RaggedWindow, Window

# dynamic_chunk draws from these: half of the batches see everything, the others chunks of up to
# one second at 40 ms per frame, with up to this many chunks before them
MAX_DYNAMIC_CHUNK = 25
MAX_DYNAMIC_LEFT_CHUNKS = 8


class ChunkedPositionalEncoding(RelPositionalEncoding):
    """ESPnet's relative positions, which also say which frames a frame may see.

    Attributes:
        chunk_size: Encoder frames per chunk, or None where every frame sees all.
        left_context: Encoder frames seen before a chunk, -1 for all.
        dynamic_chunk: Draw both anew for every training batch, full context included.
        used: Chunk size and left context of the last batch.
    """

    chunk_size: int | None = None
    left_context: int = -1
    dynamic_chunk: bool = False
    used: tuple[int | None, int] = None, -1

    def forward(self, x: Tensor) -> Any:
        """Scale the input: (B, T, n_feat) -> the same, and positions or a ``ChunkView``."""
        chunk_size, left_context = self.chunk_size, self.left_context
        if self.dynamic_chunk and self.training:
            chunk_size, left_context = self.draw()
        self.used = chunk_size, left_context
        if chunk_size is None:
            return super().forward(x)
        needed = ChunkView.needed_positions(x.size(1), chunk_size, left_context)
        _, pos_emb = super().forward(x[:, :needed])
        return self.dropout(x * self.xscale), ChunkView(pos_emb, chunk_size, left_context)

    @staticmethod
    def draw() -> tuple[int | None, int]:
        """A random chunk size and left context for one training batch."""
        full, unlimited, chunk, left = torch.rand(4).tolist()
        if full < 0.5:
            return None, -1
        chunk_size = 1 + int(chunk * MAX_DYNAMIC_CHUNK)
        left_chunks = int(left * (MAX_DYNAMIC_LEFT_CHUNKS + 1))
        return chunk_size, -1 if unlimited < 0.5 else left_chunks * chunk_size


def check_chunk(chunk_size: int | None, left_context: int) -> None:
    """Refuse an impossible chunk size or left context, naming the key, the rule and the value."""
    if chunk_size is not None:
        check_at_least("chunk_size", chunk_size, 1)
    check_at_least("left_context", left_context, -1)


def padded_frames(lengths: Tensor, device: torch.device | str | None) -> Tensor:
    """True on padded frames (B, T), T the longest of ``lengths`` (B,)."""
    return torch.arange(int(lengths.max()), device=device) >= lengths.to(device)[:, None]


def _real_rows(y: Tensor, counts: list[int]) -> list[Tensor]:
    return [row[:n] for row, n in zip(y, counts, strict=True)]


class StreamingEncoder(nn.Module):
    """Mixed into an ESPnet encoder before ESPnet's class.

    A subclass sets ``attention_name``, the attribute of a layer that holds its attention, says
    where a layer's convolutions over time are, and runs one layer on one chunk.

    Args:
        input_size: Features per frame.
        output_size: Width of the model, n_feat.
        attention_heads: Query heads, n_head.
        attention_dropout_rate: Dropout of attention weights.
        rel_pos_type: ``latest``, ESPnet's current relative positions; the others are refused.
        attention: One of ``espnet_ext.attention.ATTENTIONS``; a list has a name for each layer.
        attention_conf: Options; a list has a value for each layer. A layer takes those that its
            attention has.
        causal: Convolutions see no future frame. Needed to stream.
        chunk_size: Encoder frames per chunk (40 ms each at 16 kHz, hop 160, conv2d); None lets
            every frame see the whole utterance.
        left_context: Encoder frames that a chunk sees before itself; -1 is unlimited.
        dynamic_chunk: Draw chunk size and left context anew for every training batch, full context
            included, so that one model serves every latency.
        attention_memory_mb: What the attention scores of whole utterances may take at once, MB.
            Longer utterances and larger batches are attended to in smaller blocks of queries; the
            result is the same.
        espnet_conf: Everything else goes to ESPnet's encoder.

    Raises:
        ValueError: An impossible value; the message names key, rule and value.
    """

    attention_name: str
    #: ESPnet's
    embed: Any
    encoders: Any
    after_norm: Any
    output_size: Any

    def __init__(
        self,
        input_size: int,
        output_size: int = 256,
        attention_heads: int = 4,
        attention_dropout_rate: float = 0.0,
        rel_pos_type: str = "latest",
        attention: str | list[str] = "mha",
        attention_conf: dict | None = None,
        causal: bool = False,
        chunk_size: int | None = None,
        left_context: int = -1,
        dynamic_chunk: bool = False,
        attention_memory_mb: int = 256,
        **espnet_conf: Any,
    ) -> None:
        check_chunk(chunk_size, left_context)
        check_choice("causal", causal, (True, False))
        check_choice("dynamic_chunk", dynamic_chunk, (True, False))
        self._check_espnet_conf(
            {"rel_pos_type": rel_pos_type, **espnet_conf},
            streams=causal or dynamic_chunk or chunk_size is not None,
        )

        check_at_least("attention_memory_mb", attention_memory_mb, 1)

        def make(layer: tuple[str, dict]) -> nn.Module:
            name, conf = layer
            made = build_attention(name, attention_heads, output_size, attention_dropout_rate, conf)
            made.attention_memory_mb = attention_memory_mb
            return made

        for layer in layer_attentions(attention, attention_conf):
            make(layer)  # complain about its options before ESPnet asserts
        super().__init__(
            input_size,
            output_size=output_size,
            attention_heads=attention_heads,
            attention_dropout_rate=attention_dropout_rate,
            rel_pos_type=rel_pos_type,
            **espnet_conf,
        )
        made = layer_attentions(attention, attention_conf, len(self.encoders))
        for layer, own in zip(self.encoders, made, strict=True):
            setattr(layer, self.attention_name, make(own))
            for holder, name in self.convolutions(layer).values():
                kind = CausalConv1d if causal else nn.Conv1d
                setattr(holder, name, like(getattr(holder, name), kind))
            for module in layer.modules():  # so that a seed gives the weights that it always gave
                if type(module) is nn.Conv1d and module.kernel_size == (1,):
                    module.reset_parameters()
        for name, module in self.embed.named_children():
            if isinstance(module, RelPositionalEncoding):
                self._positional_encoding = ChunkedPositionalEncoding(
                    module.d_model, module.dropout.p, (module.pe.size(1) + 1) // 2
                )
                setattr(self.embed, name, self._positional_encoding)
        replace.replace(self)
        self._positional_encoding.dynamic_chunk = dynamic_chunk
        self.input_size = input_size
        self.causal = causal
        self.chunk_size = chunk_size
        self.left_context = left_context

    # what a subclass defines

    @staticmethod
    def convolutions(layer: Any) -> dict[str, tuple[Any, str]]:
        """Name of each convolution over time -> the module that holds it and its attribute."""
        raise NotImplementedError

    @staticmethod
    def layer_chunk(layer: Any, x: Tensor, past: PastOfLayer) -> Tensor:
        """One layer on one chunk (B, n, n_feat) -> (B, n, n_feat)."""
        raise NotImplementedError

    #: ESPnet option -> the only value that works here, and when it must hold
    required_conf = {
        "rel_pos_type": "latest",
        "pos_enc_layer_type": "rel_pos",
        "zero_triu": False,
        "qk_norm": False,
    }
    required_streaming_conf: dict = {}

    def _check_espnet_conf(self, conf: dict, streams: bool) -> None:
        required = self.required_conf | (self.required_streaming_conf if streams else {})
        for key, value in required.items():
            if key in conf and conf[key] != value:
                why = "to stream or to be chunk-masked" if key not in self.required_conf else "here"
                raise ValueError(f"{key}: must be {value!r} {why}, got {conf[key]!r}")

    # what a frame may see

    @property
    def chunk_size(self) -> int | None:
        """Encoder frames per chunk of the offline pass, None for full context. May be set."""
        return self._positional_encoding.chunk_size

    @chunk_size.setter
    def chunk_size(self, value: int | None) -> None:
        check_chunk(value, self.left_context)
        self._positional_encoding.chunk_size = value

    @property
    def left_context(self) -> int:
        """Encoder frames that a chunk sees before itself, -1 for all. May be set."""
        return self._positional_encoding.left_context

    @left_context.setter
    def left_context(self, value: int) -> None:
        check_chunk(self.chunk_size, value)
        self._positional_encoding.left_context = self._effective_left_context(value)

    @property
    def used_view(self) -> tuple[int | None, int]:
        """Chunk size and left context of the last offline pass, drawn where they are dynamic."""
        return self._positional_encoding.used

    def _effective_left_context(self, left_context: int) -> int:
        if left_context >= 0 and not any(layer.has_left_context for layer in self.attentions):
            name = type(self.attentions[0]).__name__
            warnings.warn(
                f"left_context: {name} keeps sums that cannot forget a frame, so {left_context} is "
                "ignored; set -1",
                stacklevel=3,
            )
            return -1
        return left_context

    @cached_property
    def subsampling(self) -> tuple[int, int]:
        """Feature frames from one encoder frame to the next, and that one encoder frame sees."""
        return stride_and_receptive_field(self.embed)

    def output_length(self, frames: int) -> int:
        """Encoder frames that ``frames`` feature frames give."""
        stride, field = self.subsampling
        return max(0, (frames - field) // stride + 1)

    def input_length(self, frames: int) -> int:
        """Fewest feature frames that give ``frames`` encoder frames, at least one."""
        stride, field = self.subsampling
        return (frames - 1) * stride + field

    # whole utterances

    def forward(
        self,
        xs_pad: Tensor,
        ilens: Tensor,
        prev_states: Any = None,
        masks: Any = None,
        **options: Any,
    ) -> Any:
        """ESPnet's forward pass, with a padding mask that costs no square of the length.

        Args:
            xs_pad: Features (B, T, input_size).
            ilens: Frames that are speech (B,).
            prev_states: Not used.
            masks: True on padded frames (B, T), or None to follow ``ilens``.
            options: Everything else goes to ESPnet's encoder.

        Returns:
            Encoder output (B, T', output_size), with intermediate outputs where ESPnet's options
            ask for them, output lengths (B,) and None.
        """
        if masks is None:
            masks = padded_frames(ilens, xs_pad.device)
        return super().forward(xs_pad, ilens, prev_states, masks=masks, **options)

    # streaming

    @plain_tensors()
    def init_state(
        self,
        batch_size: int = 1,
        chunk_size: int | None = None,
        left_context: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> StreamState:
        """State of streams that have not begun.

        Args:
            batch_size: Streams side by side.
            chunk_size: Encoder frames per chunk; the encoder's own by default.
            left_context: Encoder frames seen before a chunk; the encoder's own by default.
            device: Where the state lives; with the weights by default.
            dtype: What the attention caches are stored in: float32, bfloat16, float16 or int8; the
                weights' own by default.

        Raises:
            ValueError: The encoder cannot stream, or a value breaks its rule.
        """
        if not self.causal:
            raise ValueError(
                "causal: an encoder that streams must be built and trained with true, got false"
            )
        if chunk_size is None:
            chunk_size = self.chunk_size
        if chunk_size is None:
            raise ValueError("chunk_size: needed to stream, in the encoder's options or here")
        left_context = self.left_context if left_context is None else left_context
        check_chunk(chunk_size, left_context)
        check_at_least("batch_size", batch_size, 1)
        left_context = self._effective_left_context(left_context)
        weight = next(self.parameters())
        dtype = weight.dtype if dtype is None else dtype
        device = weight.device if device is None else device
        check_cache_dtype(dtype)
        layers = []
        for layer, attention in zip(self.encoders, self.attentions, strict=True):
            cache = attention.init_cache(batch_size, chunk_size, left_context, dtype, device)
            convolutions = {
                name: getattr(holder, attribute).init_state(batch_size, device)
                for name, (holder, attribute) in self.convolutions(layer).items()
            }
            layers.append(LayerState(cache, convolutions))
        nothing = torch.zeros(0, self.input_size, dtype=weight.dtype, device=device)
        positions = PositionTable.of(self, self.attentions)
        positions.rows(chunk_size + max(left_context, 0), chunk_size)
        return StreamState(
            layers=layers,
            pending=(nothing,) * batch_size,
            chunk_size=chunk_size,
            left_context=left_context,
            produced=(0,) * batch_size,
            ended=(False,) * batch_size,
            closed=(False,) * batch_size,
            model=self.fingerprint(),
            positions=positions,
        )

    def lay_out_weights(self) -> None:
        """A layout of the weights for streams on a CPU, see ``espnet_ext.cpu.replace``."""
        replace.lay_out_weights(self)

    @property
    def attentions(self) -> list[Any]:
        """The attention of each layer."""
        return [getattr(layer, self.attention_name) for layer in self.encoders]

    def fingerprint(self) -> str:
        """A few characters that tell this encoder's weights from another's."""
        first, *_, last = self.parameters()
        some = torch.cat([x.detach().flatten()[:4096].float().cpu() for x in (first, last)])
        return f"{type(self).__name__}-{zlib.crc32(some.numpy().tobytes()):08x}"

    @torch.inference_mode(False)
    @torch.no_grad()
    def forward_chunk(
        self, feats: Tensor, state: StreamState, is_final: bool = False, lengths: Any = None
    ) -> tuple[Tensor, StreamState]:
        """Encode what one packet of features completes.

        Streams of the batch may be of any age and phase (``StreamState.stack``): each gives a chunk
        as soon as its own is full.

        An error leaves the state as it was, so the packet may be given again. Only after a packet
        of several chunks that failed in a later one, the state refuses to be used.

        Args:
            feats: Features (B, n, input_size) of any length n, also 0.
            state: From ``init_state`` or the packet before. It is updated in place.
            is_final: No packet follows: encode what is left, in a last chunk that may be shorter.
            lengths: Frames of this packet that are speech, B integers of 0..n. A stream that has
                fewer than n has ended, and has 0 from then on; its last frames are encoded when the
                other streams' next chunk is. None where all frames are speech.

        Returns:
            Encoder output (B, m, output_size) and the state. The first frames of each stream are
            its new ones, as many as its number in ``state.lengths`` has grown; m is that of the
            stream that has most, and what follows in others is of no use.

        Raises:
            ValueError: The packet does not fit the state, is not of finite numbers, or its output
                would not be.
        """
        lengths = self._check_packet(feats, state, lengths)
        ended = tuple(
            bool(is_final) or e or n < feats.size(1)
            for e, n in zip(state.ended, lengths, strict=True)
        )
        rows = [
            torch.cat([old, new[:n].to(old.dtype)])
            for old, new, n in zip(state.pending, feats, lengths, strict=True)
        ]
        stride, full = self.subsampling[0], self.input_length(state.chunk_size)
        layers, produced = state.layers, state.produced
        outputs: list[Tensor] = []
        counts: list[list[int]] = []
        while True:
            parts = [row[:full] for row in rows]
            ready = [len(part) == full for part in parts]
            real = [
                self.output_length(len(part)) if whole or e else 0
                for part, whole, e in zip(parts, ready, ended, strict=True)
            ]
            due = is_final or any(whole and not e for whole, e in zip(ready, ended, strict=True))
            if not due or not max(real):
                break
            # the ring slots of a second chunk are those of frames that the old state still reads
            state.broken = bool(outputs) and state.left_context > 0
            batch = nn.utils.rnn.pad_sequence(
                [part if m else part[:0] for part, m in zip(parts, real, strict=True)], True
            )
            y, layers = self._encode_chunk(batch, layers, real, ended, state)
            outputs.append(y)
            counts.append(real)
            produced = tuple(a + b for a, b in zip(produced, real, strict=True))
            rows = [
                row[state.chunk_size * stride :] if whole else row[:0] if m else row
                for row, whole, m in zip(rows, ready, real, strict=True)
            ]
        changes = {
            "layers": layers,
            # a view would keep the whole packet alive
            "pending": tuple(row[:0].clone() if is_final else row.clone() for row in rows),
            "produced": produced,
            "ended": ended,
            "closed": (True,) * len(ended) if is_final else state.closed,
            "broken": False,
        }
        if len(outputs) == 1:
            y = outputs[0]
        elif outputs:  # each stream's in a row, without a gap
            each = zip(*map(_real_rows, outputs, counts), strict=True)
            y = nn.utils.rnn.pad_sequence([torch.cat(own) for own in each], True)
        else:
            y = rows[0].new_zeros(len(rows), 0, self.output_size())
        vars(state).update(changes)  # at once: an interrupt comes before or after it
        return y, state

    def _encode_chunk(
        self, feats: Tensor, layers: list, real: list[int], ended: tuple, state: StreamState
    ) -> tuple[Tensor, list[LayerState]]:
        """One chunk (B, T, input_size) -> (B, n, output_size) and the layers' states after it.

        ``real`` frames of each stream are speech. What the rings of those that have ``ended`` hold
        is of no use.
        """
        n = self.output_length(feats.size(1))
        layers = [layer.with_room(n) for layer in layers]
        heads, lengths, capacity = _counters(layers, n)
        window: Any
        if len(set(heads)) == 1:
            window = Window(heads[0], lengths, real, n, capacity, feats.device)
        else:
            tensor = partial(torch.tensor, device=feats.device)
            window = RaggedWindow(tensor(heads), tensor(lengths), tensor(real), n, capacity)
        assert state.positions is not None  # _check_packet has seen to it
        positions = state.positions.rows(window.keys, n)
        y, pasts = self.step(feats, layers, window, positions)
        if not torch.isfinite(y).all():
            raise ValueError(
                "feats: the encoder's output would be infinite or not a number: the features are "
                "far too large, the weights are of no use, or the dtype is too narrow, use float32"
            )
        moved = [n if e else m for m, e in zip(real, ended, strict=True)]
        return y, _after(pasts, heads, lengths, moved, real, state.left_context, capacity)

    # streams with states of their own, stepped together

    def take(self, feats: Tensor, state: StreamState, is_final: bool = False) -> None:
        """Keep a packet of features for ``step_together``, and encode nothing.

        Args:
            feats: Features (1, n, input_size).
            state: Of one stream, from ``init_state``. It is updated in place.
            is_final: No packet follows.

        Raises:
            ValueError: The packet does not fit the state, or is not of finite numbers.
        """
        self._check_packet(feats, state, None)
        pending = torch.cat([state.pending[0], feats[0].to(state.pending[0])])
        state.pending, state.ended = (pending,), (bool(is_final),)
        state.closed = (bool(is_final) and not self.ready(state),)

    def ready(self, state: StreamState) -> bool:
        """Whether features for a step were taken: a whole chunk, or what is left at the end."""
        frames = self.output_length(len(state.pending[0]))
        return frames >= (1 if state.ended[0] else state.chunk_size)

    @torch.inference_mode(False)
    @torch.no_grad()
    def step_together(self, states: list[StreamState]) -> list[torch.Tensor | None]:
        """Encode the next chunk of each of several streams, of any ages, in one step.

        What comes of all frames is computed at once. Caches stay where they are, each stream's
        queries meet its own (``step.FramesOfStreams``), so nothing is copied and a stream that
        leaves leaves nothing behind.

        Args:
            states: Of one stream each, all ``ready`` and of one chunk size. They are updated in
                place.

        Returns:
            For each its encoder output (1, m, output_size), or None where that would not be finite:
            then its state is as it was.

        Raises:
            ValueError: A state is not ready, or they differ in chunk size.
        """
        if len({state.chunk_size for state in states}) != 1 or not all(map(self.ready, states)):
            raise ValueError("states: must be one or more of one chunk size, each with a chunk")
        stride, full = self.subsampling[0], self.input_length(states[0].chunk_size)
        parts = [state.pending[0][:full] for state in states]
        feats = nn.utils.rnn.pad_sequence(parts, True)
        real = [self.output_length(len(part)) for part in parts]
        n = self.output_length(feats.size(1))
        layers = [[layer.with_room(n) for layer in state.layers] for state in states]
        counters = [_counters(own, n) for own in layers]
        windows = [
            Window(heads[0], lengths, (m,), n, capacity, feats.device)
            for (heads, lengths, capacity), m in zip(counters, real, strict=True)
        ]
        table = states[0].positions
        assert table is not None  # take has seen to it
        positions = table.rows(max(window.keys for window in windows), n)
        pasts = [
            [PastOfLayer(layer, rows, window) for layer, window in zip(same, windows, strict=True)]
            for same, rows in zip(zip(*layers, strict=True), positions, strict=True)
        ]
        y = self.encode_chunk(feats, list(map(PastOfStreams, pasts, positions)))
        outputs: list[Tensor | None] = []
        for i, (state, m) in enumerate(zip(states, real, strict=True)):
            output = y[i : i + 1, :m]
            if not torch.isfinite(output).all():
                outputs.append(None)
                continue
            outputs.append(output)
            heads, lengths, capacity = counters[i]
            own = [past[i] for past in pasts]
            state.layers = _after(own, heads, lengths, (m,), (m,), state.left_context, capacity)
            state.pending = (state.pending[0][m * stride :].clone(),)
            state.produced = (state.produced[0] + m,)
            state.closed = (state.ended[0] and not self.ready(state),)
        return outputs

    def step(
        self, feats: Tensor, layers: list[LayerState], window: Any, positions: list
    ) -> tuple[Tensor, list[PastOfLayer]]:
        """The tensors of a step: one chunk through all layers, and nothing of a state changed.

        Args:
            feats: Features (B, T, input_size).
            layers: ``LayerState`` of each layer, with room for the chunk.
            window: ``Window`` or ``RaggedWindow``.
            positions: What ``PositionTable.rows(window.keys, window.n)`` gives.

        Returns:
            Encoder output (B, n, output_size), and for each layer the ``PastOfLayer`` that knows
            what the chunk leaves behind.
        """
        pasts = [PastOfLayer(*args, window) for args in zip(layers, positions, strict=True)]
        return self.encode_chunk(feats, pasts), pasts

    def encode_chunk(self, feats: Tensor, pasts: list) -> Tensor:
        """One chunk of features (B, T, input_size) through all layers -> (B, n, output_size).

        Args:
            feats: Features.
            pasts: For each layer its past, a ``PastOfLayer`` or what has the same two attributes.
        """
        x = self.embed(feats, None)[0] if self.subsampling[1] > 1 else self.embed(feats)
        x = x[0]  # without the position embeddings
        for layer, past in zip(self.encoders, pasts, strict=True):
            x = self.layer_chunk(layer, x, past)
        return self.after_norm(x)

    def _check_packet(self, feats: Tensor, state: StreamState, lengths: Any) -> list[int]:
        """Refuse what cannot be right before anything changes; the packet's lengths as a list."""
        if self.training:
            raise ValueError("training: forward_chunk needs eval() first")
        if not isinstance(state, StreamState):
            raise ValueError(f"state: must come from init_state(), got {type(state).__name__}")
        if state.broken:
            raise ValueError("state: a packet failed half-way, so it is lost; go back to a clone()")
        if state.finished:
            raise ValueError("state: the stream has ended; init_state() begins another")
        if not isinstance(feats, Tensor):
            raise ValueError(f"feats: must be a tensor, got {type(feats).__name__}")
        batch_size = len(state.produced)
        if feats.dim() != 3 or feats.shape[::2] != (batch_size, self.input_size):
            raise ValueError(
                f"feats: must be ({batch_size}, any, {self.input_size}), got {tuple(feats.shape)}"
            )
        if not feats.is_floating_point():
            raise ValueError(f"feats: must be floating-point numbers, got {feats.dtype}")
        weight, begun = next(self.parameters()), state.pending[0]
        for what in ("dtype", "device"):
            if getattr(weight, what) != getattr(begun, what):
                raise ValueError(
                    f"state: begun in {what} {getattr(begun, what)}, and the model is in "
                    f"{getattr(weight, what)} now; init_state() begins another"
                )
        if feats.device != begun.device:
            raise ValueError(f"feats: must be on {begun.device}, got {feats.device}")
        if state.positions is None or state.positions.encoder() is not self:
            self._adopt(state)
        lengths = checked_lengths(lengths, feats.size(1), state.ended)
        check_finite("feats", feats, lengths)
        return lengths

    def _adopt(self, state: StreamState) -> None:
        """Give a state that was loaded, or made by a copy of this encoder, its positions."""
        dtypes = [
            next(iter(layer.attention.buffers.values())).dtype
            for layer in state.layers
            if isinstance(layer.attention, FrameCache)
        ]
        device = state.pending[0].device
        own = self.init_state(1, state.chunk_size, state.left_context, device, *dtypes[:1])
        if state.model != own.model or state.form() != own.form():
            raise ValueError("state: made by another model; init_state() begins one of this model")
        state.positions = own.positions


def _counters(layers: list[LayerState], n: int) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Next slots, lengths and capacity of the rings of layers; one speaks for all."""
    for layer in layers:
        if isinstance(layer.attention, FrameCache):
            return layer.attention.heads, layer.attention.lengths, layer.attention.capacity
    batch_size = len(next(iter(vars(layers[0].attention).values())))
    return (0,) * batch_size, (0,) * batch_size, n  # where no layer has a ring


def _after(
    pasts: list[PastOfLayer],
    heads: tuple[int, ...],
    lengths: tuple[int, ...],
    moved: Sequence[int],
    real: Sequence[int],
    left_context: int,
    capacity: int,
) -> list[LayerState]:
    """The layers' states after a step in which slots moved on and ``real`` frames were speech."""
    heads = tuple(head + m for head, m in zip(heads, moved, strict=True))
    lengths = tuple(length + m for length, m in zip(lengths, real, strict=True))
    if left_context >= 0:
        heads = tuple(head % capacity for head in heads)
        lengths = tuple(min(length, left_context) for length in lengths)
    return [past.after(heads, lengths) for past in pasts]
