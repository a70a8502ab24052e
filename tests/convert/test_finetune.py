"""Fine-tuning starts from the converted weights, and a teacher pulls towards itself."""

import shutil

import pytest
import torch
import yaml

from convert.models import CHECKPOINT, TOKENS, write_model
from espnet_ext.bin import asr_convert, asr_init_from
from espnet_ext.convert.distill import DistilledASRModel
from espnet_ext.convert.model import load
from espnet_ext.errors import UserError
from tiny import max_error


@pytest.fixture(scope="module")
def exp(tmp_path_factory):
    """A model that streams and its conversion; read only."""
    exp = tmp_path_factory.mktemp("exp")
    source = write_model(exp / "asr_mha", "kv_conformer", {"causal": True, "dynamic_chunk": True})
    for name, words in {"rank4": "kv_lora_rank=4", "full": "kv_lora_rank=32"}.items():
        arguments = ["--from", source, "--output", exp / f"asr_{name}", "--attention", "mla"]
        asr_convert.main([*map(str, arguments), "--attention_conf", words])
    arguments = ["--from", source, "--output", exp / "asr_linear", "--attention", "linear"]
    asr_convert.main([*map(str, arguments)])
    return exp


def merge(exp, name, tmp_path, **schedule):
    (tmp_path / "schedule.yaml").write_text(yaml.safe_dump(schedule))
    arguments = ["--init_from", exp / name, "--config", tmp_path / "schedule.yaml"]
    asr_init_from.main([*map(str, arguments), "--output", str(tmp_path / "finetune.yaml")])
    return yaml.safe_load((tmp_path / "finetune.yaml").read_text())


def distilled(exp, name, tmp_path):
    """The model that a training with a teacher builds, with the weights it starts from."""
    config = merge(exp, name, tmp_path, model="kv_distilled", model_conf={"distill_weight": 2.0})
    shared = yaml.safe_load((exp / name / "config.yaml").read_text())
    return load(shared | config, exp / name / CHECKPOINT)


def batch():
    lengths = torch.tensor([12000, 9000])
    text = torch.tensor([[2, 3, 4], [5, 2, -1]])
    return torch.randn(2, 12000), lengths, text, torch.tensor([3, 2])


def test_init_from_keeps_the_model_and_takes_the_schedule(exp, tmp_path):
    config = merge(exp, "asr_rank4", tmp_path, max_epoch=2, model_conf={"lsm_weight": 0.2})
    source = yaml.safe_load((exp / "asr_rank4" / "config.yaml").read_text())
    for key in ("encoder", "encoder_conf", "decoder_conf", "frontend_conf", "batch_bins"):
        assert config[key] == source[key]
    assert config["encoder_conf"]["attention_conf"] == {"kv_lora_rank": 4}
    assert config["max_epoch"] == 2
    assert config["model_conf"] == {"ctc_weight": 0.5, "lsm_weight": 0.2}
    assert not config.keys() & {"token_list", "output_dir", "train_shape_file"}


@pytest.mark.parametrize(
    "name, schedule, message",
    [
        ("asr_rank4", {"encoder_conf": {}}, "encoder_conf: comes from"),
        ("asr_none", {}, "asr_none: has no config.yaml"),
        ("asr_mha", {"model": "kv_distilled"}, "model_conf: needs teacher"),
    ],
)
def test_init_from_refuses_in_one_line(name, schedule, message, exp, tmp_path, capsys):
    with pytest.raises(SystemExit):
        merge(exp, name, tmp_path, **schedule)
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "finetune.yaml").exists()


