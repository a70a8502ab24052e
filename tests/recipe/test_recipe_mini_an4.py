"""The recipe from stage 1 to 13 on the real utterances of mini_an4, in a copy of its directory.

The copy's path and the names have in them what a shell, YAML, a list of paths or a job runner would
take for its own.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from benchmarks.cuda_card import killed_and_resumed
from copies import ROOT, copy_mini_an4, kill_when, run
from espnet_ext import packing
from espnet_ext.data import kaldi
from espnet_ext.errors import UserError

CONFORMER = ["--asr_config", "conf/train_asr_conformer_mla.yaml", "--asr_args", "--max_epoch 8"]
CONFORMER_EXP = "exp/asr_train_asr_conformer_mla_raw_en_bpe30_max_epoch8_sp"
ODD = """it's "a" $HOME & JOB(1) #2, x"""
TAG = "x out.log sh -c 'touch pwned' JOB_ #1"
BRANCHFORMER = ["--asr-config", "conf/train_asr_branchformer_gqa.yaml", "--inference-nj", "1"]
BRANCHFORMER += ["--asr-tag", TAG]
BRANCHFORMER_EXP = f"exp/asr_{TAG}"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A copy of the recipe in a tree that is otherwise this repository, stages 1 to 10 done."""
    root = tmp_path_factory.mktemp("repository") / ODD
    root.mkdir()
    recipe = copy_mini_an4(root)
    done = run(recipe, "--stop-stage", "10")
    assert done.returncode == 0, done.stdout + done.stderr
    return recipe


@pytest.fixture(scope="module", autouse=True)
def language_model(recipe):
    """Stages 6 to 8, beside the other tests."""
    options = ["--use_lm", "true", "--stage", "6", "--stop-stage", "8", "--expdir", "exp_lm"]
    process = subprocess.Popen(
        [recipe / "run.sh", *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    yield process
    process.kill()


def snapshot(recipe):
    files = (p for name in ("data", "dump", "exp") for p in (recipe / name).rglob("*"))
    return {
        str(p): (p.lstat().st_mtime_ns, hashlib.sha1(p.read_bytes()).hexdigest())
        for p in files
        if p.is_file()
    }


def test_recipe_resumes_a_killed_training_and_prints_the_error_rate(recipe):
    epoch, output = killed_and_resumed(recipe, CONFORMER_EXP, *CONFORMER)
    assert 1 <= epoch < 8, "killed too late to show anything"
    assert "|dataset|Snt|Wrd|Corr|Sub|Del|Ins|Err|S.Err|" in output
    assert "|decode_asr_asr_model_valid.acc.ave/test|2|10|" in output


def test_finished_recipe_run_again_leaves_every_file_as_it_was(recipe):
    before = snapshot(recipe)
    assert any(path.endswith("score_wer/score.json") for path in before)
    done = run(recipe, *CONFORMER, "--stage", "1", "--stop_stage", "13")
    assert done.returncode == 0, done.stdout + done.stderr
    assert snapshot(recipe) == before


def test_stage_12_asked_for_decodes_again_and_survives_being_killed(recipe):
    results = recipe / CONFORMER_EXP / "decode_asr_asr_model_valid.acc.ave/test"
    before = {name: (results / name).read_bytes() for name in ("text", "score_ter/result.txt")}
    begun = results.with_name(".new") / "test/logdir/asr_inference.1.log"
    kill_when(recipe, begun.exists, *CONFORMER, "--stage", "12")
    assert {name: (results / name).read_bytes() for name in before} == before
    written = (results / "text").stat().st_mtime_ns
    done = run(recipe, *CONFORMER, "--stage", "12", "--stop-stage", "13")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {name: (results / name).read_bytes() for name in before} == before
    assert (results / "text").stat().st_mtime_ns > written
    assert not results.with_name(".new").exists()
    assert [len(p.read_text().splitlines()) for p in results.glob("logdir/keys.*.scp")] == [1, 1]


def test_recipe_trains_and_scores_a_branchformer_on_another_front_end(recipe):
    """With SpecAugment, on Kaldi's features, whose statistics are beside those of ESPnet's."""
    statistics = recipe / "exp/asr_stats_raw_en_bpe30_sp/train/feats_stats.npz"
    before = statistics.stat().st_mtime_ns
    done = run(recipe, *BRANCHFORMER, "--stop-stage", "13")
    assert done.returncode == 0, done.stdout + done.stderr
    assert statistics.stat().st_mtime_ns == before
    kaldi_statistics = recipe / "exp/asr_stats_raw_en_bpe30_kaldi_fbank_sp/train/feats_stats.npz"
    model = torch.load(recipe / BRANCHFORMER_EXP / "valid.acc.ave.pth")
    found = np.load(kaldi_statistics)
    assert model["normalize.mean"].numpy() == pytest.approx(found["sum"] / found["count"])
    assert not [name for name in model if name.startswith("frontend.")]
    assert "|decode_asr_asr_model_valid.acc.ave/test|2|10|" in done.stdout
    assert (recipe / BRANCHFORMER_EXP / "RESULTS.md").exists()
    assert not list(recipe.rglob("pwned*"))


@pytest.mark.parametrize("stage", ["12", "14", "16", "17"])
def test_stage_that_misses_its_checkpoint_names_those_that_are_there(recipe, stage):
    asked = ["--inference_asr_model", "valid.loss.ave.pth", "--skip-packing", "false"]
    asked += ["--skip_export", "false"]
    done = run(recipe, *BRANCHFORMER, *asked, "--stage", stage, "--stop-stage", stage)
    assert done.returncode != 0 and done.stderr.count("\n") == 1
    assert (
        f"no {BRANCHFORMER_EXP}/valid.loss.ave.pth; there is valid.acc.ave.pth, "
        "valid.acc.best.pth: name one with --inference_asr_model"
    ) in done.stderr
    done = run(recipe, "--asr_exp", "exp/none", "--stage", stage, *asked)
    assert "no exp/none/valid.loss.ave.pth: run stage 11 first" in done.stderr


def test_recipe_fine_tunes_a_converted_model(recipe, monkeypatch):
    """With a teacher, from the converted weights, with the statistics that are there."""
    from espnet_ext.bin import asr_convert
    from espnet_ext.checkpoint import StrictASRTask

    monkeypatch.chdir(recipe)  # a config's paths are relative to the recipe
    source = Path("exp/asr_'m h a'")
    source.mkdir()
    config = yaml.safe_load(Path(CONFORMER_EXP, "config.yaml").read_text())
    config["encoder_conf"] |= {"attention": "mha", "attention_conf": {}}
    (source / "config.yaml").write_text(yaml.safe_dump(config))
    model, _ = StrictASRTask.build_model_from_file(source / "config.yaml")
    torch.save(model.state_dict(), source / "valid.acc.ave.pth")
    arguments = ["--from", source, "--output", "exp/asr_mla 8 'JOB'", "--attention", "mla"]
    asr_convert.main([*map(str, arguments), "--attention_conf", "kv_lora_rank=8"])

    statistics = recipe / "exp/asr_stats_raw_en_bpe30_sp/train/feats_stats.npz"
    before = statistics.stat().st_mtime_ns
    options = ["--finetune_config", "../../../conf/finetune_asr_distill.yaml"]
    options += ["--init_from", "exp/asr_mla 8 'JOB'"]
    options += ["--asr_args", "--max_epoch 1 --optim_conf lr=0.0"]
    done = run(recipe, *options, "--stage", "10", "--stop-stage", "13")
    assert done.returncode == 0, done.stdout + done.stderr
    assert statistics.stat().st_mtime_ns == before
    tuned = recipe / "exp/asr_mla 8 'JOB'_finetune_asr_distill_max_epoch1_optim_conflr0.0"
    assert "loss_distill_ctc=" in (tuned / "train.log").read_text()
    assert "|decode_asr_asr_model_valid.acc.ave/test|2|10|" in done.stdout
    begun = torch.load("exp/asr_mla 8 'JOB'/valid.acc.ave.pth")
    ended = torch.load(tuned / "valid.acc.ave.pth")
    for name in dict(model.named_parameters()).keys() & begun.keys():
        assert torch.equal(begun[name], ended[name]), name  # nothing was learnt at this rate


def test_recipe_decodes_as_streams(recipe):
    streaming = ["--use_streaming", "true", "--inference_config", "conf/decode_asr_streaming.yaml"]
    done = run(recipe, *BRANCHFORMER, *streaming, "--stage", "12", "--stop-stage", "13")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "|decode_asr_streaming_asr_model_valid.acc.ave/test|2|10|" in done.stdout
    refused = run(recipe, *CONFORMER, *streaming, "--stage", "12")
    assert refused.returncode != 0
    assert "causal: an encoder that streams" in refused.stdout + refused.stderr


def test_statistics_count_the_vocabulary_in_numel_batches(recipe):
    size = len((recipe / "data/en_token_list/bpe_bpe30/tokens.txt").read_text().splitlines())
    shapes = (recipe / "exp/asr_stats_raw_en_bpe30_sp/train/text_shape.bpe").read_text()
    assert len(shapes.splitlines()) == 12  # 4 utterances at 3 speeds
    assert all(line.endswith(f",{size}") for line in shapes.splitlines())


def test_packed_model_decodes_the_same_text_elsewhere(recipe, tmp_path):
    options = ["--skip-packing", "false", "--stage", "14", "--stop-stage", "14"]
    done = run(recipe, *BRANCHFORMER, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    (archive,) = (recipe / BRANCHFORMER_EXP).glob("*_valid.acc.ave.zip")
    arguments, _ = packing.unpack(archive, tmp_path / "model")
    assert str(recipe) not in Path(arguments["asr_train_config"]).read_text()
    assert list(tmp_path.rglob("tokens.txt"))

    wavs = kaldi.read_scp(recipe / "dump/raw/test/wav.scp")
    kaldi.write_scp(tmp_path / "wav.scp", {utt: str(recipe / path) for utt, path in wavs.items()})
    options = [word for key, path in arguments.items() for word in (f"--{key}", path)]
    options += ["--config", "model/conf/decode_asr.yaml", "--output_dir", "decoded"]
    options += ["--data_path_and_name_and_type", "wav.scp,speech,sound"]
    done = subprocess.run(
        [sys.executable, "-m", "espnet_ext.bin.asr_inference", *options],
        cwd=tmp_path,  # where no path of the recipe leads anywhere
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    results = recipe / BRANCHFORMER_EXP / "decode_asr_asr_model_valid.acc.ave/test"
    for name in ("text", "token", "score"):
        decoded = (tmp_path / "decoded/1best_recog" / name).read_text().splitlines()
        assert sorted(decoded) == (results / name).read_text().splitlines()
    trained = torch.load(recipe / BRANCHFORMER_EXP / "valid.acc.ave.pth")
    packed = torch.load(arguments["asr_model_file"])
    assert packed.keys() == trained.keys()
    assert all(torch.equal(weight, trained[name]) for name, weight in packed.items())


class Program:
    """What unpickling would run."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_checkpoint_with_a_program_in_it_is_refused(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(recipe)
    from espnet_ext.checkpoint import StrictASRTask

    state = torch.load(recipe / BRANCHFORMER_EXP / "valid.acc.ave.pth")
    torch.save(state | {"program": Program(tmp_path / "run")}, tmp_path / "bad.pth")
    with pytest.raises(UserError, match="bad.pth: damaged, or holds other things than tensors"):
        StrictASRTask.build_model_from_file(
            recipe / BRANCHFORMER_EXP / "config.yaml", tmp_path / "bad.pth"
        )
    assert not (tmp_path / "run").exists()


