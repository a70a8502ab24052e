"""evaluation_results.json says what the logs, scores and measurements say."""

import json
import os
import shutil
from pathlib import Path

import pytest

from espnet_ext.bin.asr_evaluate import main
from espnet_ext.errors import UserError
from espnet_ext.jobs import markers
from espnet_ext.report.schema import read
from espnet_ext.scoring import write_results


@pytest.fixture
def results(eight_runs):
    return lambda name: read(next(eight_runs.glob(f"*_{name}_*")) / "evaluation_results.json")


def test_cache_figures_follow_the_sizes_of_the_config(results):
    # 20 frames, 2 layers, 16 wide in float32: 2 * 16 values for keys and values
    assert results("conformer_mha")["kv_cache_kb"] == 20 * 2 * 32 * 4 / 1024
    assert results("conformer_mha")["input_cache"]["kv_cache_kb"] == 20 * 2 * 16 * 4 / 1024
    assert results("conformer_gqa")["compression_ratio"] == 4
    assert results("branchformer_mla")["compression_ratio"] == 8
    linear = results("conformer_linear")
    assert linear["kv_cache_kb"] == round(2 * 4 * (4 * 4 + 4) * 4 / 1024, 4)
    assert linear["cache"]["bytes_per_frame"] == 0


def test_error_rates_and_intervals_are_those_of_the_scores(eight_runs, results):
    found = results("conformer_mla")["wer"]["test_clean"]
    directory = next(eight_runs.glob("*_conformer_mla_*")) / found["directory"]
    score = json.loads((directory / "score.json").read_text())
    assert found["wer"] == round(score["err"], 2) and found["words"] == 150
    assert found["interval_95"] == [round(v, 2) for v in score["err_interval_95"]]


def test_every_streaming_decoding_is_there_with_its_size(results):
    found = results("conformer_gqa")
    assert [s["left_context"] for s in found["streaming_wer"]] == [4, 8]
    assert [s["left_context"] for s in found["cache"]["streams"]] == [4, 8]
    assert all(s["wer"]["test_clean"]["utterances"] == 30 for s in found["streaming_wer"])
    assert [s["left_context"] for s in results("conformer_linear")["streaming_wer"]] == [-1]


def test_training_seconds_are_those_of_all_epochs(results):
    assert results("conformer_mha")["training_seconds"] == 62.5 + 59.5 + 2 * 0.5
    assert results("conformer_mha")["training"]["batches"] == 6


def test_model_without_scores_is_named_and_the_others_are_evaluated(
    eight_runs, make_run, tmp_path, capsys
):
    good = make_run(tmp_path, "conformer", "gqa")
    bad = make_run(tmp_path, "conformer", "mla")
    for path in bad.glob("*/*/score_wer/score.json"):
        path.unlink()
    (good / "evaluation_results.json").unlink()
    assert main([str(bad), str(good)]) == 1
    captured = capsys.readouterr()
    assert str(bad) in captured.err and "stages 12 and 13" in captured.err
    assert captured.out.startswith("conformer gqa: WER test_clean")
    assert (good / "evaluation_results.json").is_file()


def test_untrained_model_is_refused(make_run, tmp_path, evaluation):
    directory = make_run(tmp_path, "conformer", "gqa")
    (directory / "valid.acc.ave.pth").unlink()
    with pytest.raises(UserError, match="training is not done"):
        evaluation(directory)
    (directory / "valid.cer_ctc.ave.pth").touch()
    named = r"valid.acc.ave.pth: no such file; .*--inference_asr_model: valid.cer_ctc.ave.pth$"
    with pytest.raises(UserError, match=named):
        evaluation(directory)


def test_results_are_written_whole_or_not_at_all(make_run, tmp_path):
    directory = make_run(tmp_path, "conformer", "gqa")
    before = (directory / "evaluation_results.json").stat().st_mtime_ns
    assert main([str(directory)]) == 0  # nothing has changed: the file is not touched
    assert (directory / "evaluation_results.json").stat().st_mtime_ns == before
    assert not list(directory.glob(".*.tmp"))


def test_profile_whose_keys_meant_something_else_is_measured_again(make_run, tmp_path, evaluation):
    directory = make_run(tmp_path, "conformer", "mla")
    wavs = Path("dump/raw/test_clean/wav.scp")
    assert not evaluation(directory)._profile_due(wavs)
    path = directory / "profile.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 1}))
    assert evaluation(directory)._profile_due(wavs)


def test_sets_below_org_count_and_results_that_are_not_whole_do_not(make_run, tmp_path, evaluation):
    directory = make_run(tmp_path, "conformer", "gqa", test_sets=("org/dev", "test_clean"))
    (decoded,) = directory.glob("decode_*")
    aside = decoded / ".new/other/score_wer"  # of a decoding that was killed
    shutil.copytree(decoded / "test_clean/score_wer", aside)
    assert evaluation(directory).sets == ["org/dev", "test_clean"]
    found = read(directory / "evaluation_results.json")
    assert found["wer"].keys() == {"org/dev", "test_clean"}
    assert "/.new/" not in write_results(directory) and "/org/dev|" in write_results(directory)


@pytest.mark.parametrize("changed", ["wav.scp", "config.yaml", "profile.json"])
def test_measurement_is_of_the_present_model_data_and_file(changed, make_run, tmp_path, evaluation):
    directory = make_run(tmp_path, "conformer", "gqa")
    wavs = tmp_path / "wav.scp"
    wavs.write_text("utt a.wav\n")
    work = evaluation(directory)._profile_due(wavs)
    markers.write(directory / ".profiled", work)
    assert not evaluation(directory)._profile_due(wavs)
    path = wavs if changed == "wav.scp" else directory / changed
    before = path.stat()
    path.write_text(path.read_text() + "\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # it looks as old as it was
    assert evaluation(directory)._profile_due(wavs)
