"""Options of the recipes: ESPnet's names and defaults, and what happens to wrong ones."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from espnet_ext.bin.parse_options import declared_options, parse
from espnet_ext.errors import UserError

ROOT = Path(__file__).parents[2]
ASR = ROOT / "egs2/TEMPLATE/asr1/asr.sh"
# what asr.sh does with its words
PARSE = re.search(r"^assignments=.*?^done <<< .*?$", ASR.read_text(), re.M | re.S)[0]
PARSE = PARSE.replace("${BASH_SOURCE[0]}", str(ASR))
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


@pytest.mark.parametrize(
    "recipe", ["", "egs2/fsdd/asr1", "egs2/read_english/asr1", "egs2/mini_an4/asr1"]
)
def test_help_shows_the_defaults_of_the_recipe(recipe):
    script = ROOT / recipe / "run.sh"
    done = subprocess.run([script, "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    shown = dict(re.findall(r"^  --(\w+) .*\(default: (.*)\)$", done.stderr, re.MULTILINE))
    own = dict(re.findall(r"^    --(\w+) \"?([^\"$]*?)\"? \\$", script.read_text(), re.MULTILINE))
    assert len(own) >= 10
    assert {name: shown.get(name, "") for name in own} == own
    assert shown["stage"] == "1"  # the template's, which no recipe changes


def test_dashes_underscores_and_equal_signs_are_alike():
    known = declared_options(ASR)
    for words in (["--stop-stage", "5"], ["--stop_stage", "5"], ["--stop-stage=5"]):
        assert parse(known, words) == {"stop_stage": "5"}


def test_value_reaches_the_script_as_it_was_given():
    value = """a 'b' "c" $(touch x) `y` --z"""
    command = f'{PARSE}\necho "$asr_args"'
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
        (["13"], "'13' is one word too many, see --help"),
        (["--use_ngram", "true"], "KenLM"),
        (["--asr_config", "conf/none.yaml"], "no such file: conf/none.yaml"),
        (["--token_type", "phn"], "--token_type is bpe, char or word"),
        (["--num_nodes", "2"], "needs a cluster"),
    ],
)
def test_recipe_ends_a_wrong_option_in_one_line(words, message):
    assert message in refusal(*words, "--stop-stage", "0")


@pytest.mark.parametrize(
    "words, message",
    [
        (["--stage", "1.5"], "--stage is a whole number of at least 0, not '1.5'"),
        (["--nj", "0"], "--nj is a whole number of at least 1"),
        (["--max_wav_duration", "nan"], "--max_wav_duration is a number, not 'nan'"),
        (["--min_wav_duration", "1e999"], "--min_wav_duration is a finite number"),
        (["--speed_perturb_factors", "0.9 nan"], "--speed_perturb_factors is a number"),
        (["--bpe_char_cover", "2"], "--bpe_char_cover is a number from 0 to 1"),
        (["--skip_stages", "1 x"], "--skip_stages is a number, not 'x'"),
        (["--test_sets", "test_clean .."], "--test_sets is a name without '/'"),
        (["--asr_tag", "../x"], "--asr_tag is a name without '/'"),
        (["--inference_tag", "-x"], "--inference_tag is a name without '/'"),
        (["--lang", ".hidden"], "--lang is a name without '/'"),
        (["--train_set", "a\nb"], "--train_set is text without control characters"),
        (["--expdir", ""], "--expdir is a path, not empty"),
        (["--asr_args", "--a 'b"], "--asr_args has a quote without its end"),
        (["--hf_repo", "me"], "--hf_repo is OWNER/NAME, not 'me'"),
        (["--cleaner", "tacotron"], "--cleaner is none, not 'tacotron': text is trained on as it"),
        (["--num_splits_asr", "4"], "--num_splits_asr is 1, not '4': training data is not split"),
        (["--download_model", "x"], "--download_model is empty here, not 'x': unpack a packed"),
    ],
)
def test_value_of_another_kind_is_refused(words, message):
    with pytest.raises(UserError) as refused:
        parse(declared_options(ASR), words)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_option_like_no_other_gets_no_suggestion():
    with pytest.raises(UserError, match="^unknown option --xyzzy, --help lists them$"):
        parse(declared_options(ASR), ["--xyzzy", "1"])


def test_options_of_a_run_sh_of_espnet_are_taken():
    """Those that its own asr.sh has as of 202511, with their defaults."""
    given = """--cleaner none --g2p none --nlsyms_txt none --oov <unk> --blank <blank>
        --sos_eos <sos/eos> --bpe_nlsyms= --use_word_lm false --word_vocab_size 10000
        --num_splits_lm 1 --num_splits_asr 1 --use_ngram false --ngram_exp= --ngram_num 3
        --inference_ngram 3gram.bin --use_k2 false --k2_ctc_decoding true --num_paths 1000
        --use_nbest_rescoring true --nll_batch_size 100 --score_opts= --local_score_opts=
        --k2_config ./conf/decode_asr_transformer_with_k2.yaml --download_model=
        --ignore_init_mismatch false --use_maskctc false --asr_task asr --num_ref 1 --num_inf=
        --post_process_local_data_opts= --auxiliary_data_tags= --skip_upload true
        --multi_columns_input_wav_scp false --multi_columns_output_wav_scp false
        --hugging_face_model_name_or_path= --sot_asr false --debug false"""
    done = subprocess.run([ROOT / "run.sh", *given.split(), "--stop_stage", "0"], text=True,
                          capture_output=True)  # fmt: skip
    assert done.returncode == 0 and "Finished." in done.stdout, done.stderr


def test_lists_reach_the_script_as_words_and_nothing_is_run_or_expanded(tmp_path):
    """Also the default of a list, and a number as bash reads it."""
    values = ["--asr_args", """--a 'b c' "d'e" * $(touch x) `touch x` f\\ g"""]
    command = f"lm_args_list=before; {PARSE}\n"
    command += 'printf "%s\n" "${asr_args_list[@]}" "${#lm_args_list[@]}" "${nj}"'
    done = subprocess.run(
        ["bash", "-c", f'. "{ROOT}/path.sh"; {command}', "bash", *values, "--nj", "08"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    words = ["--a", "b c", "d'e", "*", "$(touch", "x)", "`touch", "x`", "f g"]
    assert done.stdout.splitlines() == [*words, "0", "8"], done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words", [["--ctc_weight", "nan"], ["--beam_size", "0"], ["--penalty", "inf"]]
)
def test_decoding_options_of_espnet_are_checked_as_well(words, capsys):
    from espnet_ext.bin.asr_inference import main

    with pytest.raises(SystemExit) as ended:
        main(["--output_dir", "x", "--data_path_and_name_and_type", "a,speech,sound", *words])
    line = capsys.readouterr().err.splitlines()[-1]  # ESPnet says the command line first
    assert ended.value.code == 1 and f"{words[0]} is a " in line and words[1] in line


def train(tmp_path, *options):
    """Build the model of a YAML with MLA, and of options over it."""
    from espnet_ext.bin.asr_train import main

    (tmp_path / "tokens.txt").write_text("<blank>\n<unk>\nA\n<sos/eos>\n")
    words = ["--config", str(ROOT / "egs2/mini_an4/asr1/conf/train_asr_conformer_mla.yaml")]
    words += ["--token_type", "word", "--token_list", str(tmp_path / "tokens.txt"), "--ngpu", "0"]
    words += ["--output_dir", str(tmp_path / "a,b"), "--dry_run", "true"]
    for part in ("train", "valid"):
        for kind in ("a,b/wav.scp,speech,sound", "a,b/text,text,text"):
            words += [f"--{part}_data_path_and_name_and_type", kind]
    main([*words, *options])


def test_another_attention_than_the_yaml_is_told_how_to_clear_its_options(tmp_path, capsys):
    other = ["--encoder_conf", "attention=gqa"]
    with pytest.raises(SystemExit) as ended:
        train(tmp_path, *other)
    said = capsys.readouterr().err.splitlines()[-1]
    assert ended.value.code == 1
    assert "attention_conf: gqa takes n_kv_head, cache, got kv_lora_rank: 16." in said
    (advice,) = re.findall(r"--encoder_conf (attention_conf=\S+),", said)
    assert "--encoder_conf attention_conf.KEY=VALUE" in said
    other += ["--encoder_conf", advice, "--encoder_conf", "attention_conf.n_kv_head=2"]
    train(tmp_path, *other)
    config = yaml.safe_load((tmp_path / "a,b/config.yaml").read_text())
    assert config["encoder_conf"]["attention_conf"] == {"n_kv_head": 2}
    assert config["train_data_path_and_name_and_type"][0] == ["a,b/wav.scp", "speech", "sound"]


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


def test_directory_of_a_model_is_printed_and_nothing_else():
    script = ROOT / "egs2/mini_an4/asr1/run.sh"
    words = ["--asr_config", "conf/train_asr_branchformer_gqa.yaml", "--asr_args", "--seed 2"]
    found = {}
    for name, more in {"own": [], "given": ["--asr_exp", "exp/a b"]}.items():
        command = [script, *words, *more, "--print_asr_exp", "true"]
        found[name] = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    own = "exp/asr_train_asr_branchformer_gqa_raw_en_bpe30_seed2_sp\n"
    assert found == {"own": own, "given": "exp/a b\n"}
