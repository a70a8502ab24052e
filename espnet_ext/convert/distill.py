"""Fine-tuning that also learns from the model that the weights were converted from."""

import math
from pathlib import Path

import torch
from espnet2.asr.espnet_model import ESPnetASRModel
from torch.nn import functional as F

from espnet_ext.errors import UserError


class DistilledASRModel(ESPnetASRModel):
    """ESPnet's model with a teacher in training; ``model: kv_distilled`` in YAML.

    Teacher and student read the same features under the same chunk mask; where the student's
    attention cannot forget (linear), the teacher's left context is unlimited as well. Added to the
    loss is, per utterance and summed over encoder frames, the mean square difference of encoder
    outputs and the Kullback-Leibler divergence of the CTC posteriors (Hinton et al. 2015).
    Parameters are those of ESPnet's model: the teacher is read when training begins, and neither
    saved nor needed later.

    Args:
        teacher: Checkpoint of the teacher, its ``config.yaml`` beside it.
        distill_weight: Weight of what is added.
        espnet_conf: Everything else goes to ESPnet's model.
    """

    def __init__(self, *, teacher: str, distill_weight: float = 1.0, **espnet_conf):
        if not 0 <= distill_weight < math.inf:
            raise ValueError(f"distill_weight: must be at least 0, got {distill_weight}")
        super().__init__(**espnet_conf)
        self.teacher_file = Path(teacher)
        self.distill_weight = distill_weight
        self._teacher = []  # a list hides it from state_dict() and parameters()
        self.encoder.register_forward_hook(self._keep)

    def _keep(self, encoder, inputs, output):
        if self.training:
            self._encoded = inputs, output

    def teacher(self, device):
        """The teacher, in eval mode on a device."""
        if not self._teacher:
            from espnet_ext.convert.model import load, mha_config

            config = mha_config(self.teacher_file.with_name("config.yaml"))
            teacher = load(config, self.teacher_file).to(device)
            self._check_teacher(teacher)
            self._teacher = [teacher]
        return self._teacher[0]

    def _check_teacher(self, teacher):
        for what, ours, theirs in (
            ("output_size", self.encoder.output_size(), teacher.encoder.output_size()),
            ("input_size", self.encoder.input_size, teacher.encoder.input_size),
            ("token_list", list(self.token_list), list(teacher.token_list)),
        ):
            if ours != theirs:
                raise UserError(f"{self.teacher_file}: teacher: its {what} is not the student's")

    def forward(self, speech, speech_lengths, text, text_lengths, **kwargs):
        """Loss, statistics and weight of a batch; see ``ESPnetASRModel.forward``."""
        loss, stats, weight = super().forward(speech, speech_lengths, text, text_lengths, **kwargs)
        if self.training:
            encoder, ctc = self.distillation()
            stats |= {"loss_distill_encoder": encoder.detach()[None]}
            stats |= {"loss_distill_ctc": ctc.detach()[None]}
            loss = loss + self.distill_weight * (encoder + ctc)
        return loss, stats, weight

    def distillation(self):
        """Differences of encoder outputs and of CTC posteriors in the last batch, two scalars."""
        (feats, lengths, *_), (y, frames, _) = self._encoded
        teacher = self.teacher(feats.device)
        teacher.encoder.chunk_size, left_context = self.encoder.used_view
        forgets = any(attention.has_left_context for attention in self.encoder.attentions)
        teacher.encoder.left_context = left_context if forgets else -1
        with torch.no_grad():
            wanted = _last(teacher.encoder(feats, lengths)[0])
            wanted_ctc = teacher.ctc.log_softmax(wanted)
        y = _last(y)
        real = torch.arange(y.size(1), device=y.device) < frames[:, None]  # (B, T)
        encoder = (y - wanted).square().mean(-1)
        ctc = F.kl_div(self.ctc.log_softmax(y), wanted_ctc, reduction="none", log_target=True)
        return tuple((real * term).sum() / len(y) for term in (encoder, ctc.sum(-1)))


def _last(output):
    """Encoder output without those of inner layers."""
    return output[0] if isinstance(output, tuple) else output
