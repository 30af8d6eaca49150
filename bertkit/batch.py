"""The one noun that all parts share: sequences laid end to end, with their lengths.

Shape letters used in all of bertkit: B batch (sequences), S positions in a row, T tokens laid end
to end, D hidden size, N attention heads, H head size (D = N * H), V vocabulary, C classes,
L layers, M masked positions.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import NamedTuple, Self

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


class Readers(NamedTuple):
    """The positions whose last layer some head reads; the last layer answers for no others.

    Attributes:
        rows: [R] int64, indices into T, ascending.
        lengths: [B] int64 on the CPU: how many of them each sequence has.
        mlm: [M] int64, where in R the masked positions are.
        first: [B] int64, where in R each sequence's first token is; None: nobody reads them.
    """

    rows: Tensor
    lengths: Tensor
    mlm: Tensor
    first: Tensor | None

    def to(self, device: torch.device | str) -> Readers:
        """The same readers with their indices on `device`."""
        rows, mlm = (x.to(device, non_blocking=True) for x in (self.rows, self.mlm))
        first = None if self.first is None else self.first.to(device, non_blocking=True)
        return Readers(rows, self.lengths, mlm, first)


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

    def readers(self, first: bool) -> Readers:
        """The masked positions and, with `first`, the first token of each sequence.

        Call it while the batch is on the CPU: it would make a GPU wait.
        """
        starts = self.starts
        wanted = torch.zeros(int(self.lengths.sum()), dtype=torch.bool)
        wanted[self.mlm_positions] = True
        if first:
            wanted[starts] = True
        rank = wanted.cumsum(0) - 1
        sequence = torch.repeat_interleave(self.lengths)
        lengths = torch.bincount(sequence[wanted], minlength=len(self.lengths))
        return Readers(
            wanted.nonzero().squeeze(1),
            lengths,
            rank[self.mlm_positions],
            rank[starts] if first else None,
        )
