"""A recipe for a corpus: the files of ``egs2/TEMPLATE/asr1/recipe`` with its numbers in them."""

import math
import os
import re
import shlex
import shutil
import tempfile
import unicodedata
from pathlib import Path
from typing import NamedTuple

from espnet_ext.data import corpus, tokens
from espnet_ext.errors import UserError
from espnet_ext.files import whole

TEMPLATE = "egs2/TEMPLATE/asr1/recipe"
WORD = re.compile("@([A-Z_]+)@")
ATTENTIONS = {
    "mha": ("multi-head attention (MHA)", "{}"),
    "gqa": ("grouped-query attention (GQA, 2 of 4 key-value heads)", "{n_kv_head: 2}"),
    "mla": ("multi-head latent attention (MLA, rank @RANK@)", "{kv_lora_rank: @RANK@}"),
    "linear": ("linear attention", "{}"),
}
ENCODERS = {
    "conformer": """\
    linear_units: @LINEAR@
    normalize_before: true
    macaron_style: true
    activation_type: swish
    use_cnn_module: true
    cnn_module_kernel: @KERNEL@
    selfattention_layer_type: rel_selfattn""",
    "branchformer": """\
    use_attn: true
    attention_layer_type: rel_selfattn
    use_cgmlp: true
    cgmlp_linear_units: @CGMLP@
    cgmlp_conv_kernel: @KERNEL@
    use_linear_after_conv: false
    gate_activation: identity
    merge_method: concat""",
}
SPEEDS = "0.9 1.0 1.1"


class Size(NamedTuple):
    """A model and its batches, for as much training speech as ``hours``."""

    hours: float
    width: int
    linear: int
    blocks: int
    kernel: int
    decoder_blocks: int
    batch: int  # seconds of speech in a batch
    accum: int  # batches in a step
    steps: int  # of training in all
    ngpu: int


SIZES = (
    Size(5, 96, 256, 4, 15, 1, 50, 1, 5000, 0),
    Size(50, 144, 576, 8, 15, 2, 150, 1, 40000, 1),
    Size(float("inf"), 256, 1024, 12, 31, 6, 600, 2, 80000, 1),
)
EPOCHS = (15, 80)


def rate(rates):
    """16 kHz, or 8 kHz where more than a tenth of the recordings, ``{Hz: number}``, have less."""
    low = sum(n for hertz, n in rates.items() if hertz < 16000)
    return 8000 if 10 * low > sum(rates.values()) else 16000


def unspaced(texts):
    """Say whether most letters are of a script that writes no blanks between words."""
    names = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
    letters = [c for text in texts for c in text if c.isalpha()]
    found = sum(unicodedata.name(c, "").startswith(names) for c in letters)
    return 2 * found > len(letters)


def choose_tokens(texts, hours):
    """Type and number of tokens that occur often enough in the texts, of so many hours.

    It is ``"char"`` for little speech and for scripts without blanks between words, else ``"bpe"``.
    """
    n_char = len(set("".join(texts)))
    size = 500 if hours < 200 else 2000
    if hours >= 20 and not unspaced(texts) and size > 2 * n_char:
        try:
            tokens.train_bpe(texts, size)
            return "bpe", size
        except UserError as error:
            if "largest possible" not in str(error):
                raise
    return "char", n_char


