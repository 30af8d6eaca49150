"""The optimisers against torch's own, schedules at their key points, Muon against the SVD."""

from __future__ import annotations

import math

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bertkit.checkpoint.config import BertConfig
from bertkit.model.heads import BertForPreTraining
from bertkit.settings import TrainSettings
from bertkit.train.optim import (
    Muon,
    Optimizers,
    _by_products,
    decay_groups,
    default_batch_tokens,
    default_learning_rate,
    learning_rate_at,
    muon_matrices,
    orthogonalize,
)


def model(seed: int = 0) -> BertForPreTraining:
    torch.manual_seed(seed)
    return BertForPreTraining(
        BertConfig(
            vocab_size=40,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            max_position_embeddings=16,
        )
    )


def give_gradients(module: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_decay_spares_biases_and_layer_norms_only() -> None:
    network = model()
    names = {id(p): name for name, p in network.named_parameters()}
    decayed, spared = decay_groups(network, 0.05)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.05, 0.0)
    for parameter in decayed["params"]:
        assert parameter.ndim == 2, names[id(parameter)]
    for parameter in spared["params"]:
        assert parameter.ndim == 1, names[id(parameter)]
    assert len(decayed["params"]) + len(spared["params"]) == len(names)


def test_equals_torchs_plain_adamw() -> None:
    mine, theirs = model(), model()
    train = TrainSettings(
        optimizer="adamw", weight_decay=0.1, adam_beta1=0.8, adam_beta2=0.95, adam_epsilon=1e-5
    )
    ours = Optimizers(mine, train, 0.01)
    spared = [p for n, p in theirs.named_parameters() if n.endswith("bias") or "LayerNorm" in n]
    ids = {id(p) for p in spared}
    groups = [
        {"params": [p for p in theirs.parameters() if id(p) not in ids], "weight_decay": 0.1},
        {"params": spared, "weight_decay": 0.0},
    ]
    plain = torch.optim.AdamW(groups, 0.01, (0.8, 0.95), 1e-5, foreach=False, fused=False)
    for step in range(5):
        share = 1 - step / 10
        assert ours.set_learning_rate(share) == 0.01 * share
        for group in plain.param_groups:
            group["lr"] = 0.01 * share
        give_gradients(mine, step)
        give_gradients(theirs, step)
        ours.step()
        plain.step()
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    ours.zero_grad()
    assert all(p.grad is None for p in mine.parameters())


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_state_tensors_carry_everything(kind: str) -> None:
    train = TrainSettings(optimizer=kind)  # type: ignore[arg-type]
    straight, broken = model(), model()
    first = Optimizers(straight, train, 0.01)
    for step in range(3):
        give_gradients(straight, step)
        first.step()
    tensors = {name: t.clone() for name, t in first.state_tensors().items()}
    with torch.no_grad():
        for a, b in zip(broken.parameters(), straight.parameters(), strict=True):
            a.copy_(b)
    second = Optimizers(broken, train, 0.01)
    assert second.state_tensors() == {}
    second.load_state_tensors(tensors)
    again = second.state_tensors()
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)
    for step in range(3, 6):
        for network, optimizers in ((straight, first), (broken, second)):
            give_gradients(network, step)
            optimizers.step()
    for a, b in zip(straight.parameters(), broken.parameters(), strict=True):
        assert torch.equal(a, b)


def test_state_tensors_are_named_by_parameter() -> None:
    network = model()
    optimizers = Optimizers(network, TrainSettings(optimizer="adamw"), 0.01)
    give_gradients(network, 0)
    optimizers.step()
    name = "bert.encoder.layer.0.attention.self.query.weight"
    tensors = optimizers.state_tensors()
    assert {f"{k}/{name}" for k in ("exp_avg", "exp_avg_sq", "step")} <= tensors.keys()
    assert tensors[f"step/{name}"].item() == 1.0


def schedule(kind: str, **settings: float) -> TrainSettings:
    return TrainSettings(lr_scheduler_type=kind, **settings)  # type: ignore[arg-type]


