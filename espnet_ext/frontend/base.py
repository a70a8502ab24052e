"""What the rest of the package asks of a front end, and ESPnet's default one behind it."""

import copy
from abc import ABC, abstractmethod
from typing import Any

import torch
from espnet2.asr.frontend.default import DefaultFrontend

from espnet_ext.errors import UserError


class FrontEnd(ABC):
    """Features of equally spaced frames of a waveform whose ends are mirrored.

    Frame t looks at the ``window`` samples from ``t * hop - left`` on. Those before the first
    sample and after the last one are the mirrored waveform.

    Attributes:
        fs: Sampling rate in Hz.
        n_mels: Values of a frame.
        window: Samples that a frame looks at.
        hop: Samples from one frame to the next.
        left: Samples before the first one that the first frame looks at.
        repeats_edge: The first and the last sample are mirrored too.
        ends_alone: An utterance of a padded batch ends as it would alone; otherwise zeros follow
            it up to the end of the batch.
        empty: No sample (0,), of the features' dtype, on their device.
    """

    fs: int
    n_mels: int
    window: int
    hop: int
    left: int
    repeats_edge: bool
    ends_alone: bool
    empty: torch.Tensor

    @property
    def dtype(self) -> torch.dtype:
        """Of the features, and of the samples that a stream keeps."""
        return self.empty.dtype

    @abstractmethod
    def has_features(self, samples: int) -> bool:
        """Whether an utterance of so many samples has features when it is alone."""

    @abstractmethod
    def num_frames(self, samples: Any) -> Any:
        """Frames of an utterance of so many samples in a batch."""

    @abstractmethod
    def features(self, samples: torch.Tensor) -> torch.Tensor:
        """Samples (B, (t - 1) * hop + window) that t frames look at -> (B, t, n_mels)."""

    def frames_ready(self, samples: int) -> int:
        """Frames that so many samples of a stream give, whatever follows."""
        if samples < self.left + (not self.repeats_edge):
            return 0
        return max(0, (samples + self.left - self.window) // self.hop + 1)

    def mirrored(self, positions: torch.Tensor, total: Any) -> torch.Tensor:
        """Where the samples at any positions are in an utterance of ``total``, tensor or int."""
        period = 2 * total - (0 if self.repeats_edge else 2)
        positions = positions % period
        return torch.minimum(positions, period - int(self.repeats_edge) - positions)


class EspnetFrontEnd(FrontEnd):
    """The log-mel of ESPnet's ``DefaultFrontend``, whose STFT mirrors half a window."""

    repeats_edge = False
    ends_alone = False

    def __init__(self, frontend: DefaultFrontend) -> None:
        self.frontend = frontend
        self.fs = int(frontend.logmel.mel_options["sr"])
        self.n_mels = frontend.n_mels
        self.stft = copy.copy(frontend.stft)
        self.stft.center = False
        self.window, self.hop = self.stft.n_fft, self.stft.hop_length
        self.left = self.window // 2 if frontend.stft.center else 0

    @property
    def empty(self) -> torch.Tensor:  # type: ignore[override]
        """See ``FrontEnd``."""
        return self.frontend.logmel.melmat.new_empty(0)

    def has_features(self, samples: int) -> bool:
        """See ``FrontEnd``."""
        return samples > self.left and self.num_frames(samples) > 0

    def num_frames(self, samples: Any) -> Any:
        """See ``FrontEnd``."""
        return max(0, (samples + 2 * self.left - self.window) // self.hop + 1)

    def features(self, samples: torch.Tensor) -> torch.Tensor:
        """See ``FrontEnd``."""
        spectrum, _ = self.stft(samples)  # (B, t, n_fft/2+1, 2)
        return self.frontend.logmel(spectrum.square().sum(-1))[0]


def front_end(frontend: Any) -> FrontEnd | None:
    """The front end of a model by this interface, or None for one of another kind."""
    if isinstance(frontend, DefaultFrontend) and frontend.apply_stft:
        return EspnetFrontEnd(frontend)
    return frontend if isinstance(frontend, FrontEnd) else None


def known_front_end(frontend: Any) -> FrontEnd:
    """The same; one of another kind is refused.

    Raises:
        UserError: It is of another kind.
    """
    if (front := front_end(frontend)) is None:
        kind = type(frontend).__name__
        raise UserError(f"frontend: must be default or kaldi_fbank, got {kind}")
    return front
