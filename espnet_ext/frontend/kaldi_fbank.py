"""Kaldi's log-mel filter bank, the features of sherpa-onnx and its like."""

import functools
from typing import Any

import numpy as np
import torch
from espnet2.asr.frontend.abs_frontend import AbsFrontend

from espnet_ext.audio import parse_rate
from espnet_ext.errors import UserError
from espnet_ext.frontend.base import FrontEnd

PREEMPHASIS = 0.97
LOWEST, BELOW_NYQUIST = 20, 400  # Hz, the ends of the bands
BLOCK_FRAMES = {"cpu": 512, "cuda": 16384}  # calculated at once, as many as a cache holds
FLOOR = torch.finfo(torch.float32).eps  # of an energy


def mel_bands(fs: int, n_fft: int, n_mels: int) -> np.ndarray:
    """Triangles of equal width on the mel scale (n_fft / 2, n_mels), as float32 like Kaldi's."""

    def mel(hertz: Any) -> Any:
        return np.float32(1127) * np.log(1 + np.asarray(hertz, np.float32) / np.float32(700))

    low, high = mel(LOWEST), mel(fs / 2 - BELOW_NYQUIST)
    edges = low + np.arange(n_mels + 2, dtype=np.float32) * ((high - low) / np.float32(n_mels + 1))
    bins = mel(np.arange(n_fft // 2, dtype=np.float32) * np.float32(fs / n_fft))[:, None]
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (bins - left) / (centre - left), (right - bins) / (right - centre)
    return np.minimum(rising, falling).clip(0)


@functools.cache
@torch.inference_mode(False)
def constants(
    fs: int, window: int, n_fft: int, n_mels: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Povey's window (window,) and the mel bands (n_fft / 2, n_mels), in float64.

    Not of the module, whose buffers a narrow dtype would round: a window in steps is of no use.
    """
    povey = torch.hann_window(window, periodic=False, dtype=torch.float64, device=device) ** 0.85
    return povey, torch.from_numpy(mel_bands(fs, n_fft, n_mels)).to(device, torch.float64)


class KaldiFbank(AbsFrontend, FrontEnd):
    """Kaldi's filter bank with ``snip_edges`` false and no dither, for samples in [-1, 1].

    Windows of 25 ms, 10 ms apart: the mean is taken off, then pre-emphasis and Povey's window; the
    power spectrum is summed in triangles on the mel scale from 20 Hz to 400 Hz below half of the
    rate. A feature is the logarithm of a sum, which is at least the smallest step of a float32 at
    1. It is calculated in float64, whatever the model's dtype: in float32, rounding beside a loud
    tone would make quiet bands depend on how the samples were cut into packets.

    Args:
        fs: Sampling rate, in Hz or as in ``16k``.
        n_mels: Mel bands.
        n_fft: For configurations that also have another front end: must be what Kaldi has.
        win_length: The same.
        hop_length: The same.

    Raises:
        UserError: An option is impossible; the message names key, rule and value.
    """

    repeats_edge = True
    ends_alone = True

    def __init__(
        self,
        fs: int | str = 16000,
        n_mels: int = 80,
        n_fft: int | None = None,
        win_length: int | None = None,
        hop_length: int | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown:
            raise UserError(
                f"frontend_conf: kaldi_fbank takes fs and n_mels, got {', '.join(unknown)}"
            )
        self.fs, self.n_mels = parse_rate(str(fs)), n_mels
        if self.fs <= 2 * (LOWEST + BELOW_NYQUIST):
            raise UserError(f"fs: must be above {2 * (LOWEST + BELOW_NYQUIST)} Hz, got {fs}")
        milliseconds = np.float32(self.fs) * np.float32(0.001)  # rounds down from it, as Kaldi does
        self.window = int(milliseconds * np.float32(25))
        self.hop = int(milliseconds * np.float32(10))
        self.left = self.window // 2 - self.hop // 2
        self.n_fft = 1 << (self.window - 1).bit_length()
        for name, value, rule in (
            ("n_fft", n_fft, self.n_fft),
            ("win_length", win_length, self.window),
            ("hop_length", hop_length, self.hop),
        ):
            if value not in (None, rule):
                raise UserError(
                    f"{name}: must be {rule} with kaldi_fbank at {self.fs} Hz, or left out, "
                    f"got {value}"
                )
        if not isinstance(n_mels, int) or n_mels < 3:
            raise UserError(f"n_mels: must be a whole number of at least 3, got {n_mels!r}")
        if not mel_bands(self.fs, self.n_fft, n_mels).any(0).all():
            raise UserError(
                f"n_mels: {n_mels} bands at {self.fs} Hz are narrower than a bin of the spectrum, "
                "take fewer or a higher rate"
            )
        self.register_buffer("empty", torch.empty(0), persistent=False)

    def output_size(self) -> int:
        """Values of a frame."""
        return self.n_mels

    def has_features(self, samples: int) -> bool:
        """See ``FrontEnd``."""
        return self.num_frames(samples) > 0

    def num_frames(self, samples: Any) -> Any:
        """See ``FrontEnd``."""
        return (samples + self.hop // 2) // self.hop

    def forward(
        self, input: torch.Tensor, input_lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Features of a batch, in the module's dtype; an utterance's own do not depend on others.

        Args:
            input: Waveforms (B, n).
            input_lengths: Their samples (B,).

        Returns:
            Features (B, t, n_mels), zeros after the end of an utterance, and their frames (B,).

        Raises:
            UserError: The waveforms have several channels.
        """
        if input.dim() != 2:
            raise UserError(
                f"speech: kaldi_fbank reads one channel (B, n), got {tuple(input.shape)}"
            )
        lengths = self.num_frames(input_lengths)
        t = int(lengths.max())
        if t == 0:
            return self.empty.new_zeros(len(input), 0, self.n_mels), lengths
        positions = torch.arange((t - 1) * self.hop + self.window, device=input.device) - self.left
        samples = input_lengths.to(input.device).clamp_min(1)[:, None]
        feats = self.features(input.gather(1, self.mirrored(positions, samples)))
        frames = torch.arange(t, device=lengths.device)
        past_end = (frames >= lengths[:, None]).to(feats.device)  # (B, t)
        return feats.masked_fill(past_end[..., None], 0.0), lengths

    def features(self, samples: torch.Tensor) -> torch.Tensor:
        """See ``FrontEnd``."""
        frames = samples.unfold(-1, self.window, self.hop)  # (B, t, window)
        block = BLOCK_FRAMES["cpu" if samples.device.type == "cpu" else "cuda"]
        blocks = frames.split(max(1, block // len(samples)), dim=1)
        return torch.cat([self._log_energies(frames.double()) for frames in blocks], dim=1)

    def _log_energies(self, frames: torch.Tensor) -> torch.Tensor:
        """Float64 frames (B, t, window) -> features (B, t, n_mels)."""
        povey, bands = constants(self.fs, self.window, self.n_fft, self.n_mels, frames.device)
        frames = frames - frames.mean(-1, keepdim=True)
        before = torch.cat([frames[..., :1], frames[..., :-1]], -1)
        spectrum = torch.fft.rfft((frames - PREEMPHASIS * before) * povey, n=self.n_fft)
        power = spectrum.real.square() + spectrum.imag.square()  # (B, t, n_fft/2+1)
        energies = power[..., :-1] @ bands
        return energies.clamp_min(FLOOR).log().to(self.empty.dtype)