def test_stage_16_measures_the_trained_model_once(recipe):
    done = run(recipe, *BRANCHFORMER, "--stage", "16")
    assert done.returncode == 0, done.stdout + done.stderr
    profile = json.loads((recipe / BRANCHFORMER_EXP / "profile.json").read_text())
    assert profile["cache"]["bytes"] == profile["cache"]["formula_bytes"] > 0
    assert profile["offline"]["utterances"] == 2
    assert "up to date" in run(recipe, *BRANCHFORMER, "--stage", "16").stdout


def test_stage_17_exports_the_trained_model_once(recipe):
    pytest.importorskip("onnxscript", reason="no onnxscript: pip install 'espnet-ext[export]'")
    options = [*BRANCHFORMER, "--stage", "17", "--skip_export", "false"]
    assert "Stage 17" not in run(recipe, *options[:-2]).stdout
    options += ["--export_args", "--chunk_size 16 --left_context 64"]
    done = run(recipe, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    certificate = json.loads((recipe / BRANCHFORMER_EXP / "onnx/certificate.json").read_text())
    assert (certificate["recordings"], certificate["chunk_size"]) == (2, 16)
    assert certificate["max_error"]["model.onnx"]["tokens_differ"] == 0
    assert "up to date" in run(recipe, *options).stdout


def test_inference_refuses_a_checkpoint_that_does_not_fit(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(recipe)  # a config's paths are relative to the recipe
    from espnet_ext.checkpoint import StrictASRTask

    state = torch.load(recipe / BRANCHFORMER_EXP / "valid.acc.ave.pth")
    state["encoder.renamed.weight"] = state.pop("encoder.after_norm.weight")
    state["encoder.after_norm.bias"] = state["encoder.after_norm.bias"][:-1]
    torch.save(state, tmp_path / "bad.pth")
    with pytest.raises(UserError) as refused:
        StrictASRTask.build_model_from_file(
            recipe / BRANCHFORMER_EXP / "config.yaml", tmp_path / "bad.pth"
        )
    assert str(refused.value) == (
        f"{tmp_path}/bad.pth: the checkpoint does not fit the model of its config: "
        "1 missing (encoder.after_norm.weight); 1 unexpected (encoder.renamed.weight); "
        "1 of another shape (encoder.after_norm.bias)"
    )


def test_inference_help_is_printed(capsys):
    from espnet_ext.bin.asr_inference import main

    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0 and "3.19% CER" in capsys.readouterr().out


def test_language_model_stages_give_a_perplexity(recipe, language_model):
    output, _ = language_model.communicate()
    assert language_model.returncode == 0, output
    written = recipe / "exp_lm/lm_train_lm_transformer_en_bpe30/perplexity_test/ppl"
    assert 1 < float(written.read_text()) < 100  # 30 tokens, hardly trained


def differences(recipe, disturbed, names, volatile):
    """Names of files that only one of two copies has, or that differ in more than the path."""
    found = []
    for name in names:
        files = [
            {
                str(p.relative_to(copy)): p
                for p in (copy / name).rglob("*")
                if p.is_file() and not volatile.search(p.name)
            }
            for copy in (recipe, disturbed)
        ]
        found += files[0].keys() ^ files[1].keys()
        for file in files[0].keys() & files[1].keys():
            contents = [
                files[i][file].read_bytes().replace(bytes(copy), b"")
                for i, copy in enumerate((recipe, disturbed))
            ]
            if contents[0] != contents[1]:
                found.append(file)
    return found


def test_recipe_killed_in_every_stage_ends_with_the_same_files(
    recipe, language_model, tmp_path_factory
):
    language_model.wait()
    copy = copy_mini_an4(tmp_path_factory.mktemp("killed"))
    lm = ["--use_lm", "true", "--expdir", "exp_lm"]
    asr = [*BRANCHFORMER, "--skip-packing", "false"]

    def exists(pattern):
        return lambda: any(copy.glob(pattern))

    def begun(stage):
        return lambda: f"Stage {stage}:" in (copy / "killed.log").read_text()

    for stage, condition, options in [
        (1, exists("data/train_nodev/text"), asr),
        (2, begun(2), asr),
        (3, exists("dump/raw/org/train_nodev_sp/data/*.flac"), asr),
        (4, begun(4), asr),
        (5, begun(5), asr),
        (6, exists("exp_lm/lm_stats_*/logdir/stats.1.log"), lm),
        (7, exists("exp_lm/lm_train_*/checkpoint.pth"), lm),
        (8, exists("exp_lm/lm_train_*/.new/perplexity_test/*.log"), lm),
        (10, exists("exp/asr_stats_*/logdir/stats.1.log"), asr),
        (11, exists("exp/asr_x*/checkpoint.pth"), asr),
        (12, exists("exp/asr_x*/decode_asr_*/.new/test/logdir/*.log"), asr),
        (13, begun(13), asr),
        (14, begun(14), asr),
    ]:
        one = [*options, "--stage", str(stage), "--stop-stage", str(stage)]
        kill_when(copy, condition, *one)
        done = run(copy, *one)
        assert done.returncode == 0, f"stage {stage}: {done.stdout}{done.stderr}"

    # logs, times and what holds them; markers hold checksums of files that name their directory
    volatile = re.compile(
        r"\.log$|^events|^checkpoint|^run\.sh$|^\.sources$|lock$|^\.done$|^\.scored$|^\.begun$"
    )
    names = ["data", "dump", "exp_lm"]
    model = f"{BRANCHFORMER_EXP}/decode_asr_asr_model_valid.acc.ave"
    names += [str(p.relative_to(copy)) for p in copy.glob("exp/asr_stats_*")] + [model]
    assert differences(recipe, copy, names, volatile) == []
    for path in (copy / BRANCHFORMER_EXP).glob("*.pth"):
        if "checkpoint" not in path.name:
            assert path.read_bytes() == (recipe / BRANCHFORMER_EXP / path.name).read_bytes()
    assert len(list((copy / BRANCHFORMER_EXP).glob("*_valid.acc.ave.zip"))) == 1
