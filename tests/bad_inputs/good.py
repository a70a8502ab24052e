"""A good command line of every command, and the directory of small files that they are about.

A new command needs its line in ``COMMANDS`` and no more: what its words name is found on the disk,
and is broken by what it is. An option that takes a file must be in one of the lines.
"""

import hashlib
import json
import os
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import soundfile as sf
import yaml

from bad_inputs.outcome import run
from tiny import FS, speech
from tiny_model import ENCODER_CONF, write_lm, write_model

MLA, MHA = "exp/asr_train_asr_conformer_mla", "exp/asr_train_asr_conformer_mha"
SCP = "dump/raw/test/wav.scp"
DECODED = "--inference_config conf/decode.yaml --streaming_config conf/stream.yaml"
DECODED += " --profile_config conf/profile.yaml --dumpdir dump --expdir exp"

#: name of a command -> its good lines, to be split at blanks; new... is what they write
COMMANDS = {
    "stream": [
        f"{MLA} audio/a.wav --picture new.html",
        f"--asr_train_config {MLA}/config.yaml --asr_model_file {MLA}/valid.acc.ave.pth a.flac",
    ],
    "serve": [  # refused at last, as it would not end
        f"{MLA} --budget_mb 0.001",
        f"{MLA} --budget_mb 0.001 --certfile keys --keyfile keys",
    ],
    "decode": [
        f"{MLA} --output_dir new --data_path_and_name_and_type {SCP},speech,sound"
        " --key_file keys --config conf/stream.yaml"
    ],
    "certify": [f"{MLA} --wav_scp {SCP} --num_utts 1 --packet_ms 70 --output new.json"],
    "profile": [
        f"{MLA} --profile_config conf/profile.yaml --output new.json",
        "conf/train_asr_conformer_mla.yaml --frames 20",
        f"--asr_train_config {MLA}/config.yaml --asr_model_file {MLA}/valid.acc.ave.pth"
        f" --measure all --wav_scp {SCP} --inference_config conf/decode.yaml"
        " --profile_config conf/profile.yaml",
    ],
    "convert": [
        f"{MHA} --attention mla --attention_conf kv_lora_rank=8 --calibration_scp {SCP}"
        " --output new",
        f"--from {MHA} --attention gqa --attention_conf n_kv_head=2 --output new"
        " --decoder_attention gqa --decoder_attention_conf n_kv_head=1",
    ],
    "pack": [
        f"{MLA} --lm_train_config lm/config.yaml --lm_file lm/lm.pth --option keys"
        " --outpath new.zip",
        f"--asr_train_config {MLA}/config.yaml --asr_model_file {MLA}/valid.acc.ave.pth"
        " --outpath new.zip",
    ],
    "unpack": ["model.zip new"],
    "upload": ["--repo owner/name model.zip"],
    "run-all": [
        f"--encoders conformer --attentions mla --conf_dir conf --comparison new {DECODED}"
    ],
    "evaluate": [f"{MLA} {DECODED}"],
    "export": [
        f"{MLA} --adapt_features --train_scp dump/raw/train/wav.scp --wav_scp {SCP} --num_utts 1"
        " --output new"
    ],
    "compare": ["--expdir exp --encoders conformer --output new --published published.yaml"],
    "grid": [
        f"{MLA} --data_dir dump/raw/test --chunk_sizes 16 --left_contexts 64 -1 --cache_dtypes int8"
    ],
    "keep": [
        f"{MLA} --results new --weights true --dumpdir dump",
        "--results results --page page.md",
        "--results results --figure new.png",
        "--results results --restore new",
    ],
    "curve": [
        f"{MHA} --ranks 8 --groups 2 --num_utts 1 --calibration_scp {SCP} --output new"
        f" --finetune_config conf/finetune.yaml {DECODED}",
        f"--model {MHA} --ranks 8 --groups 2 --scratch {MLA} --output new {DECODED}",
    ],
    "check": [""],
    "new-recipe": [
        "mine --wavs corpus/wavs --text corpus/text --speakers corpus/speakers --nj 1",
        "mine --data dump/raw/all --speaker_from field1 --nj 1",
    ],
    "data download": ["--checksums sums --url http://127.0.0.1:9 --timeout 0.01 books dev-clean"],
    "data librispeech": ["--check_counts false LibriSpeech/dev-clean new"],
    "data fsdd": ["fsdd new", "fsdd.tar.gz new"],
    "data read-english": ["--nj 1 kathleen learners new"],
    "data corpus": [
        "--nj 1 --wavs corpus/wavs --text corpus/text --speakers corpus/speakers new",
        "--nj 1 --data dump/raw/all --speaker_from field1 new",
    ],
    "data combine": ["new dump/raw/test dump/raw/other"],
    "data validate": ["dump/raw/test"],
    "data format": ["--fs 16k dump/raw/test new"],
    "data perturb-speed": ["--factor 0.9 dump/raw/test new"],
    "data filter": ["--fs 8k dump/raw/test new"],
    "data tokens": [
        "--text dump/raw/test/text --transcripts dump/raw/other/text --nlsyms_txt symbols"
        " --token_type char --output new",
        "--text corpus/text --nbpe 15 --output new",
    ],
    "score": [
        "--ref dump/raw/test/text --hyp hyp --utt2spk dump/raw/test/utt2spk --output new"
        " --bpemodel bpe.model"
    ],
    "results": [MLA],
}

