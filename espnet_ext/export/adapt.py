"""Kaldi's features mapped to a model's own log-mel, for a client that calculates Kaldi's alone."""

import numpy as np
import torch
from torch import nn

from espnet_ext.audio import read_audio
from espnet_ext.errors import UserError
from espnet_ext.frontend import KaldiFbank, StreamingFrontend
from espnet_ext.scoring.counting import score, tokenizer
from espnet_ext.streaming.exported import ExportedSpeech2Text

FRAMES_PER_UNKNOWN = 10  # the least
RIDGE = 1e-3  # added to sums of squares of logarithms; a band that never changes has a solution


class Adapter(nn.Module):
    """Each frame of Kaldi's features, with the one before it, to a frame of the model's own.

    Kaldi's frames lie half a hop beside those of a centred log-mel, so frame t of the model's own
    lies between frames t - 1 and t of Kaldi. The map is a convolution, which 8-bit weights leave
    alone.

    Args:
        front: The model's front end, a ``FrontEnd``.

    Attributes:
        frontend: Kaldi's, of the same rate and number of bands.
        late: Frames before the model's first one, 0 where the model's are centred.

    Raises:
        UserError: Frames of the two are not equally far apart, or Kaldi has not so many bands.
    """

    def __init__(self, front):
        super().__init__()
        self.frontend = kaldi = KaldiFbank(front.fs, front.n_mels)
        if kaldi.hop != front.hop:
            raise UserError(
                f"hop_length: adapt_features needs Kaldi's {kaldi.hop} samples at {front.fs} Hz, "
                f"got {front.hop}; without it, --client onnxruntime exports the model"
            )
        between = (front.window / 2 - front.left) - (kaldi.window / 2 - kaldi.left)
        self.late = 1 + int(between // front.hop)
        self.map = nn.Conv1d(front.n_mels, front.n_mels, kernel_size=2)

    def forward(self, feats, before):
        """Features (B, t, n_mels) of Kaldi, and the frame before them -> the model's, as many.

        ``before`` (B, 1, n_mels) is the first frame once more where a stream begins, which is
        Kaldi's own way: it mirrors the waveform.
        """
        if not feats.size(1):
            return feats
        return self.map(torch.cat([before, feats], dim=1).transpose(1, 2)).transpose(1, 2)

    @torch.no_grad()
    def fit(self, frontend, recordings) -> dict:
        """Least squares on every other recording; the others say what error is left.

        Args:
            frontend: ``StreamingFrontend`` of the model, without normalisation.
            recordings: Paths.

        Returns:
            ``recordings``, ``seconds``, and ``residual``: root mean square, over bands, of the
            held-out error in deviations of a band.

        Raises:
            UserError: They are too few, or the features have nothing to do with each other.
        """
        m, samples = self.frontend.n_mels, 0
        known = slice(0, 1 + 2 * m)  # 1 and two frames; what they are to give follows
        fitted, held_out = sums = np.zeros((2, 1 + 3 * m, 1 + 3 * m))  # of products of these
        kaldi = StreamingFrontend(self.frontend)
        for i, path in enumerate(recordings):
            wave = torch.from_numpy(read_audio(path, self.frontend.fs))[None]
            samples += wave.size(1)
            x, y = (
                front.forward_chunk(wave, front.init_state(), True)[0][0].double()
                for front in (kaldi, frontend)
            )
            pairs = torch.cat([torch.ones_like(x[:, :1]), torch.cat([x[:1], x[:-1]]), x], dim=1)
            pairs = pairs[self.late :]
            n = min(len(pairs), len(y))
            z = torch.cat([pairs[:n], y[:n]], dim=1)
            sums[i % 2] += (z.T @ z).numpy()
        seconds, needed = samples / self.frontend.fs, FRAMES_PER_UNKNOWN * (1 + 2 * m)
        if min(sums[:, 0, 0]) < needed:
            raise UserError(
                f"adapt_features: {len(recordings)} recordings of {seconds:.1f} s, the first "
                f"{recordings[0]}, are too few, each half of them needs "
                f"{needed * kaldi.front.hop / kaldi.front.fs:.1f} s"
            )
        ridge = RIDGE * np.diag(np.arange(1 + 2 * m) > 0)
        weight = np.linalg.solve(fitted[known, known] + ridge, fitted[known, known.stop :])
        residual = _error(weight, held_out)
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
            "residual": float(residual),
        }


def _error(weight, held_out):
    """What weights (1 + 2m, m) leave of the bands' deviations, over the bands that change."""
    m, frames = weight.shape[1], held_out[0, 0]
    error = np.concatenate([-weight, np.eye(m)])
    errors = np.einsum("ij,ik,kj->j", error, held_out, error) / frames
    variance = np.diag(held_out)[-m:] / frames - (held_out[0, -m:] / frames) ** 2
    changes = variance > RIDGE  # a band above what was recorded may not
    if not changes.any():
        return np.inf
    return np.sqrt(np.mean((errors[changes] / variance[changes]).clip(0)))


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
