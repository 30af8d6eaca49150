"""The losses of pretraining, computed only where there is a label."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Logits are made, used and thrown away this many bytes at a time: 1,000 masked words of 256 numbers
# and 30,522 candidates go at 87 GFLOP/s in chunks of 16 MiB, at 107 in chunks of 64, which are 549
# rows (two Zen 3 cores, fp32). A GPU wants few, large products.
CHUNK_BYTES = {"cpu": 64 << 20, "cuda": 2 << 30}
# Rows of logits start at multiples of this many numbers: the product that makes the 30,522 logits
# of 304 rows takes 65 ms then, and 99 ms where they lie end to end (one Zen 3 core, fp32).
ROW_MULTIPLE = 16


class BertPretrainingLoss(nn.Module):
    """The sum of both pretraining losses, from full logits (Devlin et al. 2018, section 3.1)."""

    def forward(
        self, mlm_logits: Tensor, nsp_logits: Tensor, mlm_labels: Tensor, nsp_labels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mean cross-entropies; a label of -100 counts nowhere, and no label at all gives 0.

        Args:
            mlm_logits: [..., V].
            nsp_logits: [B, 2]; class 0 is IsNext, class 1 random.
            mlm_labels: [...] int64.
            nsp_labels: [B] int64.

        Returns:
            (total, mlm, nsp), scalars.
        """
        mlm = mean_cross_entropy(mlm_logits, mlm_labels)
        nsp = mean_cross_entropy(nsp_logits, nsp_labels)
        return mlm + nsp, mlm, nsp


def mean_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over labels other than -100; 0, never NaN, where there is none."""
    logits, labels = logits.flatten(0, -2), labels.flatten()
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    total = F.cross_entropy(logits, labels, reduction="sum", ignore_index=-100)
    return total / (labels != -100).sum().clamp(min=1)


class LossSums(NamedTuple):
    """Sums over a micro-batch, to be divided by the counts of the whole global batch.

    Attributes:
        mlm: scalar, the summed cross-entropy at masked positions.
        nsp: scalar, the summed cross-entropy of the pairs.
        mlm_correct: scalar int64, masked positions whose best word is the right one.
        nsp_correct: scalar int64.
    """

    mlm: Tensor
    nsp: Tensor
    mlm_correct: Tensor
    nsp_correct: Tensor


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy of `hidden @ weight.T + bias`, without keeping the logits.

    The gradients are made chunk by chunk along with the loss, so memory is one chunk of logits and
    the logits are passed over three times instead of eight.

    Args:
        hidden: [M, D].
        weight: [V, D].
        bias: [V].
        labels: [M] int64, each in [0, V).

    Returns:
        The sum over M (scalar, fp32 or fp64) and the count of correct best guesses (scalar, int64).
        One backward pass through the sum is possible, not two.
    """
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight, bias = hidden.to(dtype), weight.to(dtype), bias.to(dtype)
    apply: Any = _LinearCrossEntropy.apply
    total, correct = apply(hidden, weight, bias, labels)
    return total, correct


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor,
        labels: Tensor,
    ) -> tuple[Tensor, Tensor]:
        wants_grad = any(ctx.needs_input_grad)  # type: ignore[attr-defined]
        exact = torch.promote_types(hidden.dtype, torch.float32)
        total = hidden.new_zeros((), dtype=exact)
        correct = hidden.new_zeros((), dtype=torch.int64)
        grads = None
        if wants_grad:
            fresh = torch.empty_like(weight) if len(hidden) else torch.zeros_like(weight)
            grads = torch.empty_like(hidden), fresh, torch.zeros_like(bias)
        most = max(16, CHUNK_BYTES[hidden.device.type] // (4 * len(weight)))
        rows = -(-len(hidden) // max(1, -(-len(hidden) // most)))  # chunks of one size
        width = -(-len(weight) // ROW_MULTIPLE) * ROW_MULTIPLE
        whole = hidden.new_empty(rows, width)
        for start in range(0, len(hidden), max(1, rows)):
            part = slice(start, start + rows)
            padded = whole[: len(labels[part])]
            torch.addmm(bias, hidden[part], weight.t(), out=padded[:, : len(weight)])
            padded[:, len(weight) :] = -torch.inf
            # Three passes over the logits: highest, softmax, highest share.
            padded = padded.to(exact)
            target = labels[part].unsqueeze(-1)
            chosen = padded.gather(-1, target) - padded.amax(-1, keepdim=True)
            correct += (chosen == 0).sum()
            torch.softmax(padded, -1, out=padded)
            # The highest logit's share is 1 / sum(exp(logits - highest)).
            total -= (chosen + padded.amax(-1, keepdim=True).log()).sum()
            if grads is None:
                continue
            padded.scatter_(-1, target, padded.gather(-1, target) - 1)
            slope = padded[:, : len(weight)].to(hidden.dtype)
            torch.mm(slope, weight, out=grads[0][part])
            grads[1].addmm_(slope.t(), hidden[part], beta=min(start, 1))  # the first one fills
            grads[2].add_(slope.sum(0))
        ctx.grads = grads  # type: ignore[attr-defined]
        ctx.mark_non_differentiable(correct)
        return total, correct

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, grad: Tensor, _: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, None]:
        # In place: a second copy of the weights' gradient was 1.3% of a step of mini.
        grads, ctx.grads = ctx.grads, None  # type: ignore[attr-defined]
        if grads is None:
            raise RuntimeError("linear_cross_entropy: its gradients have been used already")
        hidden, weight, bias = (g.mul_(grad.to(g.dtype)) for g in grads)
        return hidden, weight, bias, None
