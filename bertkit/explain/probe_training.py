"""Probes of all layers and tasks trained at once: a batched product a step, Adam, our own loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from bertkit.data.order import permutation
from bertkit.errors import UsageError
from bertkit.explain.labelled_states import Pooling


@dataclass(frozen=True, slots=True)
class ProbeSettings:
    """How probes are trained.

    Attributes:
        hidden: units of one hidden layer; 0: the probe is linear.
        pooling: how a text becomes a vector: "cls", or "mean" over its tokens.
        most: words (or texts) kept for training; half as many to check. Memory is
            1.5 x most x (L + 1) x D x 4 bytes: 0.6 GB for a base model.
        steps: of Adam, with a rate that falls to 0.
        batch_size: words (or texts) a step.
        learning_rate: at the start.
        l2: the penalty l2 / 2 |W|^2 on the sum of the losses, as scikit-learn's 1 / C.
        seed: of everything random.
    """

    hidden: int = 0
    pooling: Pooling = "cls"
    most: int = 10_000
    steps: int = 1000
    batch_size: int = 256
    learning_rate: float = 0.01
    l2: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("hidden", 0), ("most", 2), ("steps", 1), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be {least} or more")
        if self.pooling not in ("cls", "mean"):
            raise UsageError(f"pooling is {self.pooling!r}; it may be cls or mean")


class Probes(NamedTuple):
    """K x P trained probes: K tasks on P layers.

    Attributes:
        mean, scale: [P, D] of the training states, by which each feature is standardised.
        layers: pairs of a weight [K, P, in, out] and a bias [K, P, out], one pair or two.
    """

    mean: Tensor
    scale: Tensor
    layers: list[tuple[Tensor, Tensor]]

    def logits(self, states: Tensor) -> Tensor:
        """[n, P, D] -> [K, n, P, C]."""
        device = self.mean.device
        x = ((states.to(device) - self.mean) / self.scale).expand(
            len(self.layers[0][0]), -1, -1, -1
        )
        for number, (weight, bias) in enumerate(self.layers):
            x = x if number == 0 else x.relu()
            x = torch.einsum("knpd,kpdc->knpc", x, weight) + bias[:, None]
        return x

    def answers(self, states: Tensor) -> Tensor:
        """[K, n, P] the likeliest label, on the CPU."""
        with torch.no_grad():
            return torch.cat([self.logits(part).argmax(-1).cpu() for part in states.split(1024)], 1)


def train_probes(
    states: Tensor,
    targets: Tensor,
    count: int,
    settings: ProbeSettings,
    report: Callable[[int, int], None] = lambda done, total: None,
    device: torch.device | None = None,
) -> Probes:
    """Train K x P probes at once; each is as if it were trained alone.

    Args:
        states: [n, P, D], one row a word or text; they stay where they are.
        targets: [K, n] labels of K tasks.
        count: how many labels there are.
        settings: hidden, steps, batch_size, learning_rate, l2, seed count here.
        report: takes progress.
        device: where the probes are trained.
    """
    device, total = device or states.device, len(states)
    probes = _fresh(states, len(targets), count, settings, device)
    weights, biases = ([pair[i] for pair in probes.layers] for i in (0, 1))
    groups: list[dict[str, Any]] = [
        {"params": weights, "weight_decay": settings.l2 / total},
        {"params": biases},
    ]
    optimizer = torch.optim.Adam(groups, lr=settings.learning_rate)
    falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / settings.steps)
    size = min(settings.batch_size, total)
    order: NDArray[np.int64] = np.empty(0, dtype=np.int64)
    epoch = 0
    for done in range(settings.steps):
        if len(order) < size:
            order = permutation(total, settings.seed, epoch)
            epoch += 1
        mine, order = torch.from_numpy(order[:size].copy()), order[size:]
        with torch.enable_grad():
            logits = probes.logits(states[mine])
            gold = targets[:, mine, None].to(device).expand(-1, -1, logits.shape[2])
            loss = F.cross_entropy(logits.flatten(0, 2), gold.flatten(), reduction="sum") / size
            gradients = torch.autograd.grad(loss, weights + biases)
        for parameter, gradient in zip(weights + biases, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        falling.step()
        report(done + 1, settings.steps)
    return Probes(probes.mean, probes.scale, [(w.detach(), b.detach()) for w, b in probes.layers])


def _fresh(
    states: Tensor, tasks: int, count: int, settings: ProbeSettings, device: torch.device
) -> Probes:
    """Standardised for the training states; all layers and tasks begin alike."""
    layers, size = states.shape[1:]
    sums = torch.zeros(2, layers, size, dtype=torch.float64)
    mean = sum((p.double().sum(0) for p in states.split(1024)), sums[0]) / len(states)
    square = sum(((p.double() - mean).square().sum(0) for p in states.split(1024)), sums[1])
    scale = (square / len(states)).sqrt()
    # A feature that is the same everywhere (such as [CLS] in the embeddings) stays 0, not noise.
    scale[scale <= 1e-6 * (1 + mean.abs())] = torch.inf
    random = torch.Generator().manual_seed(settings.seed)
    widths = [size, settings.hidden, count] if settings.hidden else [size, count]
    pairs = []
    for number, (inside, out) in enumerate(pairwise(widths)):
        start = torch.zeros(inside, out)
        if number < len(widths) - 2:
            start = torch.randn(inside, out, generator=random) * (2 / inside) ** 0.5
        weight = start.to(device, states.dtype).expand(tasks, layers, -1, -1).clone()
        bias = torch.zeros(tasks, layers, out, dtype=states.dtype, device=device)
        pairs.append((weight.requires_grad_(), bias.requires_grad_()))
    return Probes(mean.to(device, states.dtype), scale.to(device, states.dtype), pairs)
