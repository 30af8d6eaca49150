"""Synthetic stores in which a token's id is the number of its sentence in the store."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bertkit.data.collate import Vocabulary
from bertkit.data.shards import TokenStore
from bertkit.data.shardwriter import ShardWriter

PAD, UNK, CLS, SEP, MASK = range(5)
FIRST = 5  # the id of sentence 0


def vocabulary(size: int, continuation: NDArray[np.bool_] | None = None) -> Vocabulary:
    return Vocabulary(size, PAD, CLS, SEP, MASK, (PAD, UNK, CLS, SEP, MASK), continuation)


def numbered(
    folder: Path, documents: Iterable[Iterable[int]], shard_tokens: int = 1 << 25
) -> TokenStore:
    """A store of documents given as the lengths of their sentences."""
    sizes = [list(d) for d in documents]
    lengths = np.array([n for d in sizes for n in d], dtype=np.int64)
    ids = np.repeat(np.arange(len(lengths)) + FIRST, lengths)
    with ShardWriter(folder, len(lengths) + FIRST, shard_tokens=shard_tokens) as writer:
        writer.add_many(ids, lengths, np.array([len(d) for d in sizes], dtype=np.int64))
    return TokenStore(folder)


def prose(
    documents: int, seed: int = 0, sentences: float = 12, tokens: float = 30
) -> list[list[int]]:
    """Documents and sentences of lengths as prose has them."""
    rng = np.random.default_rng(seed)
    return [
        np.maximum(1, rng.gamma(3.5, tokens / 3.5, rng.geometric(1 / sentences)))
        .astype(int)
        .tolist()
        for _ in range(documents)
    ]
