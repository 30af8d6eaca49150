"""Every loss against its formula, or against torch's and scikit-learn's own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor

from bertkit.errors import UsageError
from bertkit.settings import TaskTrainSettings
from bertkit.train.objectives import (
    Objective,
    class_losses,
    class_weights,
    dice_loss,
    several_losses,
)

LOGITS = torch.tensor(
    [[2.0, -1.0, 0.3], [0.0, 0.0, 0.0], [-3.0, 4.0, 1.0], [30.0, -30.0, 0.0]], dtype=torch.float64
)
TARGETS = torch.tensor([0, 2, 2, 0])
WEIGHTS = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)


class Pooled:
    """A task whose model gives the batch's logits, the second time others."""

    name, reads_tokens = "classify", False

    def __init__(self, *answers: Tensor) -> None:
        self.answers = list(answers)
        self.asked: list[Any] = []

    def logits(self, model: Any, batch: Any) -> Tensor:
        self.asked.append(model)
        return self.answers[len(self.asked) - 1] * 1  # a result, as a forward pass gives

    def losses(self, model: Any, logits: Tensor, batch: Any) -> Tensor:
        return F.cross_entropy(logits, batch.targets, reduction="none")

    def items(self, batch: Any) -> int:
        return len(batch.targets)

    def log_probabilities(self, logits: Tensor, batch: Any) -> list[Tensor]:
        return [logits.log_softmax(-1)]


def batch(targets: Tensor = TARGETS) -> Any:
    return SimpleNamespace(targets=targets)


def objective(task: Any, weights: Tensor | None = None, **settings: Any) -> Objective:
    teacher = settings.pop("teacher", None)
    return Objective(task, TaskTrainSettings(**settings), weights, teacher)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_cross_entropy_with_weights_is_torchs(weights: Tensor | None) -> None:
    task = Pooled(LOGITS.float())
    mine = objective(task, None if weights is None else weights.float())
    wanted = F.cross_entropy(LOGITS, TARGETS, weight=weights)
    assert float(mine.loss(None, batch()) / mine.count(batch())) == pytest.approx(float(wanted))


def test_ignored_targets_count_nothing() -> None:
    targets = torch.tensor([0, -100, 2, -100])
    mine = objective(Pooled(LOGITS.float()), WEIGHTS.float())
    wanted = F.cross_entropy(LOGITS, targets, weight=WEIGHTS, ignore_index=-100)
    loss = mine.loss(None, batch(targets)) / mine.count(batch(targets))
    assert float(loss) == pytest.approx(float(wanted))


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_focal_loss_is_its_formula(weights: Tensor | None) -> None:
    share = LOGITS.softmax(-1).gather(-1, TARGETS[:, None])[:, 0]
    for gamma in (0.0, 0.5, 2.0):
        train = TaskTrainSettings(loss="focal", focal_gamma=gamma)
        wanted = -((1 - share) ** gamma) * share.log()
        if weights is not None:
            wanted = wanted * weights[TARGETS]
        found = class_losses(LOGITS, TARGETS, train, weights)
        assert torch.allclose(found, wanted, rtol=1e-9, atol=1e-11)


def test_focal_loss_without_focus_is_cross_entropy_and_its_slope_is_finite() -> None:
    train = TaskTrainSettings(loss="focal", focal_gamma=0.0)
    wanted = F.cross_entropy(LOGITS, TARGETS, reduction="none")
    assert torch.allclose(class_losses(LOGITS, TARGETS, train, None), wanted)
    for gamma in (0.5, 2.0):
        logits = LOGITS.clone().float().requires_grad_()
        settings = TaskTrainSettings(loss="focal", focal_gamma=gamma)
        class_losses(logits, TARGETS, settings, None).sum().backward()
        assert logits.grad is not None
        assert bool(logits.grad.isfinite().all())


@pytest.mark.parametrize("alpha", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.5]])
def test_dice_loss_is_its_formula(alpha: float, weights: list[float] | None) -> None:
    train = TaskTrainSettings(loss="dice", dice_alpha=alpha)
    shares = LOGITS.softmax(-1).tolist()
    wanted = 0.0
    for number in range(3):
        both = mine = truth = 0.0
        for row, target in zip(shares, TARGETS.tolist(), strict=True):
            q = max(1 - row[number], 1e-6) ** alpha * row[number]
            y = float(number == target)
            both, mine, truth = both + q * y, mine + q, truth + y
        share = 1 / 3 if weights is None else weights[number] / sum(weights)
        wanted += share * (1 - (2 * both + 1) / (mine + truth + 1))
    given = None if weights is None else torch.tensor(weights)
    assert float(dice_loss(LOGITS, TARGETS, train, given)) == pytest.approx(wanted)
    task = Pooled(LOGITS)
    mine_too = objective(task, given, loss="dice", dice_alpha=alpha)
    assert float(mine_too.loss(None, batch()) / mine_too.count(batch())) == pytest.approx(wanted)


