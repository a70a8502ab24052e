"""The LibriSpeech-100 recipe on a small tree in LibriSpeech's layout, here and on Slurm."""

import importlib.util
import io
import os
import shutil
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import soundfile

from espnet_ext.data.kaldi import read_scp
from processes import wait_for

ROOT = Path(__file__).parents[2]
SPLITS = ("train-clean-100", "dev-clean", "dev-other", "test-clean", "test-other")
STAGES = ["--stop-stage", "5", "--local-data-opts", "--check_counts false", "--nj", "2"]


def utterances():
    """Real utterances that ESPnet's package brings along: words and samples at 16 kHz."""
    package = importlib.util.find_spec("egs3").submodule_search_locations[0]
    with tarfile.open(Path(package, "mini_an4/esp2_asr/downloads.tar.gz")) as archive:
        for part, folder in (("train", "an4_clstk"), ("test", "an4test_clstk")):
            lines = archive.extractfile(f"downloads/an4/etc/an4_{part}.transcription").read()
            for line in lines.decode().splitlines():
                words, name = line.replace("<s>", "").replace("</s>", "").rsplit("(", 1)
                name = name.strip(" )\n")
                path = f"downloads/an4/wav/{folder}/{name.split('-')[1]}/{name}.sph"
                yield words.strip(), soundfile.read(io.BytesIO(archive.extractfile(path).read()))[0]


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """This repository's recipe in another place, with its own db.sh and a corpus beside it."""
    root = tmp_path_factory.mktemp("a repository")
    for name in ("path.sh", "cmd.sh", "espnet_ext", "conf", "egs2", "local"):
        (root / name).symlink_to(ROOT / name)
    (root / ".venv").symlink_to(sys.prefix)
    shutil.copy(ROOT / "run.sh", root)
    corpus = root / "corpora" / "LibriSpeech"
    speakers = ["; ID |SEX| SUBSET | MINUTES| NAME"]
    spoken = list(utterances())
    for speaker, split in enumerate(SPLITS, 100):
        speakers.append(f"{speaker} | {'FM'[speaker % 2]} | {split} | 1.0 | A Reader")
        chapter = corpus / split / str(speaker) / "7"
        chapter.mkdir(parents=True)
        lines = []
        for number, (words, samples) in enumerate(spoken):
            name = f"{speaker}-7-{number:04}"
            soundfile.write(chapter / f"{name}.flac", samples, 16000)
            lines.append(f"{name} {words}\n")
        (chapter / f"{speaker}-7.trans.txt").write_text("".join(lines))
    (corpus / "SPEAKERS.TXT").write_text("\n".join(speakers) + "\n")
    return root


def run(root, *options, **more):
    environment = {**os.environ, **more}
    command = [root / "run.sh", *options]
    return subprocess.run(command, capture_output=True, text=True, cwd="/", env=environment)


def test_empty_db_says_in_one_line_what_to_fill_in(repository):
    (repository / "db.sh").write_text("LIBRISPEECH=\n")
    done = run(repository, "--stage", "1", "--stop-stage", "5")
    assert done.returncode != 0
    (line,) = done.stderr.splitlines()
    assert "LIBRISPEECH" in line and "db.sh" in line
    assert not list(repository.glob("data/[!.]*"))


def test_stages_1_to_5_prepare_the_corpus_of_db_sh(repository):
    (repository / "db.sh").write_text(f'LIBRISPEECH="{repository}/corpora"\n')
    tokens = ["--nbpe", "40", "--bpemode", "bpe", "--nj", "2"]
    done = run(
        repository, "--stop-stage", "5", "--local-data-opts", "--check_counts false", *tokens
    )
    assert done.returncode == 0, done.stdout + done.stderr
    train = read_scp(repository / "dump/raw/train_clean_100_sp/wav.scp")
    assert len(train) == 3 * 7 and sum(name.startswith("sp0.9-") for name in train) == 7
    for name, path in train.items():  # only what changes speed is written anew
        own = (repository / "dump").resolve() in Path(repository, path).resolve().parents
        assert own == name.startswith("sp")
    for dset in ("dev", "test_clean", "test_other", "dev_clean", "dev_other"):
        wavs = read_scp(repository / f"dump/raw/{dset}/wav.scp")
        assert len(wavs) == (14 if dset == "dev" else 7)
        assert all("/corpora/LibriSpeech/" in path for path in wavs.values())
    listed = (repository / "data/en_token_list/bpe_bpe40/tokens.txt").read_text().split("\n")
    assert listed[:2] == ["<blank>", "<unk>"] and listed[39:] == ["<sos/eos>", ""]


def test_other_options_redo_only_what_they_change(repository):
    done = run(repository, *STAGES, "--nbpe", "35", "--bpemode", "bpe")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "up to date: data\n" in done.stdout
    assert "up to date: dump/raw/org/train_clean_100_sp\n" in done.stdout
    assert (repository / "data/en_token_list/bpe_bpe35/tokens.txt").exists()


SHRUNK = (
    "--encoder_conf output_size=16 --encoder_conf attention_heads=2 --encoder_conf linear_units=16 "
    "--encoder_conf num_blocks=1 --decoder_conf attention_heads=2 --decoder_conf linear_units=16 "
    "--decoder_conf num_blocks=1 --accum_grad 1 --num_workers 0 --use_matplotlib false "
    "--max_epoch 20"
)


def preempt_once(checkpoint, environment):
    """As soon as there is a checkpoint, a job of higher priority takes every node for a moment."""
    wait_for(checkpoint.exists, 1800)
    command = ["sbatch", "-p", "urgent", "-N", "2", "--exclusive", "-o", "/dev/null"]
    subprocess.run([*command, "--wrap", "true"], env=environment, check=True, capture_output=True)


def test_every_stage_gives_the_same_hypotheses_on_slurm_though_training_is_preempted(
    repository, slurm
):
    (repository / "db.sh").write_text(f'LIBRISPEECH="{repository}/corpora"\n')
    options = ["--local-data-opts", "--check_counts false", "--nbpe", "35", "--bpemode", "bpe"]
    options += ["--ngpu", "0", "--nj", "1", "--inference_nj", "2", "--test_sets", "test_clean"]
    options += ["--asr_tag", "small", "--asr_args", SHRUNK, "--stop-stage", "13"]
    local = run(repository, *options)
    assert local.returncode == 0, local.stdout + local.stderr

    environment = {**os.environ, **slurm, "cmd_backend": "slurm"}
    options += ["--expdir", "exp_slurm", "--dumpdir", "dump_slurm"]
    model = repository / "exp_slurm/asr_small"
    with ThreadPoolExecutor(1) as pool:
        preempted = pool.submit(preempt_once, model / "checkpoint.pth", environment)
        done = run(repository, *options, **environment)
        assert done.returncode == 0, done.stdout + done.stderr
        preempted.result()
    log = (model / "train.log").read_text()
    assert log.count("# Running on ") == 2  # in one file: Slurm started it again
    assert "The training was resumed using" in log
    assert "20/20epoch started" in log and log.count(" 1/20epoch started") == 1
    for name in ("text", "score", "token"):
        result = f"asr_small/decode_asr_asr_model_valid.acc.ave/test_clean/{name}"
        assert (repository / "exp_slurm" / result).read_bytes() == (
            repository / "exp" / result
        ).read_bytes()
    assert len(list(model.glob("decode_*/test_clean/logdir/q/*.sh"))) == 1  # an array
