"""What is up to date, what is not, and that no finished result is lost on the way to a new one."""

import hashlib
import os
import shutil

import pytest
import torch

from copies import copy_mini_an4, run
from espnet_ext.data.kaldi import read_scp

SETTINGS = ["--asr_config", "conf/train_asr_branchformer_gqa.yaml", "--asr_tag", "small"]
SETTINGS += ["--asr_args", "--max_epoch 1", "--speed_perturb_factors", "", "--inference_nj", "1"]
RESULTS = "exp/asr_small/decode_asr_asr_model_valid.acc.ave/test"


def stages(recipe, first, last, *options):
    """Run stages; a failure is one line, which comes back with what else was printed."""
    done = run(recipe, *SETTINGS, "--stage", str(first), "--stop-stage", str(last), *options)
    said = done.stdout + done.stderr
    assert "Traceback" not in said
    if done.returncode != 0:
        assert sum("error" in line for line in done.stderr.splitlines()) == 1, said
    return done.returncode, said


def do(recipe, first, last, *options):
    code, said = stages(recipe, first, last, *options)
    assert code == 0, said
    return said


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A copy of the recipe, stages 1 to 13 done."""
    recipe = copy_mini_an4(tmp_path_factory.mktemp("up to date"))
    do(recipe, 1, 13)
    return recipe


def snapshot(folder):
    return {
        str(p): (p.lstat().st_mtime_ns, hashlib.sha1(p.read_bytes()).hexdigest())
        for p in folder.rglob("*")
        if p.is_file() and p.name != ".lock"
    }


def test_decoding_without_a_gpu_keeps_the_results_and_says_which_option_to_change(
    recipe, monkeypatch
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    before = snapshot(recipe / RESULTS)
    assert len(before) > 10
    code, said = stages(recipe, 12, 13, "--gpu_inference", "true")
    assert code != 0 and "decode with --gpu_inference false" in said
    assert snapshot(recipe / RESULTS) == before


def test_scores_of_another_model_are_refused(recipe):
    model = recipe / "exp/asr_small/valid.acc.ave.pth"
    content, times = model.read_bytes(), (model.stat().st_atime_ns, model.stat().st_mtime_ns)
    model.write_bytes(content + b" ")
    code, said = stages(recipe, 13, 13)
    model.write_bytes(content)
    os.utime(model, ns=times)
    assert code != 0
    assert f"{RESULTS} was made before exp/asr_small/valid.acc.ave.pth changed: run from" in said
    assert "stage 12" in said
    do(recipe, 13, 13)


def test_data_filtered_anew_sends_the_training_back_to_the_statistics(recipe):
    lengths = read_scp(recipe / "dump/raw/train_nodev/utt2num_samples")
    longest = max(map(int, lengths.values())) / 16000
    filtered = ["--max_wav_duration", f"{longest:.4f}"]
    try:
        do(recipe, 4, 4, *filtered)
        assert len(read_scp(recipe / "dump/raw/train_nodev/wav.scp")) == len(lengths) - 1
        code, said = stages(recipe, 11, 11, *filtered, "--asr_tag", "other")
        assert code != 0
        assert "was made before dump/raw/train_nodev changed: run from stage 10" in said
        assert not (recipe / "exp/asr_other/checkpoint.pth").exists()
    finally:
        do(recipe, 4, 4)
    assert do(recipe, 10, 11).count("up to date") == 2


def test_replaced_recording_is_formatted_anew(recipe):
    options = ["--dumpdir", "dump_replaced"]
    do(recipe, 3, 3, *options)
    lengths = read_scp(recipe / "dump_replaced/raw/test/utt2num_samples")
    (one, source), (other, _) = read_scp(recipe / "data/test/wav.scp").items()
    kept = recipe / "kept.sph"
    shutil.copy2(source, kept)
    shutil.copy(read_scp(recipe / "data/test/wav.scp")[other], source)
    try:
        assert do(recipe, 3, 3, *options).count("up to date") == 2  # the other two sets
        found = read_scp(recipe / "dump_replaced/raw/test/utt2num_samples")
        assert found == {one: lengths[other], other: lengths[other]} != lengths
    finally:
        shutil.copy2(kept, source)
    do(recipe, 3, 3, *options)
    assert read_scp(recipe / "dump_replaced/raw/test/utt2num_samples") == lengths


def test_test_sets_that_are_trained_or_validated_on_are_decoded_unfiltered(recipe):
    lengths = [int(n) for n in read_scp(recipe / "dump/raw/test/utt2num_samples").values()]
    between = f"{sum(lengths) / len(lengths) / 16000:.4f}"
    options = ["--valid_set", "test", "--test_sets", "train_nodev test test"]
    options += ["--dumpdir", "dump_shared", "--max_wav_duration", between]
    said = do(recipe, 3, 4, *options)
    assert "The test set test is trained or validated on too" in said
    assert "The test set train_nodev is trained or validated on too" in said
    data = recipe / "dump_shared/raw"
    sizes = {name: len(read_scp(data / name / "wav.scp")) for name in ("org/test", "test")}
    assert sizes == {"org/test": 2, "test": 1}

    before = snapshot(data)
    assert do(recipe, 3, 4, *options).count("up to date") == 4
    assert snapshot(data) == before

    options += ["--eval_valid_set", "true", "--inference_args", "--beam_size 1"]
    said = do(recipe, 12, 13, *options, "--inference_tag", "shared")
    rows = [line.split("|")[1:3] for line in said.splitlines() if line.startswith("|shared/")]
    assert sorted({tuple(row) for row in rows if row[1].isdigit()}) == [
        ("shared/org/test", "2"),
        ("shared/org/train_nodev", "4"),
    ]


def test_input_that_changes_while_it_is_read_is_seen_at_the_next_run(recipe):
    text = recipe / "sentences"
    text.write_text((recipe / "data/train_nodev/text").read_text())
    slow = recipe / "python"
    slow.write_text(
        '#!/bin/sh\npython3 "$@" || exit 1\n'
        'case "$2" in *.data_tokens) echo "new NEW WORDS" >> sentences;; esac\n'
    )
    slow.chmod(0o755)
    options = ["--bpe_train_text", "sentences", "--token_type", "char"]
    do(recipe, 5, 5, *options, "--python", "./python")
    tokens = recipe / "data/en_token_list/char/tokens.txt"
    read = tokens.read_text()
    assert "up to date" not in do(recipe, 5, 5, *options)
    assert tokens.read_text() != read
    assert "up to date" in do(recipe, 5, 5, *options)


def test_training_that_goes_on_with_more_models_averages_those_that_are_there(recipe):
    def train(epochs, keep):
        args = f"--max_epoch {epochs} --keep_nbest_models {keep}"
        return do(recipe, 11, 11, "--asr_tag", "kept", "--asr_args", args)

    train(3, 1)
    folder = recipe / "exp/asr_kept"
    assert not (folder / "1epoch.pth").exists() or not (folder / "2epoch.pth").exists()
    said = train(4, 4)
    there = [torch.load(path) for path in folder.glob("*epoch.pth")]
    assert len(there) < 4
    assert f"exp/asr_kept averages {len(there)} of the 4 best epochs" in said
    average = torch.load(folder / "valid.acc.ave.pth")
    for name, weight in average.items():
        if weight.is_floating_point():
            mean = sum(model[name] for model in there) / len(there)
            torch.testing.assert_close(weight, mean)
    assert "exp/asr_kept: its training began before its options changed" in said
