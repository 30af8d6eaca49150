"""One optimiser step over a global batch, however it is cut into micro-batches and ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bertkit.batch import PretrainBatch, Readers
from bertkit.model.dropout import seed_masks
from bertkit.model.heads import BertForMaskedLM, BertForPreTraining
from bertkit.model.losses import LossSums
from bertkit.runtime import Runtime, step_seed
from bertkit.train.replicas import Replicated, each_part

Model = BertForPreTraining | BertForMaskedLM


class StepDropped(Exception):
    """Asked to stop, the run gave up a step before one of its micro-batches: nothing came of it."""


class Pretraining(nn.Module):
    """The model with its loss as the forward pass: what DistributedDataParallel wraps."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, batch: PretrainBatch, readers: Readers, mlm_count: float, nsp_count: float
    ) -> tuple[Tensor, LossSums]:
        """The share of this micro-batch in the mean loss of the global batch, and its sums."""
        sums = self.model.pretraining_sums(batch, readers)
        return sums.mlm / mlm_count + sums.nsp / nsp_count, sums


@dataclass(frozen=True, slots=True)
class StepResult:
    """The figures of one global batch; all ranks hold the same.

    Attributes:
        loss: mean masked-word loss plus mean pair loss, in nats.
        mlm_loss: mean over the masked positions.
        nsp_loss: mean over the pairs; 0 without pairs.
        mlm_accuracy: share of masked positions whose best word is right.
        nsp_accuracy: share of pairs told right.
        masked: masked positions.
        pairs: pairs.
        tokens: real tokens.
        stop: some rank was asked to stop.
    """

    loss: float
    mlm_loss: float
    nsp_loss: float
    mlm_accuracy: float
    nsp_accuracy: float
    masked: int
    pairs: int
    tokens: int
    stop: bool = False


def wrap(model: Model, machine: Runtime, compiled: bool) -> nn.Module:
    """The module that `forward_backward` calls."""
    return wrapped(Pretraining, model, machine, compiled)


def wrapped(
    make: Callable[[Any], nn.Module], model: Any, machine: Runtime, compiled: bool
) -> nn.Module:
    """The module of a model as all ranks, or replicas, call it; layers are compiled when asked.

    All layers share one graph (and the last, which answers for fewer rows, a second one), so
    compiling takes as long for 24 layers as for 2.
    """
    if machine.replicas > 1:
        return Replicated(make, model, machine)
    module = make(model)
    if compiled:
        for layer in model.bert.encoder.layer:
            layer.compile(dynamic=True)
    if machine.world > 1:
        devices = [machine.device] if machine.device.type == "cuda" else None
        return DistributedDataParallel(module, devices)
    return module


def forward_backward(
    module: nn.Module,
    parts: Sequence[PretrainBatch],
    machine: Runtime,
    seeds: tuple[int, int] = (0, 0),
    asked: Callable[[], bool] = bool,
) -> StepResult:
    """Leave the gradient of the global batch's mean loss on the parameters.

    Counts are summed over ranks before the backward pass, so the loss is the mean over the global
    batch's masked positions, not a mean of means.

    Args:
        module: what `wrap` gave.
        parts: this rank's micro-batches, on the CPU.
        machine: device, format, ranks.
        seeds: (seed, step), from which dropout's seed derives.
        asked: whether this rank was asked to stop; the answer before the step is told to all.

    Raises:
        StepDropped: with one rank, which needs no other's consent, asked to stop.
    """
    seed, step = seeds
    counts = torch.tensor(
        [
            sum(len(b.mlm_labels) for b in parts),
            sum(int((b.nsp_labels != -100).sum()) for b in parts),
            sum(b.real_tokens for b in parts),
            int(asked()),
        ],
        dtype=torch.float64,
        device=machine.device,
    )
    masked, pairs, tokens, stops = machine.sum(counts).tolist()
    # DistributedDataParallel averages over ranks; the loss wants their sum.
    mlm_count, nsp_count = (max(n, 1.0) / machine.world for n in (masked, pairs))

    def one(module: nn.Module, number: int, batch: PretrainBatch) -> Tensor:
        if machine.world == 1 and asked():
            raise StepDropped
        seed_masks(step_seed(seed, step, number * machine.world + machine.rank))
        readers = batch.readers(first=_model_of(module).pools).to(machine.device)
        if isinstance(module, DistributedDataParallel):
            module.require_backward_grad_sync = number == len(parts) - 1
        with machine.autocast():
            loss, sums = module(batch.to(machine.device), readers, mlm_count, nsp_count)
        loss.backward()
        return torch.stack([x.detach().double() for x in sums])

    totals = torch.stack(each_part(module, parts, one)).sum(0)
    return _result(machine.sum(totals).tolist(), masked, pairs, tokens, stops > 0)


@torch.no_grad()
def evaluate(module: nn.Module, batches: Sequence[PretrainBatch], machine: Runtime) -> StepResult:
    """The figures of fixed batches with dropout off; each rank takes its share."""
    model = _model_of(module)
    was_training = model.training
    model.eval()
    totals = torch.zeros(7, dtype=torch.float64, device=machine.device)
    for batch in batches[machine.rank :: machine.world]:
        readers = batch.readers(first=model.pools).to(machine.device)
        with machine.autocast(), torch.compiler.set_stance("force_eager"):
            sums = model.pretraining_sums(batch.to(machine.device), readers)
        pairs = int((batch.nsp_labels != -100).sum())
        counts = torch.tensor([len(batch.mlm_labels), pairs, batch.real_tokens])
        counts = counts.double().to(machine.device)
        totals += torch.cat([torch.stack([x.double() for x in sums]), counts])
    model.train(was_training)
    *sums_, masked, pairs_, tokens = machine.sum(totals).tolist()
    return _result(sums_, masked, pairs_, tokens, False)


def _result(
    sums: list[float], masked: float, pairs: float, tokens: float, stop: bool
) -> StepResult:
    mlm, nsp, mlm_correct, nsp_correct = sums
    m, n = max(masked, 1.0), max(pairs, 1.0)
    return StepResult(
        loss=mlm / m + nsp / n,
        mlm_loss=mlm / m,
        nsp_loss=nsp / n,
        mlm_accuracy=mlm_correct / m,
        nsp_accuracy=nsp_correct / n,
        masked=int(masked),
        pairs=int(pairs),
        tokens=int(tokens),
        stop=stop,
    )


def unwrapped(module: nn.Module) -> nn.Module:
    """What `wrapped` made of the model, for ranks and replicas or alone."""
    shared = isinstance(module, DistributedDataParallel | Replicated)
    return module.module if shared else module  # type: ignore[return-value]


def _model_of(module: nn.Module) -> Model:
    inner = unwrapped(module)
    assert isinstance(inner, Pretraining)
    return inner.model


def flops_per_token(model: Model, max_length: int, mlm_probability: float) -> float:
    """Training FLOPs of a token: 6 P_encoder + 12 L D S + 6 p (V D + D^2).

    P_encoder counts the layers' matrices; S is max_length, an upper bound of what is attended.
    """
    config = model.config
    d, v, layers = config.hidden_size, config.vocab_size, config.num_hidden_layers
    matrices = layers * (4 * d * d + 2 * d * config.intermediate_size)
    return 6 * matrices + 12 * layers * d * max_length + 6 * mlm_probability * (v * d + d * d)
