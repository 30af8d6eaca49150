"""Order without state: counter hashes, permutations, and what an epoch passes over.

Whatever looks random in bertkit's data is a hash of the things that name it, such as (seed, epoch,
document). So nothing has to be saved to continue, and any choice can be shown again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bertkit.data.shards import Ints, TokenStore

Hashes = NDArray[np.uint64]
Floats = NDArray[np.float64]

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def hash_u64(*keys: int | NDArray[np.integer]) -> Hashes:
    """A 64-bit hash of the keys, which broadcast; the finaliser of splitmix64 after each.

    Args:
        keys: integers or integer arrays; the order of the keys matters.

    Returns:
        uint64, of the broadcast shape of the keys.

    Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators".
    """
    scalar = 0
    state: Hashes | None = None
    for key in keys:
        if isinstance(key, np.ndarray) and key.ndim:
            value = key.astype(np.uint64, copy=False)
            state = _mix((np.uint64(scalar) if state is None else state) ^ value)
        elif state is None:
            scalar = _mix_scalar(scalar ^ (int(key) & _MASK))
        else:
            state = _mix(state ^ np.uint64(int(key) & _MASK))
    return np.array(scalar, dtype=np.uint64) if state is None else state


def _mix(value: Hashes) -> Hashes:
    value = value + np.uint64(_GOLDEN)
    value ^= value >> np.uint64(30)
    value *= np.uint64(_FIRST)
    value ^= value >> np.uint64(27)
    value *= np.uint64(_SECOND)
    value ^= value >> np.uint64(31)
    return value


def _mix_scalar(value: int) -> int:
    value = (value + _GOLDEN) & _MASK
    value = ((value ^ value >> 30) * _FIRST) & _MASK
    value = ((value ^ value >> 27) * _SECOND) & _MASK
    return value ^ value >> 31


def to_uniform(hashes: Hashes) -> Floats:
    """Hashes as float64 in [0, 1), from their upper 53 bits."""
    return (hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53


def uniform(*keys: int | NDArray[np.integer]) -> Floats:
    """`hash_u64` of the keys as float64 in [0, 1)."""
    return to_uniform(hash_u64(*keys))


def permutation(n: int, seed: int, epoch: int = 0) -> Ints:
    """The order [n] in which an epoch visits n things: a pure function of its arguments."""
    return np.argsort(hash_u64(seed, epoch, np.arange(n)), kind="stable")


@dataclass(frozen=True, slots=True)
class Units:
    """What an epoch orders: whole documents, or parts of those longer than a block.

    Attributes:
        corpus: [n] the number of the store.
        document: [n] the number of the document in its store.
        first, last: [n] the unit's sentences, numbered over the store; last is exclusive.
        tokens: [n] how many tokens these hold.
        turn: [n] 0 for the first pass over a unit in an epoch, 1 for the second.
    """

    corpus: Ints
    document: Ints
    first: Ints
    last: Ints
    tokens: Ints
    turn: Ints

    def __len__(self) -> int:
        return len(self.corpus)

    def take(self, index: Ints | NDArray[np.bool_]) -> Units:
        """The units at these places."""
        return Units(
            self.corpus[index],
            self.document[index],
            self.first[index],
            self.last[index],
            self.tokens[index],
            self.turn[index],
        )

    def again(self, turn: int) -> Units:
        """The same units as another pass."""
        full = np.full(len(self), turn)
        return Units(self.corpus, self.document, self.first, self.last, self.tokens, full)


def join_units(parts: Sequence[Units]) -> Units:
    """Several lists of units as one."""
    return Units(
        np.concatenate([p.corpus for p in parts]),
        np.concatenate([p.document for p in parts]),
        np.concatenate([p.first for p in parts]),
        np.concatenate([p.last for p in parts]),
        np.concatenate([p.tokens for p in parts]),
        np.concatenate([p.turn for p in parts]),
    )


def units_of(store: TokenStore, corpus: int, limit: int) -> Units:
    """The documents of a store; one of more than `limit` tokens comes in parts near that size."""
    document = np.arange(store.documents)
    first, last = store.document_sentences[:-1], store.document_sentences[1:]
    tokens = np.diff(store.document_starts)
    for giant in np.nonzero(tokens > limit)[0][::-1]:
        offsets = store.document(int(giant))[1]
        cuts = np.searchsorted(offsets, np.arange(limit, int(tokens[giant]), limit))
        cuts = np.unique(cuts[(cuts > 0) & (cuts < len(offsets) - 1)])
        bounds = np.concatenate([[0], cuts, [len(offsets) - 1]]).astype(np.int64)
        sizes = np.diff(offsets[bounds])
        start = first[giant]
        document = _replace(document, giant, np.full(len(sizes), giant))
        last = _replace(last, giant, start + bounds[1:])
        tokens = _replace(tokens, giant, sizes)
        first = _replace(first, giant, start + bounds[:-1])
    zeros = np.zeros(len(document), dtype=np.int64)
    return Units(zeros + corpus, document, first, last, tokens, zeros)


def _replace(values: Ints, place: np.int64, by: Ints) -> Ints:
    return np.concatenate([values[:place], by, values[place + 1 :]])


def epoch_units(corpora: Sequence[Units], weights: Sequence[float], seed: int, epoch: int) -> Units:
    """All units of an epoch in its order.

    A corpus of weight w is passed over w times: int(w) times whole, and each of its documents once
    more with probability w - int(w), by a hash of (seed, epoch, corpus, document).
    """
    parts = []
    for units, weight in zip(corpora, weights, strict=True):
        whole = int(weight)
        parts += [units.again(turn) for turn in range(whole)]
        if weight > whole:
            # The golden constant keeps this draw apart from the order of the same documents.
            draw = uniform(seed ^ _GOLDEN, epoch, units.corpus, units.document)
            parts.append(units.take(draw < weight - whole).again(whole))
    everything = join_units(parts)
    return everything.take(permutation(len(everything), seed, epoch))


def cut_evenly(tokens: Ints, pieces: int) -> Ints:
    """Bounds [pieces + 1] that cut a list of units into runs of about equal tokens."""
    ends = np.cumsum(tokens)
    total = int(ends[-1]) if len(ends) else 0
    marks = total * np.arange(1, pieces) // pieces
    inner = np.searchsorted(ends, marks, side="left")
    return np.concatenate([[0], inner, [len(tokens)]]).astype(np.int64)
