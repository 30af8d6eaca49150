"""A pruned folder opens in transformers, with the logits of the whole model masked by hooks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import bertkit
from bertkit.errors import UsageError
from bertkit.explain.ablation import ablate
from bertkit.explain.effects import run_from
from bertkit.explain.hooks import Site, changing, state_hash, still
from bertkit.explain.inner_units import best_units, unit_importance
from bertkit.explain.opening import Opened, open_model
from bertkit.explain.pruning import prune
from bertkit.explain.questions import asked_batches, head_of
from tests.explain.models import opened
from tests.explain.test_weights import FEW, fresh
from tests.tasks import tiny

KINDS: list[tuple[str, dict[str, Any]]] = [
    ("BertForMaskedLM", {}),
    ("BertForPreTraining", {}),
    ("BertForSequenceClassification", tiny.labels("x", "y", "z")),
    ("BertForTokenClassification", tiny.labels("x", "y", "z")),
    ("BertForQuestionAnswering", {}),
    ("BertForMultipleChoice", {}),
    ("BertModel", {}),
]


def masked(
    opened: Opened, layer: int | None, heads: list[tuple[int, int]], kept: list[Tensor]
) -> dict[Site, Callable[[Tensor], Tensor]]:
    """Hooks that take the same parts away from the whole model."""
    size = opened.model.config.hidden_size // opened.model.config.num_attention_heads
    changes: dict[Site, Callable[[Tensor], Tensor]] = {}

    def without_heads(number: int) -> Callable[[Tensor], Tensor]:
        def change(context: Tensor) -> Tensor:
            changed = context.clone()
            for i, j in heads:
                if i == number:
                    changed[:, (j - 1) * size : j * size] = 0
            return changed

        return change

    def narrowed(units: Tensor) -> Callable[[Tensor], Tensor]:
        mask = torch.zeros(opened.model.config.intermediate_size).double()
        mask[units] = 1
        return lambda widened: widened * mask

    for number in range(1, opened.model.config.num_hidden_layers + 1):
        changes[Site("context", number)] = without_heads(number)
        if kept:
            changes[Site("widened", number)] = narrowed(kept[number - 1])
    if layer is not None:
        held: list[Tensor] = []

        def hold(hidden: Tensor) -> Tensor:
            held[:] = [hidden]
            return hidden

        changes[Site("hidden", layer - 1)] = hold
        changes[Site("hidden", layer)] = lambda hidden: held[0]
    return changes


def outputs(model: Any, ids: Tensor) -> list[Tensor]:
    with torch.no_grad():
        found = model(ids)
    names = ("prediction_logits", "logits", "start_logits", "end_logits", "last_hidden_state")
    return [found[name] for name in names if name in found]


@pytest.mark.parametrize(("kind", "settings"), KINDS)
def test_a_pruned_folder_gives_the_logits_of_the_masked_model(
    kind: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    one = fresh(kind, num_hidden_layers=3, **settings)
    before = state_hash(one.model)
    found = prune(one, tmp_path / "p", layers=[2], heads=[(1, 2), (3, 1)], width=20)
    assert state_hash(one.model) == before
    kept = best_units(one, 20, None)
    ids = torch.tensor([one.read("the cat sat on the mat").ids])
    ids = ids[None].repeat(1, 2, 1) if kind == "BertForMultipleChoice" else ids
    with still(one.model), changing(one.encoder, masked(one, 2, [(1, 2), (3, 1)], kept)):
        expected = outputs(one.model, ids)
    other = getattr(transformers, kind).from_pretrained(tmp_path / "p", dtype=torch.float64).eval()
    ours = getattr(bertkit, kind).from_pretrained(tmp_path / "p")
    assert ours.dtype == torch.float64
    assert expected
    for model in (other, ours):
        for mine, theirs in zip(outputs(model, ids), expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-11)
    assert other.config.num_hidden_layers == 2
    assert other.config.intermediate_size == 20
    assert other.config.id2label == one.model.config.id2label
    assert not ours.load_report.missing
    assert found.sizes[1].parameters == sum(p.numel() for p in other.parameters())
    assert found.sizes[0].parameters == sum(p.numel() for p in one.model.parameters())
    again = bertkit.AutoTokenizer.from_pretrained(tmp_path / "p")
    assert again("the cat")["input_ids"] == tiny.tokenizer()("the cat")["input_ids"]


def test_heads_are_zero_in_the_values_and_the_output(tmp_path: Path) -> None:
    prune(fresh(), tmp_path / "p", heads=[(2, 1)])
    model = bertkit.BertForMaskedLM.from_pretrained(tmp_path / "p")
    first, second = (layer.attention for layer in model.bert.encoder.layer)
    assert not second.self.value.weight[:16].any()
    assert not second.self.value.bias[:16].any()
    assert not second.output.dense.weight[:, :16].any()
    assert second.self.value.weight[16:].all()
    assert second.output.dense.weight[:, 16:].all()
    assert first.self.value.weight.all()
    decoder = model.cls.predictions.decoder.weight
    assert decoder is model.bert.embeddings.word_embeddings.weight


def test_the_least_important_parts_go(tmp_path: Path) -> None:
    one = fresh(num_hidden_layers=3)
    told = ablate(one, FEW)
    found = prune(one, tmp_path / "p", layers=2, heads=1, texts=FEW)
    best = int(told.layers.growth.argmax())
    assert found.layers == [i for i in (1, 2, 3) if i != best + 1]
    assert found.heads == [(best + 1, int(told.heads.growth[best].argmin()) + 1)]
    assert found.lost is not None
    assert found.lost.losses[0] == pytest.approx(told.loss, rel=1e-12)
    after = ablate(Opened(open_model(str(tmp_path / "p")).model, one.tokenizer, ""), FEW)
    assert found.lost.losses[1] == pytest.approx(after.loss, rel=1e-10)
    assert found.lost.kl > 0


def test_a_single_dropped_layer_loses_what_ablate_says(tmp_path: Path) -> None:
    told = ablate(opened(), FEW)
    found = prune(opened(), tmp_path / "p", layers=[1], texts=iter(FEW))
    assert found.lost is not None
    growth = found.lost.losses[1] - found.lost.losses[0]
    assert growth == pytest.approx(told.layers.growth[0], rel=1e-9)
    assert found.lost.kl == pytest.approx(told.layers.kl[0], rel=1e-9)
    assert found.lost.flips == told.layers.flips[0]


def test_a_units_importance_is_activation_times_gradient() -> None:
    """By finite differences: a gate on one unit of one text, one token at a time."""
    one, text = opened(), ["the cat sat on the mat"]
    found = unit_importance(one, text)
    length = len(one.read(text[0]).ids)
    asked, head = next(iter(asked_batches(one, text))), head_of(one)

    def loss(unit: int, token: int, gate: float) -> float:
        def change(widened: Tensor) -> Tensor:
            changed = widened.clone()
            changed[token, unit] *= gate
            return changed

        assert asked.labels is not None
        with still(one.model), changing(one.encoder, {Site("widened", 1): change}):
            return float(head.loss(run_from(one.encoder, asked, -1), asked, asked.labels))

    for unit in (0, 7):
        slopes = [(loss(unit, t, 1 + 1e-5) - loss(unit, t, 1 - 1e-5)) / 2e-5 for t in range(length)]
        expected = sum(map(abs, slopes)) / length
        assert float(found[0][unit]) == pytest.approx(expected, rel=1e-5)


def test_width_follows_the_texts_where_there_are_any(tmp_path: Path) -> None:
    with_texts, by_norm = best_units(opened(), 12, FEW), best_units(opened(), 12, None)
    for layer, units in enumerate(with_texts):
        scores = unit_importance(opened(), FEW)[layer]
        assert float(scores[units].min()) >= float(scores.sort().values[-12])
        own: Any = opened().encoder.encoder.layer[layer]
        norms = own.intermediate.dense.weight.norm(dim=1) * own.output.dense.weight.norm(dim=0)
        assert by_norm[layer].tolist() == sorted(norms.topk(12).indices.tolist())
    found = prune(opened(), tmp_path / "p", width=12, texts=FEW)
    assert found.sizes[1].width == 12
    small: Any = bertkit.BertForMaskedLM.from_pretrained(tmp_path / "p").bert.encoder.layer[1]
    whole: Any = opened().encoder.encoder.layer[1]
    expected = whole.intermediate.dense.weight[with_texts[1]]
    assert torch.equal(small.intermediate.dense.weight, expected)


def test_a_crf_and_the_task_come_along(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = bertkit.BertConfig(
        vocab_size=len(tiny.VOCAB), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, bertkit_task={"name": "tag", "scheme": "BIO"},
        **tiny.labels("O", "B-X", "I-X"),
    )  # fmt: skip
    model = bertkit.BertCrfForTokenClassification(config).eval()
    torch.nn.init.normal_(model.classifier.bias)  # trained
    prune(Opened(model, tiny.tokenizer(), ""), tmp_path / "p", layers=[1], width=8, texts=FEW)
    again = bertkit.load(tmp_path / "p")
    assert type(again.model).__name__ == "BertCrfForTokenClassification"
    assert torch.equal(again.model.crf.transitions, model.crf.transitions)
    assert isinstance(again.tag("the cat sat"), list)


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    out = tmp_path / "p"
    prune(opened(), out, layers=[1])
    kept = (out / "model.safetensors").read_bytes()
    with pytest.raises(UsageError, match="holds a model already"):
        prune(opened(), out, layers=[2])
    assert (out / "model.safetensors").read_bytes() == kept
    with pytest.raises(UsageError, match="is the model itself"):
        prune(str(out), out, width=3, overwrite=True)
    prune(opened(), out, layers=[2], overwrite=True)
    assert (out / "model.safetensors").read_bytes() != kept


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ({}, "nothing is to be pruned"),
        ({"width": 48}, "nothing is to be pruned"),
        ({"width": 0}, "may be 1 to 48"),
        ({"layers": [3]}, "1 to 2"),
        ({"layers": [1, 2]}, "one must stay"),
        ({"layers": 1}, "measured on texts"),
        ({"layers": 2, "texts": FEW}, "at most 1"),
        ({"heads": 9, "texts": FEW}, "at most 4"),
        ({"heads": [(1, 3)]}, "1.1 to 2.2"),
        ({"heads": [(1, 1)], "layers": [1]}, "its layer is dropped"),
    ],
)
def test_what_cannot_be_pruned(named: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        prune(opened(), tmp_path / "p", **named)
    assert not (tmp_path / "p").exists()