# stands for the recipe, whose stages take minutes: everything is trained and decoded already
RUN = """#!/usr/bin/env bash
set -eu
while [ $# -gt 1 ]; do declare "${1#--}=$2"; shift 2; done
[ "${print_asr_exp:-}" != true ] || echo "exp/asr_$(basename "${asr_config}" .yaml)"
[ -z "${inference_tag:-}" ] || [ -e "${asr_exp}/${inference_tag}" ] ||
    cp -r exp/*_mha/decode_asr_model_valid.acc.ave "${asr_exp}/${inference_tag}"
"""
WORDS = "ONE TWO THREE FOUR".split()
TEXTS = {f"s{n}-u{n}": " ".join(WORDS[n - 1 :]) for n in (1, 2, 3)}


def write_all(folder):
    """Write every file that a line of ``COMMANDS`` names."""
    here = os.getcwd()
    os.chdir(folder)
    try:
        _data()
        _corpora()
        _models()
        _archives()
    finally:
        os.chdir(here)
    return folder


def write(path, content):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        Path(path).write_bytes(content)
    else:
        Path(path).write_text(content)


def lines(table):
    return "".join(f"{key} {value}\n" for key, value in sorted(table.items()))


def _data():
    Path("audio").mkdir()
    for n, name in enumerate(("a", "b", "c")):
        sf.write(f"audio/{name}.wav", speech(0.6 + 0.1 * n, n), FS, subtype="PCM_16")
    sf.write("a.flac", speech(0.6), FS)
    sf.write("audio/long.wav", speech(5), FS)
    write("dump/raw/train/wav.scp", "u1 audio/long.wav\nu2 audio/long.wav\n")
    for name, ids in (("test", list(TEXTS)[:2]), ("other", list(TEXTS)[2:]), ("all", list(TEXTS))):
        rows = [(i, number, TEXTS[i]) for number, i in enumerate(TEXTS) if i in ids]
        tables = {
            "wav.scp": {i: f"audio/{'abc'[n]}.wav" for i, n, _ in rows},
            "text": {i: text for i, _, text in rows},
            "utt2spk": {i: i[:2] for i in ids},
            "spk2utt": {i[:2]: i for i in ids},
            "utt2num_samples": {i: sf.info(f"audio/{'abc'[n]}.wav").frames for i, n, _ in rows},
        }
        for table, content in tables.items():
            write(f"dump/raw/{name}/{table}", lines(content))
    write("keys", "s1-u1\n")
    write("hyp", lines({i: TEXTS[i].lower().upper() for i in list(TEXTS)[:2]}))
    write("symbols", "<noise>\n")
    template = Path("egs2/TEMPLATE/asr1/recipe")
    shutil.copytree(Path(__file__).parents[2] / template, template)


def _models():
    for name, attention in ((MLA, "mla"), (MHA, "mha")):
        Path(name).mkdir(parents=True)
        options = {"kv_lora_rank": 12} if attention == "mla" else {}
        conf = ENCODER_CONF | {"attention": attention, "attention_conf": options}
        own = {"seed": 1, "valid_data_path_and_name_and_type": [[SCP, "speech", "sound"]]}
        if attention == "mla":
            shutil.copy("bpe.model", name)
            own |= {"token_type": "bpe", "bpemodel": f"{name}/bpe.model"}
        write_model(Path(name), encoder_conf=conf, **own)
        Path(name, "model.pth").rename(f"{name}/valid.acc.ave.pth")
        Path(name, "train.yaml").unlink()
    Path("lm").mkdir()
    write_lm(Path("lm"))
    Path("lm/train.yaml").unlink()
    config = yaml.safe_load(Path(MLA, "config.yaml").read_text())
    own = ("encoder", "encoder_conf", "frontend_conf", "decoder", "decoder_conf", "model_conf")
    write("conf/finetune.yaml", "max_epoch: 1\n")
    write("conf/train_asr_conformer_mla.yaml", yaml.safe_dump({key: config[key] for key in own}))
    write("conf/decode.yaml", "beam_size: 2\nctc_weight: 0.3\nmaxlenratio: 0.0\n")
    write("conf/stream.yaml", "packet_ms: 70\nchunk_size: 8\nsearch: greedy\n")
    measured = {"frames": 20, "left_contexts": [16], "num_utts": 1, "decoder_tokens": 4}
    write("conf/profile.yaml", yaml.safe_dump(measured | {"vocab_size": 7}))
    write("run.sh", RUN)
    Path("run.sh").chmod(0o755)
    published = {"name": "x", "parameters_m": 1.5, "wer": {"test": 6.5}, "source": "y"}
    write("published.yaml", yaml.safe_dump({"reference_words": {"test": 7}, "rows": [published]}))
    epoch = "INFO: 1epoch results: [train] loss=1.0, time=59.5 seconds, total_count=3\n"
    for name in (MLA, MHA):
        write(f"{name}/train.log", epoch)
        out = f"{name}/decode_asr_model_valid.acc.ave/test"
        files = f"--ref dump/raw/test/text --hyp hyp --output {out} --token_type word"
        run(["score", *files.split()]).must_work()
        shutil.copy("hyp", f"{out}/text")
        run(["evaluate", name, *DECODED.split()]).must_work()
        run(["keep", name, "--results", "results"]).must_work()
    run(["grid", *COMMANDS["grid"][0].split()]).must_work()
    run(["keep", MLA, "--results", "results"]).must_work()
    shutil.rmtree("exp/run_all")
    marks = (f"<!-- table: {table} -->\n\n" for table in ("models", "grid", "dtypes", "seeds"))
    write("page.md", "# Page\n\n" + "".join(marks))


