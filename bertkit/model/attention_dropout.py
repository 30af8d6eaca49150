"""Attention with dropped weights on CPUs, bucket by bucket, gradients written out.

torch has no flash kernel that drops on a CPU, and its plain form draws the masks slowly and fills a
zero gradient as large as all tokens for every slice. For one bucket, with P the softmax and M the
mask of `keep_mask`:

    out = (P M) V        dV = (P M)^T dout        dS = softmax'(P, (dout V^T) M)

Tokens are brought into the order of the buckets head by head in one pass over all of them, and
results back in one: a pass for each bucket and another to part the heads were 4% of a step of mini.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bertkit.model.buckets import Bucket, buckets_of, index_of
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
    out, *_ = torch.ops.bertkit.dropped_attention(query, key, value, *lengths, dropout)
    assert isinstance(out, Tensor)
    return out


class _Side(NamedTuple):
    """Where the queries, or the keys, of all buckets come from and go back to.

    Attributes:
        places: [slots], for each bucket [rows, N, length]: rows of the tokens as [T * N, H].
        back: [T * N] the slot of each of these rows, or of those in `owners`.
        owners: the rows that have a slot; None: all.
        padding: [slots, 1] 1 for a real slot, 0 for padding; None: all are real.
    """

    places: Tensor
    back: Tensor
    owners: Tensor | None
    padding: Tensor | None

    def gather(self, tokens: Tensor) -> Tensor:
        """[T, N, H] -> [slots, H]."""
        return tokens.reshape(-1, tokens.shape[-1]).index_select(0, self.places)

    def put_back(self, slots: Tensor, shape: tuple[int, int, int]) -> Tensor:
        """[slots, H] -> [T, N, H], which is `shape`; zero for a token without a slot."""
        rows = slots.index_select(0, self.back)
        if self.owners is not None:
            empty = rows.new_zeros(shape[0] * shape[1], shape[2])
            rows = empty.index_copy_(0, self.owners, rows)
        return rows.view(shape)


class _Plan(NamedTuple):
    """The buckets of a batch, with both their sides."""

    buckets: tuple[Bucket, ...]
    heads: int
    queries: _Side
    keys: _Side

    @property
    def weights(self) -> int:
        """How many attention weights there are, padding included."""
        return sum(b.rows * self.heads * b.query_length * b.key_length for b in self.buckets)

    def cut(
        self, queries: tuple[Tensor, ...], keys: tuple[Tensor, ...], weights: tuple[Tensor, ...]
    ) -> Iterator[tuple[Bucket, list[Tensor]]]:
        """Each bucket with its parts: [rows * N, length, H], and [rows * N, length, length]."""
        q, k, w = 0, 0, 0
        for b in self.buckets:
            many = b.rows * self.heads
            m, n = many * b.query_length, many * b.key_length
            parts = [x[q : q + m].view(many, b.query_length, -1) for x in queries]
            parts += [x[k : k + n].view(many, b.key_length, -1) for x in keys]
            size = m * b.key_length
            parts += [x[w : w + size].view(many, b.query_length, -1) for x in weights]
            yield b, parts
            q, k, w = q + m, k + n, w + size


def _plan(q_lengths: Tensor, k_lengths: Tensor, heads: int) -> _Plan:
    return _planned(tuple(q_lengths.tolist()), tuple(k_lengths.tolist()), heads)


@lru_cache(maxsize=16)  # every layer of a step asks for the same plan, in both directions
def _planned(q_lengths: tuple[int, ...], k_lengths: tuple[int, ...], heads: int) -> _Plan:
    buckets = buckets_of(torch.tensor(q_lengths), torch.tensor(k_lengths))
    queries = [(index_of(b.queries), b.query_length, b.real) for b in buckets]
    masks = [None if b.bias is None else (b.bias == 0).flatten() for b in buckets]
    keys = [(index_of(b.keys), b.key_length, m) for b, m in zip(buckets, masks, strict=True)]
    return _Plan(
        buckets, heads, _side(queries, sum(q_lengths), heads), _side(keys, sum(k_lengths), heads)
    )


def _side(parts: list[tuple[Tensor, int, Tensor | None]], tokens: int, heads: int) -> _Side:
    """From the rows of each bucket, their length, and which of them are real."""
    index, real = [torch.empty(0, dtype=torch.int64)], [torch.empty(0, dtype=torch.bool)]
    head = torch.arange(heads).view(-1, 1)
    for rows, length, mask in parts:
        slots = rows.view(-1, 1, length) * heads + head
        index.append(slots.flatten())
        kept = torch.ones_like(rows, dtype=torch.bool) if mask is None else mask
        real.append(kept.view(-1, 1, length).expand_as(slots).flatten())
    where, kept = torch.cat(index), torch.cat(real)
    slots = kept.nonzero().squeeze(1)
    back = torch.full((tokens * heads,), -1)
    back[where[slots]] = slots
    owners = None if bool((back >= 0).all()) else (back >= 0).nonzero().squeeze(1)
    padding = None if bool(kept.all()) else kept.unsqueeze(1)
    return _Side(where, back if owners is None else back[owners], owners, padding)


@torch.library.custom_op(
    "bertkit::dropped_attention", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,)
)
def _forward(
    query: Tensor, key: Tensor, value: Tensor, q_lengths: Tensor, k_lengths: Tensor, dropout: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The result; what the way back needs: weights before dropout, masks, and Q / sqrt(H), K, V."""
    plan = _plan(q_lengths, k_lengths, query.shape[1])
    q = plan.queries.gather(query).mul_(query.shape[2] ** -0.5)
    k, v = plan.keys.gather(key), plan.keys.gather(value)
    weights = query.new_empty(plan.weights)
    masks = keep_mask(weights, dropout)
    mixed = torch.empty_like(q)
    for bucket, parts in plan.cut((q, mixed), (k, v), (weights, masks)):
        asked, out, keys, values, weight, mask = parts
        torch.bmm(asked, keys.mT, out=weight)
        if bucket.bias is not None:
            weight.unflatten(0, (bucket.rows, -1)).add_(bucket.bias.to(weight.dtype))
        torch.softmax(weight, -1, out=weight)
        torch.bmm(weight * mask, values, out=out)
    heads, size = query.shape[1:]
    return plan.queries.put_back(mixed, (len(query), heads, size)), weights, masks, q, k, v


