"""Options of the recipes: ESPnet's names and defaults, and what happens to wrong ones."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from espnet_ext.bin.parse_options import declared_options, parse
from espnet_ext.errors import UserError

ROOT = Path(__file__).parents[2]
ASR = ROOT / "egs2/TEMPLATE/asr1/asr.sh"
ESPNET_DEFAULTS = {
    "stage": "1", "stop_stage": "10000", "skip_stages": "", "skip_data_prep": "false",
    "skip_train": "false", "skip_eval": "false", "skip_packing": "true", "skip_upload_hf": "true",
    "eval_valid_set": "false", "ngpu": "1", "num_nodes": "1", "nj": "32", "inference_nj": "32",
    "gpu_inference": "false", "dumpdir": "dump", "expdir": "exp", "python": "python3",
    "feats_type": "raw", "audio_format": "flac", "fs": "16k", "min_wav_duration": "0.1",
    "max_wav_duration": "20", "token_type": "bpe", "nbpe": "30", "bpemode": "unigram",
    "bpe_char_cover": "1.0", "bpe_input_sentence_size": "100000000", "use_lm": "true",
    "use_ngram": "false", "feats_normalize": "global_mvn", "batch_size": "1",
    "inference_asr_model": "valid.acc.ave.pth", "speed_perturb_factors": "", "asr_tag": "",
    "asr_exp": "", "asr_config": "", "asr_args": "", "asr_stats_dir": "", "inference_tag": "",
    "inference_config": "", "inference_args": "", "local_data_opts": "", "pretrained_model": "",
    "lang": "noinfo",
}  # fmt: skip


def refusal(*options):
    done = subprocess.run([ROOT / "run.sh", *options], capture_output=True, text=True)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    (line,) = done.stderr.splitlines()
    return line


def test_defaults_are_those_of_espnet():
    declared = {name: option.default for name, option in declared_options(ASR).items()}
    assert ESPNET_DEFAULTS.items() <= declared.items()


def test_every_option_has_a_help_text():
    assert all(option.help for option in declared_options(ASR).values())


def test_dashes_underscores_and_equal_signs_are_alike():
    known = declared_options(ASR)
    for words in (["--stop-stage", "5"], ["--stop_stage", "5"], ["--stop-stage=5"]):
        assert parse(known, words) == ({"stop_stage": "5"}, [])


def test_value_reaches_the_script_as_it_was_given():
    value = """a 'b' "c" $(touch x) `y` --z"""
    command = f'eval "$(python -m espnet_ext.bin.parse_options {ASR} "$@")"; echo "$asr_args"'
    done = subprocess.run(
        ["bash", "-c", f". ./path.sh; {command}", "bash", "--asr-args", value],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stdout == f"{value}\n", done.stderr


@pytest.mark.parametrize(
    "words, message",
    [
        (["--asr_cofig", "x"], "unknown option --asr_cofig: did you mean --asr_config?"),
        (["--stop-stge", "5"], "unknown option --stop-stge: did you mean --stop_stage?"),
        (["--skip_train", "yes"], "--skip_train is true or false, not 'yes'"),
        (["--nj", "many"], "--nj is a number, not 'many'"),
        (["--nj"], "--nj needs a value"),
    ],
)
def test_wrong_option_is_refused(words, message):
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        parse(declared_options(ASR), words)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--asr_cofig", "x"], "did you mean --asr_config?"),
        (["13"], "'13' is not an option"),
        (["--use_ngram", "true"], "KenLM"),
        (["--asr_config", "conf/none.yaml"], "no such file: conf/none.yaml"),
        (["--token_type", "phn"], "--token_type is bpe, char or word"),
        (["--num_nodes", "2"], "needs a cluster"),
    ],
)
def test_recipe_ends_a_wrong_option_in_one_line(words, message):
    assert message in refusal(*words, "--stop-stage", "0")


def test_upload_needs_a_repository():
    assert "--hf_repo" in refusal("--stage", "15", "--skip_upload_hf", "false").split("error")[-1]


def test_nothing_is_packed_or_uploaded_unless_asked_for():
    command = [ROOT / "run.sh", "--stage", "14", "--stop-stage", "15"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "Stage 1" not in done.stdout and "Finished." in done.stdout


def test_backend_of_another_scheduler_comes_from_the_recipe(tmp_path):
    def train_cmd(backend):
        return subprocess.run(
            ["bash", "-c", f'. "{ROOT}/cmd.sh" && echo "$train_cmd"'],
            cwd=tmp_path,
            env={**os.environ, "cmd_backend": backend},
            capture_output=True,
            text=True,
        )

    refused = train_cmd("pbs")
    assert refused.returncode != 0 and len(refused.stderr.splitlines()) == 1
    assert "neither local nor slurm, and there is no conf/cmd_pbs.sh" in refused.stderr
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/cmd_pbs.sh").write_text("train_cmd=pbs.pl cuda_cmd=pbs.pl decode_cmd=pbs.pl")
    assert train_cmd("pbs").stdout == "pbs.pl\n"
    assert train_cmd("slurm").stdout == "slurm.pl\n"


def test_fault_table_names_tests_that_exist():
    page = (ROOT / "docs/reliability.md").read_text()
    named = re.findall(r"^(\d+)\. `(\S+)::(\S+)`$", page, re.MULTILINE)
    for _, file, name in named:
        assert f"\ndef {name}(" in (ROOT / "tests" / file).read_text(), name
    rows = [line for line in page.splitlines() if re.match(r"\| (\d|any)", line)]
    cited = [set(re.findall(r"\[(\d+)\]", row.split("|")[-2])) for row in rows]
    assert len(rows) > 10 and all(cited)
    assert set.union(*cited) == {number for number, _, _ in named}
