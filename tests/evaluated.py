"""Small experiment directories: real caches and scores, latencies made up."""

import json
import random

import pytest
import yaml

from espnet_ext.bin.score import main as score
from espnet_ext.evaluate.cache import measure_cache
from espnet_ext.evaluate.evaluation import CERTIFIED, PROFILED, Evaluation, Settings, evaluate
from espnet_ext.evaluate.models import VERSION
from espnet_ext.jobs import markers

TAG = "decode_asr_asr_model_valid.acc.ave"
ATTENTION_CONF = {"mha": {}, "gqa": {"n_kv_head": 1}, "mla": {"kv_lora_rank": 4}, "linear": {}}
ENCODER_CONF = {
    "conformer": {"linear_units": 8, "cnn_module_kernel": 3},
    "branchformer": {"cgmlp_linear_units": 16, "cgmlp_conv_kernel": 3},
}
WORDS = "ZERO ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT NINE".split()
EPOCH = (
    "[vm] 2026-01-01 00:00:00,000 (trainer:392) INFO: {n}epoch results: [train] iter_time=0.1, "
    "loss=1.0, train_time=0.3, time={train}, total_count={batches}, [valid] loss=2.0, "
    "time=0.5 seconds, total_count=1, [att_plot] time=9 seconds, total_count=0\n"
)


def transcripts(errors, utterances=30):
    """References and hypotheses; of 100 words ``errors`` are wrong."""
    draw = random.Random(7)
    references = {f"spk-u{i:03d}": draw.choices(WORDS, k=5) for i in range(utterances)}
    wrong = random.Random(errors)
    hypotheses = {
        utt: ["WRONG" if wrong.random() < errors / 100 else word for word in words]
        for utt, words in references.items()
    }
    return references, hypotheses


def write_text(path, table):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{i} {' '.join(w)}\n" for i, w in sorted(table.items())))


def decode(directory, errors, utterances):
    references, hypotheses = transcripts(errors, utterances)
    write_text(directory / "ref", references)
    write_text(directory / "text", hypotheses)
    arguments = ["--ref", directory / "ref", "--hyp", directory / "text", "--output", directory]
    score([str(a) for a in arguments] + ["--token_type", "word"])


def costs(config, ms):
    streaming = {
        "chunk_size": 4,
        "left_context": 8,
        "rebuilt_causal": False,
        "ms_per_chunk_median": ms / 3,
        "ms_per_chunk_p95": ms / 2,
        "real_time_factor": 0.1234567,
        "first_token_ms": {"chunk": 160.0, "lookahead": 36.0, "compute": ms / 3, "total": 200.0},
        "memory": {"peak_mb": 1.5},
    }
    return {
        "cache": measure_cache(config, 20, 4, [4, 8]),
        "streaming": streaming,
        "multiply_adds": {"offline": 1000000, "streaming": 2000000},
    }


def mark(directory, settings):
    """Say that what is there was measured and decoded with these settings."""
    made = Evaluation(directory, settings)
    wavs = made.data(made.sets[0]) / "wav.scp"
    works = {PROFILED: made._profile_due(wavs)}
    works[CERTIFIED] = made._due(CERTIFIED, ["equivalence.json"], wavs)
    for tag in made.streams():
        works |= {f"{tag}/{name}/.done": made._decoding_due(tag, name) for name in made.sets}
    for marker, work in works.items():
        markers.write(made.expdir / marker, work)


@pytest.fixture(scope="session")
def make_run():
    """Writes an evaluated model: ``make_run(expdir, encoder, attention, errors, ms)``."""

    def make_run(expdir, encoder, attention, errors=10, ms=100.0, test_sets=("test_clean",)):
        directory = expdir / f"asr_train_asr_{encoder}_{attention}_raw_word"
        directory.mkdir(parents=True)
        config = {
            "encoder": f"kv_{encoder}",
            "encoder_conf": {
                "output_size": 16,
                "attention_heads": 4,
                "num_blocks": 2,
                "causal": True,
                "attention": attention,
                "attention_conf": ATTENTION_CONF[attention],
                **ENCODER_CONF[encoder],
            },
            "frontend_conf": {"n_mels": 20, "fs": "8k"},
            "config": f"conf/train_asr_{encoder}_{attention}.yaml",
            "token_type": "word",
        }
        (directory / "config.yaml").write_text(yaml.safe_dump(config))
        (directory / "valid.acc.ave.pth").write_bytes(b"")
        log = EPOCH.format(n=1, train="1 minute and 2.5 seconds", batches=3)
        log += EPOCH.format(n=2, train="59.5 seconds", batches=6)
        (directory / "train.log").write_text(log)
        for number, name in enumerate(test_sets):
            decode(directory / TAG / name, errors + number, 30)
            for left in [-1] if attention == "linear" else [4, 8]:
                tag = f"streaming_C4_L{left}"
                decode(directory / tag / name, errors + 8 - left, 30)
                words = {"confidence_error": 0.125, "word_delay_ms": 250.0}
                words |= {"word_delay_ms_p95": None}
                (directory / tag / name / "words.json").write_text(json.dumps(words))
        profile = {
            "version": VERSION,
            "encoder": encoder,
            "attention": attention,
            "parameters": {"model": 12345, "encoder": 678},
            "offline": {
                "ms_per_utterance": ms,
                "real_time_factor": ms / 5000,
                "memory": {"peak_mb": ms / 7, "cuda_peak_mb": None},
            },
            "decoder": {
                "frames": 20,
                "tokens": 10,
                "hypotheses": 2,
                "self_attention": 5120,
                "src_attention": 10240,
            },
            **costs(config, ms),
            "device": "a test",
            "threads": 1,
            "load_average": 0.25,
            "torch": "2",
        }
        if attention == "mha":
            lossless = config["encoder_conf"] | {"attention_conf": {"cache": "input"}}
            profile["input_cache"] = costs(config | {"encoder_conf": lossless}, 1.5 * ms)
        (directory / "profile.json").write_text(json.dumps(profile))
        certificate = {
            "equal": True,
            "text_identical": True,
            "utterances": 3,
            "max_error": {"features": 1e-7, "encoder": 2e-6, "logits": 3e-6, "layers": [1e-6]},
            "max_error_float64": {"logits": 4e-15},
        }
        (directory / "equivalence.json").write_text(json.dumps(certificate))
        mark(directory, Settings())
        evaluate(directory, Settings())
        return directory

    return make_run


@pytest.fixture(scope="session")
def eight_runs(make_run, tmp_path_factory):
    """Eight evaluated models; read only."""
    expdir = tmp_path_factory.mktemp("eight") / "exp"
    for e, encoder in enumerate(ENCODER_CONF):
        for a, attention in enumerate(ATTENTION_CONF):
            make_run(expdir, encoder, attention, errors=4 + 3 * a + e, ms=100.3 + 7 * a)
    return expdir


@pytest.fixture
def evaluation():
    """``Evaluation`` of a directory."""
    return lambda directory: Evaluation(directory, Settings())
