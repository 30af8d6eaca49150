"""Padded calls: rows in, their real tokens laid end to end, and the way back to rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bertkit.errors import DataError

IGNORED = -100  # the label that says: no label here


class Rows(NamedTuple):
    """The tensors of a padded call, under the names that BertModel gives them."""

    input_ids: Tensor | None
    attention_mask: Tensor | None
    token_type_ids: Tensor | None
    position_ids: Tensor | None
    inputs_embeds: Tensor | None

    @property
    def given(self) -> Tensor:
        """The ids or the vectors, whichever were given.

        Raises:
            DataError: neither was, or both.
        """
        if self.input_ids is not None and self.inputs_embeds is None:
            return self.input_ids
        if self.inputs_embeds is None or self.input_ids is not None:
            raise DataError("give either input_ids or inputs_embeds")
        return self.inputs_embeds

    @property
    def layout(self) -> Layout:
        """How the real tokens lie end to end."""
        given = self.given
        if given.dim() != (3 if self.input_ids is None else 2):
            wanted = "input_ids [B, S]" if self.input_ids is not None else "inputs_embeds [B, S, D]"
            raise DataError(f"the input is {list(given.shape)}; give {wanted}")
        return Layout.of((given.shape[0], given.shape[1]), self.attention_mask, given.device)

    def packed(
        self, layout: Layout, words: int, segments: int, positions: int
    ) -> tuple[Tensor | None, Tensor, Tensor, Tensor | None]:
        """[T] ids, segments and positions and [T, D] vectors of the real tokens, checked.

        Args:
            layout: of these rows.
            words: how many rows the table of word embeddings has.
            segments: the same of the segments, which default to 0.
            positions: the same of the positions, which default to the column.

        Raises:
            DataError: a number is out of range, or shapes disagree.
        """
        shape, device = layout.shape, layout.slots.device
        columns = torch.arange(shape[1], device=device)
        types = self.token_type_ids
        types = torch.zeros_like(columns) if types is None else types
        places = columns if self.position_ids is None else self.position_ids
        vectors = self.inputs_embeds
        return (
            None if self.input_ids is None else _packed("input_ids", self.input_ids, layout, words),
            _packed("token_type_ids", types, layout, segments),
            _packed("position_ids", places, layout, positions),
            None if vectors is None else layout.pack(vectors),
        )

    def flat(self) -> Rows:
        """[B, choices, S] -> [B * choices, S], each choice a row of its own."""
        flat = [None if x is None else x.reshape(-1, x.shape[-1]) for x in self[:4]]
        vectors = self.inputs_embeds
        return Rows._make([*flat, None if vectors is None else vectors.flatten(0, -3)])


@dataclass(frozen=True, slots=True)
class Layout:
    """How the real tokens of a [B, S] call lie end to end.

    Attributes:
        shape: (B, S).
        slots: [T] indices of the real tokens in the flattened [B * S].
        rows: [R] the rows that have a real token; the others are wholly padded.
        lengths: [R] on the CPU.
    """

    shape: tuple[int, int]
    slots: Tensor
    rows: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, shape: tuple[int, int], mask: Tensor | None, device: torch.device) -> Layout:
        """Read an attention mask: [B, S], nonzero for real tokens; None: all are real.

        One of [B, S, S] or [B, 1, S, S] that says the same of every real token is read as [B, S].

        Raises:
            DataError: it has another shape, or lets tokens of one row see different tokens.
        """
        if mask is not None and mask.dim() in (3, 4):
            mask = _one_for_all(mask, shape)
        if mask is None:
            rows = torch.arange(shape[0] if shape[1] else 0, device=device)
            slots = torch.arange(shape[0] * shape[1], device=device)
            return cls(shape, slots, rows, torch.full((len(rows),), shape[1]))
        if tuple(mask.shape) != shape:
            raise DataError(f"attention_mask is {list(mask.shape)}; the input is {list(shape)}")
        real = mask.to(device) != 0
        lengths = real.sum(1)
        return cls(
            shape,
            real.flatten().nonzero().squeeze(1),
            lengths.nonzero().squeeze(1),
            lengths[lengths > 0].cpu(),
        )

    def pack(self, x: Tensor) -> Tensor:
        """[B, S, ...] -> [T, ...]."""
        return x.flatten(0, 1).index_select(0, self.slots)

    def pack_rows(self, x: Tensor) -> Tensor:
        """[B, ...] -> [R, ...], without the rows that are wholly padded."""
        return x if len(self.rows) == self.shape[0] else x.index_select(0, self.rows)

    def pad(self, x: Tensor, filler: float = 0.0) -> Tensor:
        """[T, ...] -> [B, S, ...], `filler` where there is no token."""
        whole = x.new_full((self.shape[0] * self.shape[1], *x.shape[1:]), filler)
        return whole.index_copy(0, self.slots, x).view(*self.shape, *x.shape[1:])

    def pad_rows(self, x: Tensor, filler: float = 0.0) -> Tensor:
        """[R, ...] -> [B, ...], `filler` for rows wholly padded."""
        if len(self.rows) == self.shape[0]:
            return x
        return x.new_full((self.shape[0], *x.shape[1:]), filler).index_copy(0, self.rows, x)

    def firsts(self) -> Tensor:
        """[R] on the CPU: the indices in T of the first real token of each row."""
        return self.lengths.cumsum(0) - self.lengths

    def pad_maps(self, maps: Tensor) -> Tensor:
        """[R, N, s, s] -> [B, N, S, S]: weights between the columns of the user's own rows."""
        real = torch.arange(maps.shape[-1]) < self.lengths[:, None]
        columns = torch.zeros(real.shape, dtype=torch.long, device=maps.device)
        columns[real.to(maps.device)] = self.slots % self.shape[1]
        r, n, s, _ = maps.shape
        wide = maps.new_zeros(r, n, s, self.shape[1])
        wide = wide.scatter_add(3, columns[:, None, None, :].expand(r, n, s, s), maps)
        tall = maps.new_zeros(r, n, self.shape[1], self.shape[1])
        index = columns[:, None, :, None].expand(r, n, s, self.shape[1])
        return self.pad_rows(tall.scatter_add(2, index, wide))


