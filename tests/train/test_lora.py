"""Adapters change nothing at first, learn, and merge into a plain model that answers the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bertkit.batch import Batch
from bertkit.checkpoint.config import BertConfig
from bertkit.errors import UsageError
from bertkit.model.task_heads import BertForSequenceClassification
from bertkit.train.lora import PLACES, LoraLinear, add_adapters, has_adapters, merged_state

CONFIG: dict[str, Any] = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 3,
                          "num_attention_heads": 2, "intermediate_size": 64}  # fmt: skip


def network(seed: int = 0) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    return BertForSequenceClassification(BertConfig(**CONFIG, initializer_range=0.2)).eval()


def batch() -> Batch:
    lengths = torch.tensor([5, 3, 7])
    ids = torch.randint(5, 40, (15,), generator=torch.manual_seed(3))
    places = torch.cat([torch.arange(n) for n in lengths.tolist()])
    return Batch(ids, torch.zeros_like(ids), places, lengths)


def moved(model: torch.nn.Module) -> None:
    """Give every adapter numbers, as training would."""
    torch.manual_seed(5)
    for module in model.modules():
        if isinstance(module, LoraLinear):
            torch.nn.init.normal_(module.lora_b, std=0.3)


def test_at_first_the_model_is_as_before() -> None:
    model = network()
    plain = model.ragged(batch())
    add_adapters(model, 4, 16.0, list(PLACES))
    assert has_adapters(model)
    assert torch.equal(model.ragged(batch()), plain)


@pytest.mark.parametrize("targets", [["query", "value"], list(PLACES)])
def test_merged_it_answers_the_same_and_is_plain(targets: list[str], tmp_path: Path) -> None:
    model = network()
    before = model.ragged(batch())
    names = set(model.state_dict())
    add_adapters(model, 4, 8.0, targets)
    moved(model)
    apart = model.ragged(batch())
    assert (apart - before).abs().max() > 0.01
    state = merged_state(model)
    assert set(state) == names
    model.save_pretrained(tmp_path, state_dict=state)
    again = BertForSequenceClassification.from_pretrained(tmp_path)
    assert not has_adapters(again)
    assert torch.allclose(again.ragged(batch()), apart, atol=2e-6)


def test_the_update_is_the_papers() -> None:
    linear = torch.nn.Linear(6, 10)
    adapter = LoraLinear(linear, 2, 5.0)
    torch.nn.init.normal_(adapter.lora_b)
    x = torch.randn(3, 6)
    wanted = linear(x) + 5 / 2 * (x @ adapter.lora_a.T @ adapter.lora_b.T)
    assert torch.allclose(adapter(x), wanted, atol=1e-6)
    assert torch.equal(adapter.weight, linear.weight)


def test_only_adapters_pooler_and_head_are_trained() -> None:
    model = network()
    add_adapters(model, 4, 16.0, ["query", "value"])
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    adapters = {n for n in trained if n.endswith((".lora_a", ".lora_b"))}
    assert len(adapters) == 3 * 2 * 2
    assert {n.split(".")[0] + "." + n.split(".")[1] for n in trained - adapters} == {
        "bert.pooler",
        "classifier.weight",
        "classifier.bias",
    }
    model.train()
    model.ragged(batch()).sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (name in trained), name


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match="lora_rank is 33"):
        add_adapters(network(), 33, 16.0, ["query"])
    with pytest.raises(UsageError, match="lora_targets is empty"):
        add_adapters(network(), 4, 16.0, [])
