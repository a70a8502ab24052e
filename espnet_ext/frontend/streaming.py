"""ESPnet's default front end on a live stream: any packet size in, the offline features out.

Offline, the STFT pads half a window on both sides with the mirrored signal. So the first frames
wait until half a window has arrived, and the last ones are made when the stream ends.
"""

import copy
from dataclasses import dataclass

import torch
from espnet2.asr.frontend.default import DefaultFrontend
from espnet2.layers.global_mvn import GlobalMVN


@dataclass
class FrontendState:
    """What features still need of the waveform.

    Attributes:
        samples: Samples that frames to come look at (B, n), the mirrored start included.
        received: Samples received so far, per stream.
        frames: Feature frames made so far.
        begun: The mirrored start is in place.
    """

    samples: torch.Tensor
    received: list[int]
    frames: int = 0
    begun: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes in use."""
        return self.samples.numel() * self.samples.element_size()


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
        return FrontendState(self.frontend.logmel.melmat.new_zeros(batch_size, 0), [0] * batch_size)

    @torch.no_grad()
    def forward_chunk(self, samples, state: FrontendState, is_final=False, lengths=None):
        """Features of what one packet completes.

        Args:
            samples: Waveform (B, n) of any length n, also 0.
            state: From ``init_state`` or the step before.
            is_final: No packet follows.
            lengths: Samples of this packet that are speech, per stream, for streams of a batch that
                end before others; what follows them is zeros, as in ESPnet's padded batches.

        Returns:
            Features (B, t, n_mels), how many of these frames are speech per stream, and the state.
        """
        before = [min(state.frames, n // self.hop + 1) for n in state.received]
        given = [samples.size(1)] * samples.size(0) if lengths is None else lengths
        state.received = [n + int(m) for n, m in zip(state.received, given, strict=True)]
        held = torch.cat([state.samples, samples.to(state.samples)], dim=1)
        if not state.begun:
            if held.size(1) <= self.pad:  # no mirror image yet; without one there are no features
                state.samples = held
                return self._features(held[:, :0]), [0] * samples.size(0), state
            held = torch.cat([held[:, 1 : self.pad + 1].flip(1), held], dim=1)
            state.begun = True
        if is_final and self.pad:
            held = torch.cat([held, held[:, -self.pad - 1 : -1].flip(1)], dim=1)
        frames = max(0, (held.size(1) - self.n_fft) // self.hop + 1)
        feats = self._features(held[:, : (frames - 1) * self.hop + self.n_fft * bool(frames)])
        state.samples = held[:, frames * self.hop :].clone()
        state.frames += frames
        after = [min(state.frames, n // self.hop + 1) for n in state.received]
        return feats, [b - a for a, b in zip(before, after, strict=True)], state

    def _features(self, samples):
        """Features of frames that lie wholly in ``samples``: (B, n) -> (B, t, n_mels)."""
        if samples.size(1) < self.n_fft:
            return samples.new_zeros(samples.size(0), 0, self.frontend.n_mels)
        spectrum, _ = self.stft(samples)  # (B, t, n_fft/2+1, 2)
        feats, _ = self.frontend.logmel(spectrum.square().sum(-1))
        if self.normalize is None:
            return feats
        # told the lengths, it does not count them in the features' type: bfloat16 counts to 256
        lengths = torch.full((len(feats),), feats.size(1), device=feats.device)
        return self.normalize(feats, lengths)[0]
