"""What training reads of a labelled file: made once, kept in a few arrays, laid out step by step.

The order of an epoch, and which rows stand in it twice, are functions of (seed, epoch).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bertkit.data.collate import split_evenly
from bertkit.data.order import hash_u64, permutation
from bertkit.tasks.task import Feature, Task, TaskBatch
from bertkit.train.log import counted

Ints = NDArray[np.int64]
Small = NDArray[np.int32]
# Rows whose texts are tokenized in one call.
CHUNK = 512


@dataclass(frozen=True, slots=True)
class FeatureStore:
    """Examples laid end to end: a row's features, or one window where windows stand alone.

    Attributes:
        ids: [T] token ids of all features.
        starts: [F + 1] where each feature begins in `ids`.
        second: [F] where its second segment begins, counted from its own start.
        positions: [M] what the head reads, counted from the feature's own start.
        position_starts: [F + 1] where each feature's begin in `positions`.
        groups: [U + 1] where each example's features begin in [F].
        targets: [N, ...] of all examples.
        target_starts: [U + 1] where each example's begin in `targets`.
        rows: [U] the number of the row that the example comes from.
        cut: [U] how many tokens of the row no feature holds.
    """

    ids: Small
    starts: Ints
    second: Small
    positions: Small
    position_starts: Ints
    groups: Ints
    targets: Tensor
    target_starts: Ints
    rows: Ints
    cut: Small

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def tokens(self) -> Ints:
        """[U] the tokens of each example."""
        sizes: Ints = np.diff(self.starts[self.groups])
        return sizes

    def batch(self, examples: Ints) -> TaskBatch:
        """Examples laid end to end, in this order; equal to `Task.collate` of their features."""
        sizes = np.diff(self.groups)[examples]
        features = _ranges(self.groups[examples], sizes)
        lengths = np.diff(self.starts)[features]
        counts = np.diff(self.position_starts)[features]
        begins = np.cumsum(lengths) - lengths
        places = np.arange(int(lengths.sum())) - np.repeat(begins, lengths)
        ids = self.ids[np.repeat(self.starts[features], lengths) + places]
        chosen = self.positions[_ranges(self.position_starts[features], counts)]
        targets = _ranges(self.target_starts[examples], np.diff(self.target_starts)[examples])
        return TaskBatch(
            input_ids=torch.from_numpy(ids.astype(np.int64)),
            token_type_ids=torch.from_numpy(
                (places >= np.repeat(self.second[features], lengths)).astype(np.int64)
            ),
            position_ids=torch.from_numpy(places),
            lengths=torch.from_numpy(lengths),
            positions=torch.from_numpy(chosen + np.repeat(begins, counts)),
            counts=torch.from_numpy(counts),
            groups=torch.from_numpy(sizes),
            targets=self.targets[torch.from_numpy(targets)],
        )


def _ranges(starts: Ints, sizes: Ints) -> Ints:
    """start, start + 1, ... for each start, end to end."""
    ends = np.cumsum(sizes)
    total = int(ends[-1]) if len(ends) else 0
    places: Ints = np.arange(total) + np.repeat(starts - (ends - sizes), sizes)
    return places


def chunks(rows: Iterable[Any], size: int = CHUNK) -> Iterator[list[Any]]:
    """The rows in lists of `size`."""
    rest = iter(rows)
    while chunk := list(islice(rest, size)):
        yield chunk


class Lengths:
    """How many tokens rows have, and how many rows are longer than what is read at once.

    Args:
        task: what makes features of rows.

    Attributes:
        tokens: of each example: a row, or one window where windows stand alone.
        rows: how many.
        windowed: rows that are read in several windows.
        cut: rows whose ends no feature holds.
    """

    def __init__(self, task: Task[Any]) -> None:
        self.task = task
        self.tokens: list[int] = []
        self.rows = self.windowed = self.cut = 0

    def add(self, found: Iterable[Sequence[Feature]]) -> None:
        """Count the features of some rows; rows without any count for nothing."""
        for features in filter(None, found):
            sizes = [len(feature.ids) for feature in features]
            self.tokens += sizes if self.task.reads_tokens else [sum(sizes)]
            self.rows += 1
            self.windowed += self.task.reads_tokens and len(features) > 1
            self.cut += any(feature.cut for feature in features)

    @classmethod
    def of(cls, task: Task[Any], store: FeatureStore) -> Lengths:
        """Of rows whose features are stored."""
        lengths = cls(task)
        lengths.tokens = store.tokens.tolist()
        counts = np.unique_counts(store.rows).counts
        lengths.rows = len(counts)
        lengths.windowed = int((counts > 1).sum()) if task.reads_tokens else 0
        lengths.cut = len(np.unique(store.rows[store.cut > 0]))
        return lengths

    def lines(self) -> list[str]:
        """For people."""
        shown = np.percentile(self.tokens, [50, 95, 100]).astype(int).tolist()
        what = "windows" if self.task.reads_tokens else "examples"
        lines = [
            f"{counted(len(self.tokens), what)} of {shown[0]} tokens (median), "
            f"95% up to {shown[1]}, longest {shown[2]}; at most {self.task.max_length}"
        ]
        for count, how in (
            (self.windowed, "read in overlapping windows"),
            (self.cut, "cut off at the end"),
        ):
            if count:
                share = f"{counted(count, 'rows')} ({count / self.rows:.1%})"
                lines.append(f"longer than that: {share}, {how}")
        return lines


def store_features(task: Task[Any], rows: Iterable[Any]) -> FeatureStore:
    """Make the features of all rows; texts are read, and forgotten, a few hundred at a time.

    Raises:
        DataError: a row cannot be used, with its place.
    """
    pages = [
        _page(task, features, number * CHUNK)
        for number, chunk in enumerate(chunks(rows))
        for features in (task.features_of(chunk),)
    ]
    if not pages:
        pages = [_page(task, [], 0)]
    return FeatureStore(
        ids=np.concatenate([p.ids for p in pages]),
        starts=_joined([p.starts for p in pages]),
        second=np.concatenate([p.second for p in pages]),
        positions=np.concatenate([p.positions for p in pages]),
        position_starts=_joined([p.position_starts for p in pages]),
        groups=_joined([p.groups for p in pages]),
        targets=torch.cat([p.targets for p in pages if len(p)] or [torch.empty(0)]),
        target_starts=_joined([p.target_starts for p in pages]),
        rows=np.concatenate([p.rows for p in pages]),
        cut=np.concatenate([p.cut for p in pages]),
    )


def _page(task: Task[Any], found: Sequence[Sequence[Feature]], first: int) -> FeatureStore:
    """The features of some rows, the first of which has the number `first`."""
    examples: list[Sequence[Feature]] = []
    rows: list[int] = []
    for number, features in enumerate(found, first):
        # Windows stand alone; choices of one question must stay together.
        mine = [[f] for f in features] if task.reads_tokens else [features]
        examples += mine
        rows += [number] * len(mine)
    flat = [feature for features in examples for feature in features]
    targets = [task.targets(features) for features in examples]
    return FeatureStore(
        ids=_flat([f.ids for f in flat]),
        starts=_starts([len(f.ids) for f in flat]),
        second=np.array([f.second for f in flat], dtype=np.int32),
        positions=_flat([f.positions for f in flat]),
        position_starts=_starts([len(f.positions) for f in flat]),
        groups=_starts([len(features) for features in examples]),
        targets=torch.cat(targets) if targets else torch.empty(0),
        target_starts=_starts([len(target) for target in targets]),
        rows=np.array(rows, dtype=np.int64),
        cut=np.array([max(f.cut for f in features) for features in examples], dtype=np.int32),
    )


def _flat(lists: Sequence[Sequence[int]]) -> Small:
    return np.array([number for numbers in lists for number in numbers], dtype=np.int32)


def _starts(sizes: Sequence[int]) -> Ints:
    return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)


def _joined(starts: Sequence[Ints]) -> Ints:
    """The starts of several pages as those of one."""
    return _starts(np.concatenate([np.diff(s) for s in starts]).tolist())


def epoch_order(examples: int, classes: Ints | None, share: float, seed: int, epoch: int) -> Ints:
    """The examples of an epoch in its order.

    Args:
        examples: how many there are.
        classes: [U] the class of each; None: none stands twice.
        share: of the largest class's examples, how many each class shall have: where it has fewer,
            each is taken several times, and some, by a hash of (seed, epoch, example), once more.
        seed: of the run.
        epoch: from 0.
    """
    chosen = np.arange(examples)
    if classes is not None and share > 0:
        chosen = np.concatenate(
            [
                _repeated(np.nonzero(classes == one)[0], wanted, seed, epoch)
                for one, wanted in _wanted(classes, share)
            ]
        )
        chosen.sort()
    return chosen[permutation(len(chosen), seed, epoch)]


def _wanted(classes: Ints, share: float) -> list[tuple[int, int]]:
    """Each class with the number of its examples in an epoch."""
    names, counts = np.unique(classes, return_counts=True)
    least = round(share * int(counts.max()))
    return [(int(n), max(int(c), least)) for n, c in zip(names, counts, strict=True)]


def _repeated(members: Ints, wanted: int, seed: int, epoch: int) -> Ints:
    whole, rest = divmod(wanted, len(members))
    extra = members[np.argsort(hash_u64(seed, epoch, 1, members), kind="stable")[:rest]]
    return np.concatenate([np.tile(members, whole), extra])


def split_step(store: FeatureStore, examples: Ints, world: int, micro_tokens: int) -> list[Ints]:
    """One step's examples as micro-batches of like size; a multiple of the ranks, some empty.

    Neither their number, nor the ranks, nor replicas change which examples a step holds.

    Args:
        store: where they are.
        examples: of the step, in order.
        world: ranks; the r-th takes every world-th micro-batch from the r-th on.
        micro_tokens: tokens that a micro-batch holds at most, unless one example has more; 0: all.
    """
    tokens = store.tokens[examples]
    least = -(-int(tokens.sum()) // micro_tokens) if micro_tokens else 1
    pieces = world * max(1, -(-least // world))
    while True:
        parts = [examples[np.sort(part)] for part in split_evenly(tokens, pieces)]
        whole = not micro_tokens or all(
            len(part) < 2 or store.tokens[part].sum() <= micro_tokens for part in parts
        )
        if whole or pieces >= world * len(examples):
            return parts
        pieces += world
