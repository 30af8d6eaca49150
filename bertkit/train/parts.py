"""The unit of work of `prepare`: a few million characters of documents, tokenized into a part file.

How documents fall into chunks depends on the documents alone, so neither the number of workers nor
an interruption changes a byte. A part file bears the key of what it was made from and the digest of
what it holds: after an interruption it is used again exactly when both are right.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from bertkit.text.corpus import Document
from bertkit.text.sentences import split_sentences, word_spans
from bertkit.text.tokenizer import BertTokenizer
from bertkit.text.wordcache import WordCache

CHUNK_CHARS = 1 << 21
# Sentences that are tokenized at once: with offsets their encodings are large.
_SENTENCES_AT_ONCE = {"none": 8192, "jieba": 1024}
Chunk = list[tuple[str, ...]]
_HAN = range(0x3400, 0xFB00)


class EncodeSettings(Struct, frozen=True):
    """What makes tokens of text; a part made with other settings has another key.

    Attributes:
        tokenizer: a folder with a tokenizer.
        tokenizer_hash: of its vocabulary and flags.
        words: "jieba" to mark where Chinese words start, else "none".
        user_dict: a dictionary for jieba.
        user_dict_hash: of its bytes.
    """

    tokenizer: str
    tokenizer_hash: str
    words: str = "none"
    user_dict: str | None = None
    user_dict_hash: str | None = None


class PartHeader(Struct, frozen=True, forbid_unknown_fields=True):
    """The first line of a part file; the arrays of `Part` follow in their order, as raw bytes."""

    key: str
    digest: str
    documents: int
    sentences: int
    tokens: int
    dtype: str
    with_words: bool


@dataclass(frozen=True)
class Part:
    """The documents of one chunk as tokens.

    Attributes:
        hashes: [documents] uint64, of each document's text with its white space evened out.
        counts: [documents] uint32, sentences of each.
        lengths: [sentences] uint32, tokens of each.
        tokens: [T] uint16 or uint32.
        words: [T] true where a word starts, or None.
    """

    hashes: NDArray[np.uint64]
    counts: NDArray[np.uint32]
    lengths: NDArray[np.uint32]
    tokens: NDArray[Any]
    words: NDArray[np.bool_] | None

    def document_tokens(self) -> NDArray[np.int64]:
        """[documents] tokens of each."""
        return document_tokens(self.counts, self.lengths)


def document_tokens(counts: NDArray[Any], lengths: NDArray[Any]) -> NDArray[np.int64]:
    """[documents] tokens of each, from the sentences of each and the tokens of those."""
    ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    bounds = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    sizes: NDArray[np.int64] = np.diff(ends[bounds])
    return sizes


def chunked(documents: Iterable[Document], size: int = CHUNK_CHARS) -> Iterator[Chunk]:
    """Documents gathered until a chunk holds `size` characters or more."""
    chunk: Chunk = []
    held = 0
    for document in documents:
        chunk.append(document.paragraphs)
        held += sum(map(len, document.paragraphs))
        if held >= size:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


class ChunkEncoder:
    """Makes parts of chunks.

    Raises:
        CheckpointError: the tokenizer cannot be read.
        DataError: the user dictionary cannot be read.
    """

    def __init__(self, settings: EncodeSettings) -> None:
        self.settings = settings
        self.tokenizer = BertTokenizer.from_pretrained(settings.tokenizer)
        self.cache = WordCache(self.tokenizer)
        self.continues = self.tokenizer.continuation_mask()

    def key(self, chunk: Chunk) -> str:
        """What a chunk's part depends on, hashed: its text, the tokenizer, the words option."""
        text = "\x1d".join("\x1e".join(paragraphs) for paragraphs in chunk)
        parts = (self.settings.tokenizer_hash, self.settings.words, self.settings.user_dict_hash)
        head = msgspec.json.encode(parts)
        return hashlib.blake2b(head + text.encode(), digest_size=16).hexdigest()

    def encode(self, chunk: Chunk) -> Part:
        """Split into sentences, tokenize, and hash each document."""
        sentences: list[str] = []
        counts = []
        for paragraphs in chunk:
            before = len(sentences)
            for paragraph in paragraphs:
                sentences += split_sentences(paragraph)
            counts.append(len(sentences) - before)
        step = _SENTENCES_AT_ONCE[self.settings.words]
        pieces = [
            self._encode_some(sentences[i : i + step]) for i in range(0, len(sentences), step)
        ]
        words = [bits for _, _, bits in pieces if bits is not None]
        return Part(
            np.array([_document_hash(p) for p in chunk], dtype=np.uint64),
            np.array(counts, dtype=np.uint32),
            np.concatenate([n for _, n, _ in pieces]).astype(np.uint32),
            np.concatenate([tokens for tokens, _, _ in pieces]),
            np.concatenate(words) if words else None,
        )

    def _encode_some(
        self, sentences: Sequence[str]
    ) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[np.bool_] | None]:
        if self.settings.words == "none":
            return *self.cache.encode(sentences), None
        encodings = self.tokenizer.backend.encode_batch(list(sentences), add_special_tokens=False)
        rows = [e.ids for e in encodings]
        tokens = np.array([i for row in rows for i in row], dtype=self.cache.dtype)
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        inside = [
            start in hidden
            for sentence, encoding in zip(sentences, encodings, strict=True)
            for hidden in [self._inside_words(sentence)]
            for start, _ in encoding.offsets
        ]
        return tokens, lengths, ~(np.array(inside, dtype=np.bool_) | self.continues[tokens])

    def _inside_words(self, sentence: str) -> set[int]:
        """The characters of Chinese words of several characters, all but the first of each."""
        spans = word_spans(sentence, "jieba", self.settings.user_dict)
        return {
            i for a, b in spans if b - a > 1 and ord(sentence[a]) in _HAN for i in range(a + 1, b)
        }


