"""Text to token ids at the speed of a dictionary: each word is cut into pieces once.

BERT's normaliser and pre-tokeniser never look past a blank, nor past a Han character or a mark that
stands by itself. So the tokens of a text are those of its words, one after another; words come back
often, and their ids are kept, as bytes that only need joining. What is not kept yet is tokenized by
the Rust engine, all new words of a batch in one call. Equal to the engine, id for id.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from bertkit.text.inputs import input_error
from bertkit.text.rows import Texts
from bertkit.text.tokens import TokenTable

# Han characters that no normalisation changes.
_HAN = "\u3400-\u4dbf\u4e00-\u9fff"
# The marks of ASCII that end most words.
_MARKS = ",.\"'()-:;"
_IS_MARK = np.zeros(256, dtype=np.bool_)
_IS_MARK[[ord(mark) for mark in _MARKS]] = True
_LONGEST_KEPT = 64
# The arrays of one pass take about thirty bytes a character.
_CHARACTERS_AT_ONCE = 500_000
# New words are handed to the engine in lines of this many with [SEP] after each: for 200,000 words
# that takes it 1.5 s, a call for each word 2.7 s.
_WORDS_IN_LINE = 128


class WordCache:
    """Encodes sentences without special tokens, as `BertTokenizer.encode_sentences` does.

    Args:
        tokenizer: whose ids these are. Tokens added to it later are not seen.
        limit: words kept at most; then the cache starts anew (200 bytes each, about).
        offsets: keep where in its word each token stands, too; see `texts`.
    """

    def __init__(
        self, tokenizer: TokenTable, limit: int = 400_000, *, offsets: bool = False
    ) -> None:
        self.tokenizer, self.limit, self.offsets = tokenizer, limit, offsets
        small = len(tokenizer) <= 1 << 16 and not offsets
        self.dtype = np.dtype("<u2" if small else "<u4")
        self._kept: dict[str, bytes] = {}
        self._bytes_each = self.dtype.itemsize * (3 if offsets else 1)
        self._by_character = tokenizer.tokenize_chinese_chars
        added = tokenizer.added_tokens_decoder.values()
        normalize = tokenizer.engine.normalizer.normalize_str
        in_normalized = [normalize(t.content) for t in added if t.normalized]
        as_written = [token.content for token in added if not token.normalized]
        # The engine looks for added tokens first, in whole texts. One that looks at its neighbours,
        # spans words or holds Han characters is only found there.
        self.exact = not (
            any(token.single_word or token.lstrip or token.rstrip for token in added)
            or any(re.search(rf"[\s{_HAN}{re.escape(_MARKS)}]", token) for token in in_normalized)
            or any(re.search(rf"[\s{_HAN}]", token) for token in as_written)
        )
        # What parts words in a line; the engine must find it wherever it stands.
        parting = [t.content for t in added if t.special and not (t.lstrip or t.rstrip)]
        self._parting = tokenizer.sep_token if tokenizer.sep_token in parting else ""
        # Where one may stand that holds marks, marks do not end words.
        firsts = {t[0] for t in as_written if not set(_MARKS).isdisjoint(t)}
        self._may_hold_marks = re.compile(f"[{re.escape(''.join(firsts))}]") if firsts else None

    def encode(self, sentences: Sequence[str]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """The ids of all sentences laid end to end [T], and the tokens of each [sentences].

        Raises:
            DataError: a sentence holds a lone surrogate.
            TypeError: a sentence is not text.
        """
        if not self.exact:
            rows = self.tokenizer.encode_sentences(list(sentences))
            lengths = np.array([len(row) for row in rows], dtype=np.int64)
            return np.array([i for row in rows for i in row], dtype=self.dtype), lengths
        tokens, lengths, _ = self.texts(sentences)
        return tokens, lengths

    def texts(self, sentences: Sequence[str]) -> Texts:
        """As `encode`, with the characters of its sentence under each token if they are kept."""
        assert self.exact
        parts = [self._encode(part) for part in _portions(sentences)]
        tokens = np.concatenate([tokens for tokens, _, _ in parts])
        lengths = np.concatenate([lengths for _, lengths, _ in parts])
        if not self.offsets:
            return Texts(tokens, lengths, None)
        starts = np.concatenate([starts for _, _, starts in parts])
        return Texts(tokens[:, 0], lengths, tokens[:, 1:] + starts[:, None])

    def _encode(
        self, sentences: Sequence[str]
    ) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[Any]]:
        """Tokens [T] or [T, 3], tokens of each sentence, where each token's word starts [T]."""
        try:
            spaced, characters = self._spaced(sentences)
        except (TypeError, UnicodeError) as error:
            raise input_error(sentences, words=False) from error
        # Arrow finds the words and numbers them; Python sees each different word once.
        words = pc.split_pattern(spaced, " ")
        numbered = words.values.dictionary_encode()
        encoded = self._lookup(numbered.dictionary.to_pylist())
        sizes = np.fromiter(map(len, encoded), np.int64, len(encoded)) // self._bytes_each
        table = np.frombuffer(b"".join(encoded), self.dtype)
        table = table.reshape(-1, 3) if self.offsets else table
        chosen = numbered.indices.to_numpy()
        taken = sizes[chosen]
        ends = np.concatenate([[0], np.cumsum(taken)])
        first = (np.cumsum(sizes) - sizes)[chosen]
        tokens = table[np.repeat(first - ends[:-1], taken) + np.arange(ends[-1])]
        bounds = words.offsets.to_numpy()
        starts = np.zeros(0, dtype=np.int64)
        if self.offsets:
            starts = np.repeat(_word_starts(words, bounds, characters), taken)
        return tokens, np.diff(ends[bounds]), starts

    def _spaced(self, sentences: Sequence[str]) -> tuple[pa.LargeStringArray, NDArray[Any]]:
        """The sentences with blanks around what stands alone anyway: Han characters and marks.

        And, if offsets are wanted, the number in its sentence of the character at each byte.
        """
        text = "".join([s + "\n" for s in sentences])
        if text.count("\n") != len(sentences):  # one has a line end inside, which is a blank
            text = "".join([s.replace("\n", " ") + "\n" for s in sentences])
        data = np.frombuffer(text.encode(), dtype=np.uint8)
        alone = _IS_MARK[data]
        holds = self._may_hold_marks
        if holds is not None and holds.search(text):
            hold = [holds.search(s) is not None for s in sentences]
            alone &= ~np.array([*hold, False])[np.cumsum(data == 10) - (data == 10)]
        before = after = alone
        if self._by_character and not text.isascii():
            han = _han_bytes(data)
            before, after = alone | han, alone | np.roll(han, 2)
        ends = np.cumsum(before.view(np.uint8) + after.view(np.uint8) + np.uint8(1), dtype=np.int64)
        places = ends - 1 - after
        spaced = np.full(ends[-1] if len(ends) else 0, 32, dtype=np.uint8)
        spaced[places] = data
        bounds = np.concatenate([[0], np.flatnonzero(spaced == 10) + 1]).astype(np.int64)
        spaced[bounds[1:] - 1] = 32
        characters = np.zeros(0, dtype=np.int64)
        if self.offsets:
            characters = np.zeros(len(spaced) + 1, dtype=np.int64)
            characters[places] = _numbers_in_sentence(data)
        buffers = [None, pa.py_buffer(bounds), pa.py_buffer(spaced)]
        array = pa.LargeStringArray.from_buffers(len(sentences), buffers[1], buffers[2])
        return array, characters

    def _lookup(self, words: list[str]) -> list[bytes]:
        """The ids of each word as bytes; new words are tokenized and kept."""
        found: list[Any] = list(map(self._kept.get, words))
        missing = [i for i, known in enumerate(found) if known is None]
        if missing:
            new = self._tokenized([words[i] for i in missing])
            if len(self._kept) + len(missing) > self.limit:
                self._kept.clear()
            for i, encoded in zip(missing, new, strict=True):
                found[i] = encoded
                if len(words[i]) <= _LONGEST_KEPT:
                    self._kept[words[i]] = encoded
        return found

    def _tokenized(self, words: list[str]) -> list[bytes]:
        if self.offsets:
            rows = self.tokenizer.encode_sentences_offsets(words)
            sizes = [len(ids) for ids, _ in rows]
            table = np.empty((sum(sizes), 3), dtype=self.dtype)
            table[:, 0] = [i for ids, _ in rows for i in ids]
            table[:, 1] = [start for _, spans in rows for start, _ in spans]
            table[:, 2] = [end for _, spans in rows for _, end in spans]
            joined = table.tobytes()
        else:
            ids, sizes = self._ids_of(words)
            joined = ids.astype(self.dtype).tobytes()
        ends = (np.cumsum([0, *sizes]) * self._bytes_each).tolist()
        return [joined[a:b] for a, b in pairwise(ends)]

    def _ids_of(self, words: list[str]) -> tuple[NDArray[np.int64], list[int]]:
        """The ids of all words laid end to end, and how many each has."""
        parting = self._parting
        if not parting or any(parting in word for word in words):
            rows = self.tokenizer.encode_sentences(words)
            return np.array([i for row in rows for i in row], np.int64), list(map(len, rows))
        lines = [
            f" {parting} ".join([*words[i : i + _WORDS_IN_LINE], ""])
            for i in range(0, len(words), _WORDS_IN_LINE)
        ]
        ids = np.array([i for row in self.tokenizer.encode_sentences(lines) for i in row], np.int64)
        ends = np.flatnonzero(ids == self.tokenizer.sep_token_id)
        assert len(ends) == len(words)
        sizes: list[int] = (np.diff(ends, prepend=-1) - 1).tolist()
        return np.delete(ids, ends), sizes


