"""What fine-tuning, evaluation, prediction and the server ask of a task: one decoder for all.

A row of the user's file becomes one feature or, where it is long, several windows of it; features
are laid end to end in a batch; the model gives scores; `decode` turns a row's scores into the
prediction, in the user's own offsets and label names.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from bertkit.batch import Batch

RowT = TypeVar("RowT")
# A prediction has the keys of transformers' pipelines.
Prediction = Any


@dataclass(frozen=True, slots=True)
class Feature:
    """One sequence that the model reads: a row, a window of it, or a question with one choice.

    Attributes:
        ids: token ids, [CLS] and [SEP] included.
        second: index in `ids` from which the segment is 1; len(ids) where there is one segment.
        positions: indices in `ids` that the head reads, ascending; empty for models that pool.
        target: what training wants of it, as the task defines; None: unlabelled.
        extra: what `decode` needs to find its way back to the text.
    """

    ids: list[int]
    second: int
    positions: list[int]
    target: Any
    extra: Any = None


@dataclass(frozen=True, slots=True)
class TaskBatch(Batch):
    """Features laid end to end.

    Attributes:
        positions: [M] int64, indices into T that the head reads, ascending; [0] for models that
            pool.
        counts: [B] int64 on the CPU: how many positions each feature has.
        groups: [G] int64 on the CPU: how many features each row has, rows in order.
        targets: as the task defines; None: unlabelled.
    """

    positions: Tensor
    counts: Tensor
    groups: Tensor
    targets: Tensor | None


class Task(ABC, Generic[RowT]):
    """One thing that a BERT is fine-tuned for.

    Attributes:
        name: as in `bertkit finetune NAME`.
        metric: the figure that the best checkpoint is chosen by, unless told.
    """

    name: str
    metric: str

    @abstractmethod
    def features(self, row: RowT) -> list[Feature]:
        """What the model reads of a row: at least one feature; targets where it is labelled.

        Raises:
            DataError: the row cannot be used, with its place.
        """

    @abstractmethod
    def logits(self, model: Any, batch: TaskBatch) -> Tensor:
        """[B, C] for models that pool, [M, C] for others, with gradients."""

    @abstractmethod
    def losses(self, model: Any, logits: Tensor, batch: TaskBatch) -> Tensor:
        """[N], one for each item of `batch` that has a target; their mean is the loss.

        An item is a row (classify, regress, choose), a labelled word (tag; a text with a CRF) or a
        window (qa).
        """

    @abstractmethod
    def items(self, batch: TaskBatch) -> int:
        """How many losses `losses` gives, known before the model has run."""

    @abstractmethod
    def log_probabilities(self, logits: Tensor, batch: TaskBatch) -> list[Tensor]:
        """Log-softmaxes of the logits, each [*, C] over what competes: for R-Drop, distillation."""

    @abstractmethod
    def scores(self, model: Any, batch: TaskBatch) -> list[Any]:
        """For each feature what `decode` needs, on the CPU; no gradients."""

    @abstractmethod
    def decode(self, row: RowT, features: Sequence[Feature], scores: Sequence[Any]) -> Prediction:
        """The prediction for a row, from the scores of all its features."""

    @abstractmethod
    def meter(self) -> Meter:
        """An empty meter for this task's figures."""

    def collate(self, rows: Sequence[Sequence[Feature]]) -> TaskBatch:
        """Lay the features of whole rows end to end."""
        features = [feature for row in rows for feature in row]
        lengths = torch.tensor([len(f.ids) for f in features])
        starts = (lengths.cumsum(0) - lengths).tolist()
        types = [int(i >= f.second) for f in features for i in range(len(f.ids))]
        positions = [s + p for s, f in zip(starts, features, strict=True) for p in f.positions]
        return TaskBatch(
            input_ids=torch.tensor([i for f in features for i in f.ids]),
            token_type_ids=torch.tensor(types),
            position_ids=torch.cat([torch.arange(len(f.ids)) for f in features]),
            lengths=lengths,
            positions=torch.tensor(positions, dtype=torch.int64),
            counts=torch.tensor([len(f.positions) for f in features]),
            groups=torch.tensor([len(row) for row in rows]),
            targets=self.targets(features),
        )

    @abstractmethod
    def targets(self, features: Sequence[Feature]) -> Tensor | None:
        """The targets of a batch's features; None where one has none."""


class Meter(ABC):
    """Figures over rows that pass by one at a time; memory does not grow with texts."""

    @abstractmethod
    def add(self, row: Any, prediction: Prediction) -> None:
        """Count one labelled row and what was predicted for it."""

    @abstractmethod
    def figures(self) -> dict[str, float]:
        """The figures so far, by their names in scikit-learn, seqeval and SQuAD."""
