"""classify and regress: a label, several labels or a number for a text or a pair of texts.

Devlin et al. 2018 (arXiv 1810.04805), sections 4.1 and A.5: the pooled [CLS] and one linear layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bertkit.errors import DataError
from bertkit.model.task_heads import PROBLEM_TYPES, BertForSequenceClassification
from bertkit.tasks.encode import cut_pair, encode, framed
from bertkit.tasks.metrics import ClassifyMeter, MultiLabelMeter, RegressMeter
from bertkit.tasks.options import TaskOptions
from bertkit.tasks.records import TextRow
from bertkit.tasks.task import (
    Feature,
    Meter,
    Prediction,
    Task,
    TaskBatch,
    bad_row,
    named_labels,
    unknown_label,
)

if TYPE_CHECKING:
    from bertkit.text.tokenizer import BertTokenizer

_SINGLE, _MULTI, _REGRESSION = PROBLEM_TYPES


class _TextTask(Task[TextRow]):
    """What all tasks over a text or a pair share."""

    @property
    def model_class(self) -> Any:
        """BertForSequenceClassification."""
        return BertForSequenceClassification

    def features_of(self, rows: Sequence[TextRow], labelled: bool = True) -> list[list[Feature]]:
        """One feature a row; of what is too long the longer text loses first."""
        first = encode(self.tokenizer, [row.text for row in rows], [row.place for row in rows])
        paired = [row for row in rows if row.pair is not None]
        texts = [row.pair for row in paired if row.pair is not None]
        second = iter(encode(self.tokenizer, texts, [row.place for row in paired]))
        return [
            [self._feature(row, ids, None if row.pair is None else next(second), labelled)]
            for row, ids in zip(rows, first, strict=True)
        ]

    def _feature(
        self, row: TextRow, first: list[int], second: list[int] | None, labelled: bool
    ) -> Feature:
        room = self.max_length - self.tokenizer.num_special_tokens_to_add(second is not None)
        size = len(first) + len(second or ())
        if second is None:
            first = first[:room]
        else:
            kept = cut_pair(len(first), len(second), room)
            first, second = first[: kept[0]], second[: kept[1]]
        ids, split = framed(self.tokenizer, first, second)
        target = None
        if labelled and row.label is not None:
            self.check(row)
            target = self.target(row)
        return Feature(ids, split, (), target, cut=max(size - room, 0))

    def target(self, row: TextRow) -> Any:
        """What a labelled row, which was checked, trains towards."""
        raise AssertionError("each task has targets of its own")

    def logits(self, model: Any, batch: TaskBatch) -> Tensor:
        """[B, C]."""
        return model.ragged(batch)  # type: ignore[no-any-return]

    def items(self, batch: TaskBatch) -> int:
        """One a row."""
        return len(batch.lengths)


class Classify(_TextTask):
    """One label of several for a text or a pair.

    Args:
        tokenizer: the model's own.
        labels: in the order of their numbers.
        options: how rows are read.
    """

    name = "classify"
    metric = "accuracy"
    problem_type = _SINGLE

    def __init__(
        self, tokenizer: BertTokenizer, labels: Sequence[str], options: TaskOptions
    ) -> None:
        super().__init__(tokenizer, options)
        self.labels = list(labels)
        self.numbers = {label: number for number, label in enumerate(self.labels)}

    def label_settings(self) -> dict[str, Any]:
        """The labels, and what kind of problem it is."""
        return named_labels(self.labels) | {"problem_type": self.problem_type}

    def check(self, row: TextRow) -> None:
        """Refuse a label that the model does not know, and several labels."""
        if row.label is None:
            return
        if not isinstance(row.label, str):
            raise bad_row(f"the label is {row.label!r}; one name is wanted", row.place)
        _check_known(row, row.label, self.numbers)

    def target(self, row: TextRow) -> Any:
        """The number of its label."""
        return self.numbers[str(row.label)]

    def targets(self, features: Sequence[Feature]) -> Tensor:
        """[B] int64."""
        return torch.tensor([f.target for f in features])

    def losses(self, model: Any, logits: Tensor, batch: TaskBatch) -> Tensor:
        """[B]: cross-entropies."""
        assert batch.targets is not None
        return F.cross_entropy(logits.float(), batch.targets, reduction="none")

    def log_probabilities(self, logits: Tensor, batch: TaskBatch) -> list[Tensor]:
        """[B, C]: the labels compete."""
        return [logits.float().log_softmax(-1)]

    def decode_rows(
        self,
        rows: Sequence[TextRow],
        features: Sequence[Sequence[Feature]],
        scores: Sequence[Sequence[Any]],
    ) -> list[Prediction]:
        """For each row `[{"label", "score"}, ...]` of all labels, best first."""
        if not rows:
            return []
        table = self.probabilities(torch.stack([score for (score,) in scores])).tolist()
        return [
            [
                {"label": self.labels[number], "score": row[number]}
                for number in sorted(range(len(row)), key=lambda n: -row[n])
            ]
            for row in table
        ]

    def probabilities(self, logits: Tensor) -> Tensor:
        """[B, C] -> [B, C]."""
        return logits.softmax(-1)

    def meter(self) -> Meter:
        """Accuracy, F1 and so on."""
        return ClassifyMeter(self.labels)


class MultiLabel(Classify):
    """Any number of labels for a text or a pair; each has a probability of its own (sigmoid)."""

    metric = "f1"
    problem_type = _MULTI

    def check(self, row: TextRow) -> None:
        """Refuse a label that the model does not know."""
        if isinstance(row.label, float):
            raise bad_row(f"the label is {row.label!r}; names are wanted", row.place)
        for label in _names(row):
            _check_known(row, label, self.numbers)

    def target(self, row: TextRow) -> Any:
        """1 for each label that it has, else 0."""
        names = set(_names(row))
        return [float(label in names) for label in self.labels]

    def losses(self, model: Any, logits: Tensor, batch: TaskBatch) -> Tensor:
        """[B]: binary cross-entropies, the mean over labels."""
        assert batch.targets is not None
        each = F.binary_cross_entropy_with_logits(logits.float(), batch.targets, reduction="none")
        return each.mean(-1)

    def log_probabilities(self, logits: Tensor, batch: TaskBatch) -> list[Tensor]:
        """[B * C, 2]: each label competes with its absence."""
        logits = logits.float().flatten()
        return [torch.stack([F.logsigmoid(logits), F.logsigmoid(-logits)], -1)]

    def probabilities(self, logits: Tensor) -> Tensor:
        """[B, C] -> [B, C]."""
        return logits.sigmoid()

    def meter(self) -> Meter:
        """F1 over labels, exact matches and so on."""
        return MultiLabelMeter(self.labels, self.options.threshold)


class Regress(_TextTask):
    """A number for a text or a pair; predictions are `{"score": number}`."""

    name = "regress"
    metric = "pearson"

    def label_settings(self) -> dict[str, Any]:
        """One output, without a name of its own."""
        return named_labels(["LABEL_0"]) | {"problem_type": _REGRESSION}

    def check(self, row: TextRow) -> None:
        """Refuse a label that is no number."""
        if row.label is None:
            return
        number = isinstance(row.label, int | float) and not isinstance(row.label, bool)
        if not number or row.label != row.label or abs(row.label) == float("inf"):  # type: ignore[arg-type]
            raise bad_row(f"the label is {row.label!r}; a number is wanted", row.place)

    def target(self, row: TextRow) -> Any:
        """Its number."""
        assert isinstance(row.label, int | float)
        return float(row.label)

    def targets(self, features: Sequence[Feature]) -> Tensor:
        """[B] fp32."""
        return torch.tensor([f.target for f in features], dtype=torch.float32)

    def losses(self, model: Any, logits: Tensor, batch: TaskBatch) -> Tensor:
        """[B]: squared errors."""
        assert batch.targets is not None
        return (logits.float().squeeze(-1) - batch.targets) ** 2

    def log_probabilities(self, logits: Tensor, batch: TaskBatch) -> list[Tensor]:
        """Nothing competes."""
        return []

    def decode_rows(
        self,
        rows: Sequence[TextRow],
        features: Sequence[Sequence[Feature]],
        scores: Sequence[Sequence[Any]],
    ) -> list[Prediction]:
        """For each row `{"score": number}`."""
        return [{"score": float(score)} for (score,) in scores]

    def meter(self) -> Meter:
        """Pearson's and Spearman's correlations."""
        return RegressMeter()


def learn_labels(rows: Iterable[TextRow]) -> tuple[list[str], bool]:
    """The labels of training rows, sorted, numbers as numbers; and whether a row has several.

    Raises:
        DataError: there are fewer than two, or a label is no name.
    """
    found: set[str] = set()
    several = False
    row = None
    for row in rows:
        if isinstance(row.label, float):
            raise bad_row(f"the label is {row.label!r}; names are wanted", row.place)
        several |= isinstance(row.label, tuple)
        found.update(_names(row))
    if len(found) < (1 if several else 2):
        path = row.place.path if row is not None else None
        has = f"only the label {min(found)!r}" if found else "no label"
        raise DataError(f"the training rows have {has}; there must be two or more", path)
    return sorted(found, key=_by_number), several


def _by_number(label: str) -> tuple[bool, float, str]:
    try:
        number = float(label)
    except ValueError:
        number = float("nan")
    known = number == number
    return not known, number if known else 0.0, label


def _names(row: TextRow) -> tuple[str, ...]:
    if row.label is None:
        return ()
    return row.label if isinstance(row.label, tuple) else (str(row.label),)


def _check_known(row: TextRow, label: str, known: dict[str, int]) -> None:
    if label not in known:
        raise unknown_label(label, list(known), row.place)