def test_several_labels_are_torchs_binary_cross_entropy() -> None:
    targets = torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]], dtype=torch.float64)
    plain = several_losses(LOGITS, targets, TaskTrainSettings(), WEIGHTS)
    wanted = F.binary_cross_entropy_with_logits(
        LOGITS, targets, pos_weight=WEIGHTS, reduction="none"
    ).mean(-1)
    assert torch.allclose(plain, wanted)
    right = torch.where(targets > 0, LOGITS, -LOGITS).sigmoid()
    focal = several_losses(LOGITS, targets, TaskTrainSettings(loss="focal"), None)
    assert torch.allclose(focal, (-((1 - right) ** 2) * right.log()).mean(-1), atol=1e-9)


def test_r_drop_is_its_formula() -> None:
    other = LOGITS + torch.randn(LOGITS.shape, generator=torch.manual_seed(0))
    task = Pooled(LOGITS, other)
    mine = objective(task, r_drop=0.7)
    p, q = LOGITS.softmax(-1), other.softmax(-1)
    apart = (p * (p / q).log()).sum() + (q * (q / p).log()).sum()
    hard = [F.cross_entropy(x, TARGETS, reduction="sum") for x in (LOGITS, other)]
    wanted = sum(hard) / 2 + 0.7 * apart / 2
    assert float(mine.loss("model", batch())) == pytest.approx(float(wanted), rel=1e-6)
    assert task.asked == ["model", "model"]


def test_distillation_is_its_formula() -> None:
    theirs = torch.randn(LOGITS.shape, generator=torch.manual_seed(1), dtype=torch.float64)
    task = Pooled(LOGITS.clone().requires_grad_(), theirs.requires_grad_())
    mine = objective(task, teacher="teacher", teacher_weight=0.3, temperature=3.0)
    loss = mine.loss("model", batch())
    wanted = 0.7 * F.cross_entropy(LOGITS, TARGETS, reduction="sum")
    wanted = wanted + 0.3 * 9 * F.kl_div(
        (LOGITS / 3).log_softmax(-1), (theirs / 3).log_softmax(-1), reduction="sum", log_target=True
    )
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()))
    loss.backward()
    assert theirs.grad is None  # the teacher is not taught
    assert task.asked == ["model", "teacher"]


def test_numbers_are_compared_by_their_square() -> None:
    one, other = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.5], [4.0]])
    task: Any = Pooled(one, other)
    task.log_probabilities = lambda logits, batch: []
    task.losses = lambda model, logits, batch: (logits[:, 0] - batch.targets) ** 2
    targets = torch.tensor([1.0, 1.0])
    mine = objective(task, r_drop=2.0)
    wanted = ((0 + 1) + (0.25 + 9)) / 2 + 2 * (0.25 + 4)
    assert float(mine.loss(None, batch(targets))) == pytest.approx(wanted)


def test_balanced_weights_are_scikit_learns() -> None:
    targets = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)
    counts = torch.bincount(targets)
    found = class_weights("balanced", ["a", "b", "c"], counts, False)
    wanted = compute_class_weight("balanced", classes=np.arange(3), y=targets.numpy())
    assert found is not None
    assert found.tolist() == pytest.approx(wanted.tolist())


def test_balanced_weights_of_several_labels_are_those_without_to_those_with() -> None:
    found = class_weights("balanced", ["a", "b"], torch.tensor([10.0, 40.0, 50.0]), True)
    assert found is not None
    assert found.tolist() == pytest.approx([4.0, 0.25])


def test_given_weights_go_by_name() -> None:
    found = class_weights({"b": 3.0}, ["a", "b"], torch.tensor([1, 1]), False)
    assert found is not None
    assert found.tolist() == [1.0, 3.0]
    assert class_weights("none", ["a"], torch.tensor([1]), False) is None
    with pytest.raises(UsageError, match="names 'x'; the labels are a, b"):
        class_weights({"x": 3.0}, ["a", "b"], torch.tensor([1, 1]), False)
