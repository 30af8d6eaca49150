"""The masks of dropout: their rates, their seeds, their independence."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bertkit.model.dropout import Dropout, keep_mask


@pytest.mark.parametrize("p", [0.0, 0.1, 0.25, 0.5, 0.9])
def test_numbers_are_dropped_at_the_rate_asked(p: float) -> None:
    torch.manual_seed(0)
    mask = keep_mask(torch.empty(1000, 1000), p)
    kept = mask != 0
    error = math.sqrt(p * (1 - p) / mask.numel()) + 1 / 65536
    assert abs(float(kept.double().mean()) - (1 - p)) < 4 * error + 1e-9
    torch.testing.assert_close(mask[kept], torch.full_like(mask[kept], 1 / (1 - p)))


def test_neighbours_are_dropped_independently() -> None:
    torch.manual_seed(0)
    dropped = (keep_mask(torch.empty(1 << 20), 0.5) == 0).double()
    for lag in (1, 2, 3, 4, 5, 8, 64, 256):
        both = float((dropped[lag:] * dropped[:-lag]).mean())
        assert abs(both - 0.25) < 0.0025, lag


def test_the_seed_of_torch_decides() -> None:
    drawn = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        drawn.append((keep_mask(torch.empty(33), 0.5), keep_mask(torch.empty(33), 0.5)))
    assert torch.equal(drawn[0][0], drawn[1][0])
    assert torch.equal(drawn[0][1], drawn[1][1])
    assert not torch.equal(drawn[0][0], drawn[0][1])
    assert not torch.equal(drawn[0][0], drawn[2][0])


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(0, 7), min_size=0, max_size=3),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)
def test_any_shape_and_format(shape: list[int], dtype: torch.dtype) -> None:
    mask = keep_mask(torch.empty(shape, dtype=dtype), 0.5)
    assert mask.shape == torch.Size(shape)
    assert mask.dtype == dtype
    assert set(mask.unique().tolist()) <= {0.0, 2.0}


def test_the_gradient_is_dropped_alike() -> None:
    x = torch.randn(50, 8, requires_grad=True)
    out = Dropout(0.3)(x)
    out.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(out, x * x.grad)
    assert 0 < int((x.grad == 0).sum()) < x.numel()


def test_added_is_the_sum_with_the_same_mask() -> None:
    dropout = Dropout(0.3)
    x, residual = torch.randn(9, 5, requires_grad=True), torch.randn(9, 5, requires_grad=True)
    torch.manual_seed(1)
    added = dropout.added(x, residual)
    torch.manual_seed(1)
    torch.testing.assert_close(added, dropout(x) + residual)


def test_it_rests_in_evaluation_and_at_probability_0() -> None:
    x = torch.randn(5)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x
    torch.testing.assert_close(Dropout(0.5).eval().added(x, x), 2 * x)


def test_probability_1_drops_all() -> None:
    assert not Dropout(1.0)(torch.randn(5)).any()
