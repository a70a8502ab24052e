"""What a stream carries from one packet to the next, and how many bytes that is.

Every class here is a plain dataclass of tensors and integers. Axis 0 of every tensor is the batch.
A state is handed to ``forward_chunk`` and comes back changed: the caches are written in place, so
keep a ``clone()`` if a stream may have to go back.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass

import torch

CACHE_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int8)


def _map(obj, fn):
    """Copy of a tree of dataclasses, lists and dicts with ``fn`` applied to each tensor."""
    if isinstance(obj, torch.Tensor):
        return fn(obj)
    if isinstance(obj, dict):
        return {key: _map(value, fn) for key, value in obj.items()}
    if isinstance(obj, list):
        return [_map(value, fn) for value in obj]
    if dataclasses.is_dataclass(obj):
        values = {f.name: _map(getattr(obj, f.name), fn) for f in dataclasses.fields(obj)}
        return type(obj)(**values)
    return obj


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


@dataclass
class FrameCache:
    """Frames of the past, one or more tensors each: keys and values, layer inputs, or latents.

    With a finite left context the buffers are allocated once and used as a ring: a step overwrites
    the frames that no later step can see. Without one they double when they are full.

    Attributes:
        buffers: Name to tensor (B, ..., capacity, width); ``k`` and ``v`` for keys and values
            (B, n_kv_head, capacity, d_k), ``x`` for layer inputs (B, capacity, n_feat), ``c`` for
            latents (B, capacity, kv_lora_rank).
        scales: For int8 buffers, name to the scale of each vector (B, ..., capacity, 1) in float32:
            one per frame and head for keys and values, one per frame otherwise. Empty for floats.
        left_context: Frames kept from one step to the next; -1 keeps all.
        length: Frames kept now.
        head: Slot that the next frame is written to.
    """

    buffers: dict[str, torch.Tensor]
    scales: dict[str, torch.Tensor]
    left_context: int
    length: int = 0
    head: int = 0

    @classmethod
    def allocate(cls, shapes, left_context, chunk_size, dtype, device) -> FrameCache:
        """Empty cache.

        Args:
            shapes: Name to shape (B, ..., width) of one frame, the time axis left out.
            left_context: Frames to keep, -1 for all.
            chunk_size: Most frames one step appends.
            dtype: One of ``CACHE_DTYPES``.
            device: Where the buffers live.
        """
        capacity = chunk_size + (left_context if left_context >= 0 else 4 * chunk_size)

        def zeros(shape, width, dtype):
            return torch.zeros(*shape[:-1], capacity, width, dtype=dtype, device=device)

        return cls(
            buffers={name: zeros(shape, shape[-1], dtype) for name, shape in shapes.items()},
            scales={name: zeros(shape, 1, torch.float32) for name, shape in shapes.items()}
            if dtype == torch.int8
            else {},
            left_context=left_context,
        )

    @property
    def capacity(self) -> int:
        """Frames the buffers have room for."""
        return next(iter(self.buffers.values())).size(-2)

    @property
    def nbytes(self) -> int:
        """Bytes of the frames that the next step will read."""
        return self.capacity_bytes // self.capacity * self.length

    @property
    def capacity_bytes(self) -> int:
        """Bytes allocated."""
        return sum(_bytes(t) for t in (*self.buffers.values(), *self.scales.values()))

    def append(self, frames: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], int]:
        """Write the frames of one step and return all that the step may see.

        Args:
            frames: Name to tensor (B, ..., n, width), n at most the chunk size.

        Returns:
            Name to tensor (B, ..., K, width) in the dtype of ``frames``, K = frames kept before
            + n, and the slot of the oldest: the order in time is slots oldest..K-1, 0..oldest-1.
        """
        n = next(iter(frames.values())).size(-2)
        dtype = next(iter(frames.values())).dtype
        visible = self.length + n
        if self.left_context < 0 and visible > self.capacity:
            self._grow(max(visible, 2 * self.capacity))
        self._write(frames, n)
        self.head = (self.head + n) % self.capacity
        self.length = visible if self.left_context < 0 else min(visible, self.left_context)
        oldest = (self.head - visible) % self.capacity
        if visible == self.capacity:
            return {name: self._read(name, slice(None), dtype) for name in self.buffers}, oldest
        if oldest + visible <= self.capacity:
            slots = slice(oldest, oldest + visible)
            return {name: self._read(name, slots, dtype) for name in self.buffers}, 0
        # a last chunk shorter than the others, in a ring that has wrapped
        device = next(iter(self.buffers.values())).device
        slots = (torch.arange(visible, device=device) + oldest) % self.capacity
        return {name: self._read(name, slots, dtype) for name in self.buffers}, 0

    def converted(self, dtype: torch.dtype) -> FrameCache:
        """The same cache stored in another dtype."""
        shapes = {name: (*b.shape[:-2], b.size(-1)) for name, b in self.buffers.items()}
        device = next(iter(self.buffers.values())).device
        new = FrameCache.allocate(shapes, self.left_context, 1, dtype, device)
        for tensors in (new.buffers, new.scales):
            for name, t in tensors.items():
                tensors[name] = t.new_zeros(*t.shape[:-2], self.capacity, t.size(-1))
        float_dtype = torch.float32 if dtype == torch.int8 else dtype
        new._write(
            {name: self._read(name, slice(None), float_dtype) for name in self.buffers},
            self.capacity,
        )
        new.length, new.head = self.length, self.head
        return new

    def _write(self, frames, n):
        first = min(n, self.capacity - self.head)
        for name, new in frames.items():
            targets = [(self.buffers[name], new)]
            if self.scales:
                scale = new.abs().amax(dim=-1, keepdim=True).float() / 127
                scale = scale.clamp_min(torch.finfo(torch.float32).tiny)
                targets = [
                    (self.buffers[name], (new.float() / scale).round().to(torch.int8)),
                    (self.scales[name], scale),
                ]
            for buffer, value in targets:
                buffer[..., self.head : self.head + first, :] = value[..., :first, :]
                buffer[..., : n - first, :] = value[..., first:, :]

    def _read(self, name, slots, dtype):
        frames = self.buffers[name][..., slots, :]
        if self.scales:
            return (frames * self.scales[name][..., slots, :]).to(dtype)
        return frames.to(dtype)

    def _grow(self, capacity):
        # without a left context nothing was overwritten, so the frames are slots 0..length-1
        for tensors in (self.buffers, self.scales):
            for name, old in tensors.items():
                new = old.new_zeros(*old.shape[:-2], capacity, old.size(-1))
                new[..., : self.length, :] = old[..., : self.length, :]
                tensors[name] = new
        self.head = self.length


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

    @property
    def capacity_bytes(self) -> int:
        """Bytes allocated."""
        return self.nbytes


@dataclass
class ConvolutionState:
    """The past of one causal convolution.

    Attributes:
        past: Its last inputs (B, channels, kernel_size - 1), zeros before the stream began.
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


