"""Features of a live stream: any packet size in, the features of the whole recording out.

Offline, both ends of a recording are mirrored. So the first frames wait until what is mirrored has
arrived, and the last ones are made when the stream ends.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from espnet2.layers.global_mvn import GlobalMVN
from torch.nn.utils.rnn import pad_sequence

from espnet_ext.frontend.base import known_front_end
from espnet_ext.state import check_finite, checked_lengths


@dataclass(frozen=True)
class FrontendState:
    """What features still need of the waveforms; a tuple has one value per stream.

    Attributes:
        samples: The last samples taken (n,), from the first one on that frames to come look at.
        received: Samples received so far.
        taken: The same, with the zeros that follow the end of a stream in a batch, if any do.
        frames: Feature frames made so far.
        ended: Streams that get no more samples.
    """

    samples: tuple[torch.Tensor, ...]
    received: tuple[int, ...]
    taken: tuple[int, ...]
    frames: tuple[int, ...]
    ended: tuple[bool, ...]

    @property
    def nbytes(self) -> int:
        """Bytes in use."""
        return sum(held.numel() * held.element_size() for held in self.samples)

    @classmethod
    def stack(cls, states: list["FrontendState"]) -> "FrontendState":
        """Streams of any age as one batch."""
        fields = zip(*(vars(state).values() for state in states), strict=True)
        return cls(*(sum(values, ()) for values in fields))

    def unstack(self) -> list["FrontendState"]:
        """The streams of the batch, each a state of its own."""
        return [
            FrontendState(*((value,) for value in values))
            for values in zip(*vars(self).values(), strict=True)
        ]


class StreamingFrontend:
    """Features and global normalisation in packets, equal to the offline features.

    Args:
        frontend: That of the trained model, ``default`` or ``kaldi_fbank``.
        normalize: Its ``GlobalMVN``, or None.

    Attributes:
        front: The front end as a ``FrontEnd``.

    Raises:
        ValueError: The model's front end cannot stream; the message names key, rule and value.
    """

    def __init__(self, frontend: Any, normalize: GlobalMVN | None = None) -> None:
        front = known_front_end(frontend)
        if not (normalize is None or isinstance(normalize, GlobalMVN)):
            raise ValueError(
                "normalize: global_mvn or none can stream, an utterance's own statistics are known "
                f"at its end, got {type(normalize).__name__}"
            )
        if front.window - front.hop <= front.left:
            raise ValueError(
                f"hop_length: must be less than n_fft / 2 = {front.window // 2} to stream, "
                f"got {front.hop}"
            )
        self.front, self.normalize = front, normalize

    def init_state(self, batch_size: int = 1) -> FrontendState:
        """State of streams that have not begun."""
        none = (0,) * batch_size
        return FrontendState(
            (self.front.empty,) * batch_size, none, none, none, (False,) * batch_size
        )

    @torch.inference_mode(False)
    @torch.no_grad()
    def forward_chunk(
        self,
        samples: torch.Tensor,
        state: FrontendState,
        is_final: bool = False,
        lengths: Any = None,
    ) -> tuple[torch.Tensor, list[int], FrontendState]:
        """Features of what one packet completes.

        Streams of a batch that began at different times wait for the one that is furthest behind:
        its first frame needs what is mirrored.

        Args:
            samples: Waveforms (B, n) of any length n, also 0.
            state: From ``init_state`` or the packet before. It is left as it was.
            is_final: No packet follows.
            lengths: Samples of this packet that are speech, B integers of 0..n. A stream that has
                fewer than n has ended, and has 0 from then on. What follows is taken as in padded
                batches: for zeros by ``default``, for nothing by ``kaldi_fbank``. None where all
                are speech.

        Returns:
            Features (B, t, n_mels), how many of these frames are speech per stream, and the state
            after the packet.

        Raises:
            ValueError: The packet does not fit the state, or its features would not be finite.
        """
        lengths = self._check_packet(samples, state, lengths)
        front, n = self.front, samples.size(1)
        received = tuple(a + b for a, b in zip(state.received, lengths, strict=True))
        ended = tuple(
            bool(is_final) or e or m < n for e, m in zip(state.ended, lengths, strict=True)
        )
        held = [
            torch.cat([old, packet[:m].to(old), old.new_zeros(0 if front.ends_alone else n - m)])
            for old, packet, m in zip(state.samples, samples, lengths, strict=True)
        ]
        taken = received if front.ends_alone else tuple(a + n for a in state.taken)
        # nothing follows these, not even zeros
        whole = ended if front.ends_alone else (bool(is_final),) * len(ended)
        ready = []
        for total, is_whole, made in zip(taken, whole, state.frames, strict=True):
            if is_whole:
                ends = front.num_frames(total) if front.has_features(total) else 0
            else:
                ends = front.frames_ready(total)
            ready.append(max(0, ends - made))
        waiting = [r for r, is_whole in zip(ready, whole, strict=True) if not is_whole]
        t = min(waiting) if waiting else max(ready)
        given = [min(r, t) for r in ready]
        starts = [total - len(row) for total, row in zip(taken, held, strict=True)]
        feats = self._features(held, starts, taken, state.frames, given)
        if not torch.isfinite(feats).all():
            raise ValueError(
                "samples: their features would be infinite or not a number: the samples are far "
                "too large, or the dtype is too narrow, use float32"
            )
        frames = tuple(a + b for a, b in zip(state.frames, given, strict=True))
        counts = [
            min(after, front.num_frames(now)) - min(before, front.num_frames(then))
            for before, after, then, now in zip(
                state.frames, frames, state.received, received, strict=True
            )
        ]
        # the mirrored end of an odd window goes back to one sample before its last frame
        firsts = [m * front.hop - front.left - e for m, e in zip(frames, ended, strict=True)]
        rest = tuple(  # a view would keep the whole packet alive
            row[max(0, first - start) :].clone()
            for row, first, start in zip(held, firsts, starts, strict=True)
        )
        return feats, counts, FrontendState(rest, received, taken, frames, ended)

    def _check_packet(self, samples: torch.Tensor, state: FrontendState, lengths: Any) -> list[int]:
        """Refuse what cannot be right; the packet's lengths as a list."""
        if not isinstance(samples, torch.Tensor) or not samples.is_floating_point():
            kind = getattr(samples, "dtype", type(samples).__name__)
            raise ValueError(f"samples: must be a tensor of floating-point numbers, got {kind}")
        batch_size = len(state.ended)
        if samples.dim() != 2 or samples.size(0) != batch_size:
            raise ValueError(f"samples: must be ({batch_size}, any), got {tuple(samples.shape)}")
        lengths = checked_lengths(lengths, samples.size(1), state.ended)
        check_finite("samples", samples, lengths)
        return lengths

    def _features(
        self,
        held: Sequence[torch.Tensor],
        starts: Sequence[int],
        totals: Sequence[int],
        begun: Sequence[int],
        frames: Sequence[int],
    ) -> torch.Tensor:
        """The next ``frames`` of each stream, after ``begun`` ones: (B, t, n_mels), t the most.

        It has had ``totals`` samples, of which those from ``starts`` on are ``held`` (n,).
        """
        front, t = self.front, max(frames)
        if t == 0:
            return held[0].new_zeros(len(held), 0, front.n_mels)
        rows = []
        for row, start, total, first, m in zip(held, starts, totals, begun, frames, strict=True):
            begin = first * front.hop - front.left
            end = begin + (m - 1) * front.hop + front.window if m else begin
            positions = torch.arange(begin, end, device=row.device)
            rows.append(row[front.mirrored(positions, total) - start] if m else row[:0])
        feats = front.features(pad_sequence(rows, batch_first=True))
        if self.normalize is None:
            return feats
        # told the lengths, it does not count them in the features' type: bfloat16 counts to 256
        lengths = torch.full((len(feats),), t, device=feats.device)
        return self.normalize(feats, lengths)[0]
