"""Relative positions, projected once for all streams of a model.

A stream needs the positions of every distance it can see, projected by each layer. They depend on
the weights alone, so the streams of a model share one table. Streams hold it and no module does: a
model is copied, averaged, quantised or moved without it, and changed weights make a new one.
"""

import contextlib
import math
import threading
import weakref

import torch

_shared = weakref.WeakKeyDictionary()  # encoder -> weak reference to the table its streams hold
_lock = threading.Lock()


def relative_positions(distances: torch.Tensor, n_feat: int, dtype) -> torch.Tensor:
    """Sinusoids of distances i - j (R,) -> (R, n_feat), as ESPnet's ``RelPositionalEncoding``."""
    rates = torch.exp(
        torch.arange(0, n_feat, 2, device=distances.device) * -(math.log(10000.0) / n_feat)
    )
    angles = distances[:, None] * rates  # (R, D/2)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1).to(dtype)


@contextlib.contextmanager
def plain_tensors():
    """Tensors made here may be used in any mode: no gradient, no autocast, no inference mode."""
    with contextlib.ExitStack() as modes:
        modes.enter_context(torch.inference_mode(False))
        modes.enter_context(torch.no_grad())
        for device in ("cpu", "cuda"):
            modes.enter_context(torch.autocast(device, enabled=False))
        yield


def dense_weight(linear) -> torch.Tensor:
    """Weight of a linear layer, or of a dynamically quantised one."""
    weight = linear.weight() if callable(linear.weight) else linear.weight
    return weight.dequantize() if weight.is_quantized else weight.detach()


class PositionTable:
    """Projected positions of a model's layers.

    Args:
        encoder: Whose layers they are.
        attentions: The layers' attentions. One without ``project_positions`` needs none.

    Attributes:
        encoder: Weak reference to it.
    """

    def __init__(self, encoder, attentions):
        self.encoder = weakref.ref(encoder)
        self._attentions = [weakref.ref(attention) for attention in attentions]
        self._made_from = [weight.clone() for weight in _weights(attentions)]
        self._rows = 0, 0, []  # past, future, for each layer (H, d_k, past + future - 1) or None

    @classmethod
    def of(cls, encoder, attentions) -> "PositionTable":
        """The table that living streams of ``encoder`` hold, or a new one.

        One table serves as long as the weights have the values that it was made from.
        """
        with _lock, plain_tensors():
            table = _shared.get(encoder, lambda: None)()
            if table is None or not table._fits(attentions):
                table = cls(encoder, attentions)
                _shared[encoder] = weakref.ref(table)
            return table

    @property
    def nbytes(self) -> int:
        """Bytes, once for all streams of the model: the positions, and what they were made from."""
        rows = [p for p in self._rows[2] if p is not None]
        return sum(t.numel() * t.element_size() for t in (*rows, *self._made_from))

    def rows(self, keys: int, n: int) -> list[torch.Tensor | None]:
        """Positions for n queries that are the newest of ``keys`` frames.

        Returns:
            For each layer, distances keys-1 down to -(n-1), scaled by 1 / sqrt(d_k): a view
            (H, d_k, keys+n-1), or None.
        """
        past, future, layers = self._rows
        if keys > past or n > future:
            past, future, layers = self._grow(keys, n)
        # row past - 1 is distance zero
        return [p if p is None else p[..., past - keys : past - 1 + n] for p in layers]

    def _grow(self, keys, n):
        with _lock, plain_tensors():
            past, future, layers = self._rows
            if keys > past:
                past = max(keys, 2 * past)
            future = max(n, future)
            distances = torch.arange(past - 1, -future, -1)
            layers = [
                attention().project_positions(distances)
                if hasattr(attention(), "project_positions")
                else None
                for attention in self._attentions
            ]
            self._rows = past, future, layers  # at once: other threads read the old one or this
            return self._rows

    def _fits(self, attentions):
        if [attention() for attention in self._attentions] != list(attentions):
            return False
        return all(
            old.shape == new.shape
            and (old.device, old.dtype) == (new.device, new.dtype)
            and torch.equal(old, new)
            for old, new in zip(self._made_from, _weights(attentions), strict=True)
        )


def _weights(attentions):
    linears = [getattr(attention, "linear_pos", None) for attention in attentions]
    return [dense_weight(linear) for linear in linears if linear is not None]
