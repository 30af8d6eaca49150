"""Replicas: copies of a model that share its numbers, each with gradients and a thread of its own.

The threads of one matrix product wait for each other after it, some hundred times a step; replicas,
each with a share of the step's examples, wait once. On two Zen 3 cores in fp32 BERT-base trains
5-15% faster with two of them in steps of 2,048 tokens and more, 1% slower with 1,024; mini -1 to 7%
faster from 2,048 tokens on, 10% slower with 1,024 (docs/en/log.md).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from bertkit.errors import UsageError
from bertkit.model.dropout import own_masks
from bertkit.runtime import Runtime
from bertkit.settings import TaskTrainSettings, TrainSettings

# Two replicas pay from so many tokens a step, and so large a model, on.
PAY_TOKENS, PAY_HIDDEN = 2048, 256

AnyTrain = TrainSettings | TaskTrainSettings
PartT = TypeVar("PartT")
ModelT = TypeVar("ModelT", bound=nn.Module)
# Leaves the gradients of one micro-batch, which has this number, on a module; gives figures of it.
Work = Callable[[nn.Module, int, PartT], Tensor]


def with_replicas(
    machine: Runtime, train: AnyTrain, compiled: bool, hidden_size: int, tokens: float
) -> Runtime:
    """The machine with the number of replicas that a run has.

    Args:
        machine: without.
        train: how many are asked for; None: two where they pay.
        compiled: whether layers are.
        hidden_size: of the model.
        tokens: of a micro-batch, in the mean.

    Raises:
        UsageError: more than one is asked for where there can be one only.
    """
    asked = train.replicas
    fault = _fault(machine, train, compiled)
    if asked is None:
        pay = tokens >= PAY_TOKENS and hidden_size >= PAY_HIDDEN
        return replace(machine, replicas=1 if fault or not pay else 2)
    if asked > 1 and fault:
        raise UsageError(f"train.replicas={asked}, but {fault}; leave it out")
    return replace(machine, replicas=asked)


def _fault(machine: Runtime, train: AnyTrain, compiled: bool) -> str:
    """Why there can be one replica only, or ""."""
    faults = {
        "replicas are for CPUs": machine.device.type != "cpu",
        "ranks share the step already": machine.world > 1,
        f"threads are {machine.threads}": (train.replicas or 2) > machine.threads,
        "layers are compiled, which replicas cannot share": compiled,
        "train.gradient_checkpointing=true allows one only": train.gradient_checkpointing,
        "train.loss=dice is one figure of all examples": getattr(train, "loss", "") == "dice",
    }
    return next((fault for fault, true in faults.items() if true), "")


class Replicated(nn.Module):
    """A training module and its replicas; the module is under the name that ranks have it under.

    Args:
        make: the module of a model: what each micro-batch goes through.
        model: all replicas have its numbers; freeze it, and give it adapters, before.
        machine: how many replicas, the model itself counted, and how many threads.
    """

    def __init__(
        self, make: Callable[[Any], nn.Module], model: nn.Module, machine: Runtime
    ) -> None:
        super().__init__()
        self.module = make(model)
        self.threads = machine.threads
        # In a tuple, so that torch counts no parameter twice.
        self.models = (model, *(replica_of(model) for _ in range(machine.replicas - 1)))
        self.lanes = (self.module, *map(make, self.models[1:]))
        self.pool = ThreadPoolExecutor(machine.replicas - 1, "replica")

    def each(self, parts: Sequence[PartT], work: Work[PartT]) -> list[Tensor]:
        """`work` on each part, dealt out in turn; what it returns, in the order of the parts.

        The gradients of all replicas are on the model afterwards. Whatever is raised is raised when
        all have stopped; nothing is left on the replicas then.
        """
        lanes = min(len(self.lanes), max(1, len(parts)))
        found: dict[int, Tensor] = {}

        def run(lane: int) -> None:
            torch.set_num_threads(max(1, self.threads // lanes))  # of this thread
            with own_masks():
                for number in range(lane, len(parts), lanes):
                    found[number] = work(self.lanes[lane], number, parts[number])

        others = [self.pool.submit(run, lane) for lane in range(1, lanes)]
        try:
            run(0)
        finally:
            wait(others)
            torch.set_num_threads(self.threads)
            self._gather()
        for other in others:
            other.result()
        return [found[number] for number in range(len(parts))]

    def _gather(self) -> None:
        """Bring the gradients together on the model, always in the same order."""
        for replica in self.models[1:]:
            for mine, its in zip(self.models[0].parameters(), replica.parameters(), strict=True):
                if mine.grad is None:
                    mine.grad = its.grad
                elif its.grad is not None:
                    mine.grad.add_(its.grad)
                its.grad = None


def replica_of(model: ModelT) -> ModelT:
    """A copy whose parameters have the model's own numbers, and gradients of their own."""
    own = {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, dict[int, Any](own))


def each_part(module: nn.Module, parts: Sequence[PartT], work: Work[PartT]) -> list[Tensor]:
    """`work` on each part, by replicas where there are any; what it returns, in their order."""
    if isinstance(module, Replicated):
        return module.each(parts, work)
    return [work(module, number, part) for number, part in enumerate(parts)]
