"""Does this machine work? One line per check, exit status 1 if any fails."""

import importlib.metadata
import platform
import shutil
import sys
import tempfile
from pathlib import Path

from packaging.requirements import Requirement

from espnet_ext.errors import UserError, cli
from espnet_ext.options import Parser

ROOT = Path(__file__).resolve().parents[2]
SAMPLE_RATE = 16000
# Archives 7.7, extracted 7.7, speed-perturbed copies 13, one experiment 3.5.
LIBRISPEECH_100_GB = 32

# A check returns a line that says what it found, or raises an error that says what is wrong.


def check_versions(constraints=ROOT / "constraints.txt"):
    """Compare the installed packages with the pinned ones, or with what the package asks for.

    ``constraints`` has lines ``name==version``, markers and comments allowed; without it, as where
    no clone is, the ranges of the installed package count.
    """
    pinned = constraints.is_file()
    if pinned:
        lines = [line.partition("#")[0].strip() for line in constraints.read_text().splitlines()]
    else:
        lines = importlib.metadata.requires("espnet-ext")
    wanted = [Requirement(line) for line in lines if line]
    wanted = [w for w in wanted if w.marker is None or w.marker.evaluate({"extra": ""})]
    wrong = []
    for package in wanted:
        try:
            version = importlib.metadata.version(package.name)
        except importlib.metadata.PackageNotFoundError:
            version = "missing"
        if version not in package.specifier:
            wrong.append(f"{package.name} {version}, needed is {package.specifier}")
    if wrong:
        raise UserError(f"{'; '.join(wrong)}; run: {'make setup' if pinned else 'pip install'}")
    found = f"as in {constraints.name}" if pinned else "in the ranges that espnet-ext needs"
    return f"Python {platform.python_version()}, {len(wanted)} packages {found}"


def check_audio():
    """Write a tone as WAV and FLAC and read it back."""
    import numpy as np
    import soundfile

    tone = (8000 * np.sin(np.arange(SAMPLE_RATE) * 0.1)).astype(np.int16)  # (1 s,)
    with tempfile.TemporaryDirectory() as folder:
        for suffix in ("wav", "flac"):
            path = Path(folder, f"tone.{suffix}")
            soundfile.write(path, tone, SAMPLE_RATE)
            back, rate = soundfile.read(path, dtype="int16")
            if rate != SAMPLE_RATE or not np.array_equal(back, tone):
                raise UserError(f"{suffix} did not come back as it was written")
    return "WAV and FLAC come back as written"


def check_attention(name, device):
    """Run a small Conformer with one attention of the registry forward and backward."""
    import torch

    from espnet_ext.encoder import ConformerEncoder

    torch.manual_seed(0)
    encoder = ConformerEncoder(
        input_size=20,
        output_size=64,
        attention_heads=4,
        linear_units=16,
        num_blocks=2,
        cnn_module_kernel=3,
        macaron_style=True,
        rel_pos_type="latest",
        attention=name,
        attention_conf={},
    ).to(device)
    features = torch.randn(2, 50, 20, device=device)  # (batch, frames, channels)
    output, _, _ = encoder(features, torch.tensor([50, 40], device=device))
    output.square().sum().backward()
    for key, parameter in encoder.named_parameters():
        if parameter.grad is None or not parameter.grad.isfinite().all():
            raise UserError(f"{key} has no finite gradient")
    return f"forward and backward on {device}"


def check_sentencepiece():
    """Train a small unigram model and encode with it."""
    import sentencepiece

    text = "one two three four five six seven eight nine zero"
    with tempfile.TemporaryDirectory() as folder:
        prefix = str(Path(folder, "bpe"))
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([text] * 10),
            model_prefix=prefix,
            vocab_size=30,
            hard_vocab_limit=False,
            minloglevel=2,
        )
        model = sentencepiece.SentencePieceProcessor(model_file=f"{prefix}.model")
    if model.decode(model.encode(text)) != text:
        raise UserError("text did not survive encoding and decoding")
    return "trains and encodes"


def check_disk(folder="."):
    """Look at the free space of a recipe's directory."""
    free = shutil.disk_usage(folder).free / 1e9
    found = f"{free:.0f} GB free, LibriSpeech-100 takes about {LIBRISPEECH_100_GB}"
    if free < 1:
        raise UserError(f"{found}, the small recipes 1; free some space")
    return found


@cli
def main(argv=None):
    """Run every check and print one line for each."""
    Parser(description=__doc__).parse_args(argv)
    import torch

    from espnet_ext.attention import ATTENTIONS

    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    checks = [
        ("versions", check_versions, ()),
        ("audio", check_audio, ()),
        *(
            (f"attention {name}", check_attention, (name, device))
            for device in devices
            for name in ATTENTIONS
        ),
        ("sentencepiece", check_sentencepiece, ()),
        ("disk space", check_disk, ()),
    ]
    failed = False
    for name, check, arguments in checks:
        try:
            status, found = "ok", check(*arguments)
        # A broken machine breaks in many ways; each is a line here, and the next check still runs.
        except Exception as error:
            failed = True
            status, found = "FAIL", " ".join(str(error).split()) or type(error).__name__
        print(f"{status:4}  {name:16}  {found}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
