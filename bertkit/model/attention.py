"""Self-attention over sequences laid end to end, in the form that suits the device.

    CPU                         bucketed: sequences of like length side by side, flash kernel
    GPU in half precision       varlen: torch.nn.attention.varlen on the ragged tokens
    dropout, GPU in fp32        padded: each bucket padded, differentiable, any device
    attention maps asked for    maps: softmax(Q K^T / sqrt(H)) written out (Vaswani 2017, eq. 1)

Every form gives the same numbers; tests/model/test_attention.py compares them. Queries may be fewer
than keys: in the last layer only the positions that a head reads ask.
"""

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


def attend(query: Tensor, key: Tensor, value: Tensor, q: Spans, k: Spans, dropout: float) -> Tensor:
    """softmax(Q K^T / sqrt(H)) V within each sequence.

    Args:
        query: [Tq, N, H], the tokens that ask.
        key: [T, N, H].
        value: [T, N, H].
        q: the spans of the queries; a sequence may have none.
        k: the spans of the keys, one for each of q.
        dropout: probability with which an attention weight is dropped.

    Returns:
        [Tq, N, H].
    """
    if dropout > 0 or (query.is_cuda and query.dtype not in (torch.float16, torch.bfloat16)):
        return _padded(query, key, value, q, k, dropout)
    if query.is_cuda:
        return _varlen(query, key, value, q, k)
    out, _ = _bucketed(query, key, value, q.lengths, k.lengths)
    assert isinstance(out, Tensor)
    return out


def attention_maps(query: Tensor, key: Tensor, lengths: Tensor) -> Tensor:
    """The attention weights, [B, N, S, S] with S the longest length; zero at padding.

    Args:
        query: [T, N, H].
        key: [T, N, H].
        lengths: [B] int64, CPU.
    """
    size, longest = len(lengths), int(lengths.max())
    real = torch.arange(longest) < lengths[:, None]
    slots = real.flatten().nonzero().squeeze(1).to(query.device)
    rows = [x.new_zeros(size * longest, *x.shape[1:]).index_copy(0, slots, x) for x in (query, key)]
    q, k = (x.view(size, longest, *x.shape[1:]).transpose(1, 2) for x in rows)
    scores: Tensor = (q @ k.transpose(-1, -2)) * query.shape[-1] ** -0.5
    real = real.to(query.device)
    weights = scores.masked_fill(~real[:, None, None, :], -torch.inf).softmax(-1)
    return weights * real[:, None, :, None]


def mix(maps: Tensor, value: Tensor, lengths: Tensor, dropout: float = 0.0) -> Tensor:
    """[T, N, H]: the values weighted by `maps` ([B, N, S, S] of attention_maps)."""
    size, longest = len(lengths), maps.shape[-1]
    slots = (torch.arange(longest) < lengths[:, None]).flatten().nonzero().squeeze(1)
    slots = slots.to(value.device)
    rows = value.new_zeros(size * longest, *value.shape[1:]).index_copy(0, slots, value)
    v = rows.view(size, longest, *value.shape[1:]).transpose(1, 2)
    out = F.dropout(maps, dropout) @ v
    return out.transpose(1, 2).flatten(0, 1).index_select(0, slots)


def _varlen(query: Tensor, key: Tensor, value: Tensor, q: Spans, k: Spans) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    out = varlen_attn(query, key, value, q.bounds, k.bounds, q.longest, k.longest)
    assert isinstance(out, Tensor)
    return out


def _padded(q: Tensor, k: Tensor, v: Tensor, qs: Spans, ks: Spans, dropout: float) -> Tensor:
    parts, order = [], []
    for bucket in buckets_of(qs.lengths, ks.lengths):
        queries = _side_by_side(q, bucket.queries, bucket.query_length)
        keys, values = (_side_by_side(x, bucket.keys, bucket.key_length) for x in (k, v))
        bias = None if bucket.bias is None else bucket.bias.to(q.device, q.dtype)
        out = F.scaled_dot_product_attention(queries, keys, values, bias, dropout)
        out = out.transpose(1, 2).flatten(0, 1)
        index = _index(bucket.queries)
        if bucket.real is not None:
            out, index = out[bucket.real.to(q.device)], index[bucket.real]
        parts.append(out)
        order.append(index)
    back = torch.cat(order).argsort().to(q.device)
    return torch.cat(parts).index_select(0, back)


