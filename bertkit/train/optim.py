"""Optimisers: decay groups, schedule, and what each size starts pretraining from."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bertkit.settings import TaskTrainSettings, TrainSettings

# Peak learning rate of AdamW by hidden size, for batches of a few thousand tokens: at 128 the
# better of two tried (docs/en/log.md), at 768 and 1024 RoBERTa's, between them a guess.
LEARNING_RATES = {128: 2e-3, 256: 1e-3, 512: 7e-4, 768: 6e-4, 1024: 4e-4}
# Beside Muon, AdamW has the embeddings and heads only. At 128, 2e-3 and 5e-3 ended level (6.858 and
# 6.860) and 1e-2 slightly ahead of 2e-3 (6.744, 6.765): one run each, so the middle.
BESIDE_MUON = 2.5


def default_learning_rate(hidden_size: int, optimizer: str) -> float:
    """The peak learning rate for a model of this width."""
    fitting = [size for size in LEARNING_RATES if size >= hidden_size] or [max(LEARNING_RATES)]
    return LEARNING_RATES[min(fitting)] * (BESIDE_MUON if optimizer == "muon" else 1.0)


def default_batch_tokens(device: torch.device, hidden_size: int) -> int:
    """Tokens a step: small where minutes are the budget (a CPU), BERT's 256 x 512 on a GPU.

    A tiny model left the unigram with 1,024-token steps in fewer tokens than with 512 or 2,048.
    From mini on larger steps make Muon's own work a smaller share of the time (docs/en/log.md).
    """
    if device.type == "cuda":
        return 131072
    return 1024 if hidden_size <= 128 else 2048


def learning_rate_at(progress: float, train: TrainSettings | TaskTrainSettings) -> float:
    """The share of the peak learning rate at `progress` (0 to 1) of the budget.

    Linear warm-up, then: "linear" to 0; "cosine" to 0; "constant" with a linear cool-down.
    """
    if progress < train.warmup_ratio:
        return progress / train.warmup_ratio
    rest = 1 - train.warmup_ratio
    done = (progress - train.warmup_ratio) / rest if rest > 0 else 1.0
    left = max(0.0, 1.0 - done)
    match train.lr_scheduler_type:
        case "linear":
            return left
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * (1 - left)))
        case "constant":
            cooldown = train.cooldown_ratio
            return 1.0 if cooldown == 0 else min(1.0, left * rest / cooldown)


def is_spared(name: str) -> bool:
    """Whether the parameter of this name is a bias or of a LayerNorm, which do not decay."""
    return name.endswith("bias") or "LayerNorm" in name


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for all but biases and LayerNorm (Devlin et al. 2018, appendix A.2)."""
    decay: list[nn.Parameter] = []
    spare: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (spare if is_spared(name) else decay).append(parameter)
    return [
        {"params": decay, "weight_decay": weight_decay},
        {"params": spare, "weight_decay": 0.0},
    ]


