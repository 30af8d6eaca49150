"""Ablation: a hook is zeroed columns of the weights; gates' slopes are finite differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bertkit.errors import UsageError
from bertkit.explain.ablation import AblationResult, Means, ablate, gated, mean_parts, without
from bertkit.explain.effects import answer_clean, run_from
from bertkit.explain.hooks import Site, capture, state_hash, still, trace
from bertkit.explain.questions import asked_batches, head_of
from tests.explain.models import MASKED, TEXTS, opened, theirs
from tests.explain.test_weights import FEW, fresh, kinds

HEADS, LAYERS, SIZE = 2, 2, 16
NOTHING = Means([0.0] * LAYERS, [0.0] * LAYERS, [0.0] * LAYERS)


def logits(model: Any, batch: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.ragged(batch)
    return found


@pytest.mark.parametrize("layer", [0, 1])
def test_a_part_without_its_hook_is_a_part_without_its_weights(layer: int) -> None:
    """Heads: zeroed columns of W_O; feed-forwards: a zeroed W_2; whole layers: no such layer."""
    asked = next(iter(asked_batches(opened(), FEW)))
    with still(opened().model):
        clean = answer_clean(opened(), head_of(opened()), asked)
        for part in range(HEADS + 2):
            found = without(opened(), clean, layer, part, NOTHING)
            other = fresh().model
            own = other.bert.encoder.layer[layer]
            if part < HEADS:
                own.attention.output.dense.weight[:, part * SIZE : (part + 1) * SIZE] = 0
            elif part == HEADS:
                own.output.dense.weight.zero_()
            else:
                del other.bert.encoder.layer[layer]
            expected = other.bert.encode(asked.batch).index_select(0, asked.rows)
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_head_without_its_columns_is_what_transformers_says() -> None:
    found = ablate(opened(), MASKED)
    ids = torch.tensor([opened().read(MASKED).ids])
    dense = theirs().bert.encoder.layer[1].attention.output.dense
    kept = dense.weight.detach().clone()
    with torch.no_grad():
        before = theirs()(ids).logits[0, 3].log_softmax(-1)
        dense.weight[:, SIZE:] = 0
        after = theirs()(ids).logits[0, 3].log_softmax(-1)
        dense.weight.copy_(kept)
    assert found.loss == pytest.approx(-float(before.max()), rel=1e-10)
    best = int(before.argmax())
    assert found.heads.growth[1, 1] == pytest.approx(float(before[best] - after[best]), rel=1e-8)
    kl = float((before.exp() * (before - after)).sum())
    assert found.heads.kl[1, 1] == pytest.approx(kl, rel=1e-8)
    assert found.heads.flips[1, 1] == float(best != int(after.argmax()))


def loss_with_gates(one: Any, texts: Any, gates: Tensor, means: Means) -> float:
    """Mean loss where each part passes a gate, the same in all texts."""
    head, total, questions = head_of(one), 0.0, 0
    with still(one.model):
        for asked in asked_batches(one, texts):
            labels = answer_clean(one, head, asked).labels
            wide = gates[..., None].expand(-1, -1, len(asked.counts))
            with gated(one, asked, wide, means) as wrap:
                hidden = run_from(one.encoder, asked, -1, wrap=wrap)
            total += float(head.loss(hidden, asked, labels))
            questions += len(labels)
    return total / questions


@pytest.mark.parametrize("how", ["zero", "mean"])
def test_the_gates_slope_is_the_finite_difference(how: Any) -> None:
    for _, one, texts in kinds()[:1] + kinds()[2:5]:
        found = ablate(one, texts, how=how)
        with still(one.model):
            means = NOTHING if how == "zero" else mean_parts(one, asked_batches(one, texts))
        step, gates = 1e-5, torch.ones(LAYERS, HEADS + 2, dtype=torch.float64)
        for layer in range(LAYERS):
            expected = []
            for part in range(HEADS + 2):
                sides = []
                for sign in (1, -1):
                    moved = gates.clone()
                    moved[layer, part] += sign * step
                    sides.append(loss_with_gates(one, texts, moved, means))
                expected.append((sides[0] - sides[1]) / (2 * step))
            told = [*found.heads.gate[layer], found.feed_forwards.gate[layer]]
            assert [*told, found.layers.gate[layer]] == pytest.approx(expected, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("how", ["zero", "mean"])
def test_a_closed_gate_is_an_ablated_part(how: Any) -> None:
    one, texts = opened(), FEW
    found = ablate(one, texts, how=how)
    with still(one.model):
        means = NOTHING if how == "zero" else mean_parts(one, asked_batches(one, texts))
    whole = torch.ones(LAYERS, HEADS + 2, dtype=torch.float64)
    before = loss_with_gates(one, texts, whole, means)
    assert before == pytest.approx(found.loss, rel=1e-12)
    for layer, part in ((0, 0), (0, HEADS), (0, HEADS + 1), (1, 1), (1, HEADS), (1, HEADS + 1)):
        gates = whole.clone()
        gates[layer, part] = 0
        growth = loss_with_gates(one, texts, gates, means) - before
        named = {HEADS: found.feed_forwards.growth, HEADS + 1: found.layers.growth}
        told = found.heads.growth[layer, part] if part < HEADS else named[part][layer]
        assert told == pytest.approx(growth, rel=1e-9, abs=1e-12)


def test_importance_is_the_mean_size_of_the_slope_of_single_texts() -> None:
    """Michel et al. 2019, equation 2: the absolute value is taken text by text."""
    found = ablate(opened("BertForNextSentencePrediction"), FEW)
    single = [ablate(opened("BertForNextSentencePrediction"), [text]) for text in FEW]
    for name in ("heads", "feed_forwards", "layers"):
        slopes = np.stack([getattr(one, name).gate for one in single])
        # The order of texts in a batch changes the last bits of a sum.
        assert getattr(found, name).importance == pytest.approx(np.abs(slopes).mean(0), rel=1e-9)
        assert getattr(found, name).gate == pytest.approx(slopes.mean(0), rel=1e-9, abs=1e-14)


def test_means_are_means_over_all_tokens() -> None:
    one = opened()
    with still(one.model):
        means = mean_parts(one, asked_batches(one, FEW, batch_tokens=20))
        states = [trace(one.encoder, asked.batch).hidden for asked in asked_batches(one, FEW)]
    assert len(states) == 1
    added = (states[0][2] - states[0][1]).mean(0)
    torch.testing.assert_close(means.added[1], added, rtol=1e-10, atol=1e-12)
    # What stands in for a head is its mean output: W_O is linear.
    asked = next(iter(asked_batches(one, FEW)))
    with still(one.model), capture(one.encoder, [site := Site("context", 1)]) as seen:
        trace(one.encoder, asked.batch)
    torch.testing.assert_close(means.context[0], seen[site][0].mean(0), rtol=1e-10, atol=1e-12)


def test_ablating_leaves_the_model_alone() -> None:
    one = fresh()
    before = state_hash(one.model)
    batch = one.read("the cat sat").batch()
    answer = logits(one.model, batch)
    done: list[int] = []
    ablate(one, TEXTS, how="mean", report=done.append)
    assert state_hash(one.model) == before
    assert torch.equal(logits(one.model, batch), answer)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in one.model.modules())
    assert all(p.grad is None for p in one.model.parameters())
    assert done == sorted(done)
    assert done[-1] == len(TEXTS)


def test_every_kind_of_model_can_be_ablated() -> None:
    for what, one, texts in kinds():
        found: AblationResult = ablate(one, texts)
        assert found.asked == what
        assert found.heads.kl.shape == (LAYERS, HEADS)
        for part in (found.heads, found.feed_forwards, found.layers):
            assert (part.kl >= 0).all()
            assert part.kl.any()
            assert (part.importance > 0).all()
        assert len(list(found.rows())) == LAYERS * (HEADS + 2)
    with pytest.raises(UsageError, match="second look"):
        ablate(opened(), iter(FEW), how="mean")
