"""Attention with dropped weights on CPUs, bucket by bucket, gradients written out.

torch has no flash kernel that drops on a CPU, and its plain form draws the masks slowly and fills a
zero gradient as large as all tokens for every slice. For one bucket, with P the softmax and M the
mask of `keep_mask`:

    out = (P M) V        dV = (P M)^T dout        dS = softmax'(P, (dout V^T) M)
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bertkit.model.buckets import Bucket, buckets_of, put_back, side_by_side
from bertkit.model.dropout import keep_mask


def dropped_attention(
    query: Tensor, key: Tensor, value: Tensor, lengths: tuple[Tensor, Tensor], dropout: float
) -> Tensor:
    """softmax(Q K^T / sqrt(H)) V within each sequence, its weights dropped.

    Args:
        query: [Tq, N, H], on the CPU.
        key: [T, N, H].
        value: [T, N, H].
        lengths: of the queries and of the keys of each sequence, [B] int64.
        dropout: probability with which a weight is dropped, below 1.

    Returns:
        [Tq, N, H].
    """
    out, _, _ = torch.ops.bertkit.dropped_attention(query, key, value, *lengths, dropout)
    assert isinstance(out, Tensor)
    return out


def _cut(
    flat: tuple[Tensor, ...], heads: int, buckets: tuple[Bucket, ...]
) -> Iterator[tuple[Bucket, tuple[Tensor, ...]]]:
    """Each bucket with its part of flat tensors, as [rows * N, query_length, key_length]."""
    start = 0
    for bucket in buckets:
        shape = (bucket.rows * heads, bucket.query_length, bucket.key_length)
        size = shape[0] * shape[1] * shape[2]
        yield bucket, tuple(x[start : start + size].view(shape) for x in flat)
        start += size


def _weights(heads: int, buckets: tuple[Bucket, ...]) -> int:
    return sum(b.rows * heads * b.query_length * b.key_length for b in buckets)


def _rows(x: Tensor, rows: tuple[int, int] | Tensor, length: int) -> Tensor:
    """[T, N, H] -> [rows * N, length, H]."""
    joined: Tensor = side_by_side(x, rows, length).flatten(0, 1)
    return joined


def _back(part: Tensor, rows: int) -> Tensor:
    """[rows * N, length, H] -> [rows, length, N, H], as put_back takes it."""
    split: Tensor = part.unflatten(0, (rows, -1))
    return split.transpose(1, 2)


@torch.library.custom_op(
    "bertkit::dropped_attention", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,)
)
def _forward(
    query: Tensor, key: Tensor, value: Tensor, q_lengths: Tensor, k_lengths: Tensor, dropout: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The result, all weights before dropout and all masks, both flat."""
    heads, scale = query.shape[1], query.shape[2] ** -0.5
    buckets = buckets_of(q_lengths, k_lengths)
    weights = query.new_empty(_weights(heads, buckets))
    masks = keep_mask(weights, dropout)
    out = torch.empty_like(query)
    for bucket, (weight, mask) in _cut((weights, masks), heads, buckets):
        q = _rows(query, bucket.queries, bucket.query_length)
        k, v = (_rows(x, bucket.keys, bucket.key_length) for x in (key, value))
        torch.bmm(q * scale, k.mT, out=weight)
        if bucket.bias is not None:
            weight.unflatten(0, (bucket.rows, -1)).add_(bucket.bias.to(weight.dtype))
        torch.softmax(weight, -1, out=weight)
        put_back(out, _back(torch.bmm(weight * mask, v), bucket.rows), bucket)
    return out, weights, masks


@torch.library.custom_op("bertkit::dropped_attention_backward", mutates_args=())
def _backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weights: Tensor,
    masks: Tensor,
    q_lengths: Tensor,
    k_lengths: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    heads, scale = query.shape[1], query.shape[2] ** -0.5
    # A sequence without a query leaves no gradient on its keys.
    grads = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
    buckets = buckets_of(q_lengths, k_lengths)
    for bucket, (weight, mask) in _cut((weights, masks), heads, buckets):
        g, q = (_rows(x, bucket.queries, bucket.query_length) for x in (grad, query))
        k, v = (_rows(x, bucket.keys, bucket.key_length) for x in (key, value))
        if bucket.real is not None:  # padded queries are copies: their gradient must not count
            g = g.unflatten(0, (bucket.rows, -1)) * bucket.real.view(bucket.rows, 1, -1, 1)
            g = g.flatten(0, 1)
        dropped = weight * mask
        gv = torch.bmm(dropped.mT, g)
        slope = torch.bmm(g, v.mT).mul_(mask)
        slope = torch.ops.aten._softmax_backward_data(slope, weight, -1, weight.dtype).mul_(scale)
        put_back(grads[0], _back(torch.bmm(slope, k), bucket.rows), bucket)
        put_back(grads[1], _back(torch.bmm(slope.mT, q), bucket.rows), bucket, keys=True)
        put_back(grads[2], _back(gv, bucket.rows), bucket, keys=True)
    return grads


@_forward.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, q_lengths: Tensor, k_lengths: Tensor, dropout: float
) -> tuple[Tensor, Tensor, Tensor]:
    size = torch.library.get_ctx().new_dynamic_size()
    return torch.empty_like(query), query.new_empty(size), query.new_empty(size)


@_backward.register_fake
def _(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weights: Tensor,
    masks: Tensor,
    q_lengths: Tensor,
    k_lengths: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _save(ctx: object, inputs: tuple[object, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:5], *output[1:])  # type: ignore[attr-defined]


def _differentiate(ctx: object, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    query, key, value, q_lengths, k_lengths, weights, masks = ctx.saved_tensors  # type: ignore[attr-defined]
    grads = torch.ops.bertkit.dropped_attention_backward(
        grad, query, key, value, weights, masks, q_lengths, k_lengths
    )
    return *grads, None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)
