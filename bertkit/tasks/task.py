"""What fine-tuning, evaluation, prediction and the server ask of a task: one decoder for all.

A row of the user's file becomes one feature or, where it is long, several windows of it; features
are laid end to end in a batch; the model gives scores; `decode` turns a row's scores into the
prediction, in the user's own offsets and label names.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

import torch
from torch import Tensor

from bertkit.batch import Batch
from bertkit.errors import DataError
from bertkit.tasks.options import TaskOptions
from bertkit.tasks.reading import BadRows
from bertkit.tasks.records import Place, QuestionRow, Row, TagRow

if TYPE_CHECKING:
    from bertkit.text.tokenizer import BertTokenizer

RowT = TypeVar("RowT", bound=Row)
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
        cut: tokens of the row that no feature of it holds: it was too long.
    """

    ids: list[int]
    second: int
    positions: Sequence[int]
    target: Any
    extra: Any = None
    cut: int = 0


@dataclass(frozen=True, slots=True)
class TaskBatch(Batch):
    """Features laid end to end.

    Attributes:
        positions: [M] int64 on the CPU, indices into T that the head reads, ascending; [0] for
            models that pool.
        counts: [B] int64 on the CPU: how many positions each feature has.
        groups: [G] int64 on the CPU: how many features each row has, rows in order.
        targets: as the task defines; None: unlabelled.
    """

    positions: Tensor
    counts: Tensor
    groups: Tensor
    targets: Tensor | None

    def to(self, device: torch.device | str) -> Self:
        """The same batch with what the model reads, and the targets, on `device`."""
        moved = {
            name: getattr(self, name).to(device, non_blocking=True)
            for name in ("input_ids", "token_type_ids", "position_ids", "targets")
            if getattr(self, name) is not None
        }
        return replace(self, **moved)


