"""More rows of tags out of few: entities swapped for others of their type, words hidden.

Both keep every label true, and both are functions of (seed, epoch, row), so that each epoch sees
other rows and a resumed run the same ones. Swapping is "mention replacement" of Dai and Adel 2020
(arXiv 2010.11683); hiding words behind [MASK] makes a model look at what stands around them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from bertkit.data.order import hash_u64, uniform
from bertkit.tasks.records import Span, TagRow
from bertkit.train.features import FeatureStore

# An entity's text and its words, counted from its start.
Mention = tuple[str, tuple[tuple[int, int], ...]]


class Mentions:
    """The entities of training rows, without repetition.

    Attributes:
        by_type: by the label, and whether the row leaves its words to the tokenizer.
    """

    def __init__(self, rows: Iterable[TagRow]) -> None:
        found: dict[tuple[str, bool], dict[Mention, None]] = {}
        for row in rows:
            if is_flat(row):
                for entity in row.entities or ():
                    kind = entity.label, row.words is None
                    found.setdefault(kind, {})[_mention(row, entity)] = None
        self.by_type = {kind: list(mentions) for kind, mentions in sorted(found.items())}

    def swapped(self, row: TagRow, share: float, seed: int, epoch: int, number: int) -> TagRow:
        """The row with about `share` of its entities replaced; rows that are not flat as they are.

        Args:
            row: any training row.
            share: the probability of each entity.
            seed: of the run.
            epoch: from 0.
            number: of the row.
        """
        entities = row.entities or ()
        if not entities or not is_flat(row):
            return row
        draws = uniform(seed, epoch, number, np.arange(len(entities)))
        picks = hash_u64(seed, epoch, number, np.arange(len(entities)), 1)
        chosen: list[Mention | None] = []
        for entity, draw, pick in zip(entities, draws, picks, strict=True):
            others = self.by_type[entity.label, row.words is None]
            chosen.append(others[int(pick) % len(others)] if draw < share else None)
        return _rewritten(row, chosen)


def is_flat(row: TagRow) -> bool:
    """Whether entities neither overlap nor cut through a word."""
    entities = row.entities or ()
    if any(one.end > other.start for one, other in pairwise(entities)):
        return False
    return all(
        end <= entity.start or start >= entity.end or (start >= entity.start and end <= entity.end)
        for entity in entities
        for start, end in row.words or ()
    )


def _mention(row: TagRow, entity: Span) -> Mention:
    words = tuple(
        (start - entity.start, end - entity.start)
        for start, end in row.words or ()
        if entity.start <= start and end <= entity.end
    )
    return row.text[entity.start : entity.end], words


def _rewritten(row: TagRow, chosen: list[Mention | None]) -> TagRow:
    """The row with these texts in place of its entities; None: as it is."""
    pieces: list[str] = []
    words: list[tuple[int, int]] = []
    entities: list[Span] = []
    length = done = 0

    def copy(until: int) -> None:
        nonlocal length, done
        words.extend(
            (start - done + length, end - done + length)
            for start, end in row.words or ()
            if done <= start and end <= until
        )
        pieces.append(row.text[done:until])
        length += until - done
        done = until

    for entity, mention in zip(row.entities or (), chosen, strict=True):
        copy(entity.start)
        begin = length
        if mention is None:
            copy(entity.end)
        else:
            text, inner = mention
            words.extend((begin + start, begin + end) for start, end in inner)
            pieces.append(text)
            length += len(text)
            done = entity.end
        entities.append(Span(begin, length, entity.label))
    copy(len(row.text))
    return replace(
        row,
        text="".join(pieces),
        entities=tuple(entities),
        words=None if row.words is None else tuple(words),
    )


def swap_rows(
    rows: Iterable[TagRow], mentions: Mentions, share: float, seed: int, epoch: int
) -> Iterator[TagRow]:
    """The rows of one epoch."""
    for number, row in enumerate(rows):
        yield mentions.swapped(row, share, seed, epoch, number)


def hide_words(
    store: FeatureStore, mask: int, share: float, outside: int, seed: int, epoch: int
) -> FeatureStore:
    """The store with words outside of entities hidden, each with probability `share`.

    A word is what stands from one position that the head reads to the next; [CLS] before the first
    and [SEP] behind the last are left alone.

    Args:
        store: of a tag task, a target for each position.
        mask: the id of [MASK].
        share: of the words outside.
        outside: the target of what is no entity.
        seed: of the run.
        epoch: from 0.
    """
    counts = np.diff(store.position_starts)
    feature = np.repeat(np.arange(len(counts)), counts)
    starts = store.starts[:-1][feature] + store.positions
    ends: NDArray[np.int64] = np.append(starts[1:], 0)
    last = np.append(feature[1:] != feature[:-1], True)
    ends[last] = store.starts[1:][feature][last] - 1
    draws = uniform(seed, epoch, 2, np.arange(len(starts)))
    hidden = (draws < share) & (store.targets.numpy() == outside)
    change = np.zeros(len(store.ids) + 1, dtype=np.int64)
    np.add.at(change, starts[hidden], 1)
    np.add.at(change, ends[hidden], -1)
    ids = np.where(change.cumsum()[:-1] > 0, np.int32(mask), store.ids).astype(np.int32)
    return replace(store, ids=ids)
