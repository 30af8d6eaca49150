"""Self-attention over sequences laid end to end, in the form that suits the device.

    CPU                         bucketed: sequences of like length side by side, flash kernel
    GPU in half precision       varlen: torch.nn.attention.varlen on the ragged tokens
    CPU with dropout            dropped: the same buckets, written out (attention_dropout.py)
    GPU in fp32 or with dropout padded: each bucket padded, differentiable, any device
    attention maps asked for    maps: softmax(Q K^T / sqrt(H)) written out (Vaswani 2017, eq. 1)

Every form gives the same numbers; tests/model/test_attention.py compares them. Queries may be fewer
than keys: in the last layer only the positions that a head reads ask.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bertkit.model.attention_dropout import dropped_attention
from bertkit.model.buckets import Spans, buckets_of, index_of, put_back, side_by_side


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
    if query.device.type != "cpu":
        if dropout > 0 or query.dtype not in (torch.float16, torch.bfloat16):
            return _padded(query, key, value, q, k, dropout)
        return _varlen(query, key, value, q, k)
    if 0 < dropout < 1:
        return dropped_attention(query, key, value, (q.lengths, k.lengths), dropout)
    if dropout:
        return torch.zeros_like(query)
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
        queries = side_by_side(q, bucket.queries, bucket.query_length)
        keys, values = (side_by_side(x, bucket.keys, bucket.key_length) for x in (k, v))
        bias = None if bucket.bias is None else bucket.bias.to(q.device, q.dtype)
        out = F.scaled_dot_product_attention(queries, keys, values, bias, dropout)
        out = out.transpose(1, 2).flatten(0, 1)
        index = index_of(bucket.queries)
        if bucket.real is not None:
            out, index = out[bucket.real.to(q.device)], index[bucket.real]
        parts.append(out)
        order.append(index)
    back = torch.cat(order).argsort().to(q.device)
    return torch.cat(parts).index_select(0, back)


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
        q = side_by_side(query, bucket.queries, bucket.query_length)
        k, v = (side_by_side(x, bucket.keys, bucket.key_length) for x in (key, value))
        bias = None if bucket.bias is None else bucket.bias.to(q.dtype)
        part, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, attn_mask=bias
        )
        put_back(out, part.transpose(1, 2), bucket)
        put_back(log_sums, sums.transpose(1, 2), bucket)
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
        g, q, o = (side_by_side(x, bucket.queries, bucket.query_length) for x in (grad, query, out))
        k, v = (side_by_side(x, bucket.keys, bucket.key_length) for x in (key, value))
        picked = side_by_side(log_sums.unsqueeze(-1), bucket.queries, bucket.query_length)
        bias = None if bucket.bias is None else bucket.bias.to(q.dtype)
        if bucket.real is not None:  # the padded queries are copies: their gradient must not count
            g = g * bucket.real.view(bucket.rows, 1, -1, 1)
        gq, gk, gv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            g, q, k, v, o, picked.squeeze(-1), 0.0, False, attn_mask=bias
        )
        put_back(grads[0], gq.transpose(1, 2), bucket)
        put_back(grads[1], gk.transpose(1, 2), bucket, keys=True)
        put_back(grads[2], gv.transpose(1, 2), bucket, keys=True)
    return grads


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
