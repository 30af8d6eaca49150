"""Changed weights: the shortened run is the whole run; the model is as before; slopes are right."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from bertkit.errors import DataError, MissingHeadError, UsageError
from bertkit.explain import weights
from bertkit.explain.effects import answer_clean, run_from
from bertkit.explain.hooks import state_hash, still
from bertkit.explain.opening import Opened
from bertkit.explain.questions import asked_batches, head_of
from bertkit.explain.weight_changes import Change, quantised, units_of
from bertkit.explain.weights import WeightsResult, perturb_weights
from tests.explain.models import MASKED, TEXTS, labelled, opened, theirs
from tests.tasks import tiny

FEW = TEXTS[:6]
PAIRS = [("who is the cat?", "the cat is mary"), ("where is john", "john lives in paris")]


def fresh(kind: str = "BertForMaskedLM", **settings: Any) -> Opened:
    """A model that a test may break."""
    return Opened(tiny.ours(kind, **settings).double(), tiny.tokenizer(), "fresh")


def kinds() -> list[tuple[str, Opened, Any]]:
    several = tiny.labels("x", "y", "z") | {"problem_type": "multi_label_classification"}
    return [
        ("masked words", fresh(), FEW),
        ("masked words", fresh("BertForPreTraining"), FEW),
        ("labels of texts", fresh("BertForSequenceClassification", **tiny.labels("x", "y")), PAIRS),
        ("yes or no to each label", fresh("BertForSequenceClassification", **several), FEW),
        ("labels of words", fresh("BertForTokenClassification", **tiny.labels("x", "y")), FEW),
        ("starts and ends of answers", fresh("BertForQuestionAnswering"), PAIRS),
        ("next sentence", fresh("BertForNextSentencePrediction"), PAIRS),
    ]


def test_the_clean_answers_are_those_of_transformers() -> None:
    asked = next(iter(asked_batches(opened(), FEW, seed=5)))
    with still(opened().model):
        clean = answer_clean(opened(), head_of(opened()), asked)
    with torch.no_grad():
        starts = asked.batch.starts.tolist()
        expected = []
        for b, start in enumerate(starts):
            row = asked.batch.input_ids[start : start + int(asked.batch.lengths[b])]
            mine = asked.rows[asked.owners == b] - start
            expected.append(theirs()(row[None]).logits[0, mine].log_softmax(-1))
    torch.testing.assert_close(clean.logs, torch.cat(expected), rtol=1e-9, atol=1e-9)
    picked = torch.cat(expected).gather(-1, asked.labels[:, None])  # type: ignore[index]
    torch.testing.assert_close(clean.losses, -picked.squeeze(-1), rtol=1e-9, atol=1e-9)


def test_a_run_from_any_layer_is_the_whole_run_bit_for_bit() -> None:
    for _, one, texts in kinds():
        asked = next(iter(asked_batches(one, texts)))
        with still(one.model):
            clean = answer_clean(one, head_of(one), asked)
            for first in range(len(clean.states)):
                hidden = run_from(one.encoder, asked, first, clean.states[first])
                assert torch.equal(hidden, clean.states[-1])
            assert torch.equal(run_from(one.encoder, asked, -1), clean.states[-1])


@pytest.mark.parametrize("by", ["tensor", "layer"])
def test_a_shortened_run_of_a_changed_model_is_the_whole_run(
    by: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _, one, texts in kinds()[:3]:
        short = perturb_weights(one, texts, by=by, changes=("noise:0.5",))
        with monkeypatch.context() as patch:
            patch.setattr(weights, "run_from", lambda e, a, first, start=None: run_from(e, a, -1))
            whole = perturb_weights(one, texts, by=by, changes=("noise:0.5",))
        for name in ("growth", "kl", "flips", "predicted", "fisher"):
            assert np.array_equal(getattr(short, name), getattr(whole, name)), name
        assert short.growth.any(1).all()


def test_a_change_is_what_it_does_to_a_copy() -> None:
    """Growth, KL and flips against another model with the tensor changed by hand."""
    one, name = fresh(), "bert.encoder.layer.1.intermediate.dense.weight"
    found = perturb_weights(one, FEW, tensors=(name,), changes=("zero", "quantise:4"))
    asked = list(asked_batches(one, FEW))
    for c, change in enumerate(("zero", "quantise:4")):
        other = fresh()
        weight = other.model.get_parameter(name)
        with torch.no_grad():
            weight.copy_(quantised(weight, 4) if change == "quantise:4" else weight * 0)
        logs = []
        for model in (one.model, other.model):
            with torch.no_grad():
                parts = [model.mlm_logits_at(a.batch, a.rows).log_softmax(-1) for a in asked]
            logs.append(torch.cat(parts))
        before, after = logs
        labels = torch.cat([a.labels for a in asked if a.labels is not None])[:, None]
        growth = (before.gather(1, labels) - after.gather(1, labels)).mean()
        assert found.growth[0, c] == pytest.approx(float(growth), abs=1e-12)
        kl = (before.exp() * (before - after)).sum(-1).mean()
        assert found.kl[0, c] == pytest.approx(float(kl), rel=1e-9)
        flips = (before.argmax(-1) != after.argmax(-1)).double().mean()
        assert found.flips[0, c] == float(flips)


def test_fisher_and_slopes_are_autograds_text_by_text() -> None:
    one = fresh()
    found = perturb_weights(one, FEW, changes=("noise:0.01",), seed=1)
    squares: dict[str, float] = {}
    total: dict[str, Any] = {}
    questions = 0
    for asked in asked_batches(one, FEW, seed=1):
        rows = asked.batch.input_ids.split(asked.batch.lengths.tolist())
        for b, row in enumerate(rows):
            mine = (asked.owners == b).nonzero().flatten()
            places = asked.rows[mine] - asked.batch.starts[b]
            one.model.zero_grad()
            logs = one.model(row[None]).logits[0, places].log_softmax(-1)
            loss = -logs.gather(1, asked.labels[mine][:, None]).sum()  # type: ignore[index]
            loss.backward()
            questions += len(mine)
            for name, parameter in one.model.named_parameters():
                slope = parameter.grad
                mean = (slope / len(mine)).square().mean()
                squares[name] = squares.get(name, 0.0) + float(mean) / len(FEW)
                total[name] = total.get(name, 0) + slope
    one.model.zero_grad()
    assert found.questions == questions
    for i, name in enumerate(found.tensors):
        assert found.fisher[i] == pytest.approx(squares[name], rel=1e-8), name
        parameter = one.model.get_parameter(name).detach()
        moved = parameter.clone()
        Change.read("noise:0.01").apply(one.model, name, moved, 1)
        told = float((total[name] * (moved - parameter)).sum()) / questions
        assert found.predicted[i, 0] == pytest.approx(told, rel=1e-7, abs=1e-15), name


def test_the_prediction_is_right_for_small_steps() -> None:
    """Its error falls in proportion to the step, so that the ratio goes to 1."""
    names = ("*layer.0.attention.self.value.weight", "*layer.1.output.dense.weight", "*word_emb*")
    steps = tuple(f"noise:{10.0**-k:.4f}" for k in range(1, 5))
    found = perturb_weights(opened(), TEXTS, tensors=names, changes=steps)
    errors = np.abs(found.growth / found.predicted - 1)
    assert (errors[:, -1] < 1e-2).all()
    assert (errors[:, 3] < 0.2 * errors[:, 2]).all()
    assert (errors[:, 2] < 0.2 * errors[:, 1]).all()


def test_no_noise_changes_nothing() -> None:
    for what, one, texts in kinds():
        found = perturb_weights(one, texts, by="module", changes=("noise:0", "zero"))
        assert found.asked == what
        for name in ("growth", "predicted", "kl", "flips"):
            assert not getattr(found, name)[:, 0].any()
        assert (found.kl[:, 1] >= 0).all()
        assert found.kl[:, 1].any()


def test_the_model_is_as_before_after_each_change_and_after_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = fresh()
    before, modes = state_hash(one.model), [m.training for m in one.model.modules()]
    seen: list[str] = []
    real = weights.changed

    def watched(*arguments: Any) -> Any:
        found = real(*arguments)
        seen.append(state_hash(one.model))
        return found

    with monkeypatch.context() as patch:
        patch.setattr(weights, "changed", watched)
        perturb_weights(one, FEW, by="module")
    assert set(seen) == {before}
    assert len(seen) > 50

    def broken(*arguments: Any) -> Any:
        assert state_hash(one.model) != before
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr(weights, "effect", broken)
        with pytest.raises(RuntimeError):
            perturb_weights(one, FEW, changes=("zero",))
    assert state_hash(one.model) == before
    assert [m.training for m in one.model.modules()] == modes
    assert all(p.requires_grad and p.grad is None for p in one.model.parameters())


def test_changes_are_functions_of_the_seed_and_leave_torchs_generator_alone() -> None:
    def run(seed: int) -> WeightsResult:
        return perturb_weights(
            opened(), FEW, tensors=("*query*",), changes=("noise:1", "reinitialise"), seed=seed
        )

    state = torch.random.get_rng_state()
    one, again, other = run(0), run(0), run(1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert np.array_equal(one.growth, again.growth)
    assert not np.array_equal(one.growth, other.growth)


def test_changes_do_what_they_say() -> None:
    one = fresh()
    name = "bert.encoder.layer.0.output.dense.weight"
    weight: torch.Tensor = one.model.get_parameter(name).detach()

    def after(change: str, of: str = name) -> torch.Tensor:
        tensor: torch.Tensor = one.model.get_parameter(of).detach().clone()
        Change.read(change).apply(one.model, of, tensor, 0)
        return tensor

    assert not after("zero").any()
    moved = after("noise:0.5") - weight
    assert float(moved.std() / weight.std()) == pytest.approx(0.5, rel=0.1)
    steps = after("quantise:3") / (weight.abs().max() / 3)
    assert torch.allclose(steps, steps.round())
    assert {-3.0, 3.0} & set(steps.round().unique().tolist())
    assert float((after("quantise:8") - weight).abs().max() / weight.abs().max()) <= 0.5 / 127
    rows = after("quantise:2:row").abs().sort(-1).values
    assert all(len(row.unique()) <= 2 for row in rows)
    torch.testing.assert_close(after("quantise:4:row").abs().amax(1), weight.abs().amax(1))
    for of in (name, "bert.embeddings.LayerNorm.weight", "bert.encoder.layer.0.output.dense.bias"):
        parameter = one.model.get_parameter(of).requires_grad_(False)
        kept = parameter.detach().clone()
        Change.read("reinitialise").apply(one.model, of, parameter, 0)
        if of == name:
            assert 0.01 < float(parameter.std()) < 0.02
            assert float(parameter.abs().max()) <= 0.04
        else:
            assert float(parameter.min()) == float(parameter.max()) == float("LayerNorm" in of)
        parameter.data.copy_(kept)


def test_units_are_tensors_modules_or_layers() -> None:
    layers = units_of(opened(), ("*",), "layer")
    assert [unit.label for unit in layers if unit.layer] == ["L1 all", "L2 all"]
    assert len(layers[-1].parameters) > 0
    modules = units_of(opened(), ("*layer.1.*",), "module")
    assert [unit.kind for unit in modules] == [
        "query", "key", "value", "heads out", "norm 1", "ff in", "ff out", "norm 2",
    ]  # fmt: skip
    assert {unit.first for unit in modules} == {1}
    found = perturb_weights(opened(), FEW, by="module", changes=("zero",))
    assert found.grid.shape == (1, 2, 8)
    for i, label in enumerate(found.labels):
        if label.startswith("L"):
            where = int(label[1]) - 1, found.kinds.index(label[3:])
            assert found.grid[0][where] == found.kl[i, 0]


def test_weights_that_no_answer_reads_are_left_out() -> None:
    names = perturb_weights(fresh("BertForPreTraining"), FEW, changes=("zero",)).tensors
    assert not [name for name in names if "pooler" in name or "seq_relationship" in name]
    with pytest.raises(UsageError, match="depends on"):
        perturb_weights(fresh("BertForPreTraining"), FEW, tensors=("*pooler*",))


def test_one_text_and_many() -> None:
    found = perturb_weights(opened(), MASKED, by="layer", changes=("zero",))
    assert (found.texts, found.questions) == (1, 1)
    with torch.no_grad():
        logs = theirs()(torch.tensor([opened().read(MASKED).ids])).logits[0, 3].log_softmax(-1)
    assert found.loss == pytest.approx(-float(logs.max()), rel=1e-9)
    done: list[int] = []
    found = perturb_weights(
        labelled("BertForTokenClassification"), TEXTS, by="layer", report=done.append
    )
    assert done == sorted(done)
    assert done[-1] == found.texts == len(TEXTS)
    words = sum(len(opened().read(text).words) for text in TEXTS)
    assert found.questions == words
    long = perturb_weights(opened(), ["the cat " * 400], by="layer", changes=("zero",))
    assert long.cut == 1
    one = labelled("BertForSequenceClassification")
    assert perturb_weights(one, "the " * 600, by="layer", changes=("zero",)).cut == 1


def test_bad_questions_are_refused() -> None:
    for change in ("nothing", "noise", "noise:x", "quantise:1", "quantise:99", "zero:1"):
        with pytest.raises(UsageError, match="no change of weights"):
            perturb_weights(opened(), FEW, changes=(change,))
    with pytest.raises(UsageError, match="no tensor's name"):
        perturb_weights(opened(), FEW, tensors=("*zzz*",))
    with pytest.raises(MissingHeadError, match="no head that chooses"):
        perturb_weights(opened("BertModel"), FEW)
    with pytest.raises(DataError, match="blank"):
        perturb_weights(labelled("BertForSequenceClassification"), ["", " "])
    with pytest.raises(UsageError, match="fine-tuned on pairs"):
        perturb_weights(opened(), PAIRS)
