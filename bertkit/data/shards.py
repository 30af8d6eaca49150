"""Token shards on disk: a split folder holds documents as sentences of token ids.

    index.json          sizes and SHA-256 of everything below; written last, so it marks the end
    tokens-00000.bin    token ids, document after document, uint16 (vocabulary <= 65536) or uint32
    lengths-00000.bin   tokens of each sentence, in the smallest unsigned type that holds them
    counts-00000.bin    sentences of each document, likewise
    words-00000.bin     only when asked: one bit a token (np.packbits), 1 where a word starts

A document never spans two shards. Which shard a document goes to depends on the documents before
it and on nothing else, so the bytes are the same however the additions were cut. Empty sentences
and documents without a token are left out.
"""

from __future__ import annotations

import hashlib
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from bertkit.errors import DataError

INDEX = "index.json"
FORMAT = 1
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Tokens = NDArray[np.uint16] | NDArray[np.uint32]


class FileEntry(Struct, frozen=True, forbid_unknown_fields=True):
    """What a file must be: its size in bytes and its SHA-256."""

    bytes: int
    sha256: str


class ShardEntry(Struct, frozen=True, forbid_unknown_fields=True):
    """What one shard holds. Its file names follow from its number; none is read from the index."""

    documents: int
    sentences: int
    tokens: int
    lengths_dtype: Literal["uint8", "uint16", "uint32"]
    counts_dtype: Literal["uint8", "uint16", "uint32"]
    files: dict[str, FileEntry]


class StoreIndex(Struct, frozen=True, forbid_unknown_fields=True):
    """The contents of index.json."""

    format: int
    vocab_size: int
    dtype: Literal["uint16", "uint32"]
    with_words: bool
    shards: list[ShardEntry]


def shard_file(folder: Path, kind: str, number: int) -> Path:
    """Where the file of this kind ("tokens", "lengths", ...) of a shard is."""
    return folder / f"{kind}-{number:05d}.bin"


