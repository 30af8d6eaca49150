"""choose: the right one of several choices.

Devlin et al. 2018 (arXiv 1810.04805), section 4.4: a score for each pair of context and choice, a
softmax over the choices of a question. Questions may have different numbers of choices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bertkit.model.task_heads import BertForMultipleChoice
from bertkit.tasks.encode import cut_pair, encode, framed
from bertkit.tasks.metrics import ChooseMeter
from bertkit.tasks.records import ChoiceRow
from bertkit.tasks.task import Feature, Meter, Prediction, Task, TaskBatch, bad_row, named_labels


class Choose(Task[ChoiceRow]):
    """One of several choices."""

    name = "choose"
    metric = "accuracy"

    @property
    def model_class(self) -> Any:
        """BertForMultipleChoice."""
        return BertForMultipleChoice

    def label_settings(self) -> dict[str, Any]:
        """Choices have no names."""
        return named_labels(["LABEL_0", "LABEL_1"]) | {"problem_type": None}

    def check(self, row: ChoiceRow) -> None:
        """Refuse a label that numbers no choice."""
        if row.label is not None and not 0 <= row.label < len(row.choices):
            raise bad_row(
                f"the label is {row.label}; the choices are 0 to {len(row.choices) - 1}", row.place
            )

    def features_of(self, rows: Sequence[ChoiceRow], labelled: bool = True) -> list[list[Feature]]:
        """One feature a choice: [CLS] context [SEP] question choice [SEP]."""
        contexts = encode(self.tokenizer, [r.context for r in rows], [r.place for r in rows])
        endings = [
            (f"{row.question} {choice}" if row.question else choice, row.place)
            for row in rows
            for choice in row.choices
        ]
        ends = iter(encode(self.tokenizer, [text for text, _ in endings], [p for _, p in endings]))
        found = []
        for row, context in zip(rows, contexts, strict=True):
            if len(row.choices) < 1:
                raise bad_row("there are no choices", row.place)
            known = labelled and row.label is not None
            if known:
                self.check(row)
            features = []
            for number in range(len(row.choices)):
                target = int(number == row.label) if known else None
                features.append(self._feature(context, next(ends), target))
            found.append(features)
        return found

    def _feature(self, context: list[int], ending: list[int], target: int | None) -> Feature:
        room = self.max_length - self.tokenizer.num_special_tokens_to_add(pair=True)
        kept = cut_pair(len(context), len(ending), room)
        ids, split = framed(self.tokenizer, context[: kept[0]], ending[: kept[1]])
        return Feature(ids, split, (), target, cut=max(len(context) + len(ending) - room, 0))

    def targets(self, features: Sequence[Feature]) -> Tensor:
        """[B] int64: 1 for right choices, 0 for others."""
        return torch.tensor([f.target for f in features])

    def logits(self, model: Any, batch: TaskBatch) -> Tensor:
        """[B]: the score of each choice."""
        return model.ragged(batch)  # type: ignore[no-any-return]

    def items(self, batch: TaskBatch) -> int:
        """One a row."""
        return len(batch.groups)

    def losses(self, model: Any, logits: Tensor, batch: TaskBatch) -> Tensor:
        """[G]: cross-entropies over the choices of each row."""
        assert batch.targets is not None
        groups = batch.groups.tolist()
        lowest = torch.finfo(torch.float32).min
        beside = pad_sequence(
            list(logits.float().split(groups)), batch_first=True, padding_value=lowest
        )
        right = pad_sequence(list(batch.targets.split(groups)), batch_first=True)
        return -(beside.log_softmax(-1) * right).sum(-1)

    def log_probabilities(self, logits: Tensor, batch: TaskBatch) -> list[Tensor]:
        """For each row [1, choices]: they compete."""
        parts = logits.float().split(batch.groups.tolist())
        return [part.log_softmax(-1).unsqueeze(0) for part in parts]

    def decode_rows(
        self,
        rows: Sequence[ChoiceRow],
        features: Sequence[Sequence[Feature]],
        scores: Sequence[Sequence[Tensor]],
    ) -> list[Prediction]:
        """For each row `[{"label", "score", "choice"}, ...]`, best first; labels count from 0."""
        found = []
        for row, logits in zip(rows, scores, strict=True):
            sure = torch.stack(list(logits)).softmax(-1).tolist()
            order = sorted(range(len(sure)), key=lambda number: -sure[number])
            found.append([{"label": n, "score": sure[n], "choice": row.choices[n]} for n in order])
        return found

    def meter(self) -> Meter:
        """Accuracy."""
        return ChooseMeter()
