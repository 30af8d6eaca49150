"""Sequences of like length side by side: how attention over ragged tokens meets dense kernels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# A bucket holds sequences whose lengths differ by less than this. 16 pads about 7 rows a sequence:
# attention is 8% of a layer's work at 128 tokens, so finer buckets cost more calls than they save.
BUCKET = 16


class Spans(NamedTuple):
    """Where each of B sequences stands among tokens laid end to end.

    Attributes:
        lengths: [B] int64 on the CPU.
        bounds: [B + 1] int32 on the tokens' device: 0 and the running sum of the lengths.
        longest: an upper bound of the lengths.
    """

    lengths: Tensor
    bounds: Tensor
    longest: int

    @classmethod
    def of(cls, lengths: Tensor, device: torch.device, longest: int | None = None) -> Spans:
        """Spans of sequences with these lengths ([B] int64, CPU)."""
        bounds = F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32).to(device, non_blocking=True)
        return cls(lengths, bounds, longest or int(lengths.max()))


@dataclass(frozen=True, slots=True)
class Bucket:
    """Sequences that are attended together.

    `queries` and `keys` are either (start, stop) of rows that already stand side by side, or the
    [rows * length] indices that bring them there; padding repeats a row of the same sequence.
    """

    rows: int
    query_length: int
    key_length: int
    queries: tuple[int, int] | Tensor
    keys: tuple[int, int] | Tensor
    # [rows, 1, 1, key_length] added to the scores: 0 for a key, -inf for padding; None: no padding.
    bias: Tensor | None
    # [rows * query_length] True for real queries; None: all are.
    real: Tensor | None


def index_of(rows: tuple[int, int] | Tensor) -> Tensor:
    """The rows of a bucket, one number each."""
    return torch.arange(*rows) if isinstance(rows, tuple) else rows


def side_by_side(tokens: Tensor, rows: tuple[int, int] | Tensor, length: int) -> Tensor:
    """[T, N, H] -> [rows, N, length, H], a view where the rows already stand side by side."""
    if isinstance(rows, tuple):
        picked = tokens[rows[0] : rows[1]]
    else:
        picked = tokens.index_select(0, rows.to(tokens.device))
    return picked.view(-1, length, *tokens.shape[1:]).transpose(1, 2)


def buckets_of(q_lengths: Tensor, k_lengths: Tensor) -> tuple[Bucket, ...]:
    """Sort B sequences into buckets of like length, sequences without a query left out."""
    return _buckets(tuple(q_lengths.tolist()), tuple(k_lengths.tolist()))


@lru_cache(maxsize=16)  # every layer of a step asks for the same buckets, in both directions
def _buckets(q_lengths: tuple[int, ...], k_lengths: tuple[int, ...]) -> tuple[Bucket, ...]:
    q, k = torch.tensor(q_lengths), torch.tensor(k_lengths)
    q_starts, k_starts = q.cumsum(0) - q, k.cumsum(0) - k
    members: dict[int, list[int]] = {}
    for sequence, length in enumerate(k_lengths):
        if q_lengths[sequence]:
            members.setdefault((length - 1) // BUCKET, []).append(sequence)
    out = []
    for chosen in members.values():
        i = torch.tensor(chosen)
        out.append(_bucket(i, q[i], k[i], q_starts[i], k_starts[i]))
    return tuple(out)


def _bucket(i: Tensor, q: Tensor, k: Tensor, q_starts: Tensor, k_starts: Tensor) -> Bucket:
    queries, query_length, real = _rows(i, q, q_starts)
    keys, key_length, real_keys = _rows(i, k, k_starts)
    bias = None
    if real_keys is not None:
        bias = torch.zeros(len(i), 1, 1, key_length)
        bias.masked_fill_(~real_keys.view(len(i), 1, 1, key_length), -torch.inf)
    return Bucket(len(i), query_length, key_length, queries, keys, bias, real)


def _rows(
    i: Tensor, lengths: Tensor, starts: Tensor
) -> tuple[tuple[int, int] | Tensor, int, Tensor | None]:
    """The rows of sequences i: side by side -> (start, stop); else an index and its mask."""
    longest = int(lengths.max())
    equal = bool((lengths == longest).all())
    if equal and bool((i.diff() == 1).all()):
        return (int(starts[0]), int(starts[0]) + longest * len(i)), longest, None
    columns = torch.arange(longest)
    index = starts[:, None] + torch.minimum(columns, lengths[:, None] - 1)
    return index.flatten(), longest, None if equal else (columns < lengths[:, None]).flatten()


def put_back(whole: Tensor, part: Tensor, bucket: Bucket, keys: bool = False) -> None:
    """Write a bucket's [rows, length, ...] results to their places among the tokens."""
    rows = bucket.keys if keys else bucket.queries
    part = part.flatten(0, 1)
    if isinstance(rows, tuple):
        whole[rows[0] : rows[1]] = part
        return
    real = bucket.real
    if keys:
        real = None if bucket.bias is None else (bucket.bias == 0).flatten()
    if real is not None:
        picked = real.nonzero().squeeze(1)
        rows, part = rows[picked], part.index_select(0, picked)
    whole.index_copy_(0, rows, part)