@torch.library.custom_op("bertkit::dropped_attention_backward", mutates_args=())
def _backward(
    grad: Tensor,
    tokens: int,
    weights: Tensor,
    masks: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_lengths: Tensor,
    k_lengths: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of queries, keys and values; the last two are of so many tokens."""
    plan = _plan(q_lengths, k_lengths, grad.shape[1])
    g = plan.queries.gather(grad)
    if plan.queries.padding is not None:  # padded queries are copies: theirs must not count
        g.mul_(plan.queries.padding)
    slopes = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    for _, parts in plan.cut((g, q, slopes[0]), (k, v, *slopes[1:]), (weights, masks)):
        out, asked, to_asked, keys, values, to_keys, to_values, weight, mask = parts
        torch.bmm((weight * mask).mT, out, out=to_values)
        slope = torch.bmm(out, values.mT).mul_(mask)
        slope = torch.ops.aten._softmax_backward_data(slope, weight, -1, weight.dtype)
        torch.bmm(slope, keys, out=to_asked)
        torch.bmm(slope.mT, asked, out=to_keys)
    heads, size = grad.shape[1:]
    to_query = plan.queries.put_back(slopes[0].mul_(size**-0.5), (len(grad), heads, size))
    to_key, to_value = (plan.keys.put_back(x, (tokens, heads, size)) for x in slopes[1:])
    return to_query, to_key, to_value


@_forward.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, q_lengths: Tensor, k_lengths: Tensor, dropout: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    weights, queries, keys = (torch.library.get_ctx().new_dynamic_size() for _ in range(3))
    flat, size = (query.new_empty(weights) for _ in range(2)), query.shape[-1]
    sides = (query.new_empty(slots, size) for slots in (queries, keys, keys))
    return torch.empty_like(query), *flat, *sides  # type: ignore[return-value]


@_backward.register_fake
def _(
    grad: Tensor,
    tokens: int,
    weights: Tensor,
    masks: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_lengths: Tensor,
    k_lengths: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    to_key, to_value = (grad.new_empty(tokens, *grad.shape[1:]) for _ in range(2))
    return torch.empty_like(grad), to_key, to_value


def _save(ctx: object, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.tokens = inputs[1].shape[0]  # type: ignore[attr-defined]
    ctx.save_for_backward(*output[1:], *inputs[3:5])  # type: ignore[attr-defined]


def _differentiate(ctx: object, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    tokens, saved = ctx.tokens, ctx.saved_tensors  # type: ignore[attr-defined]
    grads = torch.ops.bertkit.dropped_attention_backward(grad, tokens, *saved)
    return *grads, None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)
