"""Writing token shards: files that are hashed as they are written, synced, renamed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from bertkit.data.shards import (
    FORMAT,
    INDEX,
    Bools,
    FileEntry,
    Ints,
    ShardEntry,
    StoreIndex,
    little_endian,
    shard_file,
)
from bertkit.errors import DataError


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
        self.ids = _HashedFile(shard_file(self.folder, "tokens", number))
        words = shard_file(self.folder, "words", number)
        self.words = _HashedFile(words) if writer.with_words else None
        self.rest = np.zeros(0, dtype=np.bool_)
        self.lengths: list[NDArray[np.uint32]] = []
        self.counts: list[NDArray[np.uint32]] = []

    def append(
        self, tokens: NDArray[Any], lengths: Ints, counts: Ints, words: Bools | None
    ) -> None:
        self.ids.write(np.ascontiguousarray(tokens).astype(little_endian(tokens.dtype)).tobytes())
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
            file = _HashedFile(shard_file(self.folder, kind, self.number))
            file.write(values.astype(little_endian(np.dtype(dtype))).tobytes())
            files[kind] = file.finish()
        if self.words is not None:
            self.words.write(np.packbits(self.rest).tobytes())
            files["words"] = self.words.finish()
        return ShardEntry(len(counts), len(lengths), self.tokens, small, few, files)

    def abandon(self) -> None:
        self.ids.abandon()
        if self.words is not None:
            self.words.abandon()


def _smallest(values: NDArray[np.uint32]) -> Literal["uint8", "uint16", "uint32"]:
    largest = int(values.max())
    return "uint8" if largest < 1 << 8 else "uint16" if largest < 1 << 16 else "uint32"
