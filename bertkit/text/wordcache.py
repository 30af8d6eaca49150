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
from numpy.typing import NDArray

from bertkit.text.tokenizer import BertTokenizer

# Han characters that no normalisation changes.
_HAN = "\u3400-\u4dbf\u4e00-\u9fff"
_PIECES = re.compile(f"[{_HAN}]|[^ {_HAN}]+")
# ASCII words and the punctuation that always stands alone: ASCII's, and dashes, quotes, dots ….
_PLAIN = re.compile(r"[A-Za-z0-9]+|[!-/:-@\[-`{-~\u2010-\u2027]")
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
        if self.exact:
            encoded = [self._bytes_of(s) for s in self._spaced(sentences)]
        else:
            rows = self.tokenizer.encode_sentences(list(sentences))
            encoded = [np.array(row, self.dtype).tobytes() for row in rows]
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded)) // self.dtype.itemsize
        return np.frombuffer(b"".join(encoded), self.dtype), lengths

    def _spaced(self, sentences: Sequence[str]) -> Sequence[str]:
        """Blanks around the commonest punctuation, which stands alone anyway: fewer unlike words."""
        text = "\n".join(sentences)
        if self._pieces.may_be_added(text) or text.count("\n") != len(sentences) - 1:
            if len(sentences) < 2:
                return sentences
            return [spaced for sentence in sentences for spaced in self._spaced([sentence])]
        for mark in ",.\"'()-:;":
            text = text.replace(mark, f" {mark} ")
        return text.split("\n")

    def _bytes_of(self, sentence: str) -> bytes:
        if sentence.isascii() or not self._by_character:
            words = sentence.split(" ")
        else:
            words = _PIECES.findall(sentence)
        return b"".join(map(self._pieces.__getitem__, words))


class _Pieces(dict[str, bytes]):
    """Words to the bytes of their ids; a word that is missing is tokenized and kept."""

    def __init__(
        self, tokenizer: BertTokenizer, dtype: np.dtype[Any], added: list[str], limit: int
    ) -> None:
        super().__init__()
        self.tokenizer, self.dtype, self.limit = tokenizer, dtype, limit
        self.vocab = tokenizer.backend.get_vocab(with_added_tokens=False)
        self.unknown = self._pack([tokenizer.unk_token_id])
        self.longest = max(map(len, self.vocab))
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
        if self.plain and _ALL_PLAIN.fullmatch(piece) and not self.may_be_added(piece):
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
            found = self._wordpiece(word.lower() if self.tokenizer.do_lower_case else word)
            if len(word) <= _LONGEST_KEPT:
                self.words[word] = found
        return found

    def _wordpiece(self, word: str) -> bytes:
        """The greedy longest match first of Wu et al. 2016 (arXiv 1609.08144)."""
        if len(word) > self.max_word:
            return self.unknown
        ids: list[int] = []
        start, size, prefix = 0, len(word), ""
        while start < size:
            for end in range(min(size, start + self.longest), start, -1):
                found = self.vocab.get(prefix + word[start:end])
                if found is not None:
                    ids.append(found)
                    break
            else:
                return self.unknown
            start, prefix = end, "##"
        return self._pack(ids)
