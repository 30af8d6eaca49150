"""The one noun that all parts share: sequences laid end to end, with their lengths.

Shape letters used in all of bertkit: B batch (sequences), S positions in a row, T tokens laid end
to end, D hidden size, N attention heads, H head size (D = N * H), V vocabulary, C classes, L layers,
M masked positions.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """B sequences laid end to end in T tokens; no padding anywhere.

    Attributes:
        input_ids: [T] int64, the token ids.
        token_type_ids: [T] int64, the segment (0 or 1) of each token.
        position_ids: [T] int64, each token's position in its own sequence, from 0.
        lengths: [B] int64, always on the CPU; they sum to T, and none is zero.
    """

    input_ids: Tensor
    token_type_ids: Tensor
    position_ids: Tensor
    lengths: Tensor

    @property
    def starts(self) -> Tensor:
        """[B] int64 on the CPU: the index in T of each sequence's first token."""
        return self.lengths.cumsum(0) - self.lengths

    def to(self, device: torch.device | str) -> Self:
        """The same batch with its tensors on `device` (lengths stay on the CPU)."""
        moved = {
            f.name: getattr(self, f.name).to(device, non_blocking=True)
            for f in fields(self)
            if f.name != "lengths" and isinstance(getattr(self, f.name), Tensor)
        }
        return replace(self, **moved)


@dataclass(frozen=True, slots=True)
class PretrainBatch(Batch):
    """A batch with the targets of pretraining.

    `lengths` may end with sequences of padding (see `real_tokens`); nothing refers to them.

    Attributes:
        mlm_positions: [M] int64, indices into T of the positions chosen for prediction, ascending.
        mlm_labels: [M] int64, the ids that stood there before masking.
        nsp_labels: [B] int64: 0 B follows A (IsNext; for sentence order: in order), 1 it does not
            (random; swapped), -100 none (an example without a pair, or padding).
        real_tokens: tokens that are not padding; T - real_tokens tokens at the end are padding.
    """

    mlm_positions: Tensor
    mlm_labels: Tensor
    nsp_labels: Tensor
    real_tokens: int
