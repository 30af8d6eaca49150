"""One optimiser step of fine-tuning, however its examples are cut into micro-batches and ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bertkit.model.dropout import seed_masks
from bertkit.runtime import Runtime, step_seed
from bertkit.tasks.task import TaskBatch
from bertkit.train.adversarial import adversarial_passes
from bertkit.train.objectives import Objective
from bertkit.train.replicas import each_part
from bertkit.train.step import unwrapped, wrapped


class Finetuning(nn.Module):
    """The model with its objective as the forward pass: what DistributedDataParallel wraps."""

    def __init__(self, model: Any, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.objective = objective

    def forward(self, batch: TaskBatch, count: float) -> Tensor:
        """The share of this micro-batch in the mean loss of the global batch."""
        return self.objective.loss(self.model, batch) / count


class Micro(NamedTuple):
    """A micro-batch; one that only keeps a rank in step counts nothing."""

    batch: TaskBatch
    counts: bool = True


@dataclass(frozen=True, slots=True)
class StepResult:
    """The figures of one global batch; all ranks hold the same.

    Attributes:
        loss: the mean over its items, of the clean pass where there are others.
        examples: how many it has.
        tokens: real tokens of these.
        stop: some rank was asked to stop.
    """

    loss: float
    examples: int
    tokens: int
    stop: bool = False


def wrap(model: Any, objective: Objective, machine: Runtime, compiled: bool) -> nn.Module:
    """The module that `forward_backward` calls."""
    return wrapped(partial(Finetuning, objective=objective), model, machine, compiled)


def forward_backward(
    module: nn.Module,
    parts: Sequence[Micro],
    machine: Runtime,
    seeds: tuple[int, int] = (0, 0),
    stop: bool = False,
) -> StepResult:
    """Leave the gradient of the global batch's mean loss on the parameters.

    Items are counted over all ranks before the backward pass, so the loss is the mean over the
    global batch's items, not a mean of means. With adversarial training, the gradients of the
    further passes are added.

    Args:
        module: what `wrap` gave.
        parts: this rank's micro-batches, on the CPU; each rank has as many.
        machine: device, format, ranks.
        seeds: (seed, step), from which dropout's seed derives.
        stop: whether this rank was asked to stop; told to all.
    """
    inner = unwrapped(module)
    assert isinstance(inner, Finetuning)
    objective = inner.objective
    real = [micro.batch for micro in parts if micro.counts]
    sums = [
        sum(objective.count(batch) for batch in real),
        sum(len(batch.groups) for batch in real),
        sum(len(batch.input_ids) for batch in real),
        int(stop),
    ]
    totals = torch.tensor(sums, dtype=torch.float64, device=machine.device)
    count, examples, tokens, stops = machine.sum(totals).tolist()
    # DistributedDataParallel averages over ranks; the loss wants their sum.
    divisor = (count if count > 0 else 1.0) / machine.world

    loss = machine.sum(_pass(module, parts, machine, (*seeds, 0), divisor)) / machine.world
    if objective.train.adversarial != "none":
        table = inner.model.bert.embeddings.word_embeddings.weight
        trained = [p for p in inner.model.parameters() if p.requires_grad]

        def again(turn: int) -> None:
            _pass(module, parts, machine, (*seeds, turn), divisor)

        adversarial_passes(table, trained, objective.train, again)
    return StepResult(float(loss), int(examples), int(tokens), stops > 0)


def _pass(
    module: nn.Module,
    parts: Sequence[Micro],
    machine: Runtime,
    seeds: tuple[int, int, int],
    divisor: float,
) -> Tensor:
    """Add this rank's gradients of one pass, brought together at its end; returns its loss."""
    seed, step, turn = seeds

    def one(module: nn.Module, number: int, micro: Micro) -> Tensor:
        part = turn * len(parts) + number
        seed_masks(step_seed(seed, step, part * machine.world + machine.rank))
        if isinstance(module, DistributedDataParallel):
            module.require_backward_grad_sync = number == len(parts) - 1
        with machine.autocast():
            loss: Tensor = module(micro.batch.to(machine.device), divisor) * float(micro.counts)
        loss.backward()
        return loss.detach().double()

    return torch.stack(each_part(module, parts, one)).sum(0)