class Encoded(NamedTuple):
    """What the encoder says of a padded call, still packed, with the way back.

    Attributes:
        hidden: [T, D]; with `firsts_only` [R, D], of the first token of each row.
        layout: the way back.
        hidden_states: L + 1 times [B, S, D], when asked for.
        attentions: L times [B, N, S, S], when asked for.
        firsts_only: the last layer answered for first tokens only.
    """

    hidden: Tensor
    layout: Layout
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None
    firsts_only: bool = False

    @property
    def firsts(self) -> Tensor:
        """[R, D], the first real token of each row that has one."""
        if self.firsts_only:
            return self.hidden
        return self.hidden.index_select(0, self.layout.firsts().to(self.hidden.device))


def _one_for_all(mask: Tensor, shape: tuple[int, int]) -> Tensor:
    """[B, S] of a mask [B, S, S] or [B, 1, S, S] (which token sees which).

    Raises:
        DataError: it has another shape, real tokens of one row see different tokens, or it is
            one of version 5's float masks, which are added to scores.
    """
    told = f"attention_mask is {list(mask.shape)}"
    square = mask.squeeze(1) if mask.dim() == 4 else mask
    if tuple(square.shape) != (*shape, shape[1]):
        raise DataError(f"{told}; the input is {list(shape)}")
    if mask.dim() == 4 and mask.is_floating_point():
        raise DataError(f"{told} of floats to add to scores; give one of {list(shape)}")
    sees = square != 0
    real = sees.any(1)
    if bool((real.unsqueeze(2) & (sees != real.unsqueeze(1))).any()):
        raise DataError(
            f"{told} and lets tokens of one row see different tokens; here all real tokens of a "
            f"row see each other: give a mask of {list(shape)}, each text a row of its own"
        )
    return real


def _packed(name: str, ids: Tensor, layout: Layout, room: int) -> Tensor:
    try:
        packed = layout.pack(ids.expand(layout.shape))
    except RuntimeError:
        shapes = f"{name} is {list(ids.shape)}; the input is {list(layout.shape)}"
        raise DataError(shapes) from None
    check_range(name, packed, room)
    return packed


def check_range(name: str, ids: Tensor, limit: int) -> None:
    """Refuse numbers outside 0 to limit - 1, in words: a GPU would only say "device assert".

    Raises:
        DataError: naming the first such number that is met at either end.
    """
    if not len(ids):
        return
    low, high = (int(x) for x in ids.aminmax())
    if low < 0 or high >= limit:
        bad = low if low < 0 else high
        raise DataError(f"{name} holds {bad}; this model has room for 0 to {limit - 1}")


def checked_labels(name: str, labels: Tensor, limit: int) -> Tensor:
    """[M] int64 of labels that are 0 to limit - 1, or -100 for none.

    Raises:
        DataError: a label is out of range.
    """
    labels = labels.flatten().long()
    check_range(name, labels[labels != IGNORED], limit)
    return labels
