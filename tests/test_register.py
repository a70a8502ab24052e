"""ESPnet knows our classes, whichever is imported first, and a new attention is one class away."""

import subprocess
import sys

import pytest
import torch
import yaml

from espnet_ext.attention.base import Attention
from espnet_ext.attention.registry import ATTENTIONS
from espnet_ext.register import ENCODERS as ENCODERS_OF_YAML
from tiny import ENCODERS, INPUT_SIZE, N_HEAD

TASKS = ("espnet2.tasks.asr", "espnet3.systems.esp2_asr.task")


@pytest.mark.parametrize(
    "order",
    [("espnet_ext", *TASKS), (TASKS[0], "espnet_ext"), ("espnet_ext.streaming", TASKS[0])],
    ids=str,
)
def test_choices_are_extended_in_either_order(order):
    script = f"""
import importlib
modules = [importlib.import_module(name) for name in {order!r}]
for task in modules:
    if hasattr(task, "encoder_choices"):
        for name in ("kv_conformer", "kv_branchformer", "kv_e_branchformer"):
            print(task.encoder_choices.get_class(name).__module__)
        print(task.frontend_choices.get_class("kaldi_fbank").__module__)
        print(task.decoder_choices.get_class("kv_transformer").__module__)
        print(task.model_choices.get_class("kv_distilled").__module__)
"""
    out = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], check=True, capture_output=True, text=True
    )
    assert out.stdout.split() == [
        "espnet_ext.encoder.conformer",
        "espnet_ext.encoder.branchformer",
        "espnet_ext.encoder.e_branchformer",
        "espnet_ext.frontend.kaldi_fbank",
        "espnet_ext.decoder.transformer",
        "espnet_ext.convert.distill",
    ] * (len(order) - 1)
    if order[0] == "espnet_ext":  # then it is in time to keep ESPnet's remarks away
        assert out.stderr == ""


def test_importing_the_package_does_not_import_espnet():
    """The names of attentions and encoders, which help lists, are there all the same."""
    script = """
import sys
from espnet_ext.attention import ATTENTIONS
from espnet_ext.register import ENCODERS
print(*ATTENTIONS, *ENCODERS)
print([m for m in sys.modules if m.startswith(("espnet2", "torch"))])
"""
    out = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    names, modules = out.stdout.splitlines()
    assert names.split() == [*ATTENTIONS, *ENCODERS_OF_YAML] and modules == "[]"


def test_torch_compile_is_imported_by_its_users_only_and_kept_out_of_masks():
    script = """
import sys, espnet_ext.bin.asr_inference, torch
print("torch._dynamo" in sys.modules)
from espnet2.legacy.nets.pytorch_backend.nets_utils import make_pad_mask
lengths = torch.tensor([1, 2])
def padded(x):
    return x.masked_fill(make_pad_mask(lengths), 7) + 1
expected = padded(torch.zeros(2, 2))
print(torch.equal(torch.compile(padded, backend="eager")(torch.zeros(2, 2)), expected))
print(expected.tolist())
print(sum("wrapped with `torch.compiler.disable`" in reason
          for reason in torch._dynamo.utils.counters["graph_break"]))
"""
    command = [sys.executable, "-W", "ignore", "-c", script]
    out = subprocess.run(command, check=True, capture_output=True, text=True)
    assert out.stdout.split("\n")[:4] == ["False", "True", "[[1.0, 8.0], [1.0, 1.0]]", "1"]


class MeanAttention(Attention):
    """A fifth attention: every frame sees the mean of all real frames."""

    def __init__(self, n_head, n_feat, dropout_rate=0.0, gain: float = 1.0):
        super().__init__(n_head, n_feat, dropout_rate)
        self.linear_v = torch.nn.Linear(n_feat, n_feat)
        self.gain = gain

    def forward(self, query, key, value, pos_emb, mask):
        v = self.linear_v(query).masked_fill(mask.transpose(1, 2).eq(0), 0)
        return self.gain * v.sum(1, keepdim=True) / mask.sum(-1, keepdim=True) + 0 * query


@pytest.fixture
def fifth():
    ATTENTIONS["mean"] = MeanAttention
    yield "mean"
    del ATTENTIONS["mean"]


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_fifth_attention_is_one_class_and_one_entry(encoder, fifth, tmp_path):
    """It builds from ESPnet's YAML as the others do, trains a step, and changes every weight."""
    from espnet2.tasks.asr import ASRTask

    config = {
        "encoder": f"kv_{encoder}",
        "encoder_conf": ENCODERS[encoder][1]
        | {
            "output_size": 32,
            "attention_heads": N_HEAD,
            "num_blocks": 2,
            "attention": fifth,
            "attention_conf": {"gain": 2.0},
        },
        "decoder": "transformer",
        "decoder_conf": {"attention_heads": 2, "linear_units": 16, "num_blocks": 1},
        "token_list": ["<blank>", "<unk>", "a", "b", "<sos/eos>"],
        "input_size": INPUT_SIZE,
        "frontend": None,
        "normalize": None,
        "model_conf": {"ctc_weight": 0.5},
    }
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump(config))
    args = ASRTask.get_parser().parse_args(["--config", str(path), "--output_dir", str(tmp_path)])
    model = ASRTask.build_model(args)
    assert isinstance(
        model.encoder.encoders[0].get_submodule(model.encoder.attention_name), MeanAttention
    )
    before = {name: p.detach().clone() for name, p in model.encoder.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    loss, _, _ = model(
        speech=torch.randn(2, 60, INPUT_SIZE),
        speech_lengths=torch.tensor([60, 45]),
        text=torch.tensor([[2, 3, 2], [3, 3, -1]]),
        text_lengths=torch.tensor([3, 2]),
    )
    loss.backward()
    optimizer.step()
    assert torch.isfinite(loss)
    changed = [n for n, p in model.encoder.named_parameters() if "linear_v" in n]
    assert changed
    for name, parameter in model.encoder.named_parameters():
        assert parameter.grad is not None, name
        if name in changed:
            assert not torch.equal(parameter, before[name]), name
