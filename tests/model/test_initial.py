"""Parameters begin as the paper says."""

from __future__ import annotations

import math

import pytest
import torch

import bertkit
from bertkit.model.initial import initialise, truncated_normal_
from tests.model.peers import HEADS, SETTINGS


@pytest.mark.parametrize("kind", HEADS)
def test_initialisation_is_the_papers(kind: str) -> None:
    torch.manual_seed(1)
    wide = SETTINGS | {"hidden_size": 128, "intermediate_size": 512, "vocab_size": 2000}
    model = getattr(bertkit, kind)(bertkit.BertConfig(**wide, pad_token_id=3))
    # A normal cut off at two deviations keeps 0.8796 of its deviation.
    for name, parameter in model.named_parameters():
        p = parameter.detach()
        if name.endswith("bias"):
            assert not p.any(), name
        elif "LayerNorm" in name:
            assert bool((p == 1).all()), name
        else:
            assert float(p.abs().max()) <= 0.04, name
            if p.numel() > 10_000:
                assert float(p.std()) == pytest.approx(0.02 * 0.8796, rel=0.03), name
                assert abs(float(p.mean())) < 0.001, name
    assert not model.bert.embeddings.word_embeddings.weight[3].any()


def test_the_distribution_is_the_normal_cut_off_at_two_deviations() -> None:
    torch.manual_seed(3)
    x = torch.empty(400_000)
    truncated_normal_(x, 0.5)
    assert float(x.abs().max()) <= 1.0

    def below(deviations: float) -> float:
        """The distribution function, by the error function."""
        inside = math.erf(2 / math.sqrt(2))
        return (math.erf(deviations / math.sqrt(2)) + inside) / (2 * inside)

    for deviations in (-1.9, -1.0, -0.3, 0.0, 0.7, 1.5):
        found = float((x < 0.5 * deviations).double().mean())
        assert found == pytest.approx(below(deviations), abs=0.004)  # five deviations of the count


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_number_format(dtype: torch.dtype) -> None:
    x = torch.full((1000,), torch.nan, dtype=dtype)
    truncated_normal_(x, 0.02)
    assert float(x.double().std()) == pytest.approx(0.02 * 0.8796, rel=0.1)
    assert float(x.abs().max()) <= 0.0401


def test_only_the_named_ones_begin_anew() -> None:
    model = bertkit.BertForMaskedLM(bertkit.BertConfig(**SETTINGS))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    chosen = "bert.encoder.layer.1.output.dense.weight"
    initialise(model, 0.02, [chosen])
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {chosen}