def _portions(sentences: Sequence[str]) -> Iterator[Sequence[str]]:
    """The sentences, so many at once that the arrays of a pass stay small."""
    try:
        ends = np.cumsum([len(sentence) for sentence in sentences])
    except TypeError as error:
        raise input_error(sentences, words=False) from error
    first = 0
    while first < len(sentences):
        limit = _CHARACTERS_AT_ONCE + (ends[first - 1] if first else 0)
        last = max(first + 1, int(np.searchsorted(ends, limit)))
        yield sentences[first:last]
        first = last
    if not len(sentences):
        yield sentences


def _han_bytes(data: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """True at the first byte of each Han character of UTF-8 text (U+3400-4DBF, U+4E00-9FFF)."""
    high = (data >= 0xE3) & (data <= 0xE9)
    places = np.flatnonzero(high)
    found = np.zeros(len(data), dtype=np.bool_)
    code = (data[places].astype(np.int32) & 15) << 12
    code |= (data[places + 1].astype(np.int32) & 63) << 6
    code |= data[places + 2].astype(np.int32) & 63
    is_han = ((code >= 0x4E00) & (code <= 0x9FFF)) | ((code >= 0x3400) & (code <= 0x4DBF))
    found[places[is_han]] = True
    return found


def _numbers_in_sentence(data: NDArray[np.uint8]) -> NDArray[np.int64]:
    """For each byte of UTF-8 lines, the number of its character, from 0 in every line."""
    number: NDArray[np.int64] = np.cumsum((data & 0xC0) != 0x80) - 1
    line_ends = data == 10
    first = np.concatenate([[0], number[line_ends] + 1])
    number -= first[np.cumsum(line_ends) - line_ends]
    return number


def _word_starts(
    words: Any, bounds: NDArray[Any], characters: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The character at which each word starts: one blank was cut out after each, save the last."""
    lengths = pc.binary_length(words.values).to_numpy()
    sentence = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
    place = np.cumsum(lengths) - lengths + np.arange(len(lengths)) - sentence
    starts: NDArray[np.int64] = characters[place]
    return starts