def test_lossless_student_has_nothing_to_learn_from_its_teacher(exp, tmp_path):
    """Also under the chunk masks that are drawn: both see the same frames."""
    student = distilled(exp, "asr_full", tmp_path)
    student.train()
    for module in student.modules():  # dropout and batch statistics would part them
        if isinstance(module, torch.nn.Dropout | torch.nn.BatchNorm1d):
            module.eval()
    views = set()
    for seed in range(8):
        torch.manual_seed(seed)
        with torch.no_grad():
            _, stats, _ = student(*batch())
        views.add(student.encoder.used_view)
        assert stats["loss_distill_encoder"].item() < 1e-6
        assert stats["loss_distill_ctc"].item() < 1e-6
    assert len(views) > 2


@pytest.mark.parametrize("name", ["asr_rank4", "asr_linear"])
def test_teacher_sees_what_its_student_sees(exp, tmp_path, name):
    """Linear attention cannot forget a frame, so its teacher does not either."""
    student = distilled(exp, name, tmp_path).train()
    drawn = set()
    for seed in range(12):
        torch.manual_seed(seed)
        with torch.no_grad():
            student(*batch())
        chunk_size, left_context = student.encoder.used_view
        drawn.add(left_context)
        seen = -1 if name == "asr_linear" else left_context
        teacher = student.teacher("cpu").encoder
        assert (teacher.chunk_size, teacher.left_context) == (chunk_size, seen)
    assert max(drawn) >= 0


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -1.0])
def test_impossible_distill_weight_is_refused(exp, weight):
    with pytest.raises(ValueError, match="distill_weight: must be"):
        DistilledASRModel(teacher="x.pth", distill_weight=weight)


def test_teacher_of_other_tokens_is_refused(exp, tmp_path):
    """Of as many as well, in another order: their posteriors would be compared all the same."""
    teacher = tmp_path / "teacher"
    shutil.copytree(exp / "asr_mha", teacher)
    config = yaml.safe_load((teacher / "config.yaml").read_text())
    config["token_list"][1:3] = reversed(config["token_list"][1:3])
    (teacher / "config.yaml").write_text(yaml.safe_dump(config))
    student = distilled(exp, "asr_rank4", tmp_path).train()
    student.teacher_file = teacher / CHECKPOINT
    for _ in range(2):
        with pytest.raises(UserError, match="teacher: its token_list is not the student's"):
            student(*batch())


def test_teacher_pulls_and_leaves_no_trace_in_the_checkpoint(exp, tmp_path):
    student = distilled(exp, "asr_rank4", tmp_path)
    before = torch.load(exp / "asr_rank4" / CHECKPOINT)
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
    student.train()
    data, losses = batch(), []
    for _ in range(15):
        torch.manual_seed(1)  # the same mask each time
        loss, stats, _ = student(*data)
        losses.append(stats["loss_distill_encoder"].item() + stats["loss_distill_ctc"].item())
        assert loss.item() > stats["loss"].item() + 1.9 * losses[-1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]
    assert student.state_dict().keys() == before.keys()
    student.eval()
    _, stats, _ = student(*data)
    assert "loss_distill_ctc" not in stats


def test_tuned_model_decodes_without_its_teacher(exp, tmp_path):
    from espnet_ext.bin.asr_inference import Speech2Text

    student = distilled(exp, "asr_full", tmp_path)
    config = yaml.safe_load((exp / "asr_full" / "config.yaml").read_text())
    config |= {"model": "kv_distilled", "model_conf": {"ctc_weight": 0.5, "teacher": "gone/x.pth"}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    torch.save(student.state_dict(), tmp_path / CHECKPOINT)
    wave = torch.randn(8000)
    decode = Speech2Text(
        tmp_path / "config.yaml", tmp_path / CHECKPOINT, beam_size=2, maxlenratio=0.2
    )
    text, tokens, *_ = decode(wave)[0]
    assert set(tokens) <= set(TOKENS) and text
    y = decode.asr_model.encode(wave[None], torch.tensor([8000]))[0]
    plain = load(config | {"model": "espnet", "model_conf": {}}, tmp_path / CHECKPOINT)
    assert max_error(y, plain.encode(wave[None], torch.tensor([8000]))[0]) == 0