def little_endian(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The type as it stands on disk."""
    return dtype.newbyteorder("<")


class _Shard:
    """One shard, memory-mapped, its sizes checked against the index."""

    def __init__(self, folder: Path, number: int, index: StoreIndex) -> None:
        self.entry = entry = index.shards[number]
        self.paths = {k: shard_file(folder, k, number) for k in ("tokens", "lengths", "counts")}
        if index.with_words:
            self.paths["words"] = shard_file(folder, "words", number)
        self.tokens = self._map("tokens", entry.tokens, index.dtype)
        self.lengths = self._map("lengths", entry.sentences, entry.lengths_dtype)
        self.counts = self._map("counts", entry.documents, entry.counts_dtype)
        bits = (entry.tokens + 7) // 8
        self.words = self._map("words", bits, "uint8") if index.with_words else None
        self.sentence_ends = np.cumsum(self.counts, dtype=np.int64)
        self._check_sum("counts", int(self.sentence_ends[-1]), entry.sentences)
        # Tokens before each sentence of the shard, and at the end: [sentences + 1].
        self.offsets = np.zeros(entry.sentences + 1, dtype=np.int64)
        np.cumsum(self.lengths, out=self.offsets[1:])
        self._check_sum("lengths", int(self.offsets[-1]), entry.tokens)

    def _map(self, kind: str, count: int, dtype: str) -> NDArray[Any]:
        path, kind_of = self.paths[kind], little_endian(np.dtype(dtype))
        wanted = count * kind_of.itemsize
        recorded = self.entry.files.get(kind)
        try:
            size = path.stat().st_size
        except OSError as error:
            raise DataError(f"cannot be read ({error.strerror}); prepare again", path) from error
        if count <= 0 or recorded is None or recorded.bytes != wanted or size != wanted:
            raise DataError(f"is {size} bytes, not the {wanted} of its index; prepare again", path)
        mapped = np.memmap(path, dtype=kind_of, mode="r", shape=(count,))
        return mapped.view(np.ndarray)

    def _check_sum(self, kind: str, found: int, wanted: int) -> None:
        if found != wanted:
            what = f"adds up to {found}, not the {wanted} of its index; prepare again"
            raise DataError(what, self.paths[kind])

    def verify(self) -> None:
        for kind, path in self.paths.items():
            with open(path, "rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != self.entry.files[kind].sha256:
                raise DataError("differs from what was written (SHA-256); prepare again", path)


class TokenStore:
    """The documents of one split folder, memory-mapped.

    Attributes:
        documents, sentences, tokens: how many there are.
        vocab_size: all ids lie below it.
        with_words: whether word starts are stored.
        document_sentences: [documents + 1] int64, the sentences before each document.
        document_starts: [documents + 1] int64, the tokens before each document.

    Raises:
        DataError: a file is missing, truncated, too long or contradicts index.json.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.index = _read_index(self.folder / INDEX)
        self.vocab_size, self.with_words = self.index.vocab_size, self.index.with_words
        self.shards = [_Shard(self.folder, n, self.index) for n in range(len(self.index.shards))]
        entries = self.index.shards
        # Documents, sentences and tokens before each shard, and in all: [shards + 1].
        self.shard_documents = _before([e.documents for e in entries])
        self.shard_sentences = _before([e.sentences for e in entries])
        self.shard_tokens = _before([e.tokens for e in entries])
        self.documents = int(self.shard_documents[-1])
        self.sentences = int(self.shard_sentences[-1])
        self.tokens = int(self.shard_tokens[-1])
        self.document_sentences = np.zeros(self.documents + 1, dtype=np.int64)
        self.document_starts = np.zeros(self.documents + 1, dtype=np.int64)
        for n, shard in enumerate(self.shards):
            here = slice(int(self.shard_documents[n]) + 1, int(self.shard_documents[n + 1]) + 1)
            self.document_sentences[here] = self.shard_sentences[n] + shard.sentence_ends
            self.document_starts[here] = self.shard_tokens[n] + shard.offsets[shard.sentence_ends]

    def __len__(self) -> int:
        return self.documents

    def _place(self, document: int) -> tuple[_Shard, int, int]:
        """The shard of a document and its sentences' bounds in that shard."""
        if not 0 <= document < self.documents:
            raise IndexError(f"document {document} of {self.documents}")
        n = int(np.searchsorted(self.shard_documents, document, side="right")) - 1
        first, last = self.document_sentences[document : document + 2] - self.shard_sentences[n]
        return self.shards[n], int(first), int(last)

    def document(self, document: int) -> tuple[Tokens, Ints]:
        """The tokens of a document [T] and its sentences' offsets in them [sentences + 1]."""
        shard, first, last = self._place(document)
        offsets = shard.offsets[first : last + 1]
        return shard.tokens[offsets[0] : offsets[-1]], offsets - offsets[0]

    def document_tokens(self, document: int) -> Tokens:
        """The tokens of a document [T], not copied."""
        return self.document(document)[0]

    def sentences_of(self, document: int) -> list[Tokens]:
        """The sentences of a document, not copied."""
        tokens, offsets = self.document(document)
        bounds = offsets.tolist()
        return [tokens[a:b] for a, b in pairwise(bounds)]

    def word_starts(self, document: int) -> Bools:
        """[T] true where a word of the document starts; only where word starts are stored."""
        start, end = self.document_starts[document : document + 2]
        return self.gather_words(np.array([start]), np.array([end - start]))

    def sentence_offsets(self, sentences: Ints) -> Ints:
        """The tokens of the store before each of these sentences (numbered over the store)."""
        n = np.searchsorted(self.shard_sentences[1:-1], sentences, side="right")
        found = np.empty(len(sentences), dtype=np.int64)
        for k in np.unique(n):
            here = n == k
            local = sentences[here] - self.shard_sentences[k]
            found[here] = self.shard_tokens[k] + self.shards[k].offsets[local]
        return found

    def sentence_at(self, tokens: Ints) -> Ints:
        """The first sentence that starts at or after so many tokens of the store."""
        n = np.searchsorted(self.shard_tokens[1:-1], tokens, side="left")
        found = np.empty(len(tokens), dtype=np.int64)
        for k in np.unique(n):
            here = n == k
            local = tokens[here] - self.shard_tokens[k]
            found[here] = self.shard_sentences[k] + np.searchsorted(self.shards[k].offsets, local)
        return found

    def gather(self, starts: Ints, lengths: Ints) -> Tokens:
        """Token ranges laid end to end; a range counts tokens over the store, in one shard."""
        out = np.empty(int(lengths.sum()), dtype=self.index.dtype)
        for shard, source, target in self._split(starts, lengths):
            out[target] = shard.tokens[source]
        return out

    def gather_words(self, starts: Ints, lengths: Ints) -> Bools:
        """Like `gather`: true where a word starts."""
        assert self.with_words, "this store has no word starts"
        out = np.empty(int(lengths.sum()), dtype=np.bool_)
        for shard, source, target in self._split(starts, lengths):
            assert shard.words is not None
            out[target] = (shard.words[source >> 3] >> (7 - (source & 7)).astype(np.uint8)) & 1
        return out

    def _split(self, starts: Ints, lengths: Ints) -> list[tuple[_Shard, Ints, Ints | slice]]:
        """The ranges by shard: which of its tokens, and where they go."""
        n = np.searchsorted(self.shard_tokens[1:-1], starts, side="right")
        ends = np.cumsum(lengths)
        if len(n) and n[0] == n[-1] and (n == n[0]).all():
            first = starts - self.shard_tokens[n[0]]
            return [(self.shards[n[0]], flat_ranges(first, lengths), slice(None))]
        parts: list[tuple[_Shard, Ints, Ints | slice]] = []
        for k in np.unique(n):
            here = n == k
            source = flat_ranges(starts[here] - self.shard_tokens[k], lengths[here])
            target = flat_ranges((ends - lengths)[here], lengths[here])
            parts.append((self.shards[k], source, target))
        return parts

    def verify(self) -> None:
        """Hash every file and compare with the index.

        Raises:
            DataError: naming the first file that changed.
        """
        for shard in self.shards:
            shard.verify()


def flat_ranges(starts: Ints, lengths: Ints) -> Ints:
    """The integers of the ranges [start, start + length), laid end to end."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(total)


def _before(sizes: list[int]) -> Ints:
    return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)


def _read_index(path: Path) -> StoreIndex:
    try:
        index = msgspec.json.decode(path.read_bytes(), type=StoreIndex)
    except FileNotFoundError as error:
        raise DataError("there are no prepared shards here; run bertkit prepare", path) from error
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DataError(f"is no index of shards ({error}); prepare again", path) from error
    if index.format != FORMAT:
        raise DataError(f"has format {index.format}, this bertkit reads {FORMAT}", path)
    return index
