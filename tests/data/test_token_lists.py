"""Token lists: the files and the order that ESPnet expects."""

import re

import pytest
import sentencepiece as spm
from espnet2.bin import tokenize_text
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_ext.bin import data_tokens
from espnet_ext.data import tokens
from espnet_ext.errors import UserError

LINES = ["THE CAT SAT ON THE MAT", "A DOG RAN AND THE CAT RAN", "HELLO WORLD", "DON'T"]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text"
    path.write_text("".join(f"u{n} {line}\n" for n, line in enumerate(LINES)) + "u9\n")
    return path


def run_tokens(text, output, *options):
    data_tokens.main(["--text", str(text), "--output", str(output), *options])
    return (output / "tokens.txt").read_text().splitlines()


@pytest.mark.parametrize("mode", ["unigram", "bpe"])
def test_bpe_files_are_those_of_the_sentencepiece_trainer(text, tmp_path, mode):
    out = tmp_path / "out"
    found = run_tokens(text, out, "--token_type", "bpe", "--nbpe", "25", "--bpemode", mode)
    assert sorted(p.name for p in out.iterdir()) == [
        "bpe.model",
        "bpe.vocab",
        "tokens.txt",
        "train.txt",
    ]
    assert (out / "train.txt").read_text().splitlines() == LINES
    prefix = tmp_path / "reference"
    spm.SentencePieceTrainer.train(
        input=str(out / "train.txt"), model_prefix=str(prefix), vocab_size=25, model_type=mode,
        character_coverage=1.0, input_sentence_size=100_000_000, minloglevel=2,
    )  # fmt: skip
    vocab = prefix.with_suffix(".vocab").read_text()
    assert (out / "bpe.vocab").read_text() == vocab
    pieces = [line.split("\t")[0] for line in vocab.splitlines()[3:]]
    assert found == ["<blank>", "<unk>", *pieces, "<sos/eos>"] and len(found) == 25
    model, reference = (
        spm.SentencePieceProcessor(model_file=str(p))
        for p in (out / "bpe.model", f"{prefix}.model")
    )
    assert all(model.encode(line) == reference.encode(line) for line in LINES)


@pytest.mark.parametrize(
    "options", [["--token_type", "bpe", "--nbpe", "25"], ["--token_type", "char"]]
)
def test_tokens_twice_give_the_same_bytes(text, tmp_path, options):
    for name in ("one", "two"):
        run_tokens(text, tmp_path / name, *options)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


@pytest.mark.parametrize("mode", ["unigram", "bpe"])
def test_too_many_bpe_name_the_largest_number_and_it_works(text, tmp_path, capsys, mode):
    with pytest.raises(SystemExit):
        run_tokens(text, tmp_path / "out", "--nbpe", "5000", "--bpemode", mode)
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and not (tmp_path / "out").exists()
    largest = int(re.search(r"nbpe 5000: too large .* largest possible is (\d+)", error)[1])
    assert len(tokens.train_bpe(LINES, largest, mode)[1]) == largest
    with pytest.raises(UserError, match="too large"):
        tokens.train_bpe(LINES, largest + 1, mode)


@pytest.mark.parametrize("nbpe", [1, 10])
def test_too_few_bpe_name_the_smallest_number_and_it_works(nbpe):
    with pytest.raises(UserError, match="too small") as error:
        tokens.train_bpe(LINES, nbpe)
    smallest = int(re.search(r"smallest possible is (\d+)", str(error.value))[1])
    assert len(tokens.train_bpe(LINES, smallest)[1]) == smallest


def test_bpe_symbols_are_never_split(text, tmp_path):
    found = run_tokens(text, tmp_path / "out", "--nbpe", "25", "--bpe_nlsyms", "<noise>,CAT")
    assert {"<noise>", "CAT"} <= set(found)


words = st.text(st.sampled_from("ABC'éß<>"), min_size=1, max_size=4)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(words, min_size=1, max_size=4), min_size=1, max_size=5), st.booleans())
def test_characters_and_words_are_those_of_espnet_tokenize_text(tmp_path_factory, lines, char):
    base = tmp_path_factory.getbasetemp()
    (base / "t").write_text("".join(f"u{n} {'  '.join(line)} \n" for n, line in enumerate(lines)))
    (base / "symbols").write_text("AB\nABC\n\n<>\n")
    options = ["--token_type", "char" if char else "word"]
    tokenize_text.main(
        [*options, "--input", str(base / "t"), "--output", str(base / "reference"), "--field", "2-",
         "--non_linguistic_symbols", str(base / "symbols"), "--write_vocabulary", "true",
         "--add_symbol", "<blank>:0", "--add_symbol", "<unk>:1", "--add_symbol", "<sos/eos>:-1",
         "--log_level", "ERROR"]
    )  # fmt: skip
    found = run_tokens(base / "t", base / "tokens", *options, "--nlsyms_txt", str(base / "symbols"))
    assert found == (base / "reference").read_text().splitlines()


def test_text_without_words_is_refused(tmp_path, capsys):
    (tmp_path / "text").write_text("u1\nu2 \n")
    for token_type in ("bpe", "char", "word"):
        with pytest.raises(SystemExit):
            run_tokens(tmp_path / "text", tmp_path / "out", "--token_type", token_type)
        assert "no text to make tokens from" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_texts_of_several_files_are_joined(text, tmp_path):
    (tmp_path / "more").write_text("u0 ZEBRA\n")
    found = tokens.read_texts([text, tmp_path / "more"])
    assert found == [*LINES, "ZEBRA"]
