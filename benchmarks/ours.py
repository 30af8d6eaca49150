"""Our side of the pretraining step: the model, its loss, ragged batches made from examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.examples import Example, real_tokens
from bertkit.batch import PretrainBatch, Readers
from bertkit.checkpoint.config import BertConfig
from bertkit.data.collate import split_evenly
from bertkit.runtime import Runtime
from bertkit.settings import SIZES, TrainSettings
from bertkit.train.replicas import each_part, with_replicas
from bertkit.train.step import wrap

# A batch and the positions that its heads read, both ready on the device, as the loader hands them.
Ready = tuple[PretrainBatch, Readers]


def our_model(size: str, vocab_size: int, dropout: float, length: int) -> Any:
    """A freshly initialised BertForPreTraining in training mode."""
    from bertkit.model.heads import BertForPreTraining

    config = BertConfig.of_size(
        size,
        vocab_size=vocab_size,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        max_position_embeddings=max(512, length),
    )
    torch.manual_seed(0)
    return BertForPreTraining(config).train()


def our_machine(machine: Runtime, size: str, tokens: int, compile_it: bool) -> Runtime:
    """The machine with as many replicas as `bertkit pretrain` has in steps of so many tokens."""
    return with_replicas(machine, TrainSettings(), compile_it, SIZES[size][1], tokens)


def our_backward(model: Any, machine: Runtime, compile_it: bool) -> Callable[[list[Ready]], Tensor]:
    """How `bertkit pretrain` leaves a step's gradients: its module, replicas, way of compiling.

    What is returned takes the step's examples, a part for each replica, and returns their loss.
    """
    module = wrap(model, machine, compile_it)

    def backward(parts: list[Ready]) -> Tensor:
        masked = float(sum(len(batch.mlm_labels) for batch, _ in parts))
        pairs = float(sum(len(batch.lengths) for batch, _ in parts))

        def one(module: nn.Module, _: int, part: Ready) -> Tensor:
            with machine.autocast():
                loss, _ = module(*part, masked, pairs)
            loss.backward()
            return loss.detach()  # type: ignore[no-any-return]

        return torch.stack(each_part(module, parts, one)).sum()

    return backward


def ready(examples: Sequence[Example], device: str | torch.device) -> Ready:
    """A ragged batch on the device."""
    batch = ragged_batch(examples)
    readers = batch.readers(first=True)
    return batch.to(device), readers.to(device)


def dealt(examples: Sequence[Example], parts: int, device: str | torch.device) -> list[Ready]:
    """A step's examples as the loader deals them to replicas: parts of about as many tokens."""
    lengths = np.array([len(example.ids) for example in examples])
    dealt = split_evenly(lengths, min(parts, len(examples)))
    return [ready([examples[i] for i in part.tolist()], device) for part in dealt]


def ragged_batch(examples: Sequence[Example]) -> PretrainBatch:
    """Examples laid end to end, longest first, as bertkit's loader lays them."""
    ordered = sorted(examples, key=lambda example: -len(example.ids))
    lengths = np.array([len(e.ids) for e in ordered], np.int64)
    labels = np.concatenate([e.labels for e in ordered])
    positions = np.flatnonzero(labels >= 0)
    return PretrainBatch(
        input_ids=torch.from_numpy(np.concatenate([e.ids for e in ordered])),
        token_type_ids=torch.from_numpy(np.concatenate([e.types for e in ordered])),
        position_ids=torch.from_numpy(np.concatenate([np.arange(n) for n in lengths])),
        lengths=torch.from_numpy(lengths),
        mlm_positions=torch.from_numpy(positions),
        mlm_labels=torch.from_numpy(labels[positions]),
        nsp_labels=torch.tensor([e.next_label for e in ordered]),
        real_tokens=real_tokens(ordered),
    )


def token_batches(examples: Sequence[Example], budget: int) -> list[list[Example]]:
    """Consecutive examples in groups of at most `budget` tokens, as a step's budget cuts them."""
    groups: list[list[Example]] = [[]]
    used = 0
    for example in examples:
        if used + len(example.ids) > budget and groups[-1]:
            groups.append([])
            used = 0
        groups[-1].append(example)
        used += len(example.ids)
    return groups
