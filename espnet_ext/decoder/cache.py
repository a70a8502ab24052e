"""What a beam search keeps between steps: keys and values, and a hypothesis's handle on them.

ESPnet's beam search moves scorer states around one hypothesis at a time. So a hypothesis carries
only a handle (which cache, which row), and the keys and values of all hypotheses and layers stay in
one tensor, which is reordered by one gather at the next step.
"""

import torch

from espnet_ext.attention.decoder import Keys


class Handle(list):
    """A hypothesis's place in a state shared by all hypotheses.

    It is an empty list because of how ESPnet parts with a hypothesis that has ended: it copies the
    lists in its states to plain lists. The copy has no ``owner``, so n-best lists that a caller
    keeps do not keep the caches alive.

    Args:
        owner: The shared state.
        row: The hypothesis's row in it.
        length: Tokens in the owner when the handle was made, where it is a ``PrefixCache``.
        label: What extends that row, where the owner is CTC's ``Prefixes``.
    """

    def __init__(self, owner, row, length=0, label=None):
        super().__init__()
        self.owner = owner
        self.row = row
        self.length = length
        self.label = label


class PrefixCache:
    """Keys and values of the tokens of N hypotheses, in all layers.

    One tensor ``(N, layers, P, G, capacity, W)`` and a spare one of the same size: a gather copies
    the tokens in use from one to the other.

    Args:
        attentions: The self-attention of each layer; all of one shape.
        like: A tensor whose dtype and device the cache takes.
    """

    TOKENS = 64  # the first capacity; doubled whenever it is reached

    def __init__(self, attentions, like):
        self.length = 0
        self.n_hyp = 0
        n, heads, width = attentions[0].cache_shape
        self._data = like.new_empty(0, len(attentions), n, heads, self.TOKENS, width)
        self._spare = self._data

    @property
    def nbytes(self):
        """Bytes in use: the tokens so far of the hypotheses of the last step."""
        used = self._used(self._data)
        return used.numel() * used.element_size()

    @property
    def capacity_bytes(self):
        """Bytes of both tensors, free slots included."""
        return self._data.nbytes + self._spare.nbytes

    def _used(self, data):
        return data[: self.n_hyp, ..., : self.length, :]

    def advance(self, rows: list[int]):
        """Continue row ``rows[i]`` as hypothesis i and make room for one more token.

        Args:
            rows: One row of the last step per hypothesis; any number, repeats allowed.
        """
        source = self._data[..., : self.length, :]
        self.n_hyp = len(rows)
        slots, capacity = self._data.shape, self._data.size(-2)
        if self.length == capacity or self.n_hyp > slots[0]:
            capacity *= 2 if self.length == capacity else 1
            shape = max(self.n_hyp, slots[0]), *slots[1:4], capacity, slots[5]
            self._data = self._data.new_empty(shape)
            self._spare = torch.empty_like(self._data)
        elif rows != list(range(self.n_hyp)):
            self._data, self._spare = self._spare, self._data
        else:
            source = None  # every hypothesis continues in its own row
        if self.length and source is not None:
            index = torch.tensor(rows, device=source.device)
            torch.index_select(source, 0, index, out=self._used(self._data))
        self.length += 1

    def layer(self, number, mask=None):
        """View of a layer, up to the slot that the new token's keys and values go to.

        Args:
            number: Index of the layer.
            mask: ``(N, 1, 1, length)``, true where a token may be attended to; None for all.

        Returns:
            ``Keys``.
        """
        return Keys(self._used(self._data)[:, number], mask)


def handles(cache):
    """Make one handle per hypothesis of a cache that has just advanced."""
    return [Handle(cache, row, cache.length) for row in range(cache.n_hyp)]


def resume(states):
    """Find the cache that a list of hypotheses continues.

    Args:
        states: Handles or None, one per hypothesis.

    Returns:
        The cache and a row per hypothesis; ``(None, None)`` if there is none, or if it has gone on
        since (a search that goes back to earlier hypotheses), so it must be made anew.
    """
    cache = getattr(states[0], "owner", None)
    if cache is None or any(s.owner is not cache or s.length != cache.length for s in states):
        return None, None
    return cache, [s.row for s in states]


def embed_from(embed, tokens, start):
    """Embed the tokens from ``start`` on, at their places in the sequence.

    Args:
        embed: Layers of which the last adds the positions.
        tokens: ``(N, L)`` ids, or ``(N, L, n_feat)``.
        start: First token wanted.

    Returns:
        ``(N, L - start, width)``.
    """
    x = embed[:-1](tokens[:, start:])
    return embed[-1](torch.nn.functional.pad(x, (0, 0, start, 0)))[:, start:]