def _document_hash(paragraphs: tuple[str, ...]) -> int:
    text = " ".join(" ".join(paragraphs).split())
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def write_part(path: Path, key: str, part: Part) -> PartHeader:
    """Write a part beside its place and rename it. Its digest stands in for a sync."""
    words = [] if part.words is None else [np.packbits(part.words)]
    arrays: list[NDArray[Any]] = [part.hashes, part.counts, part.lengths, part.tokens, *words]
    payload = b"".join(a.tobytes() for a in arrays)
    header = PartHeader(
        key,
        hashlib.blake2b(payload, digest_size=16).hexdigest(),
        len(part.hashes),
        len(part.lengths),
        len(part.tokens),
        part.tokens.dtype.str,
        part.words is not None,
    )
    partial = path.with_suffix(".partial")
    with open(partial, "wb") as file:
        file.write(msgspec.json.encode(header) + b"\n" + payload)
    os.replace(partial, path)
    return header


def read_part(path: Path, key: str | None = None) -> tuple[PartHeader, Part] | None:
    """A part file, if it is whole and, where a key is given, was made from what that key says."""
    try:
        with open(path, "rb") as file:
            header = msgspec.json.decode(file.readline(), type=PartHeader)
            if key is not None and header.key != key:
                return None
            payload = file.read()
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
    if hashlib.blake2b(payload, digest_size=16).hexdigest() != header.digest:
        return None
    kinds = [(header.documents, "<u8"), (header.documents, "<u4"), (header.sentences, "<u4")]
    kinds += [(header.tokens, header.dtype), ((header.tokens + 7) // 8 * header.with_words, "u1")]
    fields: list[NDArray[Any]] = []
    place = 0
    for count, dtype in kinds:
        fields.append(np.frombuffer(payload, dtype, count, place))
        place += fields[-1].nbytes
    hashes, counts, lengths, tokens, bits = fields
    words = np.unpackbits(bits, count=header.tokens).astype(np.bool_) if len(bits) else None
    return header, Part(hashes, counts, lengths, tokens, words)


_encoder: ChunkEncoder | None = None


def _start_worker(settings: EncodeSettings, needed: Connection) -> None:
    """In each worker process: one thread, and Ctrl-C is the parent's business."""
    global _encoder
    threading.Thread(target=_end_at_once, args=(needed,), daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _encoder = ChunkEncoder(settings)


def _end_at_once(needed: Connection) -> None:
    """Wait until the parent closes its end, as its death does: a part takes many seconds."""
    needed.poll(None)
    os._exit(1)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Processes started here never see Ctrl-C; the parent sees it afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(path: Path, chunk: Chunk) -> bool:
    assert _encoder is not None
    return _make_part(_encoder, path, chunk)


def _make_part(encoder: ChunkEncoder, path: Path, chunk: Chunk) -> bool:
    """Make a part file unless it is there; returns whether it was."""
    key = encoder.key(chunk)
    if read_part(path, key) is not None:
        return True
    write_part(path, key, encoder.encode(chunk))
    return False


Jobs = Iterator[tuple[Path, Chunk]]


Done = Generator[tuple[bool, int], None, None]


def make_parts(jobs: Jobs, settings: EncodeSettings, workers: int) -> Done:
    """Make the part file of each chunk; closed before its end, it stops at once.

    Yields:
        For each job in order: whether a good part was there already, and its bytes of text.

    Raises:
        BrokenProcessPool: a worker process was killed.
        OSError: a part cannot be written.
    """
    return (_run_here if workers == 1 else _run_in_pool)(jobs, settings, workers)


def _length(chunk: Chunk) -> int:
    return sum(len(p.encode()) + 1 for paragraphs in chunk for p in paragraphs)


def _run_here(jobs: Jobs, settings: EncodeSettings, workers: int) -> Done:
    encoder = ChunkEncoder(settings)
    for path, chunk in jobs:
        yield _make_part(encoder, path, chunk), _length(chunk)


def _run_in_pool(jobs: Jobs, settings: EncodeSettings, workers: int) -> Done:
    """At most two chunks a worker wait, so that memory stays flat."""
    context = multiprocessing.get_context("spawn")
    needed, ours = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, context, _start_worker, (settings, needed))
    waiting: deque[tuple[Future[bool], int]] = deque()
    try:
        for path, chunk in jobs:
            with _interrupts_held():
                waiting.append((pool.submit(_work, path, chunk), _length(chunk)))
            if len(waiting) > 2 * workers:
                future, length = waiting.popleft()
                yield future.result(), length
        for future, length in waiting:
            yield future.result(), length
    finally:
        ours.close()
        pool.shutdown(wait=True, cancel_futures=True)
