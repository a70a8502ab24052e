"""What a stream carries from one packet to the next, and how many bytes that is.

Every class here is a plain dataclass. Axis 0 of every tensor is the batch of streams, a tuple has
one value per stream, and a list has one per layer. ``step.py`` says how a step reads a state and
what it leaves; nothing else writes to one.
"""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from espnet_ext.files import whole
from espnet_ext.positions import PositionTable, plain_tensors

CACHE_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int8)
#: version of the files that ``StreamState.save`` writes
VERSION = 2


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


@dataclass
class FrameCache:
    """Frames of the past, one or more tensors each: keys and values, layer inputs, or latents.

    With a finite left context the buffers are rings, allocated once: the frames of a step go into
    slots that no stream reads any more. Without one they double when they are full.

    Attributes:
        buffers: Name to tensor (B, ..., capacity, width); ``k`` and ``v`` for keys and values
            (B, n_kv_head, capacity, d_k), ``x`` for layer inputs (B, capacity, n_feat), ``c`` for
            latents (B, capacity, kv_lora_rank).
        scales: For int8 buffers, name to the scale of each vector (B, ..., capacity, 1) in float32:
            one per frame and head for keys and values, one per frame otherwise. Empty for floats.
        left_context: Frames kept from one step to the next; -1 keeps all.
        lengths: Frames that each stream keeps now.
        heads: Slot that each stream's next frame is written to.
    """

    buffers: dict[str, torch.Tensor]
    scales: dict[str, torch.Tensor]
    left_context: int
    lengths: tuple[int, ...]
    heads: tuple[int, ...]

    @classmethod
    def allocate(
        cls,
        shapes: dict[str, tuple[int, ...]],
        left_context: int,
        chunk_size: int,
        dtype: torch.dtype,
        device: torch.device | str | None,
    ) -> FrameCache:
        """Empty cache.

        Args:
            shapes: Name to shape (B, ..., width) of one frame, the time axis left out.
            left_context: Frames to keep, -1 for all.
            chunk_size: Most frames one step appends.
            dtype: One of ``CACHE_DTYPES``.
            device: Where the buffers live.
        """
        capacity = chunk_size + (left_context if left_context >= 0 else 4 * chunk_size)

        def zeros(shape: tuple[int, ...], width: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.zeros(*shape[:-1], capacity, width, dtype=dtype, device=device)

        none = (0,) * next(iter(shapes.values()))[0]
        return cls(
            buffers={name: zeros(shape, shape[-1], dtype) for name, shape in shapes.items()},
            scales={name: zeros(shape, 1, torch.float32) for name, shape in shapes.items()}
            if dtype == torch.int8
            else {},
            left_context=left_context,
            lengths=none,
            heads=none,
        )

    @property
    def capacity(self) -> int:
        """Frames the buffers have room for."""
        return next(iter(self.buffers.values())).size(-2)

    @property
    def nbytes(self) -> int:
        """Bytes of the frames that the next step will read."""
        return self.capacity_bytes // (self.capacity * len(self.lengths)) * sum(self.lengths)

    @property
    def capacity_bytes(self) -> int:
        """Bytes allocated."""
        return sum(_bytes(t) for t in (*self.buffers.values(), *self.scales.values()))

    def most_bytes(self, frames: int) -> int:
        """Most bytes allocated until so many frames have come; more than now where it grows."""
        capacity = self.capacity
        while self.left_context < 0 and capacity < frames:
            capacity *= 2
        grown = capacity + capacity // 2 if capacity > self.capacity else capacity  # old and new
        return self.capacity_bytes // self.capacity * grown

    def stored(
        self, frames: dict[str, torch.Tensor]
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Pairs of a buffer and what it gets for ``frames``, name to (B, ..., n, width)."""
        for name, new in frames.items():
            if self.scales:
                scale = new.abs().amax(dim=-1, keepdim=True).float() / 127
                scale = scale.clamp_min(torch.finfo(torch.float32).tiny)
                yield self.scales[name], scale
                new = (new.float() / scale).round().to(torch.int8)
            yield self.buffers[name], new

    def read(
        self, name: str, slots: Callable[[torch.Tensor], torch.Tensor], dtype: torch.dtype
    ) -> torch.Tensor:
        """Frames in ``dtype``; ``slots`` is a function that takes what is wanted of a buffer."""
        frames = slots(self.buffers[name])
        if self.scales:
            return (frames * slots(self.scales[name])).to(dtype)
        return frames.to(dtype)

    def with_room(self, n: int) -> FrameCache:
        """This cache, or a copy twice as large, in which ``n`` more frames overwrite none."""
        needed = max(self.heads) + n
        if self.left_context >= 0 or needed <= self.capacity:
            return self
        larger = self._empty(max(needed, 2 * self.capacity))
        for new, old in larger._pairs(self):
            new[..., : self.capacity, :] = old
        return larger

    def converted(self, dtype: torch.dtype) -> FrameCache:
        """The same cache stored in another dtype."""
        new = self._empty(self.capacity, dtype)
        float_dtype = torch.float32 if dtype == torch.int8 else dtype
        frames = {name: self.read(name, lambda t: t, float_dtype) for name in self.buffers}
        for buffer, value in new.stored(frames):
            buffer.copy_(value)
        return new

    @classmethod
    def stack(cls, caches: list[FrameCache]) -> FrameCache:
        """Caches of streams of any age as one, whose next slots are the same for all."""
        first = caches[0]
        heads = {head for cache in caches for head in cache.heads}
        if len(heads) == 1 and len({cache.capacity for cache in caches}) == 1:
            new = first._empty(first.capacity, batch_size=sum(len(c.heads) for c in caches))
            for tensors, *olds in new._pairs(*caches):
                torch.cat(olds, out=tensors)
        else:
            head = max(n for cache in caches for n in cache.lengths)
            capacity = max(cache.capacity for cache in caches)
            new = first._empty(capacity, batch_size=sum(len(c.heads) for c in caches))
            row = 0
            for cache in caches:
                for i, (length, end) in enumerate(zip(cache.lengths, cache.heads, strict=True)):
                    slots = torch.arange(end - length, end) % cache.capacity
                    for target, old in new._pairs(cache):
                        target[row, ..., head - length : head, :] = old[i][..., slots, :]
                    row += 1
            heads = {head}
        new.lengths = sum((cache.lengths for cache in caches), ())
        new.heads = tuple(heads) * len(new.lengths)
        return new

    def _empty(
        self, capacity: int, dtype: torch.dtype | None = None, batch_size: int | None = None
    ) -> FrameCache:
        buffer = next(iter(self.buffers.values()))
        dtype = buffer.dtype if dtype is None else dtype
        batch_size = buffer.size(0) if batch_size is None else batch_size
        shapes = {n: (batch_size, *b.shape[1:-2], b.size(-1)) for n, b in self.buffers.items()}
        new = FrameCache.allocate(shapes, 0, capacity, dtype, buffer.device)
        return dataclasses.replace(
            new, left_context=self.left_context, lengths=self.lengths, heads=self.heads
        )

    def _pairs(self, *others: FrameCache) -> Iterator[tuple[torch.Tensor, ...]]:
        """This cache's tensors, each with that of the same name of others."""
        for kind in ("buffers", "scales"):
            for name, tensor in getattr(self, kind).items():
                yield tensor, *(getattr(other, kind)[name] for other in others)


@dataclass
class RunningSums:
    """The past of linear attention: sums that no frame ever leaves.

    Attributes:
        s: Sum of phi(k) v^T over the frames so far (B, n_head, d_k, d_k), float32.
        z: Sum of phi(k) over the frames so far (B, n_head, d_k), float32.
    """

    s: torch.Tensor
    z: torch.Tensor

    @property
    def nbytes(self) -> int:
        """Bytes in use; all of them from the first frame on."""
        return _bytes(self.s) + _bytes(self.z)

    def with_room(self, n: int) -> RunningSums:
        """There is always room."""
        return self

    @property
    def capacity_bytes(self) -> int:
        """Bytes allocated."""
        return self.nbytes

    def most_bytes(self, frames: int) -> int:
        """The same after any number of frames."""
        return self.nbytes


@dataclass
class ConvolutionState:
    """The past of one causal convolution.

    Attributes:
        past: Its last inputs (B, kernel_size - 1, channels), zeros before the stream began.
    """

    past: torch.Tensor

    @property
    def nbytes(self) -> int:
        """Bytes in use and allocated."""
        return _bytes(self.past)


@dataclass
class LayerState:
    """One encoder layer: its attention's cache and its convolutions by name."""

    attention: FrameCache | RunningSums
    convolution: dict[str, ConvolutionState]

    def with_room(self, n: int) -> LayerState:
        """This state, or one whose cache has grown, with room for ``n`` more frames."""
        return LayerState(self.attention.with_room(n), self.convolution)


@dataclass
class StreamState:
    """One or more streams inside an encoder.

    Attributes:
        layers: One ``LayerState`` per encoder layer.
        pending: Feature frames of each stream that have not filled a chunk (n, input_size), with
            the few that the subsampling convolutions look back at.
        chunk_size: Encoder frames per chunk.
        left_context: Encoder frames seen before a chunk, -1 for all.
        produced: Encoder frames of each stream so far.
        ended: Streams that get no more features.
        closed: Streams whose last packet was final, so that nothing of them is left to encode.
        model: Which model the state belongs to, see ``StreamingEncoder.fingerprint``.
        positions: Projected positions, shared by all streams of the model. Not saved.
        broken: A packet failed after some of its chunks, so the state is of no use any more.
    """

    layers: list[LayerState]
    pending: tuple[torch.Tensor, ...]
    chunk_size: int
    left_context: int
    produced: tuple[int, ...]
    ended: tuple[bool, ...]
    closed: tuple[bool, ...]
    model: str
    positions: PositionTable | None = field(default=None, repr=False, compare=False)
    broken: bool = False

    @property
    def lengths(self) -> list[int]:
        """Encoder frames of each stream so far."""
        return list(self.produced)

    @property
    def frames(self) -> int:
        """Encoder frames so far of the stream that has most."""
        return max(self.produced)

    @property
    def finished(self) -> bool:
        """All streams have had their final packet."""
        return all(self.closed)

    def __getstate__(self) -> dict[str, Any]:
        # a copy, in this process or another, takes the positions of its model at its next step
        return vars(self) | {"positions": None}

    def ledger(self) -> dict[str, int]:
        """Bytes in use by kind.

        ``attention``, ``convolution`` and ``subsampling`` are the streams' own. ``positions`` is
        the table that all streams of the model share, so ``nbytes`` leaves it out.
        """
        return {
            "attention": sum(layer.attention.nbytes for layer in self.layers),
            "convolution": sum(
                c.nbytes for layer in self.layers for c in layer.convolution.values()
            ),
            "subsampling": sum(map(_bytes, self.pending)),
            "positions": 0 if self.positions is None else self.positions.nbytes,
        }

    @property
    def nbytes(self) -> int:
        """Bytes in use: the sum of the ledger, the shared positions left out."""
        return sum(n for kind, n in self.ledger().items() if kind != "positions")

    @property
    def capacity_bytes(self) -> int:
        """Bytes allocated: as ``nbytes``, with the attention caches' room counted in full."""
        caches = [layer.attention for layer in self.layers]
        return self.nbytes + sum(cache.capacity_bytes - cache.nbytes for cache in caches)

    @plain_tensors()
    def clone(self) -> StreamState:
        """Independent copy."""
        return _map(self, torch.clone)

    @plain_tensors()
    def select(self, indices: torch.Tensor | Iterable[int]) -> StreamState:
        """Copy of some streams.

        Args:
            indices: Integers (n,), n at least 1: the streams in the order wanted, repeats allowed.

        Raises:
            ValueError: ``indices`` are not numbers of streams.
        """
        wanted = indices.tolist() if isinstance(indices, torch.Tensor) else list(indices)
        batch_size = len(self.produced)
        whole = all(isinstance(i, int) and not isinstance(i, bool) for i in wanted)
        if not wanted or not whole or not all(0 <= i < batch_size for i in wanted):
            raise ValueError(
                f"indices: must be one or more integers of 0..{batch_size - 1}, got {wanted}"
            )

        def rows(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.index_select(0, torch.tensor(wanted, device=tensor.device))

        return _map(self, rows, lambda values: _copied([values[i] for i in wanted]))

    @classmethod
    @plain_tensors()
    def stack(cls, states: list[StreamState]) -> StreamState:
        """Streams of any age as one batch, which ``forward_chunk`` encodes together.

        Raises:
            ValueError: The states differ in model, chunk size, left context, dtype or device.
        """
        states = list(states)
        if not states or not all(isinstance(state, StreamState) for state in states):
            raise ValueError(f"states: must be one or more stream states, got {states!r:.80}")
        if any(state.broken for state in states):
            raise ValueError("states: one of them is of a packet that failed, drop it")
        first = states[0]
        for state in states[1:]:
            for what in ("model", "chunk_size", "left_context"):
                ours, theirs = getattr(first, what), getattr(state, what)
                if ours != theirs:
                    raise ValueError(f"states: {what} must be alike, got {ours} and {theirs}")
            if first.form() != state.form():
                raise ValueError("states: must be alike in layers, dtype and device")
        return _joined(states)

    def unstack(self) -> list[StreamState]:
        """The streams of the batch, each a state of its own."""
        return [self.select([i]) for i in range(len(self.produced))]

    def form(self) -> list:
        """What states of one batch have in common: names, shapes, dtypes and devices."""
        return _form(self.layers) + [(self.pending[0].shape[1:], *_kind(self.pending[0]))]

    @plain_tensors()
    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> StreamState:
        """Copy, on another device if one is named.

        ``dtype`` changes what the attention caches are stored in.
        """

        def moved(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(tensor.device if device is None else device, copy=True)

        new = _map(self, moved, lambda values: _copied(values, moved))
        if device is not None:
            new.positions = None  # those of the model there are taken at the next step
        if dtype is not None:
            check_cache_dtype(dtype)
            for layer in new.layers:
                if isinstance(layer.attention, FrameCache):
                    layer.attention = layer.attention.converted(dtype)
        return new

    def save(self, path: str | Path) -> None:
        """Write the state to a file that ``load`` reads, in this process or another."""
        values = dataclasses.asdict(dataclasses.replace(self, positions=None))
        with whole(path) as temporary:
            torch.save({"version": VERSION} | values, temporary)

    @classmethod
    @plain_tensors()
    def load(cls, path: str | Path, device: torch.device | str | None = None) -> StreamState:
        """Read a state written by ``save``.

        Raises:
            ValueError: The file holds no state, or one of another version.
        """
        try:
            values = torch.load(path, map_location=device, weights_only=True)
        except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError) as error:
            raise ValueError(f"{path}: not a saved stream state ({error!s:.80})") from None
        version = values.pop("version", None) if isinstance(values, dict) else None
        if version != VERSION:
            raise ValueError(
                f"{path}: must be a stream state of version {VERSION}, got version {version!r}"
            )
        try:
            values["layers"] = [
                LayerState(
                    attention=(FrameCache if "buffers" in layer["attention"] else RunningSums)(
                        **layer["attention"]
                    ),
                    convolution={n: ConvolutionState(**c) for n, c in layer["convolution"].items()},
                )
                for layer in values["layers"]
            ]
            return cls(**values)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path}: not a saved stream state ({error!s:.80})") from None


def _copied(values: Iterable, copy: Callable = torch.clone) -> tuple:
    return tuple(copy(v) if isinstance(v, torch.Tensor) else v for v in values)


def _map(obj: Any, fn: Callable, pick: Callable = _copied) -> Any:
    """Copy of a state: ``fn`` is applied to each tensor, ``pick`` to each tuple."""
    if isinstance(obj, torch.Tensor):
        return fn(obj)
    if isinstance(obj, tuple):
        return pick(obj)
    if isinstance(obj, dict):
        return {key: _map(value, fn, pick) for key, value in obj.items()}
    if isinstance(obj, list):
        return [_map(value, fn, pick) for value in obj]
    if dataclasses.is_dataclass(obj):
        names = [f.name for f in dataclasses.fields(obj)]
        return obj.__class__(**{name: _map(getattr(obj, name), fn, pick) for name in names})
    return obj


def _joined(parts: list) -> Any:
    """One state, or part of one, from several of the same form."""
    first = parts[0]
    if isinstance(first, FrameCache):
        return FrameCache.stack(parts)
    if isinstance(first, torch.Tensor):
        return torch.cat(parts)
    if isinstance(first, tuple):
        return sum(parts, ())
    if isinstance(first, dict):
        return {key: _joined([part[key] for part in parts]) for key in first}
    if isinstance(first, list):
        return [_joined(list(same)) for same in zip(*parts, strict=True)]
    if dataclasses.is_dataclass(first):
        names = [f.name for f in dataclasses.fields(first)]
        return first.__class__(**{n: _joined([getattr(part, n) for part in parts]) for n in names})
    return first


def _kind(tensor: torch.Tensor) -> tuple[torch.dtype, torch.device]:
    return tensor.dtype, tensor.device


def _form(layers: list[LayerState]) -> list:
    forms: list[tuple] = []
    for layer in layers:
        attention = layer.attention
        if isinstance(attention, FrameCache):
            tensors = attention.buffers
            forms += [(n, t.shape[1:-2], t.size(-1), *_kind(t)) for n, t in tensors.items()]
        else:
            forms += [(n, t.shape[1:], *_kind(t)) for n, t in vars(attention).items()]
        forms += [(n, c.past.shape[1:], *_kind(c.past)) for n, c in layer.convolution.items()]
    return forms


def check_cache_dtype(dtype: torch.dtype) -> None:
    """Refuse a dtype that caches cannot be stored in.

    Raises:
        ValueError: ``dtype`` is none of ``CACHE_DTYPES``.
    """
    if dtype not in CACHE_DTYPES:
        names = ", ".join(str(d).removeprefix("torch.") for d in CACHE_DTYPES)
        raise ValueError(f"dtype: a cache is stored in one of {names}, got {dtype}")


def checked_lengths(lengths: Any, n: int, ended: Sequence[bool]) -> list[int]:
    """How much of a packet is speech, per stream.

    Args:
        lengths: B integers of 0..n, or None where all is.
        n: Length of the packet.
        ended: Whether each of the B streams has ended.

    Raises:
        ValueError: ``lengths`` are something else, or more than 0 for a stream that has ended.
    """
    if lengths is None:
        lengths = [n] * len(ended)
    values = lengths.tolist() if hasattr(lengths, "tolist") else lengths
    if (
        not isinstance(values, (list, tuple))
        or len(values) != len(ended)
        or not all(type(m) is int and 0 <= m <= n for m in values)
    ):
        raise ValueError(f"lengths: must be {len(ended)} integers of 0..{n}, got {lengths!r}")
    for i, (m, e) in enumerate(zip(values, ended, strict=True)):
        if e and m:
            raise ValueError(
                f"lengths: stream {i} has ended, so it must be 0, got {m}; "
                "StreamState.stack() lets another join"
            )
    return list(values)


def check_finite(what: str, packet: torch.Tensor, lengths: list[int]) -> None:
    """Refuse a packet (B, n, ...) of which speech is not finite.

    Raises:
        ValueError: A stream has not-a-number or infinity.
    """
    if not torch.isfinite(packet).all():
        for i, n in enumerate(lengths):
            if not torch.isfinite(packet[i, :n]).all():
                raise ValueError(f"{what}: must be finite, stream {i} has NaN or infinity")
