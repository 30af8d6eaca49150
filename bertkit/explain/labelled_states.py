"""States of all layers at labelled words, or of labelled texts, from files: what probes learn from.

A file is passed over twice: first each labelled word (or text) draws a number that is a function of
(seed, row, word) alone, then the states of those with the smallest draws are computed, in one pass
of the model for all layers. So memory is bounded by how many are kept, whatever the file's size.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bertkit.data.order import uniform
from bertkit.errors import DataError, UsageError
from bertkit.explain.hooks import still, trace
from bertkit.explain.opening import Opened
from bertkit.tasks.build import new_task
from bertkit.tasks.classify import Classify, MultiLabel
from bertkit.tasks.formats import BadRows, Columns, open_rows
from bertkit.tasks.records import Row, Span, TagRow, TextRow
from bertkit.tasks.schemes import to_tags
from bertkit.tasks.tag import Tag, words_of
from bertkit.tasks.task import Feature
from bertkit.text.sentences import word_spans

ProbeTask = Literal["tag", "classify"]
Pooling = Literal["cls", "mean"]
# Rows that are tokenized together, and tokens of one pass: 13 layers of 768 take 82 MB.
AHEAD, BATCH_TOKENS = 512, 2048


@dataclass
class LabelledFile:
    """The rows of a labelled file, read anew by each pass.

    Attributes:
        path: of any format that `bertkit finetune` reads.
        task: "tag" or "classify".
        columns: what the user says about the file.
        skip_bad_rows: leave bad rows out instead of raising.
        skipped: those that the last pass left out.
    """

    path: str | os.PathLike[str]
    task: ProbeTask
    columns: Columns | None = None
    skip_bad_rows: bool = False
    skipped: BadRows = field(default_factory=BadRows)

    def __iter__(self) -> Iterator[Row]:
        """The rows, in order.

        Raises:
            UsageError: it is standard input, which cannot be read twice.
            DataError: the file or a row is bad.
        """
        if os.fspath(self.path) == "-":
            raise UsageError("a probe reads its files more than once; name a file instead of -")
        self.skipped = BadRows()
        rows = open_rows(os.fspath(self.path), self.task, self.columns)
        return rows.rows(self.skipped if self.skip_bad_rows else None)

    def texts(self) -> Iterator[str]:
        """The texts alone, in a pass of their own."""
        for row in self:
            if isinstance(row, TagRow | TextRow):
                yield row.text


class Labelled(NamedTuple):
    """Labelled words or texts with their states.

    Attributes:
        states: [n, L + 1, D] on the CPU, fp32 at least; layer 0 is what the embeddings give.
        gold: [n] numbers of the labels.
        kinds: n word types; of a text that of its first word.
        total: how many labelled ones there were, of which n are kept.
        cut: kept texts that were longer than the model reads.
    """

    states: Tensor
    gold: Tensor
    kinds: list[str]
    total: int
    cut: int


def probe_task(opened: Opened, rows: Iterable[Row], name: ProbeTask) -> Tag | Classify:
    """The task with the labels of the training rows.

    Raises:
        UsageError: there is no such task.
        DataError: the rows have fewer than two labels, or several a text.
    """
    if name not in ("tag", "classify"):
        raise UsageError(f"a probe reads labels of words (tag) or texts (classify), not {name!r}")
    task: Any = new_task(name, opened.tokenizer, rows, positions=opened.max_length)
    if isinstance(task, MultiLabel):
        raise DataError("a probe wants one label a text; these rows have several or none")
    if len(task.labels) < 2:
        raise DataError(f"the training rows have only the label {task.labels[0]!r}; two are wanted")
    return task  # type: ignore[no-any-return]


class _Picked(NamedTuple):
    """A sequence with what is read of it: `places` are indices of tokens; empty for a text."""

    feature: Feature
    places: list[int]
    gold: list[int]
    kinds: list[str]


def labelled_states(
    opened: Opened,
    task: Tag | Classify,
    rows: Iterable[Row],
    *,
    most: int,
    pooling: Pooling = "cls",
    seed: int = 0,
) -> Labelled:
    """The states of a file's labelled words or texts, at most `most`, chosen by the seed.

    Args:
        opened: the model.
        task: of `probe_task`.
        rows: read twice; unlabelled ones are passed over.
        most: the bound on what is kept.
        pooling: how a text becomes a vector: "cls", or the mean over its tokens.
        seed: of the choice.

    Raises:
        DataError: no row is labelled, or a label is unknown to the task.
    """
    bound, total = _bound(task, rows, most, seed)
    if not total:
        raise DataError("no row is labelled; a probe wants labelled rows to learn and to check")
    count, device = min(total, most), opened.encoder.device
    config, dtype = opened.model.config, opened.encoder.embeddings.word_embeddings.weight.dtype
    dtype = torch.promote_types(dtype, torch.float32)
    states = torch.empty(count, config.num_hidden_layers + 1, config.hidden_size, dtype=dtype)
    gold: list[int] = []
    kinds: list[str] = []
    cut = 0
    with still(opened.model):
        for part in _batches(task, rows, bound, seed):
            hidden = trace(opened.encoder, task.collate([[one.feature] for one in part])).hidden
            read = _reader(opened, part, pooling, device)
            found = torch.stack([read(layer.to(dtype)) for layer in hidden], 1)
            states[len(gold) : len(gold) + len(found)] = found.cpu()
            for one in part:
                gold += one.gold
                kinds += one.kinds
                cut += one.feature.cut > 0
    return Labelled(states, torch.tensor(gold), kinds, total, cut)


def _bound(task: Tag | Classify, rows: Iterable[Row], most: int, seed: int) -> tuple[float, int]:
    """The largest draw that is kept, and how many labelled words or texts there are."""
    smallest: NDArray[np.float64] = np.empty(0)
    total = 0
    for block in _blocks(rows):
        drawn = [_draws(task, row, seed, number) for number, row in block]
        fresh = np.concatenate([draws[draws < 1] for draws in drawn])
        total += len(fresh)
        smallest = np.concatenate([smallest, fresh])
        if len(smallest) > most:
            smallest = np.partition(smallest, most - 1)[:most]
    return float(smallest.max(initial=0.0)), total


def _blocks(rows: Iterable[Row]) -> Iterator[list[tuple[int, Row]]]:
    """Rows with their numbers, some hundred at a time."""
    source = enumerate(rows)
    while block := list(islice(source, AHEAD)):
        yield block


def _draws(task: Tag | Classify, row: Row, seed: int, number: int) -> NDArray[np.float64]:
    """A draw for each word of a row, or for the row; 1 where there is no label."""
    labels = np.array(_labels(task, row), dtype=np.int64)
    draws = uniform(seed, number, np.arange(len(labels)))
    draws[labels < 0] = 1.0
    return draws


def _labels(task: Tag | Classify, row: Row) -> list[int]:
    """The numbers of the labels of a row's words, or of the row; -1 where there is none."""
    if isinstance(task, Classify):
        assert isinstance(row, TextRow)
        task.check(row)
        return [-1 if row.label is None else task.target(row)]
    assert isinstance(row, TagRow)
    task.check(row)
    words = words_of(row)
    if row.entities is None:
        return [-1] * len(words)
    if task.plain:
        named = {(start, end): label for start, end, label in row.entities}
        return [task.numbers[named[span]] if span in named else -1 for span in map(tuple, words)]
    inside = _over_words(words, row.entities)
    return [task.numbers[tag] for tag in to_tags(inside, len(words), task.scheme)]


