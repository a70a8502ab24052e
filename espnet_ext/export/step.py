"""One step of a stream as a pure function: every tensor of the past goes in, and comes out shifted.

An eager stream writes its frames into rings (``espnet_ext/step.py``). A graph cannot, so here a
cache is a window that new frames push on. Attentions and convolutions meet either kind by the same
few methods, and their mathematics is what it is there.

Letters in shapes: B streams, L left context, n frames of a chunk, K = L + n.
"""

import torch
from torch import nn

from espnet_ext.positions import plain_tensors
from espnet_ext.state import FrameCache
from espnet_ext.step import FramesOfPast


class ShiftingFrames:
    """Frames of the past of one attention: ``FramesOfPast`` in a graph.

    Args:
        kept: Name to the last L frames (B, ..., L, width), zeros before the stream began; None
            where L is 0.
        hidden: Added to scores (B, 1, 1, K), very low for what a stream must not see.
        positions: Projected positions (H, d_k, K+n-1).
    """

    def __init__(self, kept, hidden, positions):
        self.kept, self.hidden, self.positions = kept, hidden, positions

    attend = FramesOfPast.attend

    def append(self, frames):
        """Frames of the step behind those of the past, name to (B, ..., K, width)."""
        if None in self.kept.values():
            return frames
        seen = {name: torch.cat([self.kept[name], new], dim=-2) for name, new in frames.items()}
        self.kept = {name: all_[..., frames[name].size(-2) :, :] for name, all_ in seen.items()}
        return seen

    def arrange(self, scores):
        """Hide in scores (B, H, n, K), which are in the cache's order already."""
        return scores + self.hidden


class Sums:
    """Sums of linear attention: ``SumsOfPast`` in a graph.

    Args:
        kept: The sums ``s`` and ``z`` of the frames so far.
        real: True on frames that are speech (B, n).
    """

    def __init__(self, kept, real):
        self.kept, self.real = kept, real

    def add(self, **new):
        """Add to the sums, by name, and return them."""
        self.kept = {name: self.kept[name] + x for name, x in new.items()}
        return self.kept


class ShiftingInputs:
    """Inputs of the past of one convolution: ``InputsOfPast`` in a graph."""

    def __init__(self, past):
        self.past = past

    def extend(self, x):
        """Inputs of a chunk (B, n, channels) behind those of the past: (B, k-1+n, channels)."""
        n = x.size(1)
        x = torch.cat([self.past, x], dim=1)
        self.past = x[:, n:]
        return x


class ShiftingPast:
    """The past of one layer: ``PastOfLayer`` in a graph.

    Args:
        tensors: Name to tensor, as ``StepGraph.shapes`` names them.
        step: The graph.
        positions: Projected positions of the layer's attention, or None.
        hidden: See ``ShiftingFrames``.
        real: See ``Sums``.
    """

    def __init__(self, tensors, positions, hidden, real):
        own = {name: x for name, x in tensors.items() if "." not in name}
        if positions is None:
            self.attention = Sums(own, real)
        else:
            self.attention = ShiftingFrames(own, hidden, positions)
        self.convolution = {
            name.removeprefix("convolution."): ShiftingInputs(x)
            for name, x in tensors.items()
            if name not in own
        }

    def after(self):
        """The tensors after the step, by the names of before."""
        inputs = {f"convolution.{name}": c.past for name, c in self.convolution.items()}
        return self.attention.kept | inputs


class Step(nn.Module):
    """Features of one chunk to CTC log probabilities, as a function of tensors alone.

    Args:
        model: ESPnet's model with an encoder of this package and a CTC output, in ``eval``.
        chunk_size: Encoder frames per step, n.
        left_context: Encoder frames seen before a chunk, L; -1 where no attention has one.
        adapter: An ``Adapter`` that makes the model's features of Kaldi's, or None.

    Attributes:
        frames: Feature frames of a step, T.
        shift: Feature frames from one step to the next.
        shapes: For each layer, name of a tensor of its past to its shape without B.
    """

    def __init__(self, model, chunk_size, left_context, adapter=None):
        super().__init__()
        self.adapter = adapter
        self.encoder, self.ctc, self.normalize = model.encoder, model.ctc, model.normalize
        self.chunk_size, self.left_context = chunk_size, left_context
        self.frames = self.encoder.input_length(chunk_size)
        self.shift = chunk_size * self.encoder.subsampling[0]
        self.shapes = [
            self._shapes(layer)
            for layer in self.encoder.init_state(1, chunk_size, left_context).layers
        ]
        if adapter is not None:  # a convolution too, before the first layer
            self.shapes[0]["convolution.features"] = (1, adapter.frontend.n_mels)
        keys = chunk_size + max(0, left_context)
        with plain_tensors():
            distances = torch.arange(keys - 1, -chunk_size, -1)
            self.positions = [
                attention.project_positions(distances)
                if hasattr(attention, "project_positions")
                else None
                for attention in self.encoder.attentions
            ]
            self.age = torch.arange(keys - 1, -1, -1)  # frames since, of each key

    def _shapes(self, layer):
        cache = layer.attention
        if isinstance(cache, FrameCache):
            shapes = {
                name: (*buffer.shape[1:-2], self.left_context, buffer.size(-1))
                for name, buffer in cache.buffers.items()
            }
        else:
            shapes = {name: tuple(x.shape[1:]) for name, x in vars(cache).items()}
        for name, convolution in layer.convolution.items():
            shapes[f"convolution.{name}"] = tuple(convolution.past.shape[1:])
        return shapes

    def forward(self, feats, pasts, past_frames, padding):
        """One step.

        Args:
            feats: Features (B, T, n_mels), not normalised.
            pasts: For each layer, name to tensor (B, ...) as ``shapes`` has them.
            past_frames: Encoder frames of each stream so far (B,), integers.
            padding: Encoder frames at the end of the chunk that are not speech (B,), floats.

        Returns:
            Log probabilities (B, n, tokens), of which those of padding are of no use, and the pasts
            after the step.
        """
        n = self.chunk_size
        real = n - padding[:, None]  # (B, 1)
        unseen = (self.age >= past_frames[:, None] + n) | (self.age < padding[:, None])  # (B, K)
        # half the smallest number: a score added to it cannot overflow
        hidden = unseen[:, None, None].to(feats.dtype) * (torch.finfo(feats.dtype).min / 2)
        speech = torch.arange(n) < real
        layers = [
            ShiftingPast(tensors, positions, hidden, speech)
            for tensors, positions in zip(pasts, self.positions, strict=True)
        ]
        if self.adapter is not None:
            last, begins = layers[0].convolution["features"], past_frames[:, None, None] == 0
            before = torch.where(begins, feats[:, :1], last.past)
            last.past = feats[:, self.shift - 1 : self.shift]  # steps overlap
            feats = self.adapter(feats, before)
        if self.normalize is not None:
            feats = self._normalized(feats)
        y = self.encoder.encode_chunk(feats, layers)
        return self.ctc.log_softmax(y), [layer.after() for layer in layers]

    def _normalized(self, feats):
        """``GlobalMVN`` of frames that are all speech."""
        if self.normalize.norm_means:
            feats = feats - self.normalize.mean.to(feats.dtype)
        if self.normalize.norm_vars:
            feats = feats / self.normalize.std.to(feats.dtype)
        return feats