def _index(rows: tuple[int, int] | Tensor) -> Tensor:
    return torch.arange(*rows) if isinstance(rows, tuple) else rows


def _side_by_side(tokens: Tensor, rows: tuple[int, int] | Tensor, length: int) -> Tensor:
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


def _sums_dtype(query: Tensor) -> torch.dtype:
    """Of the logarithms of the softmax's sums: fp32 at least."""
    return torch.promote_types(query.dtype, torch.float32)


@torch.library.custom_op("bertkit::ragged_attention", mutates_args=())
def _bucketed(
    query: Tensor, key: Tensor, value: Tensor, q_lengths: Tensor, k_lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """CPU flash attention bucket by bucket; opaque to torch.compile, whose graph stays static."""
    out = torch.empty_like(query)
    log_sums = query.new_empty(query.shape[:2], dtype=_sums_dtype(query))
    for bucket in buckets_of(q_lengths, k_lengths):
        q = _side_by_side(query, bucket.queries, bucket.query_length)
        k, v = (_side_by_side(x, bucket.keys, bucket.key_length) for x in (key, value))
        bias = None if bucket.bias is None else bucket.bias.to(q.dtype)
        part, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, attn_mask=bias
        )
        _put_back(out, part.transpose(1, 2), bucket)
        _put_back(log_sums, sums.transpose(1, 2), bucket)
    return out, log_sums


@torch.library.custom_op("bertkit::ragged_attention_backward", mutates_args=())
def _bucketed_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    log_sums: Tensor,
    q_lengths: Tensor,
    k_lengths: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    # A sequence without a query leaves no gradient on its keys.
    grads = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
    for bucket in buckets_of(q_lengths, k_lengths):
        g, q, o = (
            _side_by_side(x, bucket.queries, bucket.query_length) for x in (grad, query, out)
        )
        k, v = (_side_by_side(x, bucket.keys, bucket.key_length) for x in (key, value))
        picked = _side_by_side(log_sums.unsqueeze(-1), bucket.queries, bucket.query_length)
        bias = None if bucket.bias is None else bucket.bias.to(q.dtype)
        if bucket.real is not None:  # the padded queries are copies: their gradient must not count
            g = g * bucket.real.view(bucket.rows, 1, -1, 1)
        gq, gk, gv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            g, q, k, v, o, picked.squeeze(-1), 0.0, False, attn_mask=bias
        )
        _put_back(grads[0], gq.transpose(1, 2), bucket)
        _put_back(grads[1], gk.transpose(1, 2), bucket, keys=True)
        _put_back(grads[2], gv.transpose(1, 2), bucket, keys=True)
    return grads


def _put_back(whole: Tensor, part: Tensor, bucket: Bucket, keys: bool = False) -> None:
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


@_bucketed.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, q_lengths: Tensor, k_lengths: Tensor
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(query), query.new_empty(query.shape[:2], dtype=_sums_dtype(query))


@_bucketed_backward.register_fake
def _(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    log_sums: Tensor,
    q_lengths: Tensor,
    k_lengths: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _save(ctx: object, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)  # type: ignore[attr-defined]


def _backward(ctx: object, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    query, key, value, q_lengths, k_lengths, out, sums = ctx.saved_tensors  # type: ignore[attr-defined]
    grads = torch.ops.bertkit.ragged_attention_backward(
        grad, query, key, value, out, sums, q_lengths, k_lengths
    )
    return *grads, None, None


_bucketed.register_autograd(_backward, setup_context=_save)