def test_schedules_at_their_key_points() -> None:
    for kind in ("linear", "cosine", "constant"):
        train = schedule(kind, warmup_ratio=0.1, cooldown_ratio=0.2)
        assert learning_rate_at(0.0, train) == 0.0
        assert learning_rate_at(0.05, train) == pytest.approx(0.5)
        assert learning_rate_at(0.1, train) == pytest.approx(1.0)
        assert learning_rate_at(1.0, train) == pytest.approx(0.0, abs=1e-12)
        assert learning_rate_at(1.5, train) == pytest.approx(0.0, abs=1e-12)
    linear = schedule("linear", warmup_ratio=0.1)
    assert learning_rate_at(0.55, linear) == pytest.approx(0.5)
    cosine = schedule("cosine", warmup_ratio=0.1)
    assert learning_rate_at(0.55, cosine) == pytest.approx(0.5)
    assert learning_rate_at(0.325, cosine) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    constant = schedule("constant", warmup_ratio=0.1, cooldown_ratio=0.2)
    assert learning_rate_at(0.8, constant) == pytest.approx(1.0)
    assert learning_rate_at(0.9, constant) == pytest.approx(0.5)
    forever = schedule("constant", warmup_ratio=0.0, cooldown_ratio=0.0)
    assert [learning_rate_at(x, forever) for x in (0.0, 0.5, 1.0)] == [1.0, 1.0, 1.0]
    assert learning_rate_at(0.5, schedule("linear", warmup_ratio=1.0)) == 0.5


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_schedules_are_those_of_transformers(kind: str) -> None:
    """Also in the first step, whose rate is 0, and in a run of one step."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = getattr(transformers, f"get_{kind}_schedule_with_warmup")
    for steps, warmup in ((50, 5), (7, 7), (1, 1)):
        step_of = theirs(optimizer, warmup, steps).lr_lambdas[0]
        train = schedule(kind, warmup_ratio=warmup / steps)
        for step in range(steps):
            assert learning_rate_at(step / steps, train) == pytest.approx(step_of(step), abs=1e-12)


@given(
    st.sampled_from(["linear", "cosine", "constant"]),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0, 1.2),
)
def test_schedules_stay_between_zero_and_one(
    kind: str, warmup: float, cooldown: float, progress: float
) -> None:
    train = schedule(kind, warmup_ratio=warmup, cooldown_ratio=cooldown)
    assert 0.0 <= learning_rate_at(progress, train) <= 1.0


@pytest.mark.parametrize("shape", [(16, 16), (24, 16), (16, 40)], ids=str)
def test_orthogonalize_is_the_svd_with_singular_values_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    matrix = u @ torch.diag(s.clamp(min=0.2 * float(s[0]))) @ v
    found = orthogonalize(matrix)
    assert found.shape == shape
    # In the basis of the singular vectors it is diagonal, and the diagonal is near 1.
    inside = u.T @ found @ v.T
    torch.testing.assert_close(inside, torch.diag(inside.diagonal()), atol=1e-6, rtol=0)
    assert float(inside.diagonal().min()) > 0.6
    assert float(inside.diagonal().max()) < 1.3


@pytest.mark.parametrize("shape", [(3, 16, 64), (64, 256), (1024, 256)], ids=str)
def test_the_short_way_for_wide_matrices_is_the_plain_one(shape: tuple[int, ...]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    found = orthogonalize(matrix)
    tall = shape[-2] > shape[-1]
    x = matrix.double().mT if tall else matrix.double()
    plain = _by_products(x / x.norm(dim=(-2, -1), keepdim=True), 5)
    plain = plain.mT if tall else plain
    torch.testing.assert_close(found.double(), plain, atol=2e-5, rtol=1e-4)


def test_muon_takes_the_encoders_matrices_and_adamw_the_rest() -> None:
    network = model()
    taken = muon_matrices(network)
    assert len(taken) == 2 * 6
    train = TrainSettings(optimizer="muon", muon_learning_rate=0.03)
    optimizers = Optimizers(network, train, 0.01)
    muon, adamw = optimizers.all
    assert isinstance(muon, Muon)
    held = [id(p) for group in muon.param_groups for p in group["params"]]
    rest = [id(p) for group in adamw.param_groups for p in group["params"]]
    assert set(held) == {id(p) for p in taken}
    assert len(held) + len(rest) == len({*held, *rest}) == len(list(network.parameters()))
    assert optimizers.set_learning_rate(0.5) == 0.005
    assert {g["lr"] for g in muon.param_groups} == {0.015}
    assert {g["lr"] for g in adamw.param_groups} == {0.005}


def test_muon_steps_against_the_gradient_by_a_fixed_size() -> None:
    weight = nn.Parameter(torch.zeros(32, 16))
    muon = Muon([weight], lr=0.02, weight_decay=0.0)
    for scale in (1.0, 1000.0):
        with torch.no_grad():
            weight.zero_()
        muon.state.clear()
        gradient = torch.randn(32, 16, generator=torch.Generator().manual_seed(0))
        weight.grad = gradient * scale
        muon.step()
        change = weight.detach() / (-0.02 * math.sqrt(2))
        values = torch.linalg.svdvals(change)
        assert 0.6 < float(values.min())
        assert float(values.max()) < 1.3
        assert float((change * gradient).sum()) > 0


def test_defaults_shrink_with_the_model() -> None:
    for optimizer in ("adamw", "muon"):
        rates = [default_learning_rate(s, optimizer) for s in (64, 128, 256, 512, 768, 1024, 2048)]
        assert rates == sorted(rates, reverse=True)
    assert default_learning_rate(768, "muon") > default_learning_rate(768, "adamw")
    cpu = torch.device("cpu")
    assert default_batch_tokens(cpu, 128) <= default_batch_tokens(cpu, 768)
    assert default_batch_tokens(torch.device("cuda"), 768) == 131072
