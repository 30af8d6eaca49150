"""FGM and PGD against the same thing done by hand with autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bertkit.settings import TaskTrainSettings
from bertkit.train.adversarial import adversarial_passes


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(11, 6)
        self.layer = nn.Linear(6, 3)

    def loss(self, table: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        hidden = torch.tanh(table[torch.tensor([1, 4, 4, 7])].mean(0))
        return nn.functional.cross_entropy((weight @ hidden + bias)[None], torch.tensor([2]))

    @property
    def words(self) -> nn.Parameter:
        assert isinstance(self.table.weight, nn.Parameter)
        return self.table.weight

    def own(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.table.weight, self.layer.weight, self.layer.bias


def by_machine(**settings: Any) -> tuple[Network, list[Tensor], list[int]]:
    network = Network()
    turns: list[int] = []

    def again(turn: int) -> None:
        turns.append(turn)
        network.loss(*network.own()).backward()

    network.loss(*network.own()).backward()
    train = TaskTrainSettings(**settings)
    adversarial_passes(network.words, list(network.parameters()), train, again)
    return network, [p.grad for p in network.own() if p.grad is not None], turns


def grads(network: Network, table: Tensor) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in (table, *network.own()[1:])]
    return list(torch.autograd.grad(network.loss(*leaves), leaves))


def test_fgm_adds_the_gradient_at_the_embeddings_moved_once() -> None:
    network, found, turns = by_machine(adversarial="fgm", adversarial_epsilon=0.8)
    fresh = Network()
    table = fresh.table.weight.detach()
    clean = grads(fresh, table)
    moved = grads(fresh, table + 0.8 * clean[0] / clean[0].norm())
    for one, a, b in zip(found, clean, moved, strict=True):
        assert torch.allclose(one, a + b, atol=1e-7)
    assert torch.equal(network.table.weight, table)
    assert turns == [1]


@pytest.mark.parametrize("epsilon", [0.5, 100.0])
def test_pgd_adds_the_gradient_at_the_last_of_its_steps(epsilon: float) -> None:
    network, found, turns = by_machine(
        adversarial="pgd", adversarial_epsilon=epsilon, pgd_alpha=0.3, pgd_steps=3
    )
    fresh = Network()
    table = fresh.table.weight.detach()
    clean = grads(fresh, table)
    way, slope = torch.zeros_like(table), clean
    for _ in range(3):
        way = way + 0.3 * slope[0] / slope[0].norm()
        if way.norm() > epsilon:
            way = epsilon * way / way.norm()
        slope = grads(fresh, table + way)
    assert float(way.norm()) == pytest.approx(min(epsilon, 0.9), rel=0.2)
    for one, a, b in zip(found, clean, slope, strict=True):
        assert torch.allclose(one, a + b, atol=1e-6)
    assert torch.equal(network.table.weight, table)
    assert turns == [1, 2, 3]


@pytest.mark.parametrize("kind", ["fgm", "pgd"])
@pytest.mark.parametrize("number", [0.0, float("nan")])
def test_without_a_direction_the_clean_gradient_stands(kind: str, number: float) -> None:
    network = Network()
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, number)
    before = network.table.weight.detach().clone()
    adversarial_passes(
        network.words,
        list(network.parameters()),
        TaskTrainSettings(adversarial=kind),  # type: ignore[arg-type]
        lambda turn: pytest.fail("there is no direction to move in"),
    )
    assert torch.equal(network.table.weight, before)