class OptimizerSet:
    """The optimisers of one run, stepped together.

    Args:
        model: whose parameters they hold.
        peak: the highest learning rate, as it is logged.
        all: the optimisers; a group may have a highest learning rate of its own under "peak".
    """

    def __init__(self, model: nn.Module, peak: float, all: list[torch.optim.Optimizer]) -> None:
        self.peak, self.all = peak, all
        self.names = {id(p): name for name, p in model.named_parameters()}

    def set_learning_rate(self, share: float) -> float:
        """Set every group to `share` of its peak; returns AdamW's learning rate."""
        for optimizer in self.all:
            for group in optimizer.param_groups:
                group["lr"] = group.get("peak", optimizer.defaults["lr"]) * share
        return self.peak * share

    def step(self) -> None:
        """Update all parameters from their gradients."""
        for optimizer in self.all:
            optimizer.step()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for optimizer in self.all:
            optimizer.zero_grad(set_to_none=True)

    def state_tensors(self) -> dict[str, Tensor]:
        """The optimisers' state as named tensors: "exp_avg/bert.encoder...weight" and so on."""
        return {
            f"{key}/{self.names[id(parameter)]}": value
            for optimizer in self.all
            for parameter, state in optimizer.state.items()
            for key, value in state.items()
        }

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take back what state_tensors gave; parameters without a state start afresh."""
        state: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            key, _, parameter = name.partition("/")
            state.setdefault(parameter, {})[key] = tensor
        for optimizer in self.all:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    found = state.get(self.names[id(parameter)], {})
                    for key, value in found.items():
                        place = torch.device("cpu") if key == "step" else parameter.device
                        if key == "step" and parameter.is_cuda:  # fused AdamW counts on the GPU
                            place = parameter.device
                        optimizer.state[parameter][key] = value.to(place, copy=True)


class Optimizers(OptimizerSet):
    """The optimisers of pretraining.

    With "muon", the matrices of the encoder's layers are orthogonalised by Muon; embeddings,
    heads, biases and LayerNorms stay with AdamW.
    """

    def __init__(self, model: nn.Module, train: TrainSettings, learning_rate: float) -> None:
        groups = decay_groups(model, train.weight_decay)
        both: list[torch.optim.Optimizer] = []
        if train.optimizer == "muon":
            taken = muon_matrices(model)
            both.append(Muon(taken, train.muon_learning_rate, train.weight_decay))
            ids = {id(p) for p in taken}
            for group in groups:
                group["params"] = [p for p in group["params"] if id(p) not in ids]
        betas = (train.adam_beta1, train.adam_beta2)
        both.append(torch.optim.AdamW(groups, learning_rate, betas, train.adam_epsilon, fused=True))
        super().__init__(model, learning_rate, both)


def muon_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The weight matrices of the encoder's layers."""
    return [p for name, p in model.named_parameters() if ".encoder.layer." in name and p.ndim == 2]


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised by five Newton-Schulz iterations (Jordan et al. 2024, "Muon").

    Each update is scaled by sqrt(max(1, rows / columns)) so that wide and tall matrices move their
    outputs alike. Matrices of one shape are orthogonalised side by side: small products by
    themselves leave the second core idle.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, weight_decay: float, momentum: float = 0.95
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update all matrices; no closure is taken."""
        assert closure is None
        for group in self.param_groups:
            alike: dict[torch.Size, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike.setdefault(parameter.shape, []).append(parameter)
            for (rows, columns), parameters in alike.items():
                updates = torch.stack([self._momentum(p, group["momentum"]) for p in parameters])
                scale = max(1.0, rows / columns) ** 0.5
                for parameter, update in zip(parameters, orthogonalize(updates), strict=True):
                    parameter.mul_(1 - group["lr"] * group["decay"])
                    parameter.add_(update, alpha=-group["lr"] * scale)

    def _momentum(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        """The gradient as Nesterov's momentum sees it."""
        assert parameter.grad is not None
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(state["momentum"], momentum)


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrix of each of [..., rows, columns], roughly.

    Singular values end between 0.7 and 1.2: a quintic Newton-Schulz iteration whose coefficients
    trade accuracy for speed (Jordan 2024).
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x: Tensor = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    far = x.shape[-1] > 2 * x.shape[-2]
    x = (_by_gram if far else _by_products)(x, steps)
    return x.mT if tall else x


_A, _B, _C = 3.4445, -4.7750, 2.0315


def _by_products(x: Tensor, steps: int) -> Tensor:
    """The iteration as it is written: two of three products as large as the matrix."""
    for _ in range(steps):
        gram = x @ x.mT
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    return x


def _by_gram(x: Tensor, steps: int) -> Tensor:
    """The same, for a matrix much wider than tall, on the small X X^T alone.

    Every iterate is P X with P a polynomial of X X^T, so only P and the product of the iterate with
    itself are followed. For 256 x 1024 that is 0.84 instead of 1.51 GFLOP.
    """
    gram = x @ x.mT
    whole = None
    for step in range(steps):
        factor = _B * gram + _C * gram @ gram
        factor.diagonal(dim1=-2, dim2=-1).add_(_A)
        whole = factor if whole is None else factor @ whole
        if step < steps - 1:
            gram = factor @ gram @ factor
    return x if whole is None else whole @ x
