"""Adversarial training on the word embeddings: each step is passed over again, embeddings moved.

FGM (Miyato et al. 2017, arXiv 1605.07725) moves them once, by `epsilon` along the gradient; PGD
(Madry et al. 2018, arXiv 1706.06083) several times by `alpha`, and never farther than `epsilon`. As
in the form that is in common use, what is moved is the table of embeddings, by the norm of its
whole gradient, and the gradients of the clean and of the last moved pass are added.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from bertkit.settings import TaskTrainSettings

# Adds the gradient of the step's loss to the parameters; the number tells passes apart.
Pass = Callable[[int], None]


def adversarial_passes(
    table: nn.Parameter, parameters: Sequence[nn.Parameter], train: TaskTrainSettings, again: Pass
) -> None:
    """Add the gradients of the step's loss at moved embeddings; these end where they were.

    Args:
        table: [V, D], the word embeddings, with the gradient of the clean pass over the whole
            global batch.
        parameters: all that are trained, with their gradients.
        train: which attack, and how far it goes.
        again: passes over the step once more, adding to the gradients; given 1, 2, ...
    """
    before = table.detach().clone()
    if train.adversarial == "fgm":
        if _moved(table, before, train.adversarial_epsilon, None):
            again(1)
    else:
        clean = [None if p.grad is None else p.grad.clone() for p in parameters]
        for turn in range(1, train.pgd_steps + 1):
            if not _moved(table, before, train.pgd_alpha, train.adversarial_epsilon):
                _restore(parameters, clean)  # nowhere to go: the clean pass stands alone
                break
            if turn < train.pgd_steps:
                _restore(parameters, [None] * len(clean))
            else:
                _restore(parameters, clean)
            again(turn)
    with torch.no_grad():
        table.copy_(before)


@torch.no_grad()
def _moved(table: nn.Parameter, before: Tensor, step: float, most: float | None) -> bool:
    """Move the table along its gradient; False where that is zero or not finite."""
    assert table.grad is not None, "the word embeddings are frozen"
    norm = float(table.grad.norm())
    if not 0 < norm < float("inf"):
        return False
    table.add_(table.grad, alpha=step / norm)
    if most is not None:
        way = table - before
        far = float(way.norm())
        if far > most:
            table.copy_(before).add_(way, alpha=most / far)
    return True


def _restore(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor | None]) -> None:
    """Set the gradients in place; None: to zero."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if parameter.grad is None:
            continue
        if gradient is None:
            parameter.grad.zero_()
        else:
            parameter.grad.copy_(gradient)
