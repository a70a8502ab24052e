"""ESPnet's default front end on a live stream: any packet size in, the offline features out.

Offline, the STFT pads half a window on both sides with the mirrored signal. So the first frames
wait until half a window has arrived, and the last ones are made when the stream ends.
"""

import copy
from dataclasses import dataclass

import torch
from espnet2.asr.frontend.default import DefaultFrontend
from espnet2.layers.global_mvn import GlobalMVN
from torch.nn.utils.rnn import pad_sequence

from espnet_ext.state import check_finite, checked_lengths


@dataclass(frozen=True)
class FrontendState:
    """What features still need of the waveforms; a tuple has one value per stream.

    Attributes:
        samples: Samples that frames to come look at (n,), the mirrored start included once it is
            known.
        received: Samples received so far.
        taken: The same, with the zeros after the end of a stream in a batch.
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
    """STFT, log-mel and global normalisation in packets, equal to ESPnet's offline features.

    Args:
        frontend: ESPnet's ``DefaultFrontend`` of the trained model.
        normalize: Its ``GlobalMVN``, or None.

    Raises:
        ValueError: The model's front end cannot stream; the message names key, rule and value.
    """

    def __init__(self, frontend: DefaultFrontend, normalize: GlobalMVN | None = None):
        if not isinstance(frontend, DefaultFrontend) or not frontend.apply_stft:
            raise ValueError(f"frontend: default can stream, got {type(frontend).__name__}")
        if not (normalize is None or isinstance(normalize, GlobalMVN)):
            raise ValueError(
                "normalize: global_mvn or none can stream, an utterance's own statistics are known "
                f"at its end, got {type(normalize).__name__}"
            )
        self.frontend = frontend
        self.normalize = normalize
        self.stft = copy.copy(frontend.stft)
        self.stft.center = False
        self.n_fft, self.hop = self.stft.n_fft, self.stft.hop_length
        self.pad = self.n_fft // 2 if frontend.stft.center else 0
        if self.n_fft - self.hop <= self.pad:
            raise ValueError(
                f"hop_length: must be less than n_fft / 2 = {self.n_fft // 2} to stream, "
                f"got {self.hop}"
            )

    def init_state(self, batch_size: int = 1) -> FrontendState:
        """State of streams that have not begun."""
        nothing = self.frontend.logmel.melmat.new_zeros(0)
        none = (0,) * batch_size
        return FrontendState((nothing,) * batch_size, none, none, none, (False,) * batch_size)

    @torch.inference_mode(False)
    @torch.no_grad()
    def forward_chunk(self, samples, state: FrontendState, is_final=False, lengths=None):
        """Features of what one packet completes.

        Streams of a batch that began at different times wait for the one that is furthest behind:
        its first frame needs half a window.

        Args:
            samples: Waveforms (B, n) of any length n, also 0.
            state: From ``init_state`` or the step before. It is left as it was.
            is_final: No packet follows.
            lengths: Samples of this packet that are speech, B integers of 0..n. A stream that has
                fewer than n has ended, and has 0 from then on; what follows is taken for zeros, as
                in ESPnet's padded batches. None where all are speech.

        Returns:
            Features (B, t, n_mels), how many of these frames are speech per stream, and the state
            after the packet.

        Raises:
            ValueError: The packet does not fit the state, or its features would not be finite.
        """
        lengths = self._check_packet(samples, state, lengths)
        n = samples.size(1)
        received = tuple(a + b for a, b in zip(state.received, lengths, strict=True))
        taken = tuple(a + n for a in state.taken)
        rows = []
        for held, packet, m, before in zip(
            state.samples, samples, lengths, state.taken, strict=True
        ):
            held = torch.cat([held, packet[:m].to(held), held.new_zeros(n - m)])
            if before <= self.pad < before + n:  # now the mirrored start is known
                held = torch.cat([held[1 : self.pad + 1].flip(0), held])
            if is_final and before + n > self.pad:
                held = torch.cat([held, held[-self.pad - 1 : -1].flip(0)])
            rows.append(held)
        ready = [
            max(0, (len(row) - self.n_fft) // self.hop + 1) if m > self.pad else 0
            for row, m in zip(rows, taken, strict=True)
        ]
        if not is_final:
            ready = [min(ready)] * len(ready)
        feats = self._features(rows, ready)
        if not torch.isfinite(feats).all():
            raise ValueError(
                "samples: their features would be infinite or not a number: the samples are far "
                "too large, or the dtype is too narrow, use float32"
            )
        frames = tuple(a + b for a, b in zip(state.frames, ready, strict=True))
        counts = [
            min(after, self._frames_of(now)) - min(before, self._frames_of(then))
            for before, after, then, now in zip(
                state.frames, frames, state.received, received, strict=True
            )
        ]
        # a view would keep the whole packet alive
        rest = tuple(row[t * self.hop :].clone() for row, t in zip(rows, ready, strict=True))
        ended = tuple(
            bool(is_final) or e or m < n for e, m in zip(state.ended, lengths, strict=True)
        )
        return feats, counts, FrontendState(rest, received, taken, frames, ended)

    def _check_packet(self, samples, state, lengths):
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

    def _frames_of(self, samples):
        """Feature frames of an utterance of so many samples, as ESPnet counts them."""
        return max(0, (samples + 2 * self.pad - self.n_fft) // self.hop + 1)

    def _features(self, rows, frames):
        """The first so many frames of each row of samples: (B, t, n_mels), t the most of them."""
        t = max(frames)
        if t == 0:
            return rows[0].new_zeros(len(rows), 0, self.frontend.n_mels)
        samples = pad_sequence(
            [
                row[: (m - 1) * self.hop + self.n_fft if m else 0]
                for row, m in zip(rows, frames, strict=True)
            ],
            batch_first=True,
        )
        spectrum, _ = self.stft(samples)  # (B, t, n_fft/2+1, 2)
        feats, _ = self.frontend.logmel(spectrum.square().sum(-1))
        if self.normalize is None:
            return feats
        # told the lengths, it does not count them in the features' type: bfloat16 counts to 256
        lengths = torch.full((len(feats),), t, device=feats.device)
        return self.normalize(feats, lengths)[0]
