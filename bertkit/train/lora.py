"""LoRA: low-rank updates of frozen matrices, merged into them when the model is saved.

Hu et al. 2021 (arXiv 2106.09685): W x + (alpha / rank) B A x, where A begins random and B zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bertkit.errors import UsageError
from bertkit.model.base import BertPreTrainedModel

# The matrices of a layer by the names that recipes have for them.
PLACES = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention.output": "attention.output.dense",
    "intermediate": "intermediate.dense",
    "output": "output.dense",
}


class LoraLinear(nn.Linear):
    """A linear layer whose own numbers are frozen, and its low-rank update.

    Attributes:
        lora_a: [rank, in_features].
        lora_b: [out_features, rank].
        scale: alpha / rank.
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__(
            linear.in_features, linear.out_features, linear.bias is not None, device="meta"
        )
        self.weight, self.bias = linear.weight, linear.bias
        self.scale = alpha / rank
        device = linear.weight.device
        self.lora_a = nn.Parameter(torch.empty(rank, linear.in_features, device=device))
        self.lora_b = nn.Parameter(torch.zeros(linear.out_features, rank, device=device))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        update = F.linear(F.linear(x, self.lora_a), self.lora_b)
        return super().forward(x) + self.scale * update

    def merged(self) -> Tensor:
        """[out_features, in_features]: one matrix that does the same."""
        return (self.weight + self.scale * (self.lora_b @ self.lora_a)).detach()


def add_adapters(
    model: BertPreTrainedModel, rank: int, alpha: float, targets: Sequence[str]
) -> None:
    """Give the named matrices of every layer an update, and freeze embeddings and layers.

    What stands above the layers (pooler, head) is trained as a whole.

    Raises:
        UsageError: the rank is larger than a matrix, or no matrix is named.
    """
    if not targets:
        raise UsageError("train.lora_targets is empty; name query, value, ...")
    encoder = model.base_model
    for part in (encoder.embeddings, encoder.encoder):
        part.requires_grad_(False)
    for layer in encoder.encoder.layer:
        for target in targets:
            parent, _, name = PLACES[target].rpartition(".")
            holder = layer.get_submodule(parent)
            linear = getattr(holder, name)
            if rank > min(linear.weight.shape):
                raise UsageError(
                    f"train.lora_rank is {rank}; {target} is {list(linear.weight.shape)}"
                )
            setattr(holder, name, LoraLinear(linear, rank, alpha))


def has_adapters(model: nn.Module) -> bool:
    """Whether `add_adapters` was here."""
    return any(isinstance(module, LoraLinear) for module in model.modules())


def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """The numbers of a plain model that does the same, by their usual names."""
    state = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not name.endswith((".lora_a", ".lora_b"))
    }
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            state[f"{name}.weight"] = module.merged()
    return state
