"""Hooks see what torch's own hooks see, change what they say, and leave no trace."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bertkit.explain.hooks import Site, capture, changing, restored, state_hash, still, trace
from tests.explain.models import TEXT, TEXTS, opened, theirs
from tests.tasks import tiny

KINDS = ("hidden", "query", "key", "value", "context", "widened", "attention_sum", "sum")


def answer() -> Tensor:
    """The vocabulary logits of every token, without any hook of ours."""
    model = opened().model
    with torch.no_grad():
        found: Tensor = model.ragged(opened().read(TEXT).batch())
    return found


def test_the_trace_is_the_hidden_states_and_maps_of_transformers() -> None:
    sentence = opened().read(TEXT)
    with still(opened().model):
        found = trace(opened().encoder, sentence.batch(), want_maps=True)
    with torch.no_grad():
        expected = theirs().bert(
            torch.tensor([sentence.ids]), output_hidden_states=True, output_attentions=True
        )
    assert len(found.hidden) == len(expected.hidden_states) == 3
    for mine, other in zip(found.hidden, expected.hidden_states, strict=True):
        torch.testing.assert_close(mine, other[0], rtol=1e-10, atol=1e-10)
    for mine, other in zip(found.maps, expected.attentions, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-10)


def test_captured_states_are_those_of_a_plain_hook_bit_for_bit() -> None:
    batch = opened().read(TEXT).batch()
    layer: Any = opened().encoder.encoder.layer[0]
    seen: list[Tensor] = []
    handle = layer.register_forward_hook(lambda module, inputs, output: seen.append(output[0]))
    with (
        still(opened().model),
        capture(opened().encoder, [Site("hidden", 0), Site("hidden", 1)]) as kept,
    ):
        states = trace(opened().encoder, batch).hidden
    handle.remove()
    assert torch.equal(kept[Site("hidden", 1)][0], seen[0])
    assert torch.equal(seen[0], states[1])
    assert torch.equal(kept[Site("hidden", 0)][0], states[0])


def test_every_site_is_what_its_name_says() -> None:
    sites = [Site(kind, 1) for kind in KINDS]  # type: ignore[arg-type]
    layer: Any = opened().encoder.encoder.layer[0]
    with still(opened().model), capture(opened().encoder, sites) as kept:
        states = trace(opened().encoder, opened().read(TEXT).batch(), want_maps=True)
        at = {site.kind: tensors[0] for site, tensors in kept.items()}
        x = states.hidden[0]
        torch.testing.assert_close(at["query"], layer.attention.self.query(x))
        torch.testing.assert_close(at["key"], layer.attention.self.key(x))
        torch.testing.assert_close(at["value"], layer.attention.self.value(x))
        heads = at["value"].unflatten(1, (2, -1))
        context = torch.einsum("nij,jnh->inh", states.maps[0][0], heads).flatten(1)
        torch.testing.assert_close(at["context"], context)
        total = x + layer.attention.output.dense(context)
        torch.testing.assert_close(at["attention_sum"], total)
        attended = layer.attention.output.LayerNorm(total)
        torch.testing.assert_close(at["widened"], layer.intermediate(attended))
        total = attended + layer.output.dense(at["widened"])
        torch.testing.assert_close(at["sum"], total)
        torch.testing.assert_close(at["hidden"], layer.output.LayerNorm(total))


def test_each_site_can_be_changed_and_afterwards_nothing_is_changed() -> None:
    before, hash_before = answer(), state_hash(opened().model)
    for kind in KINDS:
        site = Site(kind, 1)  # type: ignore[arg-type]
        with changing(opened().encoder, {site: lambda x: x + 0}):
            assert torch.equal(answer(), before), kind
        with changing(opened().encoder, {site: lambda x: x * torch.linspace(0, 2, x.shape[-1])}):
            assert not torch.allclose(answer(), before), kind
        assert torch.equal(answer(), before), kind
    assert state_hash(opened().model) == hash_before
    assert not any(module._forward_hooks for module in opened().model.modules())
    assert not any(module._forward_pre_hooks for module in opened().model.modules())


def test_a_head_whose_context_is_zero_is_a_head_without_its_columns_of_the_output() -> None:
    layer: Any = opened().encoder.encoder.layer[1]
    weight = layer.attention.output.dense.weight
    size = weight.shape[1] // 2

    def without(context: Tensor) -> Tensor:
        changed = context.clone()
        changed[:, size:] = 0
        return changed

    with changing(opened().encoder, {Site("context", 2): without}):
        hooked = answer()
    before = answer()
    with restored(weight):
        with torch.no_grad():
            weight[:, size:] = 0
        torch.testing.assert_close(answer(), hooked, rtol=1e-12, atol=1e-12)
    assert torch.equal(answer(), before)


def test_hooks_are_gone_after_an_error() -> None:
    before, hash_before = answer(), state_hash(opened().model)
    words = opened().encoder.embeddings.word_embeddings.weight
    try:
        with (
            still(opened().model),
            changing(opened().encoder, {Site("hidden", 1): torch.zeros_like}),
            restored(words, words),
            torch.no_grad(),
        ):
            words.zero_()
            raise RuntimeError
    except RuntimeError:
        pass
    assert torch.equal(answer(), before)
    assert state_hash(opened().model) == hash_before


def test_still_puts_back_the_mode_of_every_module() -> None:
    model = tiny.ours("BertForMaskedLM").train()
    model.bert.encoder.layer[0].eval()
    modes = [module.training for module in model.modules()]
    with still(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
    assert [module.training for module in model.modules()] == modes
    with still(model, grad=True):
        assert torch.is_grad_enabled()


def test_the_hash_tells_any_change() -> None:
    model = tiny.ours("BertForMaskedLM")
    one, short = state_hash(model), state_hash(model, vectors_only=True)
    with restored(model.bert.encoder.layer[0].output.dense.bias) as _, torch.no_grad():
        model.bert.encoder.layer[0].output.dense.bias[0] += 1e-6
        assert state_hash(model) != one
        assert state_hash(model, vectors_only=True) != short
    assert state_hash(model) == one


def test_texts_in_one_batch_are_texts_one_by_one() -> None:
    from bertkit.tasks.asking import pack

    rows = [tiny.tokenizer()(text)["input_ids"] for text in TEXTS[:4]]
    with still(opened().model):
        whole = trace(opened().encoder, pack(rows)).hidden
        parts = [trace(opened().encoder, pack([row])).hidden for row in rows]
    for layer, state in enumerate(whole):
        expected = torch.cat([part[layer] for part in parts])
        torch.testing.assert_close(state, expected, rtol=1e-12, atol=1e-12)
