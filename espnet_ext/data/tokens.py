"""Token lists: BPE with sentencepiece, characters, words; in the order ESPnet expects."""

import io
import re
import unicodedata
from collections import Counter

import sentencepiece as spm

from espnet_ext.data.kaldi import normal_space, raise_if_any, read_lines
from espnet_ext.errors import UserError

BLANK, UNKNOWN, SPACE, SENTENCE = "<blank>", "<unk>", "<space>", "<sos/eos>"
SPM_SPECIALS = 3  # sentencepiece's own <unk>, <s>, </s> come first
SPM_LONGEST = 4192  # bytes of a text; sentencepiece leaves out longer ones unless told otherwise
SPM_UNKNOWN = "\u2585"  # sentencepiece leaves out lines that hold it: it stands for what is unknown


def read_transcripts(path):
    """Texts of a Kaldi-style file, one space between words, without ids and without empty ones.

    Raises:
        UserError: The file is not readable, or a text holds ``<blank>`` or ``<sos/eos>``.
    """
    texts, problems = [], []
    for number, line in enumerate(read_lines(path), 1):
        key, _, text = normal_space(line).partition(" ")
        problems += [
            f"{path}: line {number}: {key} has {symbol} in its text, a word that only training may "
            "use: take it out"
            for symbol in (BLANK, SENTENCE)
            if symbol in text
        ]
        texts.append(text)
    raise_if_any(problems)
    return [text for text in texts if text]


def read_texts(paths):
    """Texts of several files, see ``read_transcripts``; an id may be in several."""
    texts = [text for path in paths for text in read_transcripts(path)]
    if not texts:
        raise UserError(f"{', '.join(map(str, paths))}: no text to make tokens from")
    return texts


def load_bpe(model):
    """A sentencepiece model, of its bytes or of its path.

    Raises:
        UserError: The file is none.
    """
    try:
        source = {"model_proto" if isinstance(model, bytes) else "model_file": model}
        processor = spm.SentencePieceProcessor(**source)
        processor.encode("a")
    except (OSError, RuntimeError) as error:
        said = " ".join(str(error).split())
        raise UserError(f"{model}: is no sentencepiece model ({said}); get it again") from None
    return processor


def text_warnings(texts, model=None):
    """Lines about what these texts lose as tokens, for a person to read.

    Args:
        texts: List of strings.
        model: Sentencepiece model, its bytes or its path; ``None`` for other kinds of tokens.
    """
    warnings = []
    if unknown := sum(UNKNOWN in text for text in texts):
        warnings.append(
            f"{unknown} of {len(texts)} texts hold {UNKNOWN}: nothing can be learnt from it"
        )
    if model is None:
        return warnings
    processor = load_bpe(model)
    unknown, changed = [], []
    for text in texts:
        ids = processor.encode(text.replace(UNKNOWN, ""))
        if processor.unk_id() in ids:
            unknown.append(text)
        elif UNKNOWN not in text and normal_space(processor.decode(ids)) != text:
            changed.append(text)
    if unknown:
        found = sorted(
            c for c in set("".join(unknown)) if processor.unk_id() in processor.encode(c)
        )
        warnings.append(
            f"{len(unknown)} of {len(texts)} texts hold characters that are in no BPE token, so "
            f"that a perfect result counts errors: {', '.join(map(ascii, found[:10]))}"
        )
    if changed:
        forms = sum(not unicodedata.is_normalized("NFKC", text) for text in changed)
        difference = _difference(changed[0], processor.decode(processor.encode(changed[0])))
        warnings.append(
            f"{len(changed)} of {len(texts)} texts come back from these BPE tokens with other "
            f"characters, so that a perfect result counts errors ({forms} are not in Unicode's "
            "form NFKC, which sentencepiece turns text into: write the transcripts in it); the "
            f"first: {difference}"
        )
    return warnings


def _difference(text, back):
    """Name the first word that differs, in ASCII: such words often look alike."""
    words = zip([*text.split(), ""], [*back.split(), ""], strict=False)
    before, after = next((a, b) for a, b in words if a != b)
    return f"{before!a} becomes {after!a}"


def train_bpe(texts, nbpe, mode="unigram", coverage=1.0, max_sentences=100_000_000, symbols=()):
    """Train a sentencepiece model.

    Args:
        texts: List of strings.
        nbpe: Number of tokens.
        mode: ``"unigram"`` or ``"bpe"``.
        coverage: Fraction of the characters that the model covers.
        max_sentences: Sentences that training draws at most.
        symbols: Strings that are never split.

    Returns:
        (model, vocabulary): the serialised model, the same bytes for the same input; and a list of
        (token, score).

    Raises:
        UserError: ``nbpe`` does not fit the text; the message gives the limit. Or sentencepiece
            would leave a text out.
    """
    raise_if_any(
        [
            f"the text {text[:40]!r} has the character {SPM_UNKNOWN} (U+2585), which sentencepiece "
            "keeps for itself, and would be left out: take it out"
            for text in texts
            if SPM_UNKNOWN in text
        ]
    )
    content = io.BytesIO()
    try:
        spm.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=content,
            vocab_size=max(nbpe, SPM_SPECIALS),
            model_type=mode,
            character_coverage=coverage,
            input_sentence_size=max_sentences,
            max_sentence_length=max(SPM_LONGEST, *(len(text.encode()) for text in texts)),
            user_defined_symbols=list(symbols),
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        if match := re.search(r"value <= (\d+)", str(error)):
            raise UserError(
                f"nbpe {nbpe}: too large for this text, the largest possible is {match[1]}"
            ) from error
        if match := re.search(r"required_chars\. \d+ vs (\d+)", str(error)):
            raise UserError(
                f"nbpe {nbpe}: too small for this text, the smallest possible is {match[1]}"
            ) from error
        raise UserError(f"sentencepiece cannot train on this text: {error}") from error
    model = spm.SentencePieceProcessor(model_proto=content.getvalue())
    return content.getvalue(), [
        (model.id_to_piece(i), model.get_score(i)) for i in range(len(model))
    ]


def split_characters(text, symbols=()):
    """Split a text into characters, the space being ``<space>``.

    ``symbols`` are strings that count as one character, longer ones first.
    """
    longest_first = sorted(symbols, key=len, reverse=True)
    pattern = "|".join([*map(re.escape, longest_first), "."])
    return [SPACE if token == " " else token for token in re.findall(pattern, text, re.DOTALL)]


def count_tokens(texts, token_type, symbols=()):
    """Characters (``"char"``) or words (``"word"``) of texts.

    Frequent ones come first; equally frequent ones in the order of the texts. ``symbols``: see
    ``split_characters``.
    """
    split = str.split if token_type == "word" else lambda text: split_characters(text, symbols)
    counts = Counter(token for text in texts for token in split(text))
    return [token for token, _ in counts.most_common()]


def token_list(tokens):
    """``<blank>``, ``<unk>``, the tokens, ``<sos/eos>``; none is there twice."""
    for symbol in (BLANK, SENTENCE):
        if symbol in tokens:
            raise UserError(f"{symbol} is a token of its own already: take it out of the symbols")
    return [BLANK, UNKNOWN, *(token for token in tokens if token != UNKNOWN), SENTENCE]
