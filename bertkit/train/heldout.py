"""Which documents are set aside for evaluation, and which are copies of others.

A document's hash decides, so the choice depends on the text alone, and copies of one document are
never on both sides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bertkit.errors import DataError

# From this many documents on, whole documents are set aside; of fewer, the end of the longest one.
ENOUGH_DOCUMENTS = 20
# Small corpora: this many documents at least, unless that is over MOST of them.
LEAST_DOCUMENTS = 16
MOST = 0.05
TRAIN, DEV, DROPPED = 0, 1, 2


@dataclass(frozen=True)
class Choice:
    """Where each document goes.

    Attributes:
        sides: [documents] uint8: TRAIN, DEV or DROPPED (a copy, or no token in it).
        kind: what was held out: nothing, whole documents, or the end of one document.
        tail: the document whose end is held out, and how many of its last sentences; or None.
        duplicates: documents that are copies of an earlier one.
    """

    sides: NDArray[np.uint8]
    kind: Literal["nothing", "documents", "end of one document"]
    tail: tuple[int, int] | None
    duplicates: int


def choose(
    hashes: NDArray[np.uint64],
    sentences: NDArray[np.int64],
    tokens: NDArray[np.int64],
    share: float,
    dedup: bool,
) -> Choice:
    """Decide for every document: train, dev or neither.

    Args:
        hashes: [documents] of their text.
        sentences: [documents] sentences of each.
        tokens: [documents] tokens of each.
        share: of the documents that dev takes; 0 for none.
        dedup: leave out all copies but the first.

    Raises:
        DataError: there is too little text to set anything aside.
    """
    sides = np.full(len(hashes), TRAIN, dtype=np.uint8)
    sides[tokens == 0] = DROPPED
    first = np.zeros(len(hashes), dtype=np.bool_)
    first[np.unique(hashes, return_index=True)[1]] = True
    copies = ~first & (tokens > 0)
    if dedup:
        sides[copies] = DROPPED
    duplicates = int(copies.sum())
    kept = np.flatnonzero(sides == TRAIN)
    if not len(kept):
        raise DataError("no text is left: the corpus holds no token; check the files and --field")
    if share == 0:
        return Choice(sides, "nothing", None, duplicates)
    chosen = _whole_documents(hashes, tokens, kept, share)
    if len(chosen):
        sides[kept[np.isin(hashes[kept], chosen)]] = DEV
        return Choice(sides, "documents", None, duplicates)
    tail = _tail(sentences, tokens, kept, share)
    return Choice(sides, "end of one document", tail, duplicates)


def _whole_documents(
    hashes: NDArray[np.uint64], tokens: NDArray[np.int64], kept: NDArray[np.int64], share: float
) -> NDArray[np.uint64]:
    """The hashes to hold out: the smallest ones, but no more than a small share of the tokens."""
    found, where = np.unique(hashes[kept], return_inverse=True)
    sizes = np.bincount(where, weights=tokens[kept]).astype(np.int64)  # of all copies together
    if len(found) < ENOUGH_DOCUMENTS:
        return found[:0]
    most = max(MOST, share)
    least = min(LEAST_DOCUMENTS, int(MOST * len(found)))
    wanted = max(1, least, round(share * len(found)))
    fits = np.flatnonzero(sizes <= most * tokens[kept].sum())
    room = np.cumsum(sizes[fits]) <= most * tokens[kept].sum()
    chosen: NDArray[np.uint64] = found[fits[room][:wanted]]
    return chosen


def _tail(
    sentences: NDArray[np.int64], tokens: NDArray[np.int64], kept: NDArray[np.int64], share: float
) -> tuple[int, int]:
    """The longest document and how many sentences of its end to hold out: at most half."""
    document = int(kept[np.argmax(tokens[kept])])
    count = int(sentences[document])
    if count < 2:
        raise DataError(
            "too little text to set some aside for evaluation; give more, or --held-out 0"
        )
    wanted = max(share, 0.02) * int(tokens[kept].sum()) / int(tokens[document])
    return document, min(count // 2, max(1, min(2, count // 4), round(wanted * count)))