@dataclass
class StreamState:
    """A stream inside an encoder.

    Attributes:
        layers: One ``LayerState`` per encoder layer.
        pending: Feature frames that have not filled a chunk (B, n, input_size), with the few that
            the subsampling convolutions look back at.
        chunk_size: Encoder frames per step.
        left_context: Encoder frames seen before a chunk, -1 for all.
        frames: Encoder frames produced so far.
        input_lengths: Feature frames received so far, per stream.
        lengths: Encoder frames produced so far that are speech, not padding, per stream.
        finished: The last packet has been seen.
    """

    layers: list[LayerState]
    pending: torch.Tensor
    chunk_size: int
    left_context: int
    input_lengths: list[int]
    lengths: list[int]
    frames: int = 0
    finished: bool = False

    def ledger(self) -> dict[str, int]:
        """Bytes in use by kind: attention, convolution, subsampling."""
        return {
            "attention": sum(layer.attention.nbytes for layer in self.layers),
            "convolution": self._convolution_bytes(),
            "subsampling": _bytes(self.pending),
        }

    @property
    def nbytes(self) -> int:
        """Bytes in use: the sum of the ledger."""
        return sum(self.ledger().values())

    @property
    def capacity_bytes(self) -> int:
        """Bytes allocated: as ``nbytes``, with the attention caches' room counted in full."""
        attention = sum(layer.attention.capacity_bytes for layer in self.layers)
        return attention + self._convolution_bytes() + _bytes(self.pending)

    def _convolution_bytes(self):
        return sum(c.nbytes for layer in self.layers for c in layer.convolution.values())

    def clone(self) -> StreamState:
        """Independent copy."""
        return _map(self, torch.clone)

    def select(self, indices: torch.Tensor) -> StreamState:
        """The streams ``indices`` (n,) of the batch, in that order, repeats allowed."""
        new = _map(self, lambda t: t.index_select(0, indices.to(t.device)))
        new.input_lengths = [self.input_lengths[i] for i in indices.tolist()]
        new.lengths = [self.lengths[i] for i in indices.tolist()]
        return new

    def to(self, device=None, dtype: torch.dtype | None = None) -> StreamState:
        """Copy on another device; ``dtype`` changes what the attention caches are stored in."""
        new = _map(self, lambda t: t.to(device) if device is not None else t.clone())
        if dtype is not None:
            check_cache_dtype(dtype)
            for layer in new.layers:
                if isinstance(layer.attention, FrameCache):
                    layer.attention = layer.attention.converted(dtype)
        return new

    def save(self, path) -> None:
        """Write the state to a file that ``load`` reads, in this process or another."""
        temporary = f"{path}.tmp"
        torch.save(dataclasses.asdict(self), temporary)
        os.replace(temporary, path)

    @classmethod
    def load(cls, path, device=None) -> StreamState:
        """Read a state written by ``save``."""
        values = torch.load(path, map_location=device, weights_only=True)
        values["layers"] = [
            LayerState(
                attention=(FrameCache if "buffers" in layer["attention"] else RunningSums)(
                    **layer["attention"]
                ),
                convolution={
                    name: ConvolutionState(**past) for name, past in layer["convolution"].items()
                },
            )
            for layer in values["layers"]
        ]
        return cls(**values)


def check_cache_dtype(dtype: torch.dtype) -> None:
    """Refuse a dtype that caches cannot be stored in.

    Raises:
        ValueError: ``dtype`` is none of ``CACHE_DTYPES``.
    """
    if dtype not in CACHE_DTYPES:
        names = ", ".join(str(d).removeprefix("torch.") for d in CACHE_DTYPES)
        raise ValueError(f"dtype: a cache is stored in one of {names}, got {dtype}")
