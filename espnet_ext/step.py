"""One step of a stream: what its frames see of the past, and what they leave behind.

A step reads a state and writes nothing that the state reads: frames go into ring slots that are
free, and everything else is made anew. So a step that fails has not happened, and a step of tensors
can be captured in a graph. An attention or a convolution meets its past through the small classes
at the end of this file, and never asks how it is stored or in which order.

Letters in shapes are those of ``attention/base.py``; S slots of a ring that are looked at.
"""

import torch

from espnet_ext.state import ConvolutionState, FrameCache, LayerState, RunningSums


class Window:
    """Where the new frames of a step go in a ring, and what of the ring each stream may see.

    One window serves all layers. The streams' next slots are the same here: the usual case, also
    for streams of different ages, since ``StreamState.stack`` lays their rings alike.

    Args:
        head: Slot of the first new frame.
        lengths: Frames that each stream has kept.
        real: New frames that are speech, per stream; the others are padding.
        n: New frames.
        capacity: Slots of the ring.
        device: Where masks are needed.

    Attributes:
        keys: K, frames in the order of time that scores are needed for; the newest n are new.
    """

    def __init__(self, head, lengths, real, n, capacity, device):
        self.n = n
        self.real = None  # (B, n), False on padding; None where there is none
        self._head, self._stop = head, head + n
        self.keys = max(lengths) + n
        self._turn = 0
        self._slots = slice(self._stop - self.keys, self._stop)
        if not 0 <= self._slots.start <= self._slots.stop <= capacity:  # around the end
            self.keys, self._slots = capacity, slice(None)
            self._turn = self._stop % capacity
        self.hidden = None  # (B, 1, 1, K) in the order of time
        padded = min(real) < n
        if padded or min(lengths) + n < self.keys:
            lengths, real = (torch.tensor(x, device=device) for x in (lengths, real))
            age = torch.arange(self.keys - 1, -1, -1, device=device)
            self.hidden = _hidden(age, lengths, real, n)
        self.counts = real if padded else None  # (B,), real frames, or None where all are
        if padded:
            self.real = torch.arange(n, device=device) < real[:, None]

    def write(self, ring, frames):
        """Put new frames (B, ..., n, r) into a ring (B, ..., capacity, r)."""
        capacity = ring.size(-2)
        if self._stop <= capacity:
            ring[..., self._head : self._stop, :] = frames
        else:
            first = capacity - self._head
            ring[..., self._head :, :] = frames[..., :first, :]
            ring[..., : self.n - first, :] = frames[..., first:, :]

    def read(self, ring):
        """The slots that are looked at: a view (B, ..., S, r)."""
        return ring[..., self._slots, :]

    def arrange(self, scores):
        """Bring scores (B, H, n, K) from the order of time into that of the slots, and hide."""
        if self.hidden is not None:
            scores = scores.masked_fill(self.hidden, _low(scores))
        if self._turn:
            old = self.keys - self._turn
            scores = torch.cat([scores[..., old:], scores[..., :old]], dim=-1)
        return scores


class RaggedWindow:
    """As ``Window``, for streams whose next slots differ, with counters that are tensors.

    Its shapes depend on no counter, so a step with it can be captured in a graph.

    Args:
        heads: Slot of the first new frame, per stream (B,).
        lengths: Frames kept, per stream (B,).
        real: New frames that are speech, per stream (B,).
        n: New frames.
        capacity: Slots of the ring.
    """

    def __init__(self, heads, lengths, real, n, capacity):
        device = heads.device
        self.n, self.keys, self.counts = n, capacity, real
        new = torch.arange(n, device=device)
        self.real = new < real[:, None]
        self._write_to = ((heads[:, None] + new) % capacity)[..., None]  # (B, n, 1)
        newest = (heads + n - 1)[:, None]
        age = (newest - torch.arange(capacity, device=device)) % capacity  # (B, S)
        self.hidden = _hidden(age, lengths, real, n)
        self._order = (capacity - 1 - age)[:, None, None]  # (B, 1, 1, S)

    def write(self, ring, frames):
        """Put new frames (B, ..., n, r) into a ring (B, ..., capacity, r)."""
        slots = self._write_to
        while slots.dim() < frames.dim():
            slots = slots.unsqueeze(1)
        ring.scatter_(-2, slots.expand_as(frames), frames.to(ring.dtype))

    def read(self, ring):
        """All slots: (B, ..., S, r)."""
        return ring

    def arrange(self, scores):
        """Bring scores (B, H, n, K) from the order of time into that of the slots, and hide."""
        scores = scores.gather(-1, self._order.expand_as(scores))
        return scores.masked_fill(self.hidden, _low(scores))