def _corpora():
    for number in range(1, 7):
        rate, sound = 16000, np.repeat(speech(0.6, number), 2)
        write("corpus/text", "")
        Path("corpus/wavs").mkdir(exist_ok=True)
        sf.write(f"corpus/wavs/r{number}.wav", sound, rate)
    texts = {f"r{n}": f"{WORDS[n % 4]} {WORDS[(n + 1) % 4]} {WORDS[n % 3]}" for n in range(1, 7)}
    write("corpus/text", "".join(f"{i}\t{text}\n" for i, text in texts.items()))
    write("corpus/speakers", "".join(f"r{n}\tp{n % 3}\n" for n in range(1, 7)))
    run("data tokens --text corpus/text --nbpe 15 --output bpe".split()).must_work()
    Path("bpe/bpe.model").rename("bpe.model")
    shutil.rmtree("bpe")
    book = Path("LibriSpeech/dev-clean/1/7")
    book.mkdir(parents=True)
    sf.write(book / "1-7-0000.flac", np.repeat(speech(0.3), 2), 16000)
    write(book / "1-7.trans.txt", "1-7-0000 A B\n")
    write("LibriSpeech/SPEAKERS.TXT", "1 | F | dev-clean | 8.0 | A\n")
    Path("fsdd/recordings").mkdir(parents=True)
    for digit in range(10):
        for index in (0, 5, 10):
            tone = np.full(80, 100 + digit, np.int16)
            sf.write(f"fsdd/recordings/{digit}_ann_{index}.wav", tone, 8000)
    for number in range(1, 9):
        path = Path(f"kathleen/data/arctic_a{number:04d}_1592748574.wav")
        path.parent.mkdir(parents=True, exist_ok=True)
        sf.write(path, np.full((9600, 2), number, np.int16), 48000)
        write(path.with_suffix(".txt"), f"Mister {WORDS[number % 4].lower()} don't go")
    for part, speaker in (("train", "0001"), ("test", "0003")):
        utt, place = f"0{speaker}0011", f"WAVE/SPEAKER{speaker}/0{speaker}0011.WAV"
        Path("learners", place).parent.mkdir(parents=True)
        sf.write(f"learners/{place}", np.full(8000, 9, np.int16), 16000, format="WAV")
        for table, value in (("wav.scp", place), ("text", "WE CALL IT"), ("utt2spk", speaker)):
            write(f"learners/{part}/{table}", f"{utt}\t{value}\n")
        write(f"learners/{part}/spk2age", f"{speaker}\t6\n")


def _archives():
    with tarfile.open("fsdd.tar.gz", "w:gz") as tar:
        tar.add("fsdd")
    Path("books").mkdir()
    with tarfile.open("books/dev-clean.tar.gz", "w:gz") as tar:
        tar.add("LibriSpeech")
    write_sums()
    run(["pack", *COMMANDS["pack"][0].replace("new.zip", "model.zip").split()]).must_work()
    with zipfile.ZipFile("model.zip") as archive:
        assert "meta.yaml" in archive.namelist()
    assert json.loads(Path(MLA, "evaluation_results.json").read_text())["wer"]["test"]


def write_sums():
    """The list of what the archive of books should be, as it is."""
    content = Path("books/dev-clean.tar.gz").read_bytes()
    write("sums", f"{hashlib.md5(content).hexdigest()} {len(content)} dev-clean\n")
