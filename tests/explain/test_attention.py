"""Heads: maps as in transformers, published formulas written out, figures by brute force."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from bertkit.errors import DataError
from bertkit.explain import maps as maps_module
from bertkit.explain.maps import FIGURES, attention, attention_over
from tests.explain.models import CHINESE, TEXT, TEXTS, labelled, opened, theirs


@pytest.mark.parametrize("pair", [None, "a dog ran"])
def test_maps_are_those_of_transformers_and_rows_sum_to_one(pair: str | None) -> None:
    found = attention(opened(), TEXT, pair)
    sentence = opened().read(TEXT, pair)
    with torch.no_grad():
        expected = theirs().bert(
            torch.tensor([sentence.ids]),
            token_type_ids=torch.tensor([sentence.types]),
            output_attentions=True,
        )
    np.testing.assert_allclose(found.maps, torch.cat(expected.attentions).numpy(), rtol=1e-9)
    np.testing.assert_allclose(found.maps.sum(-1), 1, rtol=1e-12)


def test_written_out_attention_gives_what_the_fast_path_gives() -> None:
    batch = opened().read(TEXT).batch()
    from bertkit.explain.hooks import still, trace

    with still(opened().model):
        eager = trace(opened().encoder, batch, want_maps=True).hidden[-1]
        fast = opened().encoder.encode(batch)
    torch.testing.assert_close(eager, fast, rtol=1e-12, atol=1e-12)


def test_rollout_is_abnars_formula() -> None:
    found = attention(opened(), TEXT)
    size = len(found.tokens)
    product = np.eye(size)
    for layer, heads in enumerate(found.maps):
        step = 0.5 * heads.mean(0) + 0.5 * np.eye(size)
        step = step / step.sum(-1, keepdims=True)
        product = step @ product
        np.testing.assert_allclose(found.rollout[layer], product, rtol=1e-10)


def test_norm_weighted_is_kobayashis_formula_and_adds_up_to_the_output() -> None:
    found = attention(opened(), TEXT)
    ids = torch.tensor([opened().read(TEXT).ids])
    with torch.no_grad():
        states = theirs().bert(ids, output_hidden_states=True).hidden_states
        for number, layer in enumerate(theirs().bert.encoder.layer):
            inner, out = layer.attention.self, layer.attention.output.dense
            total = torch.zeros_like(states[0][0])
            for head in range(2):
                part = slice(head * 16, head * 16 + 16)
                value = states[number][0] @ inner.value.weight[part].T + inner.value.bias[part]
                moved = value @ out.weight[:, part].T
                weights = torch.from_numpy(found.maps[number, head])
                each = weights[:, :, None] * moved[None]
                np.testing.assert_allclose(
                    found.norm_weighted[number, head], each.norm(dim=-1).numpy(), rtol=1e-9
                )
                total += each.sum(1)
            # What Kobayashi et al. take norms of is all that attention adds, but for its bias.
            context = sum_of_heads(layer, states[number])
            torch.testing.assert_close(total, context, rtol=1e-9, atol=1e-9)


def sum_of_heads(layer: Any, hidden: torch.Tensor) -> torch.Tensor:
    context = layer.attention.self(hidden)[0][0]
    found: torch.Tensor = context @ layer.attention.output.dense.weight.T
    return found


def test_figures_of_heads_by_brute_force() -> None:
    found = attention(opened(), TEXT, "a dog")
    size = len(found.tokens)
    seps = [i for i, token in enumerate(found.tokens) if token == "[SEP]"]
    assert len(seps) == 2
    for layer in range(2):
        for head in range(2):
            a = found.maps[layer, head]
            expected = [
                np.mean([-sum(p * np.log(p) for p in row) for row in a]),
                np.mean([sum(a[i, j] * abs(i - j) for j in range(size)) for i in range(size)]),
                a[:, 0].mean(),
                a[:, seps].sum(1).mean(),
                np.mean([a[i, i] for i in range(size)]),
                sum(a[i, i - 1] for i in range(1, size)) / size,
                sum(a[i, i + 1] for i in range(size - 1)) / size,
            ]
            mine = [getattr(found.heads, name)[layer, head] for name in FIGURES]
            assert mine == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("most", [1 << 24, 100])
def test_figures_over_texts_are_means_of_single_ones(
    monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(maps_module, "MOST_NUMBERS", most)
    texts = TEXTS[:6]
    found = attention_over(opened(), [*texts, "  "])
    singles = [attention(opened(), text) for text in texts]
    sizes = np.array([len(single.tokens) for single in singles])
    assert (found.texts, found.tokens, found.cut) == (6, sizes.sum(), 0)
    for name in FIGURES:
        each = np.stack([getattr(single.heads, name) for single in singles])
        mean = (each * sizes[:, None, None]).sum(0) / sizes.sum()
        np.testing.assert_allclose(getattr(found.heads, name), mean, rtol=1e-9)
    assert attention_over(opened(), ["cat " * 600]).cut == 1
    with pytest.raises(DataError, match="no text"):
        attention_over(opened(), ["", " "])


def test_attention_between_words() -> None:
    found = attention(opened(), "a zoo in 上海")
    assert found.words == ("a", "zoo", "in", "上", "海")
    words, whole = found.between_words(), found.maps
    assert words.shape == (2, 2, 5, 5)
    np.testing.assert_allclose(words[..., 1, 0], whole[..., 2:5, 1].mean(-1))
    np.testing.assert_allclose(words[..., 0, 1], whole[..., 1, 2:5].sum(-1))
    assert found.between_words("rollout").shape == (2, 5, 5)


@pytest.mark.parametrize("kind", ["BertForSequenceClassification", "BertModel"])
def test_any_model_has_heads(kind: str) -> None:
    found = attention(labelled(kind), CHINESE)
    np.testing.assert_allclose(found.maps.sum(-1), 1, rtol=1e-5)
