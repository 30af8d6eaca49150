"""A text as the model reads it, each token with the user's own characters and word.

Rows of every table and picture are labelled by this: never by bare word pieces, which have lost
capitals, accents and what the vocabulary cannot write.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal, Self

from bertkit.batch import Batch
from bertkit.errors import DataError
from bertkit.tasks.asking import pack
from bertkit.tasks.score import word_at
from bertkit.text.sentences import word_spans

if TYPE_CHECKING:
    from bertkit.text.tokenizer import BertTokenizer

Segmenter = Literal["jieba"]
# Before the characters of a token that continues a word, as in the vocabulary.
CONTINUED = "##"


@dataclass(frozen=True, slots=True)
class Word:
    """A word of the user's text.

    Attributes:
        text: the user's own characters.
        start: where it begins in its text.
        end: behind its last character.
        first: its first token.
        last: behind its last token.
        segment: 0 for the first text, 1 for the second.
    """

    text: str
    start: int
    end: int
    first: int
    last: int
    segment: int


@dataclass(frozen=True, slots=True)
class Sentence:
    """A text, or a pair of texts, as tokens: [CLS] A [SEP] or [CLS] A [SEP] B [SEP].

    Attributes:
        texts: the user's own, one or two.
        ids: [S] token ids.
        types: [S] the segment of each token.
        spans: [S] the characters of its text under each token; None for special tokens.
        words: in order; special tokens belong to none. A [MASK] that the user wrote is a word.
        labels: [S] how a token is shown: the user's own characters.
    """

    texts: tuple[str, ...]
    ids: tuple[int, ...]
    types: tuple[int, ...]
    spans: tuple[tuple[int, int] | None, ...]
    words: tuple[Word, ...]
    labels: tuple[str, ...]

    def batch(self) -> Batch:
        """One sequence, on the CPU."""
        return pack([self.ids], [self.types])

    def masks(self, mask_id: int) -> list[int]:
        """The tokens that are masks."""
        return [i for i, token in enumerate(self.ids) if token == mask_id]

    def find(self, word: str | int) -> Word:
        """A word by its number from 0, or the first that is written so.

        Raises:
            DataError: there is none.
        """
        if isinstance(word, int):
            if 0 <= word < len(self.words):
                return self.words[word]
            raise DataError(
                f"there is no word {word}; the text has words 0 to {len(self.words) - 1}"
            )
        for exact in (True, False):
            for found in self.words:
                if found.text == word or (not exact and found.text.lower() == word.lower()):
                    return found
        shown = " ".join(repr(w.text) for w in self.words[:20])
        characters = {w.text for w in self.words}
        split = len(word) > 1 and characters.issuperset(word)
        hint = "; --segmenter jieba makes words of Chinese characters" if split else ""
        raise DataError(f"{word!r} is no word of the text; its words are {shown}{hint}")

    def masked(self, word: Word, mask_id: int) -> Self:
        """The same with all tokens of a word masked; it is shown in brackets."""
        ids, labels = list(self.ids), list(self.labels)
        for i in range(word.first, word.last):
            ids[i], labels[i] = mask_id, f"[{labels[i]}]"
        return replace(self, ids=tuple(ids), labels=tuple(labels))


def read_sentence(
    opened_tokenizer: BertTokenizer,
    text: str,
    pair: str | None = None,
    *,
    max_length: int,
    segmenter: Segmenter | None = None,
) -> Sentence:
    """Tokenize one text or pair.

    Args:
        opened_tokenizer: the model's.
        text: the text.
        pair: the second text.
        max_length: tokens that the model reads.
        segmenter: "jieba" makes words of Chinese characters; None: each is a word.

    Raises:
        DataError: the text is empty or longer than the model reads.
    """
    encoded = opened_tokenizer(text, pair, return_offsets_mapping=True)
    ids = encoded["input_ids"]
    if len(ids) > max_length:
        raise DataError(
            f"the text is {len(ids)} tokens long and the model reads {max_length}; shorten it"
        )
    texts = (text,) if pair is None else (text, pair)
    sides = encoded.sequence_ids(0)
    spans = [
        None if side is None else (int(span[0]), int(span[1]))
        for side, span in zip(sides, encoded["offset_mapping"], strict=True)
    ]
    if all(span is None for span in spans):
        raise DataError("the text is empty; give at least one word")
    owners = _owners(encoded, texts, spans, sides, segmenter)
    words = tuple(_words(texts, spans, owners))
    begins = {word.first for word in words}
    names = opened_tokenizer.convert_ids_to_tokens(list(ids))
    labels = tuple(
        names[i]
        if span is None
        else texts[int(sides[i] or 0)][slice(*span)].join(("" if i in begins else CONTINUED, ""))
        for i, span in enumerate(spans)
    )
    return Sentence(
        texts, tuple(ids), tuple(encoded["token_type_ids"]), tuple(spans), words, labels
    )


def _owners(
    encoded: Any,
    texts: Sequence[str],
    spans: Sequence[tuple[int, int] | None],
    sides: Sequence[int | None],
    segmenter: Segmenter | None,
) -> list[tuple[int, int] | None]:
    """For each token its text and the number of its word; None for special tokens."""
    numbers = encoded.word_ids(0)
    if segmenter is None:
        return [
            None if side is None or number is None else (side, number)
            for side, number in zip(sides, numbers, strict=True)
        ]
    cuts = [word_spans(text, segmenter) for text in texts]
    owners: list[tuple[int, int] | None] = []
    for side, span in zip(sides, spans, strict=True):
        if side is None or span is None:
            owners.append(None)
            continue
        # A token that no word holds, such as a mask, stands for itself: below all words' numbers.
        owners.append((side, word_at(cuts[side], span[0])))
    return owners


def _words(
    texts: Sequence[str],
    spans: Sequence[tuple[int, int] | None],
    owners: Sequence[tuple[int, int] | None],
) -> list[Word]:
    found = []
    for owner, group in groupby(range(len(owners)), key=owners.__getitem__):
        if owner is None:
            continue
        tokens = list(group)
        first, last = spans[tokens[0]], spans[tokens[-1]]
        assert first is not None
        assert last is not None
        text = texts[owner[0]][first[0] : last[1]]
        found.append(Word(text, first[0], last[1], tokens[0], tokens[-1] + 1, owner[0]))
    return found