def values(about, hours, hertz, token_type, n_token):
    """What the words of the template stand for, but for those of one model or machine.

    Args:
        about: What the recipe is, for its head.
        hours: Length of the training set.
        hertz: Sampling rate.
        token_type: ``"char"`` or ``"bpe"``.
        n_token: Number of tokens.
    """
    size = next(size for size in SIZES if hours < size.hours)
    per_epoch = max(1, round(hours * 3600 * len(SPEEDS.split()) / size.batch / size.accum))
    epochs = min(max(size.steps // per_epoch, EPOCHS[0]), EPOCHS[1])
    wide = hertz == 16000
    n_mels = 80 if wide else 40
    return {
        "ABOUT": about,
        "HOURS": f"{hours:.2g}" if hours < 10 else f"{hours:.0f}",
        "NGPU": size.ngpu,
        "KHZ": hertz // 1000,
        "TOKENS": token_type if token_type == "char" else f"bpe \\\n    --nbpe {n_token}",
        "MAX": math.ceil(corpus.SECONDS[1] / min(map(float, SPEEDS.split()))),
        "SPEEDS": SPEEDS,
        "WIDTH": size.width,
        "LINEAR": size.linear,
        "CGMLP": 6 * size.width,
        "KERNEL": size.kernel,
        "BLOCKS": size.blocks,
        "RANK": size.width // 2,
        "DECODER_BLOCKS": size.decoder_blocks,
        "N_MELS": n_mels,
        "FREQ_MASK": n_mels // 5,
        "BATCH_BINS": size.batch * hertz,
        "ACCUM": size.accum,
        "EPOCHS": epochs,
        "STEPS": epochs * per_epoch,
        "WARMUP": max(epochs * per_epoch // 10, 1),
    }


def fill(text, words):
    """Put values in place of ``@WORDS@``."""
    return WORD.sub(lambda match: str(words[match[1]]), text)


def _models(words):
    """Yield the words of each model's configuration."""
    for encoder, encoder_conf in ENCODERS.items():
        for attention, (title, attention_conf) in ATTENTIONS.items():
            yield words | {
                "FILE": f"train_asr_{encoder}_{attention}.yaml",
                "TITLE": f"{encoder.capitalize()} encoder with {fill(title, words)}",
                "ENCODER": encoder,
                "ENCODER_CONF": fill(encoder_conf, words),
                "ATTENTION": attention,
                "ATTENTION_CONF": fill(attention_conf, words),
            }


def write(root, name, source, words):
    """Write ``egs2/<name>/asr1``, whole or not at all, and return it.

    Args:
        root: The clone of the repository.
        name: Name of the recipe, which must be new.
        source: Options of ``data_prep_corpus`` that have a value; paths are absolute.
        words: What ``values`` returned.
    """
    target, template = check_new(root, name), Path(root) / TEMPLATE
    words = words | {
        "PLACES": "\n".join(f"{key.upper()}={shlex.quote(v)}" for key, v in source.items()),
        "SOURCE": " ".join(f'--{key} "${{{key.upper()}}}"' for key in source),
    }
    with whole(target) as temporary:
        for path in sorted(template.rglob("*")):
            out = temporary / "asr1" / path.relative_to(template)
            if path.is_dir():
                continue
            out.parent.mkdir(parents=True, exist_ok=True)
            models = _models(words) if path.name == "train_asr.yaml" else [words]
            for model in models:
                out = out.with_name(model.get("FILE", out.name))
                out.write_text(fill(path.read_text("utf-8"), model), "utf-8")
                shutil.copymode(path, out)
    return target / "asr1"


def check_new(root, name):
    """Return the directory of a recipe that is not there yet, or refuse."""
    target = Path(root) / "egs2" / name
    if not (Path(root) / TEMPLATE).is_dir():
        raise UserError(
            f"{root}: no clone of the repository, and a recipe is written into one: run "
            "local/new_recipe.sh there"
        )
    if os.path.lexists(target):
        raise UserError(
            f"{target}: there already, and no recipe is overwritten: take another name or remove it"
        )
    return target


def create(root, name, source, nj=1):
    """Read a corpus, ``source`` being arguments of ``corpus.read``, and write a recipe for it.

    Returns:
        (directory, notes): lines for a person to read.

    Raises:
        UserError: See ``corpus.read``, ``corpus.split`` and ``write``.
    """
    check_new(root, name)
    found = corpus.read(**source, nj=nj)
    sets, notes, texts = _try_stage_1(found)
    hours, hertz = found.hours(sets["train"]), rate(found.rates)
    rates = ", ".join(f"{n} of {hz} Hz" for hz, n in sorted(found.rates.items()))
    notes.append(f"recordings: {rates}; the recipe works at {hertz} Hz")
    token_type, n_token = choose_tokens(texts, hours)
    notes.append(f"tokens: {n_token} {'characters' if token_type == 'char' else 'BPE pieces'}")
    if unspaced(texts):
        notes.append("the texts have no blanks between words: read the character error rate")
    about = f"{name}: {found.hours(found.seconds):.2f} h of speech at {hertz // 1000} kHz"
    words = values(about, hours, hertz, token_type, n_token)
    return write(root, name, source, words), notes


def _try_stage_1(found):
    """Return sets, notes and training texts; what stages 1 and 5 would refuse is refused now."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            sets, notes = corpus.prepare(found, folder)
            train, *_ = [tokens.read_transcripts(f"{folder}/{name}/text") for name in sets]
        except UserError as error:
            raise UserError(str(error).replace(f"{folder}/", "")) from None
    return sets, notes, train
