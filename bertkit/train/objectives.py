"""What fine-tuning minimises: the task's loss, or what shall stand beside it or in its place.

Every loss is a sum over items divided by the items of the whole global batch, so that neither
micro-batches nor ranks change it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bertkit.errors import UsageError
from bertkit.settings import TaskTrainSettings
from bertkit.tasks.task import Task, TaskBatch

IGNORED = -100


class Objective:
    """The loss of a task as the recipe wants it.

    Args:
        task: the task.
        train: loss, class weights, R-Drop, the teacher's weight and temperature.
        weights: [C] of each class; None: all count alike.
        teacher: a fine-tuned model of the same task, in eval mode; None: there is none.
    """

    def __init__(
        self,
        task: Task[Any],
        train: TaskTrainSettings,
        weights: Tensor | None = None,
        teacher: Any = None,
    ) -> None:
        self.task, self.train, self.weights, self.teacher = task, train, weights, teacher

    @property
    def plain(self) -> bool:
        """Whether the task's own losses are taken as they are."""
        return self.train.loss == "ce" and self.weights is None

    def count(self, batch: TaskBatch) -> float:
        """What the losses of a batch are divided by: its items, each by its class's weight.

        Weighted items count by their weights, as in torch's cross_entropy; call it on the CPU.
        """
        if self.weights is None or self.train.loss == "dice" or self._multi(batch):
            return float(self.task.items(batch))
        assert batch.targets is not None
        kept = batch.targets[batch.targets != IGNORED]
        return float(self.weights.cpu()[kept].sum(dtype=torch.float64))

    def loss(self, model: Any, batch: TaskBatch) -> Tensor:
        """Scalar: the sum over the batch's items, to be divided by the global batch's count."""
        logits = self.task.logits(model, batch)
        total = self._hard(model, logits, batch)
        if self.train.r_drop > 0:
            again = self.task.logits(model, batch)
            apart = self.distance(logits, again, batch)
            total = (total + self._hard(model, again, batch)) / 2 + self.train.r_drop * apart
        if self.teacher is not None:
            share = self.train.teacher_weight
            total = (1 - share) * total + share * self.soft(logits, batch)
        return total

    def _hard(self, model: Any, logits: Tensor, batch: TaskBatch) -> Tensor:
        """The sum of the losses against the labels."""
        if self.plain:
            return self.task.losses(model, logits, batch).sum()
        assert batch.targets is not None
        logits = logits.float()
        if self._multi(batch):
            return several_losses(logits, batch.targets, self.train, self.weights).sum()
        kept = batch.targets != IGNORED
        if self.train.loss == "dice":
            found = dice_loss(logits[kept], batch.targets[kept], self.train, self.weights)
            return found * self.task.items(batch)
        return class_losses(logits[kept], batch.targets[kept], self.train, self.weights).sum()

    def distance(self, one: Tensor, other: Tensor, batch: TaskBatch) -> Tensor:
        """Scalar: what R-Drop keeps small (Liang et al. 2021, arXiv 2106.14448).

        Half of KL(p || q) + KL(q || p), summed; numbers (regress) are compared by their square.
        """
        pairs = zip(self._shares(one, batch), self._shares(other, batch), strict=True)
        apart = [((p.exp() - q.exp()) * (p - q)).sum() / 2 for p, q in pairs]
        return sum(apart[1:], apart[0]) if apart else ((one - other).float() ** 2).sum()

    def soft(self, logits: Tensor, batch: TaskBatch) -> Tensor:
        """Scalar: KL(teacher || student) at a temperature, times its square (Hinton et al. 2015).

        arXiv 1503.02531, section 2; numbers (regress) are compared by the square of their distance.
        """
        with torch.no_grad():
            wanted = self.task.logits(self.teacher, batch)
        heat = self.train.temperature
        mine, theirs = (self._shares(x / heat, batch) for x in (logits, wanted))
        if not mine:
            return ((logits - wanted).float() ** 2).sum()
        apart = [(t.exp() * (t - m)).sum() for m, t in zip(mine, theirs, strict=True)]
        return heat**2 * sum(apart[1:], apart[0])

    def _shares(self, logits: Tensor, batch: TaskBatch) -> list[Tensor]:
        return self.task.log_probabilities(logits, batch)

    def _multi(self, batch: TaskBatch) -> bool:
        return batch.targets is not None and batch.targets.is_floating_point()


