"""Losses against torch's own, and at the edges where others give NaN."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bertkit.model import losses
from bertkit.model.losses import BertPretrainingLoss, linear_cross_entropy, mean_cross_entropy

D, V = 16, 75


def inputs(rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, D, generator=generator)
    weight = torch.randn(V, D, generator=generator)
    bias = torch.randn(V, generator=generator)
    labels = torch.randint(0, V, (rows,), generator=generator)
    return hidden.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), labels


# Chunks of 16 rows at least; 1: a chunk of one row is still 16.
@pytest.mark.parametrize("chunk_rows", [1, 16, 23, 64, 1000])
@pytest.mark.parametrize("rows", [1, 16, 17, 70])
def test_equals_torch(rows: int, chunk_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(losses.CHUNK_BYTES, "cpu", chunk_rows * 4 * V)
    hidden, weight, bias, labels = inputs(rows)
    total, correct = linear_cross_entropy(hidden, weight, bias, labels)
    (total * 0.37).backward()
    mine = [x.grad for x in (hidden, weight, bias)]
    again = inputs(rows)
    logits = F.linear(again[0], again[1], again[2])
    wanted = F.cross_entropy(logits, labels, reduction="sum")
    (wanted * 0.37).backward()
    torch.testing.assert_close(total, wanted, rtol=1e-5, atol=1e-5)
    assert int(correct) == int((logits.argmax(-1) == labels).sum())
    for a, b in zip(mine, again[:3], strict=True):
        torch.testing.assert_close(a, b.grad, rtol=1e-4, atol=1e-5)


def test_gradients_are_used_once() -> None:
    total, _ = linear_cross_entropy(*inputs(20))
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="used already"):
        total.backward()


def test_nothing_masked_is_nothing() -> None:
    hidden, weight, bias, labels = inputs(0)
    total, correct = linear_cross_entropy(hidden, weight, bias, labels)
    total.backward()
    assert float(total.detach()) == 0.0
    assert int(correct) == 0
    assert weight.grad is not None
    assert not weight.grad.any()


def test_without_gradients_the_loss_is_the_same() -> None:
    hidden, weight, bias, labels = inputs(40)
    total, correct = linear_cross_entropy(hidden, weight, bias, labels)
    with torch.no_grad():
        quiet, quiet_correct = linear_cross_entropy(hidden, weight, bias, labels)
    assert torch.equal(total, quiet)
    assert torch.equal(correct, quiet_correct)


def test_autocast_stays_within_its_rounding() -> None:
    hidden, weight, bias, labels = inputs(64)
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = linear_cross_entropy(hidden, weight, bias, labels)
    total.backward()
    assert total.dtype == torch.float32
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32
    again = inputs(64)
    wanted = F.cross_entropy(F.linear(*again[:3]), labels, reduction="sum")
    wanted.backward()
    torch.testing.assert_close(total, wanted, rtol=1e-2, atol=0)
    for mine, theirs in zip((hidden, weight, bias), again[:3], strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        error = (mine.grad - theirs.grad).norm() / theirs.grad.norm()
        assert float(error) < 0.02


def test_huge_logits_stay_finite() -> None:
    hidden, weight, bias, labels = inputs(8)
    total, _ = linear_cross_entropy(hidden * 1e4, weight, bias, labels)
    total.backward()
    assert torch.isfinite(total)
    assert hidden.grad is not None
    assert torch.isfinite(hidden.grad).all()


def test_mean_cross_entropy_is_torchs_mean_over_labels() -> None:
    logits = torch.randn(4, 6, V)
    labels = torch.randint(0, V, (4, 6))
    labels[:, ::2] = -100
    wanted = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
    torch.testing.assert_close(mean_cross_entropy(logits, labels), wanted)


def test_pretraining_loss_is_the_sum_of_both() -> None:
    mlm_logits, nsp_logits = torch.randn(3, 5, V), torch.randn(3, 2)
    mlm_labels = torch.full((3, 5), -100)
    mlm_labels[0, 1], mlm_labels[2, 4] = 7, 70
    nsp_labels = torch.tensor([0, 1, 1])
    total, mlm, nsp = BertPretrainingLoss()(mlm_logits, nsp_logits, mlm_labels, nsp_labels)
    chosen = torch.stack([mlm_logits[0, 1], mlm_logits[2, 4]])
    torch.testing.assert_close(mlm, F.cross_entropy(chosen, torch.tensor([7, 70])))
    torch.testing.assert_close(nsp, F.cross_entropy(nsp_logits, nsp_labels))
    torch.testing.assert_close(total, mlm + nsp)


def test_no_label_at_all_gives_zero_and_zero_gradients() -> None:
    mlm_logits = torch.randn(2, 5, V, requires_grad=True)
    nsp_logits = torch.randn(2, 2, requires_grad=True)
    none = torch.full((2, 5), -100), torch.full((2,), -100)
    total, mlm, nsp = BertPretrainingLoss()(mlm_logits, nsp_logits, *none)
    total.backward()
    assert [float(x.detach()) for x in (total, mlm, nsp)] == [0.0, 0.0, 0.0]
    assert mlm_logits.grad is not None
    assert not mlm_logits.grad.any()