def _over_words(words: Sequence[tuple[int, int]], entities: Sequence[Span]) -> list[Span]:
    """Entities as stretches of the words that they touch; of two that overlap the first stays."""
    starts, ends = np.array([word[0] for word in words]), np.array([word[1] for word in words])
    placed: list[Span] = []
    for span in sorted(entities, key=lambda span: (span.start, -span.end)):
        first = int(np.searchsorted(ends, span.start, side="right"))
        last = int(np.searchsorted(starts, span.end, side="left"))
        if first < last and (not placed or placed[-1].end <= first):
            placed.append(Span(first, last, span.label))
    return placed


def _batches(
    task: Tag | Classify, rows: Iterable[Row], bound: float, seed: int
) -> Iterator[list[_Picked]]:
    """What is kept, sequences of like length together."""
    for block in _blocks(rows):
        wanted = [
            (row, found)
            for number, row in block
            if len(found := np.flatnonzero(_draws(task, row, seed, number) <= bound))
        ]
        picked = sorted(_picked(task, wanted), key=lambda one: len(one.feature.ids))
        part: list[_Picked] = []
        tokens = 0
        for one in picked:
            if part and tokens + len(one.feature.ids) > BATCH_TOKENS:
                yield part
                part, tokens = [], 0
            part.append(one)
            tokens += len(one.feature.ids)
        if part:
            yield part


