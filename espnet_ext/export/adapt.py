"""Kaldi's features mapped to a model's own log-mel, for a client that calculates Kaldi's alone."""

import numpy as np
import torch
from torch import nn

from espnet_ext.audio import read_audio
from espnet_ext.errors import UserError
from espnet_ext.frontend import KaldiFbank, StreamingFrontend
from espnet_ext.scoring.counting import score, tokenizer
from espnet_ext.streaming.exported import ExportedSpeech2Text

#: bands to either side that a band of the model is made of; what fits best on held-out recordings
WIDTHS = (0, 4, 1000)
FRAMES_PER_UNKNOWN = 10  # the least
RIDGE = 1e-3  # added to sums of squares of logarithms; a band that never changes has a solution


class Adapter(nn.Module):
    """Two neighbouring frames of Kaldi's features to the frame of the model's own between them.

    Frames of Kaldi lie half a hop beside those of a centred log-mel, so one alone, at any shift,
    leaves half as much again of an error. It is a convolution, which 8-bit weights leave alone.

    Args:
        front: The model's front end, a ``FrontEnd``.

    Attributes:
        frontend: Kaldi's, of the same rate and number of bands.
        first: The model's frame that the first two frames of Kaldi become.

    Raises:
        UserError: Frames of the two are not equally far apart, or Kaldi has not so many bands.
    """

    def __init__(self, front):
        super().__init__()
        self.frontend = kaldi = KaldiFbank(front.fs, front.n_mels)
        if kaldi.hop != front.hop:
            raise UserError(
                f"hop_length: adapt_features needs Kaldi's {kaldi.hop} samples at {front.fs} Hz, "
                f"got {front.hop}; --client onnxruntime exports it for onnxruntime alone"
            )
        between = (kaldi.window / 2 - kaldi.left) - (front.window / 2 - front.left)
        self.first = int(np.ceil(between / front.hop))
        self.map = nn.Conv1d(front.n_mels, front.n_mels, kernel_size=2)

    def forward(self, feats):
        """Features (B, t, n_mels) of Kaldi -> (B, t-1, n_mels) of the model."""
        if feats.size(1) < 2:
            return feats[:, :0]
        return self.map(feats.transpose(1, 2)).transpose(1, 2)

    @torch.no_grad()
    def fit(self, frontend, recordings) -> dict:
        """Least squares on every other recording; the others say what to take.

        Args:
            frontend: ``StreamingFrontend`` of the model, without normalisation.
            recordings: Paths.

        Returns:
            ``recordings``, ``seconds``, ``neighbours`` (bands to either side), ``residual`` (root
            mean square of the held-out error of a band in its deviations), and that of a scale and
            an offset per band and frame, ``residual_per_band``.

        Raises:
            UserError: They are too few, or the features have nothing to do with each other.
        """
        m, samples = self.frontend.n_mels, 0
        sums = np.zeros((2, 1 + 3 * m, 1 + 3 * m))  # of products of 1, two frames, and their target
        kaldi = StreamingFrontend(self.frontend)
        for i, path in enumerate(recordings):
            wave = torch.from_numpy(read_audio(path, self.frontend.fs))[None]
            samples += wave.size(1)
            x, y = (
                front.forward_chunk(wave, front.init_state(), True)[0][0].double()
                for front in (kaldi, frontend)
            )
            x, y = x[max(0, -self.first) :], y[max(0, self.first) :]
            n = max(0, min(len(x) - 1, len(y)))
            z = torch.cat([x.new_ones(n, 1), x[:n], x[1 : n + 1], y[:n]], dim=1)
            sums[i % 2] += (z.T @ z).numpy()
        seconds, needed = samples / self.frontend.fs, FRAMES_PER_UNKNOWN * (1 + 2 * m)
        if min(sums[:, 0, 0]) < needed:
            raise UserError(
                f"adapt_features: {len(recordings)} recordings of {seconds:.1f} s are too "
                f"few, each half of them needs {needed * kaldi.front.hop / kaldi.front.fs:.1f} s"
            )
        fits = {width: _solve(*sums, m, width) for width in WIDTHS}
        width = min(WIDTHS, key=lambda width: fits[width][1])
        weight, residual = fits[width]
        if not residual < 1:
            raise UserError(
                f"adapt_features: Kaldi's features do not say what the model's are, the error is "
                f"{residual:.2g} of their deviation; are these recordings of speech?"
            )
        self.map.bias.copy_(torch.from_numpy(weight[0]))
        self.map.weight.copy_(torch.from_numpy(weight[1:]).unflatten(0, (2, m)).permute(2, 1, 0))
        return {
            "recordings": len(recordings),
            "seconds": round(seconds, 2),
            "neighbours": min(width, m - 1),
            "residual": float(residual),
            "residual_per_band": float(fits[0][1]),
        }


def _solve(fitted, held_out, m, width):
    """Weights (1 + 2m, m) of bands at most ``width`` apart, and their error on what is held out.

    The error is in deviations of a band, over the bands that change.
    """
    weight, band = np.zeros((1 + 2 * m, m)), np.arange(2 * m) % m
    ridge = fitted + RIDGE * np.diag(np.arange(len(fitted)) > 0)
    for j in range(m):
        rows = np.concatenate([[0], 1 + np.flatnonzero(np.abs(band - j) <= width)])
        weight[rows, j] = np.linalg.solve(ridge[np.ix_(rows, rows)], fitted[rows, 1 + 2 * m + j])
    error = np.concatenate([-weight, np.eye(m)])
    frames, target = held_out[0, 0], slice(1 + 2 * m, None)
    variance = np.diag(held_out)[target] / frames - (held_out[0, target] / frames) ** 2
    errors = np.einsum("ij,ik,kj->j", error, held_out, error) / frames
    changes = variance > RIDGE  # a band above what was recorded may not
    if not changes.any():
        return weight, np.inf
    return weight, np.sqrt(np.mean((errors[changes] / variance[changes]).clip(0)))


def word_error_rates(speech2text, path, recordings) -> dict:
    """WER in percent of a model's own streaming and of its adapted export, greedy CTC to the end.

    Args:
        speech2text: The model in PyTorch.
        path: The exported file.
        recordings: Id to path and text.

    Returns:
        ``utterances``, ``words``, ``own`` and ``adapted``.
    """
    models = {"own": speech2text, "adapted": ExportedSpeech2Text(asr_model_file=path)}
    texts = {name: {} for name in models}
    for key, (recording, _) in recordings.items():
        wave = read_audio(recording, speech2text.fs)
        for name, model in models.items():
            texts[name][key] = model(model.start(), wave, True).text
    references = {key: text for key, (_, text) in recordings.items()}
    rows = {
        name: score(references, found, tokenizer("wer")).summary() for name, found in texts.items()
    }
    rates = {name: row["err"] for name, row in rows.items()}
    return {"utterances": rows["own"]["snt"], "words": rows["own"]["wrd"]} | rates
