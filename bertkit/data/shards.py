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
import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import ArrayLike, NDArray

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


class ShardWriter:
    """Writes documents into the shards of one split folder.

    Use it as a context manager, or call `close`: without index.json the folder is no store. A
    writer that failed leaves no index.json.

    Args:
        folder: made when missing; must not hold a finished store.
        vocab_size: ids must lie below it; sets the integer type on disk.
        with_words: also store where words start.
        shard_tokens: a shard is closed before the document that would pass this many tokens.

    Raises:
        DataError: the folder already holds a store.
    """

    def __init__(
        self,
        folder: str | Path,
        vocab_size: int,
        with_words: bool = False,
        shard_tokens: int = 1 << 25,
    ) -> None:
        self.folder = Path(folder)
        if (self.folder / INDEX).exists():
            raise DataError("already holds prepared shards; choose another folder", self.folder)
        assert 0 < vocab_size <= 1 << 32
        assert shard_tokens > 0
        self.folder.mkdir(parents=True, exist_ok=True)
        self.vocab_size, self.with_words, self.shard_tokens = vocab_size, with_words, shard_tokens
        self.dtype: Literal["uint16", "uint32"] = "uint16" if vocab_size <= 1 << 16 else "uint32"
        self.documents = self.sentences = self.tokens = 0
        self._entries: list[ShardEntry] = []
        self._shard: _OpenShard | None = None

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        elif self._shard is not None:
            self._shard.abandon()

    def add(
        self, sentences: Sequence[ArrayLike], word_starts: Sequence[ArrayLike] | None = None
    ) -> None:
        """Append one document: the ids of each of its sentences, without special tokens.

        Args:
            sentences: one sequence of ids a sentence.
            word_starts: of the same shape, true where a word starts; needed with `with_words`.
        """
        if not sentences:
            return
        arrays = [np.asarray(s) for s in sentences]
        starts = None
        if word_starts is not None:
            starts = np.concatenate([np.asarray(w, dtype=np.bool_) for w in word_starts])
        lengths = np.array([len(a) for a in arrays], dtype=np.int64)
        flat = np.concatenate([a.astype(np.int64, copy=False) for a in arrays])
        self.add_many(flat, lengths, np.array([len(arrays)]), starts)

    def add_many(
        self,
        tokens: NDArray[Any],
        sentence_lengths: NDArray[Any],
        sentences_per_document: NDArray[Any],
        word_starts: Bools | None = None,
    ) -> None:
        """Append many documents at once.

        Args:
            tokens: [T] ids of all documents laid end to end.
            sentence_lengths: [sentences] tokens of each; they sum to T.
            sentences_per_document: [documents]; they sum to the number of sentences.
            word_starts: [T] true where a word starts; needed exactly with `with_words`.
        """
        counts = np.asarray(sentences_per_document).astype(np.int64)
        lengths = np.asarray(sentence_lengths).astype(np.int64)
        assert counts.sum() == len(lengths), "sentence counts do not add up"
        assert lengths.sum() == len(tokens), "sentence lengths do not add up"
        assert (word_starts is not None) == self.with_words, "word starts: given but not asked"
        assert word_starts is None or len(word_starts) == len(tokens)
        if len(tokens) == 0:
            return
        low, high = int(tokens.min()), int(tokens.max())
        assert low >= 0, f"negative id {low}"
        assert high < self.vocab_size, f"id {high} is outside a vocabulary of {self.vocab_size}"
        owner = np.repeat(np.arange(len(counts)), counts)[lengths > 0]
        counts = np.bincount(owner, minlength=len(counts))
        counts, lengths = counts[counts > 0], lengths[lengths > 0]
        self._place(tokens.astype(self.dtype, copy=False), lengths, counts, word_starts)

    def _place(
        self, tokens: NDArray[Any], lengths: Ints, counts: Ints, words: Bools | None
    ) -> None:
        """Cut at the documents where a shard is full; no empty sentence, no empty document."""
        sentence_ends = np.cumsum(counts)
        token_ends = np.cumsum(lengths)[sentence_ends - 1]
        document = sentence = token = 0
        while document < len(counts):
            if self._shard is None:
                self._shard = _OpenShard(self, len(self._entries))
            room = self.shard_tokens - self._shard.tokens
            last = int(np.searchsorted(token_ends, token + room, side="right"))
            if self._shard.tokens == 0:
                last = max(last, document + 1)
            if last > document:
                s, t = int(sentence_ends[last - 1]), int(token_ends[last - 1])
                self._shard.append(
                    tokens[token:t],
                    lengths[sentence:s],
                    counts[document:last],
                    None if words is None else words[token:t],
                )
                self.documents += last - document
                self.sentences += s - sentence
                self.tokens += t - token
                document, sentence, token = last, s, t
            if document < len(counts):
                self._close_shard()

    def _close_shard(self) -> None:
        if self._shard is not None:
            self._entries.append(self._shard.finish())
            self._shard = None

    def close(self) -> StoreIndex:
        """Finish the last shard, then write index.json."""
        self._close_shard()
        index = StoreIndex(FORMAT, self.vocab_size, self.dtype, self.with_words, self._entries)
        file = _HashedFile(self.folder / INDEX)
        file.write(msgspec.json.format(msgspec.json.encode(index), indent=1))
        file.finish()
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return index