def _picked(
    task: Tag | Classify, wanted: Sequence[tuple[Any, NDArray[np.int64]]]
) -> Iterator[_Picked]:
    features = task.features_of([row for row, _ in wanted], labelled=False) if wanted else []
    for (row, found), windows in zip(wanted, features, strict=True):
        labels, kinds = _labels(task, row), _kinds(task, row)
        if isinstance(task, Classify):
            yield _Picked(windows[0], [], labels, kinds)
            continue
        chosen, word = set(found.tolist()), 0
        for window in windows:
            # All windows of a row together read each of its words once, in order.
            at = {word + i: place for i, place in enumerate(window.positions)}
            word += len(at)
            mine = [number for number in at if number in chosen]
            if mine:
                yield _Picked(
                    window,
                    [at[number] for number in mine],
                    [labels[number] for number in mine],
                    [kinds[number] for number in mine],
                )


def _kinds(task: Tag | Classify, row: Any) -> list[str]:
    """The types of a row's words as the model can tell them apart; of a text that of its first."""
    normalizer = task.tokenizer.engine.normalizer
    assert normalizer is not None
    words = words_of(row) if isinstance(row, TagRow) else word_spans(row.text)[:1] or [(0, 0)]
    return [normalizer.normalize_str(row.text[start:end]).strip() for start, end in words]


def _reader(opened: Opened, part: Sequence[_Picked], pooling: Pooling, device: torch.device) -> Any:
    """A function from one layer's [T, D] states to those that are wanted."""
    lengths = torch.tensor([len(one.feature.ids) for one in part])
    starts = (lengths.cumsum(0) - lengths).tolist()
    if part[0].places:
        at = [start + p for start, one in zip(starts, part, strict=True) for p in one.places]
    elif pooling == "cls":
        at = starts
    else:
        return _mean_reader(opened, part, device)
    index = torch.tensor(at, device=device)
    return lambda states: states.index_select(0, index)


def _mean_reader(opened: Opened, part: Sequence[_Picked], device: torch.device) -> Any:
    """Means over the tokens of each text without [CLS] and [SEP]; of an empty text over these."""
    frame = {opened.tokenizer.cls_token_id, opened.tokenizer.sep_token_id}
    shares = []
    for one in part:
        inside = torch.tensor([token not in frame for token in one.feature.ids])
        inside = inside if inside.any() else ~inside
        shares.append(inside.double() / inside.sum())
    owners = torch.repeat_interleave(torch.tensor([len(share) for share in shares])).to(device)
    weights = torch.cat(shares).to(device)

    def read(states: Tensor) -> Tensor:
        sums = torch.zeros(len(part), states.shape[1], dtype=states.dtype, device=device)
        return sums.index_add(0, owners, states * weights.to(states)[:, None])

    return read
