"""Who learns how fast: decay groups, layers, heads, what is frozen."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bertkit.checkpoint.config import BertConfig
from bertkit.model.task_heads import BertForSequenceClassification
from bertkit.settings import TaskTrainSettings
from bertkit.train.rates import TaskOptimizer, freeze, parameter_groups, peak_of


def network(layers: int = 3) -> BertForSequenceClassification:
    config = BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=layers,
                        num_attention_heads=2, intermediate_size=32)  # fmt: skip
    return BertForSequenceClassification(config)


def settings(**given: Any) -> TaskTrainSettings:
    return TaskTrainSettings(**({"learning_rate": 1e-3} | given))


def by_name(model: torch.nn.Module, groups: list[dict[str, Any]], key: str) -> dict[str, float]:
    values = {id(p): group[key] for group in groups for p in group["params"]}
    return {n: values[id(p)] for n, p in model.named_parameters() if id(p) in values}


def test_each_layer_learns_at_a_share_of_the_one_above() -> None:
    model = network()
    peaks = by_name(model, parameter_groups(model, settings(layer_decay=0.5)), "peak")
    assert set(peaks) == {name for name, _ in model.named_parameters()}
    for name, peak in peaks.items():
        if "encoder.layer." in name:
            layer = int(name.split(".")[3])
            assert peak == pytest.approx(1e-3 * 0.5 ** (3 - layer)), name
        elif ".embeddings." in name:
            assert peak == pytest.approx(1e-3 * 0.5**4), name
        else:
            assert peak == 1e-3, name


def test_biases_and_layer_norms_do_not_decay() -> None:
    model = network()
    decays = by_name(model, parameter_groups(model, settings(layer_decay=0.9)), "weight_decay")
    for name, decay in decays.items():
        assert decay == (0.0 if name.endswith("bias") or "LayerNorm" in name else 0.01), name


def test_head_and_field_have_rates_of_their_own() -> None:
    train = settings(head_learning_rate=5e-3, crf_learning_rate=0.1, layer_decay=0.5)
    assert peak_of("classifier.weight", 3, train) == 5e-3
    assert peak_of("crf.transitions", 3, train) == 0.1
    assert peak_of("bert.pooler.dense.weight", 3, train) == 1e-3


@pytest.mark.parametrize(
    ("layers", "embeddings", "frozen"),
    [(0, False, set()), (0, True, {"e"}), (1, False, {"e", "0"}), (2, True, {"e", "0", "1"})],
)
def test_frozen_parts_get_no_gradient_and_no_group(
    layers: int, embeddings: bool, frozen: set[str]
) -> None:
    model = network()
    freeze(model, layers, embeddings)
    names = by_name(model, parameter_groups(model, settings()), "peak")
    for name, parameter in model.named_parameters():
        part = "e" if ".embeddings." in name else name.split(".")[3] if ".layer." in name else "x"
        assert parameter.requires_grad == (part not in frozen), name
        assert (name in names) == (part not in frozen), name


def test_the_schedule_moves_every_group_by_its_own_peak() -> None:
    model = network()
    optimizer = TaskOptimizer(model, settings(layer_decay=0.5, head_learning_rate=4e-3))
    assert optimizer.set_learning_rate(0.25) == pytest.approx(2.5e-4)
    groups = optimizer.all[0].param_groups
    assert len({group["peak"] for group in groups}) == 6
    for group in groups:
        assert group["lr"] == pytest.approx(0.25 * group["peak"])
