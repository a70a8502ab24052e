"""Token lists: the files and the order that ESPnet expects."""

import re
import unicodedata

import pytest
import sentencepiece as spm
from espnet2.bin import tokenize_text
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_ext.bin import data_tokens, score
from espnet_ext.data import kaldi, tokens
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


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.text(st.sampled_from("AB \t\u00a0\u3000\u2003\x0b\x85"), min_size=1), min_size=1)
)
def test_espnet_sees_no_token_in_a_directory_that_the_list_lacks(tmp_path_factory, lines):
    """Written with any white space, read and written as the stages do: no target is <unk>."""
    from espnet2.fileio.read_text import read_2columns_text
    from espnet2.text.build_tokenizer import build_tokenizer
    from espnet2.text.token_id_converter import TokenIDConverter

    base = tmp_path_factory.getbasetemp()
    for folder in ("raw", "formatted"):
        (base / folder).mkdir(exist_ok=True)
    names = [f"u{n:02d}" for n in range(len(lines) + 1)]
    tables = {"text": [*lines, "B A"], "wav.scp": names, "utt2spk": names}
    for name, values in tables.items():
        content = "".join(f"{k} {v}\n" for k, v in zip(names, values, strict=True))
        (base / "raw" / name).write_text(content)
    kaldi.write_data_dir(base / "formatted", kaldi.read_data_dir(base / "raw"))
    for token_type in ("char", "word"):
        found = run_tokens(base / "raw/text", base / "list", "--token_type", token_type)
        tokenizer, ids = build_tokenizer(token_type), TokenIDConverter(found)
        for text in read_2columns_text(base / "formatted/text").values():
            assert ids.unk_id not in ids.tokens2ids(tokenizer.text2tokens(text))


def test_long_line_is_trained_on_and_a_line_that_cannot_be_is_refused():
    long = "Z " * 3000  # sentencepiece leaves out what is longer than 4192 bytes
    _, vocabulary = tokens.train_bpe([*LINES, long.strip()], 26)
    assert "Z" in "".join(token for token, _ in vocabulary)
    with pytest.raises(UserError, match=r"'Q \u2585' has the character . \(U\+2585\)"):
        tokens.train_bpe([*LINES, "Q \u2585"], 26)


@pytest.mark.parametrize("token_type", ["bpe", "char", "word"])
@pytest.mark.parametrize("symbol", ["<blank>", "<sos/eos>"])
def test_symbols_of_training_are_refused_in_a_transcript(
    text, tmp_path, capsys, token_type, symbol
):
    text.write_text(f"u1 THE CAT\nu2 A {symbol} B\n")
    with pytest.raises(SystemExit):
        run_tokens(text, tmp_path / "out", "--token_type", token_type, "--nbpe", "14")
    error = capsys.readouterr().err
    assert f"{text}: line 2: u2 has {symbol} in its text" in error and error.count("\n") == 1
    (tmp_path / "other").write_text("u1 THE CAT A B\n")  # what tokens are made from
    with pytest.raises(SystemExit):
        run_tokens(tmp_path / "other", tmp_path / "out", "--transcripts", str(text))
    assert f"{text}: line 2: u2 has {symbol} in its text" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("token_type", ["bpe", "char", "word"])
def test_unknown_in_a_transcript_is_counted_and_is_one_token(text, tmp_path, capsys, token_type):
    text.write_text("u1 THE CAT <unk> SAT\nu2 THE HAT\nu3 <unk>\n")
    found = run_tokens(text, tmp_path / "out", "--token_type", token_type, "--nbpe", "11")
    assert len(set(found)) == len(found) and found[1] == "<unk>"
    assert f"warning: {text}: 2 of 3 texts hold <unk>" in capsys.readouterr().err


def test_symbol_that_is_there_twice_is_refused():
    with pytest.raises(UserError, match="<blank> is a token of its own already"):
        tokens.token_list(["A", "<blank>"])


VIETNAMESE = ["tiếng Việt", "một hai ba", "nghe và nói", "ba"]


@pytest.mark.parametrize(
    ("form", "changed"), [("NFC", 0), ("NFD", 3)], ids=["composed", "decomposed"]
)
def test_text_that_bpe_brings_to_another_form_is_counted_for_training_and_scoring(
    tmp_path, capsys, form, changed
):
    """Decoded perfectly it would be scored as wrong: 'ba' and 'hai' are the same in both forms."""
    lines = [unicodedata.normalize(form, line) for line in VIETNAMESE]
    text, out = tmp_path / "text", tmp_path / "out"
    text.write_text("".join(f"u{n} {line}\n" for n, line in enumerate(lines)))
    run_tokens(text, out, "--nbpe", "22")
    model = spm.SentencePieceProcessor(model_file=str(out / "bpe.model"))
    perfect = [model.decode(model.encode(line)) for line in lines]
    assert sum(a != b for a, b in zip(perfect, lines, strict=True)) == changed
    (tmp_path / "hyp").write_text("".join(f"u{n} {line}\n" for n, line in enumerate(perfect)))
    words = ["--ref", text, "--hyp", tmp_path / "hyp", "--output", tmp_path / "scores"]
    score.main([*map(str, words), "--bpemodel", str(out / "bpe.model")])
    error = capsys.readouterr().err
    expected = f"{text}: {changed} of 4 texts come back from these BPE tokens"
    assert error.count(expected) == (2 if changed else 0)
    assert error.count(f"({changed} are not in Unicode's form NFKC") == (2 if changed else 0)
    assert ("'ti\\u0301' becomes" in error or "becomes 'ti\\u1ebfng'" in error) == bool(changed)


def test_characters_without_a_token_are_counted_and_named(text, tmp_path, capsys):
    (tmp_path / "dev").write_text("u1 THE CAT\nu2 A ZEBRA\nu3 \u00c9T\u00c9\n")
    run_tokens(text, tmp_path / "out", "--nbpe", "25", "--transcripts", str(tmp_path / "dev"))
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"{tmp_path}/dev: 2 of 3 texts hold characters" in said
    assert said.endswith(": 'B', 'Z', '\\xc9'\n")