class _HashedFile:
    """A file that is hashed while written beside its place, then synced and renamed."""

    def __init__(self, path: Path) -> None:
        self.path, self.size, self.hash = path, 0, hashlib.sha256()
        self.partial = path.with_name(path.name + ".partial")
        self.file = open(self.partial, "wb")

    def write(self, data: bytes | memoryview) -> None:
        self.file.write(data)
        self.hash.update(data)
        self.size += len(data)

    def finish(self) -> FileEntry:
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        os.replace(self.partial, self.path)
        return FileEntry(self.size, self.hash.hexdigest())

    def abandon(self) -> None:
        self.file.close()
        self.partial.unlink(missing_ok=True)


class _OpenShard:
    """The shard being written: tokens and word bits go to disk at once, the bounds at the end."""

    def __init__(self, writer: ShardWriter, number: int) -> None:
        self.folder, self.number, self.tokens = writer.folder, number, 0
        self.ids = _HashedFile(_file(self.folder, "tokens", number))
        words = _file(self.folder, "words", number)
        self.words = _HashedFile(words) if writer.with_words else None
        self.rest = np.zeros(0, dtype=np.bool_)
        self.lengths: list[NDArray[np.uint32]] = []
        self.counts: list[NDArray[np.uint32]] = []

    def append(
        self, tokens: NDArray[Any], lengths: Ints, counts: Ints, words: Bools | None
    ) -> None:
        self.ids.write(np.ascontiguousarray(tokens).astype(_little(tokens.dtype)).tobytes())
        self.tokens += len(tokens)
        self.lengths.append(lengths.astype(np.uint32))
        self.counts.append(counts.astype(np.uint32))
        if self.words is not None and words is not None:
            bits = np.concatenate([self.rest, words])
            whole = len(bits) // 8 * 8
            self.words.write(np.packbits(bits[:whole]).tobytes())
            self.rest = bits[whole:]

    def finish(self) -> ShardEntry:
        lengths, counts = np.concatenate(self.lengths), np.concatenate(self.counts)
        small, few = _smallest(lengths), _smallest(counts)
        files = {"tokens": self.ids.finish()}
        for kind, values, dtype in (("lengths", lengths, small), ("counts", counts, few)):
            file = _HashedFile(_file(self.folder, kind, self.number))
            file.write(values.astype(_little(np.dtype(dtype))).tobytes())
            files[kind] = file.finish()
        if self.words is not None:
            self.words.write(np.packbits(self.rest).tobytes())
            files["words"] = self.words.finish()
        return ShardEntry(len(counts), len(lengths), self.tokens, small, few, files)

    def abandon(self) -> None:
        self.ids.abandon()
        if self.words is not None:
            self.words.abandon()


def _file(folder: Path, kind: str, number: int) -> Path:
    return folder / f"{kind}-{number:05d}.bin"


def _little(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return dtype.newbyteorder("<")


def _smallest(values: NDArray[np.uint32]) -> Literal["uint8", "uint16", "uint32"]:
    largest = int(values.max())
    return "uint8" if largest < 1 << 8 else "uint16" if largest < 1 << 16 else "uint32"


class _Shard:
    """One shard, memory-mapped, its sizes checked against the index."""

    def __init__(self, folder: Path, number: int, index: StoreIndex) -> None:
        self.entry = entry = index.shards[number]
        self.paths = {k: _file(folder, k, number) for k in ("tokens", "lengths", "counts")}
        if index.with_words:
            self.paths["words"] = _file(folder, "words", number)
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
        path, kind_of = self.paths[kind], _little(np.dtype(dtype))
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