class Task(ABC, Generic[RowT]):
    """One thing that a BERT is fine-tuned for.

    Attributes:
        name: as in `bertkit finetune NAME`.
        metric: the figure that the best checkpoint is chosen by, unless told.
        head: what the names of the head's tensors start with.
        tokenizer: the model's own.
        options: how rows are read and scores decoded.
        max_length: tokens of a sequence, special ones counted.
    """

    name: ClassVar[str]
    metric: str
    head: ClassVar[str] = "classifier."

    def __init__(self, tokenizer: BertTokenizer, options: TaskOptions) -> None:
        self.tokenizer, self.options = tokenizer, options
        self.max_length = options.max_length or min(tokenizer.model_max_length, 512)

    def with_options(self, **changes: Any) -> Self:
        """The same task that decodes otherwise: null_threshold and the like, not lengths."""
        other = copy.copy(self)
        other.options = replace(self.options, **changes)
        return other

    @property
    @abstractmethod
    def model_class(self) -> Any:
        """The class of models that do this."""

    def config_changes(self) -> dict[str, Any]:
        """Settings for the model's configuration: labels, and what `saved_task` reads.

        `BertConfig.from_json_file(path, **task.config_changes())` is what to open a model with.
        """
        return self.label_settings() | {"bertkit_task": {"name": self.name, **asdict(self.options)}}

    @abstractmethod
    def label_settings(self) -> dict[str, Any]:
        """id2label, label2id, problem_type and the like."""

    @abstractmethod
    def check(self, row: RowT) -> None:
        """Refuse a labelled row whose label the model does not know.

        Raises:
            DataError: naming the label, the file and the line.
        """

    def measurable(self, rows: Iterable[RowT], bad: BadRows | None) -> Iterator[RowT]:
        """The rows that have a label, and one that the model knows.

        Args:
            rows: of a labelled file.
            bad: takes the others; None: the first one raises.

        Raises:
            DataError: there is such a row, with its place.
        """
        for row in rows:
            try:
                check_labelled(row)
                self.check(row)
            except DataError as error:
                if bad is None:
                    what = f"{error.what} (or skip such rows: --skip-bad-rows)"
                    raise DataError(what, error.path, error.line) from error
                bad.add(row.place, f"label: {error.what}")
                continue
            yield row

    @abstractmethod
    def features_of(self, rows: Sequence[RowT], labelled: bool = True) -> list[list[Feature]]:
        """What the model reads of each row: at least one feature, if there is something to learn.

        Many rows at once are tokenized much faster than one at a time.

        Args:
            rows: any number of them.
            labelled: make targets, where a row is labelled; else labels are not looked at.

        Raises:
            DataError: a row cannot be used, with its place.
        """

    def features(self, row: RowT, labelled: bool = True) -> list[Feature]:
        """As `features_of`, of one row."""
        return self.features_of([row], labelled)[0]

    @abstractmethod
    def logits(self, model: Any, batch: TaskBatch) -> Tensor:
        """[B, C] for models that pool (choose: [B]), [M, C] for others, with gradients."""

    @abstractmethod
    def losses(self, model: Any, logits: Tensor, batch: TaskBatch) -> Tensor:
        """[N] fp32, one for each item of `batch`, whose features are labelled; their mean is it.

        An item is a row (classify, regress, choose), a labelled word (tag; a window with a CRF) or
        a window (qa).
        """

    @abstractmethod
    def items(self, batch: TaskBatch) -> int:
        """How many losses `losses` gives, known before the model has run."""

    @abstractmethod
    def log_probabilities(self, logits: Tensor, batch: TaskBatch) -> list[Tensor]:
        """Log-softmaxes of the logits, each [*, C] over what competes: for R-Drop, distillation."""

    def scores(self, model: Any, batch: TaskBatch) -> list[Any]:
        """For each feature what `decode` needs, on the CPU; no gradients."""
        with torch.no_grad():
            logits = self.logits(model, batch).float().cpu()
        return list(logits.split(batch.counts.tolist()) if self.reads_tokens else logits)

    @property
    def reads_tokens(self) -> bool:
        """Whether the head reads tokens, those at `positions`; else the pooler."""
        return not self.model_class.pools

    @abstractmethod
    def decode_rows(
        self,
        rows: Sequence[RowT],
        features: Sequence[Sequence[Feature]],
        scores: Sequence[Sequence[Any]],
    ) -> list[Prediction]:
        """The predictions for rows, from the scores of all their features."""

    def decode(self, row: RowT, features: Sequence[Feature], scores: Sequence[Any]) -> Prediction:
        """As `decode_rows`, of one row."""
        return self.decode_rows([row], [features], [scores])[0]

    @abstractmethod
    def meter(self) -> Meter:
        """An empty meter for this task's figures."""

    def collate(self, rows: Sequence[Sequence[Feature]]) -> TaskBatch:
        """Lay the features of whole rows end to end."""
        features = list(chain.from_iterable(rows))
        lengths = torch.tensor([len(f.ids) for f in features])
        starts = lengths.cumsum(0) - lengths
        places = torch.arange(int(lengths.sum())) - starts.repeat_interleave(lengths)
        second = torch.tensor([f.second for f in features]).repeat_interleave(lengths)
        counts = torch.tensor([len(f.positions) for f in features])
        positions = list(chain.from_iterable(f.positions for f in features))
        return TaskBatch(
            input_ids=torch.tensor(list(chain.from_iterable(f.ids for f in features))),
            token_type_ids=(places >= second).long(),
            position_ids=places,
            lengths=lengths,
            positions=torch.tensor(positions, dtype=torch.int64) + starts.repeat_interleave(counts),
            counts=counts,
            groups=torch.tensor([len(row) for row in rows]),
            targets=None if any(f.target is None for f in features) else self.targets(features),
        )

    @abstractmethod
    def targets(self, features: Sequence[Feature]) -> Tensor:
        """The targets of a batch's features, which all have one."""


class Meter(ABC):
    """Figures over rows that pass by one at a time; memory does not grow with texts."""

    @abstractmethod
    def add(self, row: Any, prediction: Prediction) -> None:
        """Count one labelled row and what was predicted for it."""

    @abstractmethod
    def figures(self) -> dict[str, float]:
        """The figures so far, by their names in scikit-learn, seqeval and SQuAD."""


def bad_row(what: str, place: Place) -> DataError:
    """The error for a row that cannot be used."""
    return DataError(what, place.path, place.line)


def check_labelled(row: Any) -> None:
    """Refuse a row that has nothing to compare with.

    Raises:
        DataError: it has no label.
    """
    match row:
        case TagRow(entities=label) | QuestionRow(answers=label):
            there = label is not None
        case _:
            there = row.label is not None
    if not there:
        raise bad_row("the row has no label; evaluation needs one in every row", row.place)


def unknown_label(label: str, known: Sequence[str], place: Place, where: str = "") -> DataError:
    """The error for a label that the model does not know.

    Args:
        label: of the row.
        known: those of the model.
        place: of the row.
        where: what it is the label of, if not of the row.
    """
    names = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
    # What transformers calls labels that nobody named.
    unnamed = all(name.startswith("LABEL_") for name in known)
    hint = "; give those their names, id2label in its config.json" if unnamed else ""
    return bad_row(f"the label {label!r}{where} is none of the model's: {names}{hint}", place)


def named_labels(labels: Sequence[str]) -> dict[str, Any]:
    """Both tables of label names, as config.json holds them."""
    return {
        "id2label": dict(enumerate(labels)),
        "label2id": {label: number for number, label in enumerate(labels)},
    }
