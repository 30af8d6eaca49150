"""One step over a global batch is the same however the batch is cut."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bertkit.batch import PretrainBatch
from bertkit.data.loader import PretrainLoader
from bertkit.model.heads import PretrainHeads
from bertkit.runtime import Runtime
from bertkit.settings import Recipe
from bertkit.train.setup import open_data, vocabulary_of
from bertkit.train.start import build_model
from bertkit.train.step import (
    Pretraining,
    StepDropped,
    evaluate,
    flops_per_token,
    forward_backward,
    wrap,
)
from tests.train.conftest import small_recipe

MACHINE = Runtime(torch.device("cpu"), torch.float32, 0, 1, 1)


def model_for(data: Path, recipe: Recipe) -> Pretraining:
    torch.manual_seed(1)
    model = build_model(recipe, open_data([data]).tokenizer, None, print).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    module = wrap(model, MACHINE, compiled=False)
    assert isinstance(module, Pretraining)
    return module


def global_batch(data: Path, recipe: Recipe, parts: int) -> list[PretrainBatch]:
    source = open_data([data])
    loader = PretrainLoader(
        source.train,
        recipe.data,
        vocabulary_of(source.tokenizer),
        seed=3,
        batch_tokens=256,
        parts=parts,
    )
    return next(loader.batches())[0]


def gradients(module: Pretraining) -> list[Tensor]:
    found = [p.grad.clone() for p in module.parameters() if p.grad is not None]
    module.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("objective", ["mlm+nsp", "mlm", "mlm+sop"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)], ids=str
)
def test_accumulation_changes_neither_loss_nor_gradient(
    data: Path, objective: str, dtype: torch.dtype, tolerance: float
) -> None:
    recipe = small_recipe(data__objective=objective)
    module = model_for(data, recipe).to(dtype)
    whole = forward_backward(module, global_batch(data, recipe, 1), MACHINE)
    wanted = gradients(module)
    assert whole.masked > 10
    assert (whole.pairs > 0) == (objective != "mlm")
    unlike = False
    for parts in (2, 4):
        batches = global_batch(data, recipe, parts)
        unlike |= len({len(b.mlm_labels) for b in batches}) > 1
        cut = forward_backward(module, batches, MACHINE)
        assert cut.loss == pytest.approx(whole.loss, rel=tolerance)
        assert cut.mlm_loss == pytest.approx(whole.mlm_loss, rel=tolerance)
        assert (cut.masked, cut.pairs, cut.tokens) == (whole.masked, whole.pairs, whole.tokens)
        assert cut.mlm_accuracy == whole.mlm_accuracy
        found = gradients(module)
        assert len(found) == len(wanted)
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=tolerance * 10, atol=tolerance)
    assert unlike  # where micro-batches have unlike numbers of masks a mean of means would differ


def test_the_loss_is_the_mean_over_masked_positions(data: Path) -> None:
    recipe = small_recipe()
    module = model_for(data, recipe)
    batches = global_batch(data, recipe, 3)
    result = forward_backward(module, batches, MACHINE)
    model = module.model
    with torch.no_grad():
        sums = [model.pretraining_sums(b, b.readers(first=True)) for b in batches]
    masked = sum(len(b.mlm_labels) for b in batches)
    pairs = sum(len(b.nsp_labels) for b in batches)
    mlm = sum(float(s.mlm) for s in sums) / masked
    nsp = sum(float(s.nsp) for s in sums) / pairs
    assert result.mlm_loss == pytest.approx(mlm, rel=1e-6)
    assert result.nsp_loss == pytest.approx(nsp, rel=1e-6)
    assert result.loss == pytest.approx(mlm + nsp, rel=1e-6)
    assert result.tokens == sum(b.real_tokens for b in batches)


def test_gradients_of_few_words_equal_those_of_all(data: Path) -> None:
    """The gradient of the words read is sparse inside; what comes out is the dense one, exactly."""
    recipe = small_recipe()
    module = model_for(data, recipe).double()
    batch = global_batch(data, recipe, 1)[0]
    forward_backward(module, [batch], MACHINE)
    found = gradients(module)
    assert not any(g.is_sparse for g in found)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(PretrainHeads, "_sparse_words", lambda self, masked: nullcontext())
        forward_backward(module, [batch], MACHINE)
    wanted = gradients(module)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)
    forward_backward(module, [batch], MACHINE)
    for again, first in zip(gradients(module), found, strict=True):
        assert torch.equal(again, first)


def without_masks(batch: PretrainBatch) -> PretrainBatch:
    none = torch.zeros(0, dtype=torch.long)
    return PretrainBatch(
        batch.input_ids,
        batch.token_type_ids,
        batch.position_ids,
        batch.lengths,
        none,
        none,
        torch.full_like(batch.nsp_labels, -100),
        batch.real_tokens,
    )


@pytest.mark.parametrize("objective", ["mlm+nsp", "mlm"])
def test_nothing_masked_is_zero_never_nan(data: Path, objective: str) -> None:
    recipe = small_recipe(data__objective=objective)
    module = model_for(data, recipe)
    batches = [without_masks(b) for b in global_batch(data, recipe, 2)]
    result = forward_backward(module, batches, MACHINE)
    assert (result.loss, result.masked, result.pairs) == (0.0, 0, 0)
    assert all(not g.any() for g in gradients(module))
    assert evaluate(module, batches, MACHINE).loss == 0.0


def test_a_micro_batch_with_nothing_masked_adds_nothing(data: Path) -> None:
    recipe = small_recipe(data__objective="mlm")
    module = model_for(data, recipe)
    full, other = global_batch(data, recipe, 2)
    alone = forward_backward(module, [full], MACHINE)
    wanted = gradients(module)
    both = forward_backward(module, [full, without_masks(other)], MACHINE)
    assert both.loss == alone.loss
    for a, b in zip(gradients(module), wanted, strict=True):
        assert torch.equal(a, b)


def test_dropout_is_a_function_of_seed_and_step(data: Path) -> None:
    recipe = small_recipe(train__dropout=0.3)
    module = model_for(data, recipe)
    batches = global_batch(data, recipe, 2)
    losses: list[float] = []
    for seeds in ((0, 5), (0, 5), (0, 6), (1, 5)):
        torch.manual_seed(len(losses))
        losses.append(forward_backward(module, batches, MACHINE, seeds).loss)
    assert losses[0] == losses[1]
    assert len(set(losses)) == 3


def test_evaluation_is_fixed_has_no_dropout_and_leaves_no_trace(data: Path) -> None:
    recipe = small_recipe(train__dropout=0.5)
    module = model_for(data, recipe)
    batches = global_batch(data, recipe, 3)
    first = evaluate(module, batches, MACHINE)
    assert evaluate(module, batches, MACHINE) == first
    assert module.training
    assert module.model.training
    assert all(p.grad is None for p in module.parameters())
    module.eval()
    plain = forward_backward(module, batches, MACHINE)
    assert plain.loss == pytest.approx(first.loss, rel=1e-6)


@pytest.mark.parametrize("when", [0, 1, 2])
def test_asked_to_stop_one_process_begins_no_further_micro_batch(data: Path, when: int) -> None:
    recipe = small_recipe()
    module = model_for(data, recipe)
    batches = global_batch(data, recipe, 3)
    begun: list[Any] = []
    module.register_forward_hook(lambda *_: begun.append(None))
    with pytest.raises(StepDropped):
        forward_backward(module, batches, MACHINE, asked=lambda: len(begun) >= when)
    assert len(begun) == when
    assert not forward_backward(module, batches, MACHINE).stop


def test_flops_of_base_are_those_of_the_formula(data: Path) -> None:
    recipe = small_recipe(
        model__size="base",
        model__hidden_size=768,
        model__num_attention_heads=12,
        model__intermediate_size=3072,
    )
    with torch.device("meta"):
        model = build_model(recipe, open_data([data]).tokenizer, None, print)
    model.config.vocab_size = 30522
    assert flops_per_token(model, 128, 0.15) == pytest.approx(545e6, rel=0.01)
