"""Token lists: BPE with sentencepiece, characters, words; in the order ESPnet expects."""

import io
import re
from collections import Counter

import sentencepiece as spm

from espnet_ext.data.kaldi import read_lines
from espnet_ext.errors import UserError

BLANK, UNKNOWN, SPACE, SENTENCE = "<blank>", "<unk>", "<space>", "<sos/eos>"
SPM_SPECIALS = 3  # sentencepiece's own <unk>, <s>, </s> come first


def read_texts(paths):
    """Read the words of Kaldi-style text files.

    Args:
        paths: Files of ``id words`` lines; an id may be in several.

    Returns:
        List of strings, words separated by one space, without ids; empty texts are left out.

    Raises:
        UserError: A file is not readable, or no file has a word.
    """
    texts = [" ".join(line.split()[1:]) for path in paths for line in read_lines(path)]
    texts = [text for text in texts if text]
    if not texts:
        raise UserError(f"{', '.join(map(str, paths))}: no text to make tokens from")
    return texts


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
        UserError: ``nbpe`` does not fit the text; the message gives the limit.
    """
    content = io.BytesIO()
    try:
        spm.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=content,
            vocab_size=max(nbpe, SPM_SPECIALS),
            model_type=mode,
            character_coverage=coverage,
            input_sentence_size=max_sentences,
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
    """Split a text into characters.

    Args:
        text: String.
        symbols: Strings that count as one character, longer ones first.

    Returns:
        List of tokens; the space is ``<space>``.
    """
    longest_first = sorted(symbols, key=len, reverse=True)
    pattern = "|".join([*map(re.escape, longest_first), "."])
    return [SPACE if token == " " else token for token in re.findall(pattern, text, re.DOTALL)]


def count_tokens(texts, token_type, symbols=()):
    """List the characters or words of texts.

    Args:
        texts: List of strings.
        token_type: ``"char"`` or ``"word"``.
        symbols: See ``split_characters``.

    Returns:
        List of tokens, frequent ones first; equally frequent ones in the order of the texts.
    """
    split = str.split if token_type == "word" else lambda text: split_characters(text, symbols)
    counts = Counter(token for text in texts for token in split(text))
    return [token for token, _ in counts.most_common()]


def token_list(tokens):
    """Add ESPnet's special tokens.

    Args:
        tokens: List of tokens.

    Returns:
        ``<blank>``, ``<unk>``, the tokens, ``<sos/eos>``.
    """
    return [BLANK, UNKNOWN, *tokens, SENTENCE]