def _hidden(age, lengths, real, n):
    """Frames that a stream must not see (B, 1, 1, S), by their age: frames since (S,) or (B, S)."""
    lengths, real = lengths[:, None], real[:, None]
    return ((age >= lengths + n) | (age < n - real))[:, None, None]


def _newest(x, width, counts):
    """Copy of the last ``width`` real inputs (B, width, channels) of (B, width+n, channels)."""
    if counts is None:
        return x[:, x.size(1) - width :].clone()
    index = (counts[:, None] + torch.arange(width, device=x.device))[..., None]  # (B, width, 1)
    return x.gather(1, index.expand(-1, -1, x.size(2)))


def _low(scores):
    # half the smallest number: adding a score to it cannot overflow in half precision
    return torch.finfo(scores.dtype).min / 2


class FramesOfPast:
    """A ``FrameCache`` during one step.

    Args:
        cache: The cache before the step.
        window: Where frames go, and what is seen.
        positions: Positions of the frames that are seen (H, d_k, K+n-1), see ``PositionTable``.
    """

    def __init__(self, cache: FrameCache, window, positions):
        self.cache, self.window, self.positions = cache, window, positions

    def attend(self, context, q, frames, scores):
        """What queries find in the past and in the frames of the step.

        Args:
            context: Function of queries, of what ``append`` returns and of what ``arrange`` does.
            q: Queries (B, H, n, d_k).
            frames: What the step leaves behind, see ``append``.
            scores: Of positions, see ``arrange``.

        Returns:
            What ``context`` does (B, H, n, d_k).
        """
        return context(q, self.append(frames), self.arrange(scores))

    def append(self, frames: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Write the frames of the step and return all that it looks at.

        Args:
            frames: Name to tensor (B, ..., n, width).

        Returns:
            Name to tensor (B, ..., S, width), in the dtype of ``frames`` and in an order of the
            cache's own.
        """
        for ring, new in self.cache.stored(frames):
            self.window.write(ring, new)
        return {
            name: self.cache.read(name, self.window.read, new.dtype) for name, new in frames.items()
        }

    def arrange(self, scores: torch.Tensor) -> torch.Tensor:
        """Bring scores of frames in the order of time into the order that ``append`` returns.

        Args:
            scores: (B, H, n, K), the newest frame last.

        Returns:
            (B, H, n, S), very low for frames that a stream must not see.
        """
        return self.window.arrange(scores)

    def after(self, heads, lengths) -> FrameCache:
        """The cache after the step."""
        cache = self.cache
        return FrameCache(cache.buffers, cache.scales, cache.left_context, lengths, heads)


class SumsOfPast:
    """``RunningSums`` during one step.

    Attributes:
        real: New frames that are speech (B, n), or None where all are.
    """

    def __init__(self, sums: RunningSums, window):
        self.sums, self.real = sums, window.real

    def add(self, **new: torch.Tensor) -> dict[str, torch.Tensor]:
        """Add to the sums, by name, and return them with what the step has added."""
        self.sums = RunningSums(**{name: getattr(self.sums, name) + x for name, x in new.items()})
        return vars(self.sums)

    def after(self, heads, lengths) -> RunningSums:
        """The sums after the step."""
        return self.sums


class InputsOfPast:
    """A ``ConvolutionState`` during one step."""

    def __init__(self, state: ConvolutionState, window):
        self.state, self.window = state, window

    def extend(self, x: torch.Tensor) -> torch.Tensor:
        """Inputs of a chunk (B, n, channels) behind those of the past: (B, k-1+n, channels)."""
        past = self.state.past
        x = torch.cat([past, x.to(past.dtype)], dim=1)
        self.state = ConvolutionState(_newest(x, past.size(1), self.window.counts))
        return x

    def after(self) -> ConvolutionState:
        """The past after the step."""
        return self.state


class PastOfLayer:
    """A ``LayerState`` during one step.

    Attributes:
        attention: What the layer's attention sees of its past.
        convolution: The same for the layer's convolutions, by name.
    """

    def __init__(self, state: LayerState, positions, window):
        if isinstance(state.attention, FrameCache):
            self.attention = FramesOfPast(state.attention, window, positions)
        else:
            self.attention = SumsOfPast(state.attention, window)
        self.convolution = {n: InputsOfPast(c, window) for n, c in state.convolution.items()}

    def after(self, heads, lengths) -> LayerState:
        """The layer's state after the step.

        Args:
            heads: Slot of the next frame, per stream.
            lengths: Frames kept, per stream.
        """
        convolution = {name: past.after() for name, past in self.convolution.items()}
        return LayerState(self.attention.after(heads, lengths), convolution)


class FramesOfStreams:
    """Several ``FramesOfPast``, of one stream each, in a step that takes them together.

    No cache is copied: what comes of all frames is computed at once, and each stream's queries meet
    that stream's own ring.

    Args:
        pasts: Of each stream.
        positions: Of the frames that any of them sees, see ``FramesOfPast``.
    """

    def __init__(self, pasts: list[FramesOfPast], positions):
        self.pasts, self.positions = pasts, positions

    def attend(self, context, q, frames, scores):
        """As ``FramesOfPast.attend``, stream by stream."""
        return torch.cat(
            [
                past.attend(
                    context,
                    q[i : i + 1],
                    {name: new[i : i + 1] for name, new in frames.items()},
                    scores[i : i + 1, ..., -past.window.keys :],
                )
                for i, past in enumerate(self.pasts)
            ]
        )


class SumsOfStreams:
    """Several ``SumsOfPast`` in a step that takes them together."""

    def __init__(self, pasts: list[SumsOfPast], positions):
        self.pasts = pasts
        reals = [past.real for past in pasts]
        padded = next((real for real in reals if real is not None), None)
        self.real = padded
        if padded is not None:
            all_real = torch.ones_like(padded)
            self.real = torch.cat([all_real if real is None else real for real in reals])

    def add(self, **new: torch.Tensor) -> dict[str, torch.Tensor]:
        """As ``SumsOfPast.add``."""
        sums = [
            past.add(**{name: x[i : i + 1] for name, x in new.items()})
            for i, past in enumerate(self.pasts)
        ]
        return {name: torch.cat([own[name] for own in sums]) for name in new}


class InputsOfStreams:
    """Several ``InputsOfPast`` in a step that takes them together."""

    def __init__(self, pasts: list[InputsOfPast]):
        self.pasts = pasts

    def extend(self, x: torch.Tensor) -> torch.Tensor:
        """As ``InputsOfPast.extend``."""
        return torch.cat([past.extend(x[i : i + 1]) for i, past in enumerate(self.pasts)])


class PastOfStreams:
    """Several ``PastOfLayer`` of one layer, of one stream each, in a step that takes them together.

    Attributes:
        attention, convolution: As those of ``PastOfLayer``.
    """

    def __init__(self, pasts: list[PastOfLayer], positions):
        attentions = [past.attention for past in pasts]
        kind = FramesOfStreams if isinstance(attentions[0], FramesOfPast) else SumsOfStreams
        self.attention = kind(attentions, positions)
        self.convolution = {
            name: InputsOfStreams([past.convolution[name] for past in pasts])
            for name in pasts[0].convolution
        }
