"""How important the inner units of feed-forwards are.

By texts: the mean of |activation . gradient of the loss| over all tokens (Molchanov et al. 2017,
arXiv 1611.06440, equation 8). Without texts: |w_in| |w_out|, the product of the norms of a
unit's row and column.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from bertkit.explain.effects import answer_clean, run_from
from bertkit.explain.hooks import Site, changing, still
from bertkit.explain.opening import Opened
from bertkit.explain.questions import Given, asked_batches, head_of


def best_units(
    opened: Opened, width: int, texts: Iterable[Given] | None, seed: int = 0
) -> list[Tensor]:
    """For each layer the [width] most important inner units, ascending."""
    scores = _norms(opened) if texts is None else unit_importance(opened, texts, seed)
    return [score.topk(width).indices.sort().values for score in scores]


def _norms(opened: Opened) -> list[Tensor]:
    found = []
    for layer in opened.encoder.encoder.layer:
        own: Any = layer
        rows = own.intermediate.dense.weight.detach().double().norm(dim=1)
        found.append(rows * own.output.dense.weight.detach().double().norm(dim=0))
    return found


def unit_importance(opened: Opened, texts: Iterable[Given], seed: int = 0) -> list[Tensor]:
    """For each layer [I]: the mean of |activation . gradient of the loss| over all tokens."""
    head, layers = head_of(opened), range(len(opened.encoder.encoder.layer))
    sums = [torch.zeros(opened.model.config.intermediate_size).double() for _ in layers]
    tokens = 0
    with still(opened.model):
        for asked in asked_batches(opened, texts, seed=seed):
            tokens += len(asked.batch.input_ids)
            labels = answer_clean(opened, head, asked).labels
            seen: list[Tensor] = []

            def keep(widened: Tensor, seen: list[Tensor] = seen) -> Tensor:
                seen.append(widened.detach().requires_grad_())
                return _joined(widened, seen[-1])

            sites = {Site("widened", layer + 1): keep for layer in layers}
            with torch.enable_grad(), changing(opened.encoder, sites):
                loss = head.loss(run_from(opened.encoder, asked, -1), asked, labels)
                slopes = torch.autograd.grad(loss, seen)
            for total, activation, slope in zip(sums, seen, slopes, strict=True):
                total += (activation.detach() * slope).abs().double().sum(0).cpu()
    return [total / max(tokens, 1) for total in sums]


def _joined(whole: Tensor, leaf: Tensor) -> Tensor:
    """The leaf's numbers; gradients go both to it and to what is before it."""
    return leaf + (whole - whole.detach())
