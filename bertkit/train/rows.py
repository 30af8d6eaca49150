"""Labelled rows for training: which of a file's rows a run learns from, and what was found in them.

Rows of one text stay together: none is learned from in one part and measured on in another. (A
third of the test texts of some public data sets stand in their training files.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bertkit.data.order import hash_u64
from bertkit.errors import DataError
from bertkit.tasks.formats import BadRows, RowFile, Summary
from bertkit.tasks.records import ChoiceRow, QuestionRow, Row, TagRow, TextRow
from bertkit.tasks.task import Task
from bertkit.train.log import counted

Ints = NDArray[np.int64]


@dataclass
class Part:
    """Some of the rows of a file.

    Attributes:
        file: where they are.
        skip_bad: bad rows are skipped and counted.
        kept: whether each row of the file, bad ones not counted, belongs to this part; None: all.
        measured_by: passes over rows that it cannot measure: unlabelled ones, unseen labels.
        bad: of the last complete pass.
        summary: of all its rows, once they have been looked at.
    """

    file: RowFile
    skip_bad: bool = False
    kept: NDArray[np.bool_] | None = None
    measured_by: Task[Any] | None = None
    bad: BadRows = field(default_factory=BadRows)
    summary: Summary = field(default_factory=Summary)

    def __iter__(self) -> Iterator[Any]:
        """The rows, read anew each time.

        Raises:
            DataError: a row is bad, and bad ones are not skipped.
        """
        bad = BadRows() if self.skip_bad else None
        numbered = enumerate(self.file.rows(bad))
        rows = (row for number, row in numbered if self.kept is None or self.kept[number])
        yield from rows if self.measured_by is None else self.measured_by.measurable(rows, bad)
        if bad is not None:
            self.bad = bad


def assign_folds(rows: Iterable[Row], folds: int, seed: int) -> Ints:
    """[n] the number of the fold, below `folds`, that each row belongs to; folds of about one size.

    Rows of the same text (or passage) fall together, by a hash of (seed, text).

    Raises:
        DataError: a fold would be empty.
    """
    group, counts, order = _groups(rows, seed)
    before = np.cumsum(counts[order]) - counts[order]
    fold = np.empty(len(counts), dtype=np.int64)
    fold[order] = (before + counts[order] / 2) * folds // max(len(group), 1)
    if len(np.unique(fold)) < folds:
        what = f"{counted(len(group), 'training rows')} of {counted(len(counts), 'texts')}"
        raise DataError(f"{what}: too few, or too unequal, for {folds} folds; say fewer")
    assigned: Ints = fold[group]
    return assigned


def hold_out(rows: Iterable[Row], share: float, seed: int) -> NDArray[np.bool_]:
    """[n] whether each row is held out: about `share` of them, those of one text together.

    Texts are taken in the order of a hash of (seed, text), each whose rows still fit; one more, the
    smallest, where that comes closer to the share, or where none fits.

    Raises:
        DataError: no row, or every row, would be.
    """
    group, counts, order = _groups(rows, seed)
    left, held = round(share * len(group)), np.zeros(len(counts), dtype=np.bool_)
    for number, size in zip(order.tolist(), counts[order].tolist(), strict=True):
        if size <= left:
            held[number] = True
            left -= size
    rest = order[~held[order]]
    if left and len(rest):
        smallest = rest[counts[rest].argmin()]
        held[smallest] = not held.any() or counts[smallest] < 2 * left
    chosen: NDArray[np.bool_] = held[group]
    if not chosen.any() or chosen.all():
        what = f"{counted(len(group), 'training rows')} of {counted(len(counts), 'texts')}"
        raise DataError(f"{what}: too few to hold out {share:g} of them; name a dev file")
    return chosen


def _groups(rows: Iterable[Row], seed: int) -> tuple[Ints, Ints, Ints]:
    """[n] the number of each row's text, [g] the rows of each text, [g] the texts by a hash."""
    keys = np.fromiter((text_key(row) for row in rows), dtype=np.uint64)
    texts, group, counts = np.unique(keys, return_inverse=True, return_counts=True)
    return group, counts, np.argsort(hash_u64(seed, texts.view(np.int64)), kind="stable")


def text_key(row: Row) -> int:
    """A hash of the text of a row, or of its passage."""
    text = row.context if isinstance(row, QuestionRow | ChoiceRow) else row.text
    if isinstance(row, ChoiceRow):
        text += row.question
    digest = blake2b(text.strip().encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def labels_of(row: Row) -> tuple[str, ...] | None:
    """What a row says, as names to be counted; None: it is unlabelled."""
    match row:
        case TextRow(label=None) | TagRow(entities=None) | QuestionRow(answers=None):
            return None
        case TextRow(label=str(name)):
            return (name,)
        case TextRow(label=tuple(names)):
            return names
        case TagRow():
            return tuple(entity.label for entity in row.entities or ())
        case QuestionRow():
            return () if row.is_impossible or not row.answers else ("answer",)
        case ChoiceRow():
            return None if row.label is None else (str(row.label),)
    return ()  # a number


class Census:
    """What was seen while rows passed by.

    Attributes:
        summary: counts of rows and labels, and lengths.
        classes: of each row the labels that it has; the same strings, kept once.
        texts: the keys of their texts.
    """

    def __init__(self) -> None:
        self.summary = Summary()
        self.classes: list[tuple[str, ...]] = []
        self.texts: set[int] = set()
        self._kept: dict[tuple[str, ...], tuple[str, ...]] = {}

    def watch(self, rows: Iterable[Any]) -> Iterator[Any]:
        """The rows, counted; those without a label are refused.

        Raises:
            DataError: a row is unlabelled, with its place.
        """
        for row in rows:
            names = labels_of(row)
            if names is None:
                what = "no label: rows to learn from or to measure on need one"
                raise DataError(what, row.place.path, row.place.line)
            self.summary.add(row)
            self.texts.add(text_key(row))
            several = tuple(sorted(set(names)))
            self.classes.append(self._kept.setdefault(several, several))
            yield row

    def rarest(self) -> Ints:
        """[n] the number of each row's rarest label, or of none: its class for oversampling."""
        counts = Counter(name for names in self.classes for name in names)
        numbers = {name: n for n, (name, _) in enumerate(counts.most_common(), 1)}
        return np.array([max((numbers[n] for n in names), default=0) for names in self.classes])
