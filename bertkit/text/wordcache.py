"""Text to token ids at the speed of a dictionary: each word is cut into pieces once.

BERT's normaliser and pre-tokeniser never look past a blank, nor past a Han character that stands by
itself. So the tokens of a text are those of its words, one after another; words come back often,
and their ids are kept, as bytes that only need joining. What is not kept is tokenized by the Rust
engine, or, if it is plain ASCII, by WordPiece's greedy rule spelled out below. Equal to the
engine, id for id.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from bertkit.text.tokenizer import BertTokenizer

# Han characters that no normalisation changes.
_HAN = "\u3400-\u4dbf\u4e00-\u9fff"
# ASCII words and the punctuation that always stands alone: ASCII's, and dashes, quotes, dots ….
_PLAIN = re.compile(r"[A-Za-z0-9]+|[!-/:-@\[-`{-~\u2010-\u2027]")
_MARKS = np.zeros(256, dtype=np.bool_)
_MARKS[[ord(mark) for mark in ",.\"'()-:;"]] = True
_ALL_PLAIN = re.compile(r"[!-~\u2010-\u2027]+")
_LONGEST_KEPT = 64


class WordCache:
    """Encodes sentences without special tokens, as `BertTokenizer.encode_sentences` does.

    Args:
        tokenizer: whose ids these are.
        limit: words kept at most; then the cache starts anew (150 bytes each, about).
    """

    def __init__(self, tokenizer: BertTokenizer, limit: int = 400_000) -> None:
        self.tokenizer = tokenizer
        self.dtype = np.dtype("<u2" if len(tokenizer) <= 1 << 16 else "<u4")
        added = list(tokenizer.get_added_vocab())
        # An added token that spans words, or holds Han characters, is only found in whole texts.
        self.exact = not any(re.search(rf"[\s{_HAN}]", token) for token in added)
        self._pieces = _Pieces(tokenizer, self.dtype, added, limit)
        self._by_character = tokenizer.tokenize_chinese_chars

    def encode(self, sentences: Sequence[str]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """The ids of all sentences laid end to end [T], and the tokens of each [sentences]."""
        if not self.exact:
            rows = self.tokenizer.encode_sentences(list(sentences))
            lengths = np.array([len(row) for row in rows], dtype=np.int64)
            return np.array([i for row in rows for i in row], dtype=self.dtype), lengths
        # Arrow finds the words and numbers them; Python sees each different word once.
        words = pc.split_pattern(self._spaced(sentences), " ")
        numbered = words.values.dictionary_encode()
        encoded = [self._pieces[word] for word in numbered.dictionary.to_pylist()]
        sizes = np.fromiter(map(len, encoded), np.int64, len(encoded)) // self.dtype.itemsize
        table = np.frombuffer(b"".join(encoded), self.dtype)
        chosen = numbered.indices.to_numpy()
        taken = sizes[chosen]
        ends = np.concatenate([[0], np.cumsum(taken)])
        first = (np.cumsum(sizes) - sizes)[chosen]
        tokens = table[np.repeat(first - ends[:-1], taken) + np.arange(ends[-1])]
        return tokens, np.diff(ends[words.offsets.to_numpy()])

    def _spaced(self, sentences: Sequence[str]) -> pa.LargeStringArray:
        """The sentences with blanks around what stands alone anyway: Han characters and marks."""
        text = "".join([s + "\n" for s in sentences])
        if text.count("\n") != len(sentences):  # one has a line end inside, which is a blank
            text = "".join([s.replace("\n", " ") + "\n" for s in sentences])
        data = np.frombuffer(text.encode(), dtype=np.uint8)
        alone = _MARKS[data]
        if self._pieces.may_be_added(text):
            hold = [self._pieces.may_be_added(s) for s in sentences]
            alone &= ~np.array([*hold, False])[np.cumsum(data == 10) - (data == 10)]
        before = after = alone
        if self._by_character and not text.isascii():
            han = _han_bytes(data)
            before, after = alone | han, alone | np.roll(han, 2)
        ends = np.cumsum(before.view(np.uint8) + after.view(np.uint8) + np.uint8(1), dtype=np.int64)
        spaced = np.full(ends[-1] if len(ends) else 0, 32, dtype=np.uint8)
        spaced[ends - 1 - after] = data
        bounds = np.concatenate([[0], np.flatnonzero(spaced == 10) + 1]).astype(np.int64)
        spaced[bounds[1:] - 1] = 32
        buffers = [None, pa.py_buffer(bounds), pa.py_buffer(spaced)]
        return pa.LargeStringArray.from_buffers(len(sentences), buffers[1], buffers[2])


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


class _Pieces(dict[str, bytes]):
    """Words to the bytes of their ids; a word that is missing is tokenized and kept."""

    def __init__(
        self, tokenizer: BertTokenizer, dtype: np.dtype[Any], added: list[str], limit: int
    ) -> None:
        super().__init__()
        self.tokenizer, self.dtype, self.limit = tokenizer, dtype, limit
        self.lower = tokenizer.do_lower_case
        vocab = tokenizer.backend.get_vocab(with_added_tokens=False)
        self.starts = {token: self._pack([i]) for token, i in vocab.items()}
        self.continues = {t[2:]: i for t, i in self.starts.items() if t.startswith("##")}
        self.unknown = self._pack([tokenizer.unk_token_id])
        self.longest = max(map(len, vocab))
        self.words: dict[str, bytes] = {}
        # Words that may hold an added token are left to the engine; it looks for them first.
        firsts = {token[0] for token in added}
        self.engine_only = re.compile(f"[{re.escape(''.join(firsts))}]") if firsts else None
        model = tokenizer.backend.model
        self.plain = model.continuing_subword_prefix == "##" and not any(
            c.isalnum() for c in firsts
        )
        self.max_word = model.max_input_chars_per_word

    def _pack(self, ids: list[int]) -> bytes:
        return np.array(ids, self.dtype).tobytes()

    def __missing__(self, piece: str) -> bytes:
        if self.plain and piece.isascii() and piece.isalnum():
            encoded = self._wordpiece(piece.lower() if self.lower else piece)
        elif self.plain and _ALL_PLAIN.fullmatch(piece) and not self.may_be_added(piece):
            encoded = b"".join(map(self._word, _PLAIN.findall(piece)))
        else:
            encoded = self._pack(self.tokenizer.encode_sentences([piece])[0])
        if len(piece) <= _LONGEST_KEPT:
            if len(self) >= self.limit:
                self.clear()
                self.words.clear()
            self[piece] = encoded
        return encoded

    def may_be_added(self, piece: str) -> bool:
        return self.engine_only is not None and self.engine_only.search(piece) is not None

    def _word(self, word: str) -> bytes:
        found = self.words.get(word)
        if found is None:
            found = self._wordpiece(word.lower() if self.lower else word)
            if len(word) <= _LONGEST_KEPT:
                self.words[word] = found
        return found

    def _wordpiece(self, word: str) -> bytes:
        """The greedy longest match first of Wu et al. 2016 (arXiv 1609.08144)."""
        if len(word) > self.max_word:
            return self.unknown
        encoded = []
        start, size, known = 0, len(word), self.starts
        while start < size:
            for end in range(min(size, start + self.longest), start, -1):
                found = known.get(word[start:end])
                if found is not None:
                    encoded.append(found)
                    break
            else:
                return self.unknown
            start, known = end, self.continues
        return b"".join(encoded)
