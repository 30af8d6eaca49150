"""The best taggings of sequences laid end to end (Viterbi 1967), and the n best.

What makes it quick on a CPU: a sequence is walked from both ends at once, as two halves side by
side that meet in the middle, so that there are half as many steps; and no pointers are kept. The
way back asks again where each tag came from, for the tags of the best path alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bertkit.model import lattice
from bertkit.model.lattice import Order, Scores

_WAYS = 1 << 17  # numbers in a step of Viterbi on a CPU: 1 MiB
_LEVEL = 16  # after so many steps sums start again at 0, so that 32 bits tell them apart
_HUGE = 1e30  # stands for infinity: infinity less infinity is no number, and a NaN could win
_Array = np.ndarray[Any, Any]


class NBest(NamedTuple):
    """The n best taggings of each sequence, best first.

    Attributes:
        tags: [n, M] int64; -1 where a sequence has fewer legal taggings.
        log_probabilities: [B, n]; -inf there.
    """

    tags: Tensor
    log_probabilities: Tensor


def best_tags(emissions: Tensor, counts: Tensor, scores: Scores) -> Tensor:
    """[M] int64: the tagging of each sequence with the highest score.

    Args:
        emissions: [M, C]; NaN counts as very low.
        counts: [B] on the CPU.
        scores: of the CRF.
    """
    c = len(scores.start)
    rows = max(1, _WAYS // (2 * c * c))  # sequences at a time, so that a step stays in the cache
    emissions = finite(emissions)
    if len(counts) <= rows or not lattice.in_numpy(emissions):
        return _best(emissions, counts, scores)
    parts = counts.split(rows)
    words = emissions.split([int(part.sum()) for part in parts])
    return torch.cat([_best(e, n, scores) for e, n in zip(words, parts, strict=True)])


def _best(emissions: Tensor, counts: Tensor, scores: Scores) -> Tensor:
    found = torch.zeros(len(emissions), dtype=torch.int64, device=emissions.device)
    order = Order.of(counts, emissions.device, halves=True)
    if not order.sizes:
        return found
    dtype = torch.promote_types(emissions.dtype, torch.float32)
    emitted = emissions.index_select(0, order.both).view(-1, 2, emissions.shape[1]).to(dtype)
    start, between, end = (part.to(dtype) for part in (scores.start, scores.between, scores.end))
    # [direction, to, from], and what either half begins with.
    matrices, ends = torch.stack([between.t(), between]), torch.stack([start, end])
    if lattice.in_numpy(emissions):
        walk: Any = _NumpyWalk(emitted.numpy(), matrices.numpy(), ends.numpy())
    else:
        walk = _TorchWalk(emitted, matrices, ends)
    walk.forth(order.sizes)
    middle = order.lengths // 2
    met = walk.met(order.at(middle), order.at((order.lengths - 1) // 2))
    tags = _back(walk, order, met)
    # Of an even number of words, the second half's last step is one too many: the first overwrites.
    found[order.mirrored] = tags[:, 1]
    found[order.rows] = tags[:, 0]
    return found


def _back(walk: Any, order: Order, met: Any) -> Tensor:
    """[rows, 2]: the tags of both halves, from where they meet back to the ends."""
    tags = walk.new_tags()
    even = walk.like(order.lengths % 2 == 0)
    offsets = order.offsets.tolist()
    known, late = 0, slice(0, 0)
    after = tags[:0]
    for step in reversed(range(len(order.sizes))):
        size, start = order.sizes[step], offsets[step]
        now = tags[start : start + size]
        if known:
            walk.go_back(after, slice(start, start + known), now[:known])
        if late.stop > late.start:
            now[late, 1][even[late]] = met[late][even[late]]
        late = slice(known, size)
        if size > known:
            now[late] = met[late, None]
        after, known = now, size
    return torch.as_tensor(tags)


class _NumpyWalk:
    """Steps on a CPU."""

    def __init__(self, emitted: _Array, matrices: _Array, ends: _Array) -> None:
        self.emitted, self.matrices, self.ends = emitted, matrices, ends
        self.reached = np.empty_like(emitted)
        self.sides = np.arange(2)

    def forth(self, sizes: list[int]) -> None:
        emitted, reached = self.emitted, self.reached
        highest, plus = np.maximum.reduce, np.add
        start, size = 0, sizes[0]
        plus(self.ends, emitted[:size], out=reached[:size])
        # [from, sequence, direction, to]: the maximum over the first axis runs over long rows; and
        # written out for every sequence, the addition takes two thirds of the time.
        steps = self.matrices.transpose(2, 0, 1)[:, None]
        ways = np.empty((len(steps), size, *steps.shape[2:]), steps.dtype)
        steps = np.broadcast_to(steps, ways.shape).copy()
        for step, now in enumerate(sizes[1:], 1):
            before = reached[start : start + now]
            if step % _LEVEL == 0:
                before -= before.max(-1, keepdims=True)
            start += size
            if now != size:
                steps, ways, size = steps[:, :now], ways[:, :now], now
            here = slice(start, start + now)
            plus(before.transpose(2, 0, 1)[..., None], steps, out=ways)
            came = highest(ways, axis=0, out=reached[here])
            plus(came, emitted[here], out=came)

    def met(self, left: Tensor, right: Tensor) -> _Array:
        a, b = left.numpy(), right.numpy()
        sums = self.reached[a, 0] + (self.reached[b, 1] - self.emitted[b, 1])
        return np.asarray(sums.argmax(-1))

    def go_back(self, tags: _Array, rows: slice, out: _Array) -> None:
        ways = self.matrices[self.sides, tags]
        ways += self.reached[rows]
        ways.argmax(-1, out=out)

    def new_tags(self) -> _Array:
        return np.empty(self.emitted.shape[:2], np.intp)

    def like(self, flags: _Array) -> _Array:
        return flags


class _TorchWalk:
    """The same steps on a GPU."""

    def __init__(self, emitted: Tensor, matrices: Tensor, ends: Tensor) -> None:
        self.emitted, self.matrices, self.ends = emitted, matrices, ends
        self.reached = torch.empty_like(emitted)
        self.sides = torch.arange(2, device=emitted.device)

    def forth(self, sizes: list[int]) -> None:
        start, size = 0, sizes[0]
        self.reached[:size] = self.ends + self.emitted[:size]
        for step, now in enumerate(sizes[1:], 1):
            before = self.reached[start : start + now]
            if step % _LEVEL == 0:
                before -= before.amax(-1, keepdim=True)
            start += size
            size = now
            here = slice(start, start + now)
            ways = before[:, :, None] + self.matrices
            self.reached[here] = ways.amax(3) + self.emitted[here]

    def met(self, left: Tensor, right: Tensor) -> Tensor:
        ends = self.reached[right, 1] - self.emitted[right, 1]
        return (self.reached[left, 0] + ends).argmax(-1)

    def go_back(self, tags: Tensor, rows: slice, out: Tensor) -> None:
        out.copy_((self.matrices[self.sides, tags] + self.reached[rows]).argmax(-1))

    def new_tags(self) -> Tensor:
        return torch.empty(self.emitted.shape[:2], dtype=torch.int64, device=self.emitted.device)

    def like(self, flags: _Array) -> Tensor:
        return torch.from_numpy(flags).to(self.emitted.device)


def n_best_tags(emissions: Tensor, counts: Tensor, scores: Scores, n: int) -> tuple[Tensor, Tensor]:
    """The n taggings with the highest scores, best first.

    Args:
        emissions: [M, C].
        counts: [B] on the CPU.
        scores: of the CRF.
        n: at least 1.

    Returns:
        [n, M] int64, -1 where a sequence has fewer; [B, n] their scores, -inf there.
    """
    device, none = emissions.device, -torch.inf
    emissions = finite(emissions).double()
    totals = emissions.new_full((len(counts), n), none)
    totals[:, 0] = 0.0  # an empty sequence has one tagging
    order = Order.of(counts, device)
    tags = torch.full((n, len(emissions)), -1, device=device)
    if not order.sizes:
        return tags, totals
    emitted = emissions[order.rows]
    c = len(scores.start)
    best = emissions.new_full((order.sizes[0], c, n), none)
    best[:, :, 0] = scores.start + emitted[: order.sizes[0]]
    ended = torch.empty_like(best)
    origins = []  # of each step [sequences, C, n]: the tag before times n plus its rank
    for step, size in enumerate(order.sizes[1:], 1):
        ended[size : len(best)] = best[size:]
        start = int(order.offsets[step])
        ways = best[:size, :, None] + scores.between[:, :, None]  # [sequences, from, to, rank]
        top = ways.transpose(1, 2).flatten(2).topk(min(n, c * n), 2)
        best = top.values + emitted[start : start + size, :, None]
        origins.append(top.indices)
    ended[: len(best)] = best
    final = (ended + scores.end[:, None]).flatten(1).topk(n, 1)
    chosen = torch.from_numpy(order.chosen).to(device)
    totals[chosen] = final.values
    packed = _unwound(final.indices, origins, order, n)
    packed = packed.masked_fill(final.values[_sequences(order, device)] == none, -1)
    tags[:, order.rows] = packed.t()
    return tags, totals


def _unwound(last: Tensor, origins: list[Tensor], order: Order, n: int) -> Tensor:
    """[M, n] packed: the tags of each path, from its last word back to the first."""
    found = last.new_empty(int(order.offsets[-1]), n)
    now = torch.empty_like(last)
    there = 0
    for step in reversed(range(len(order.sizes))):
        size, start = order.sizes[step], int(order.offsets[step])
        now[there:size] = last[there:size]
        found[start : start + size] = now[:size] // n
        if step:
            now[:size] = origins[step - 1].flatten(1).gather(1, now[:size])
        there = size
    return found


def _sequences(order: Order, device: torch.device) -> Tensor:
    """[M]: for each packed row the number of its sequence among `order.chosen`."""
    sizes = np.asarray(order.sizes)
    rows = np.arange(int(order.offsets[-1])) - np.repeat(order.offsets[:-1], sizes)
    return torch.from_numpy(rows).to(device)


def finite(emissions: Tensor) -> Tensor:
    """Emissions that can be added to -inf and compared: the illegal stays illegal."""
    if not len(emissions):
        return emissions
    lowest, highest = emissions.aminmax()
    if -_HUGE <= float(lowest) and float(highest) <= _HUGE:
        return emissions
    return emissions.double().nan_to_num(-_HUGE, _HUGE, -_HUGE).clamp(-_HUGE, _HUGE)