def class_losses(
    logits: Tensor, targets: Tensor, train: TaskTrainSettings, weights: Tensor | None
) -> Tensor:
    """[N] from [N, C] logits and [N] classes: cross-entropy or focal loss, weighted.

    Focal: (1 - p)^gamma * cross-entropy, p of the right class (Lin et al. 2017, arXiv 1708.02002,
    equation 4).
    """
    right = logits.log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    losses = -right
    if train.loss == "focal":
        losses = focus(right, train.focal_gamma) * losses
    return losses if weights is None else losses * weights.to(losses.device)[targets]


def dice_loss(
    logits: Tensor, targets: Tensor, train: TaskTrainSettings, weights: Tensor | None
) -> Tensor:
    """Scalar from [N, C] logits and [N] classes: 1 - the mean over classes of the dice coefficient.

    Of a class (2 sum q y + 1) / (sum q + sum y + 1), q = (1 - p)^alpha p, over the items (Li et al.
    2020, arXiv 1911.02855, section 3): a smooth F1, which does not care how many items are of no
    class that matters. Weighted, the mean over classes is. A batch of items has one coefficient, so
    that, alone among the losses, its micro-batches are means of their own.
    """
    shares = logits.softmax(-1)
    kept = (1 - shares).clamp(min=1e-6) ** train.dice_alpha * shares
    truth = F.one_hot(targets, logits.shape[-1]).to(shares.dtype)
    dice = (2 * (kept * truth).sum(0) + 1) / (kept.sum(0) + truth.sum(0) + 1)
    if weights is None:
        return 1 - dice.mean()
    weights = weights.to(dice)
    return 1 - (weights * dice).sum() / weights.sum()


def several_losses(
    logits: Tensor, targets: Tensor, train: TaskTrainSettings, weights: Tensor | None
) -> Tensor:
    """[B] from [B, C] logits and 0 or 1 for each label: the mean over labels.

    The weight of a label counts where a text has it (`pos_weight` of torch).
    """
    yes, no = F.logsigmoid(logits), F.logsigmoid(-logits)
    if train.loss == "focal":
        yes, no = focus(yes, train.focal_gamma) * yes, focus(no, train.focal_gamma) * no
    if weights is not None:
        yes = yes * weights.to(yes.device)
    return -(targets * yes + (1 - targets) * no).mean(-1)


def focus(log_share: Tensor, gamma: float) -> Tensor:
    """(1 - p)^gamma from log p; 1 for gamma 0, and a slope that is finite at p = 1."""
    if gamma == 0:
        return torch.ones_like(log_share)
    return (-torch.expm1(log_share)).clamp(min=1e-12) ** gamma


def class_weights(
    asked: str | Mapping[str, float], labels: list[str], counts: Tensor, several: bool
) -> Tensor | None:
    """[C] the weight of each class; None: all count alike.

    Args:
        asked: "none"; "balanced": items / (classes * items of the class), as in scikit-learn, or
            with several labels a text those without it to those with it; or a weight by name.
        labels: the names of the classes.
        counts: [C] how many training items each has; with `several`, [C + 1], the last the rows.
        several: a text may have several labels.

    Raises:
        UsageError: a name is no label's.
    """
    if asked == "none":
        return None
    if isinstance(asked, str):
        counts = counts.double()
        if several:
            counts, rows = counts[:-1], counts[-1]
            return ((rows - counts) / counts.clamp(min=1)).float()
        present = (counts > 0).sum()
        return (counts.sum() / (present * counts.clamp(min=1))).float()
    if unknown := asked.keys() - set(labels):
        raise UsageError(
            f"train.class_weights names {min(unknown)!r}; the labels are {', '.join(labels)}"
        )
    return torch.tensor([asked.get(label, 1.0) for label in labels])
