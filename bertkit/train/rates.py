"""How fast each parameter of a fine-tuned model learns: by layer, head, and field over tags."""

from __future__ import annotations

import re
from typing import Any

import torch

from bertkit.model.base import BertPreTrainedModel
from bertkit.settings import TaskTrainSettings
from bertkit.train.optim import OptimizerSet, is_spared

_LAYER = re.compile(r"\.encoder\.layer\.(\d+)\.")
_FIELD = "crf."


class TaskOptimizer(OptimizerSet):
    """AdamW with BERT's decay groups, each with a highest learning rate of its own.

    Args:
        model: what is trained of it has `requires_grad`.
        train: the recipe's, every learning rate set.
    """

    def __init__(self, model: BertPreTrainedModel, train: TaskTrainSettings) -> None:
        assert train.learning_rate is not None
        betas = (train.adam_beta1, train.adam_beta2)
        groups = parameter_groups(model, train)
        adamw = torch.optim.AdamW(
            groups, train.learning_rate, betas, train.adam_epsilon, fused=True
        )
        super().__init__(model, train.learning_rate, [adamw])


def freeze(model: BertPreTrainedModel, layers: int, embeddings: bool) -> None:
    """Let the lowest `layers`, with the embeddings below them, or these alone, stay as they are."""
    encoder = model.base_model
    if layers or embeddings:
        encoder.embeddings.requires_grad_(False)
    for layer in encoder.encoder.layer[:layers]:
        layer.requires_grad_(False)


def parameter_groups(model: BertPreTrainedModel, train: TaskTrainSettings) -> list[dict[str, Any]]:
    """Groups for an optimiser: "params", "weight_decay", and "peak", the highest learning rate.

    With layer decay d, the head and the pooler learn at the full rate, the highest layer at d of
    it, the next at d^2 and so on down to the embeddings (Howard and Ruder 2018, arXiv 1801.06146,
    section 3.2; ELECTRA and BEiT do so).
    """
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        peak = peak_of(name, model.config.num_hidden_layers, train)
        decay = 0.0 if is_spared(name) else train.weight_decay
        group = groups.setdefault(
            (peak, decay), {"params": [], "weight_decay": decay, "peak": peak, "lr": peak}
        )
        group["params"].append(parameter)
    return list(groups.values())


def peak_of(name: str, layers: int, train: TaskTrainSettings) -> float:
    """The highest learning rate of the parameter with this name."""
    assert train.learning_rate is not None
    if name.startswith(_FIELD):
        return train.crf_learning_rate or train.learning_rate
    if not name.startswith("bert."):
        return train.head_learning_rate or train.learning_rate
    found = _LAYER.search(name)
    if found:
        below = layers - int(found[1])
    else:
        below = layers + 1 if name.startswith("bert.embeddings.") else 0
    return float(train.learning_rate * train.layer_decay**below)
