"""Words of a hypothesis, with their times."""

from collections.abc import Iterator
from dataclasses import dataclass

BEGIN = "\N{LOWER ONE EIGHTH BLOCK}"


@dataclass(frozen=True)
class Word:
    """A word of a stream.

    Attributes:
        text: The word.
        start: Seconds from the beginning of the stream to the frame where its first token appears.
        end: Seconds to the end of the frame where its last token is still the likeliest. CTC puts a
            token near the end of its sound, so words look shorter than they are.
        confidence: 0 to 1: the product over its tokens of the largest probability that CTC gives
            each in its frames.
        appeared: Seconds heard when this word first stood at its place; minus its end, its delay.
    """

    text: str
    start: float
    end: float
    confidence: float
    appeared: float


def words_of(tokens: list[str], token_type: str) -> Iterator[slice]:
    """Which tokens make a word.

    Args:
        tokens: Of a hypothesis.
        token_type: ESPnet's: ``bpe`` begins words with ``BEGIN``, ``char`` divides
            them by ``<space>``, and with any other each token is one.
    """
    begin = 0
    for i, token in enumerate(tokens):
        divides = token_type == "char" and token == "<space>"
        begins = token_type not in ("bpe", "char") or (token_type == "bpe" and token[0] == BEGIN)
        if i > begin and (divides or begins):
            yield slice(begin, i)
        if divides or begins:
            begin = i + divides
    if begin < len(tokens):
        yield slice(begin, len(tokens))
