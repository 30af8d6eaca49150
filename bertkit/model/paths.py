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

from bertkit.model.lattice import Order, Scores

_WAYS = 1 << 17  # numbers in a step of Viterbi on a CPU: 1 MiB
_HUGE = 1e30  # stands for infinity: infinity less infinity is no number, and a NaN could win


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
    if len(counts) <= rows or emissions.device.type != "cpu":
        return _best(emissions, counts, scores)
    parts = counts.split(rows)
    words = emissions.split([int(part.sum()) for part in parts])
    return torch.cat([_best(e, n, scores) for e, n in zip(words, parts, strict=True)])


def _best(emissions: Tensor, counts: Tensor, scores: Scores) -> Tensor:
    found = torch.zeros(len(emissions), dtype=torch.int64, device=emissions.device)
    order = Order.of(counts, emissions.device, halves=True)
    if not order.sizes:
        return found
    emitted = emissions.index_select(0, order.both).view(-1, 2, emissions.shape[1]).double()
    walk: Any
    if emissions.device.type == "cpu":
        walk = _NumpyWalk(emitted.numpy(), scores)
    else:
        walk = _TorchWalk(emitted, scores)
    walk.forth(order)
    middle = order.lengths // 2
    met = walk.met(order.at(middle), order.at((order.lengths - 1) // 2))
    tags = _back(walk, order, met)
    # Of an even number of words, the second half's last step is one too many: the first overwrites.
    found[order.mirrored] = tags[:, 1]
    found[order.rows] = tags[:, 0]
    return found


def _back(walk: Any, order: Order, met: Any) -> Tensor:
    """[rows, 2]: the tags of both halves, from where they meet back to the ends."""
    tags = walk.new_tags(int(order.offsets[-1]))
    even = walk.like(order.lengths % 2 == 0)
    now = walk.new_tags(order.sizes[0])
    offsets = order.offsets.tolist()
    there = 0
    for step in reversed(range(len(order.sizes))):
        size, start = order.sizes[step], offsets[step]
        if size > there:
            now[there:size] = met[there:size, None]
        tags[start : start + size] = now[:size]
        if step == 0:
            break
        start = offsets[step - 1]
        walk.go_back(now[:size], slice(start, start + size))
        if size > there:
            late = slice(there, size)
            now[late, 1][even[late]] = met[late][even[late]]
        there = size
    return torch.as_tensor(tags)


class _NumpyWalk:
    """Steps on a CPU: numpy's calls on arrays this small cost a third of torch's."""

    def __init__(self, emitted: np.ndarray[Any, Any], scores: Scores) -> None:
        self.emitted, self.scores = emitted, scores
        self.reached, self.entered = np.empty_like(emitted), np.empty_like(emitted)
        between = scores.between.numpy()
        # [direction, to, from].
        self.sources = np.stack([between.T, between])
        self.sides = np.arange(2)

    def forth(self, order: Order) -> None:
        emitted, reached, entered = self.emitted, self.reached, self.entered
        highest, plus = np.maximum.reduce, np.add
        start, size = 0, order.sizes[0]
        entered[:size] = np.stack([self.scores.start.numpy(), self.scores.end.numpy()])
        plus(entered[:size], emitted[:size], out=reached[:size])
        # [from, sequence, direction, to]: the maximum over the first axis runs over long rows; and
        # written out for every sequence, the addition takes two thirds of the time.
        steps = self.sources.transpose(2, 0, 1)[:, None]
        ways = np.empty((len(steps), size, *steps.shape[2:]))
        steps = np.broadcast_to(steps, ways.shape).copy()
        for now in order.sizes[1:]:
            before = reached[start : start + now]
            start += size
            if now != size:
                steps, ways, size = steps[:, :now], ways[:, :now], now
            here = slice(start, start + now)
            plus(before.transpose(2, 0, 1)[..., None], steps, out=ways)
            came = entered[here]
            highest(ways, axis=0, out=came)
            plus(came, emitted[here], out=reached[here])

    def met(self, left: Tensor, right: Tensor) -> np.ndarray[Any, Any]:
        sums = self.reached[left.numpy(), 0] + self.entered[right.numpy(), 1]
        return np.asarray(sums.argmax(-1))

    def go_back(self, tags: np.ndarray[Any, Any], rows: slice) -> None:
        ways = self.sources[self.sides, tags]
        ways += self.reached[rows]
        ways.argmax(-1, out=tags)

    def new_tags(self, rows: int) -> np.ndarray[Any, Any]:
        return np.empty((rows, 2), np.intp)

    def like(self, flags: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return flags


class _TorchWalk:
    """The same steps on a GPU."""

    def __init__(self, emitted: Tensor, scores: Scores) -> None:
        self.emitted, self.scores = emitted, scores
        self.reached, self.entered = torch.empty_like(emitted), torch.empty_like(emitted)
        between = scores.between
        self.steps = torch.stack([between, between.t()])
        self.sources = torch.stack([between.t(), between])
        self.sides = torch.arange(2, device=between.device)

    def forth(self, order: Order) -> None:
        start, size = 0, order.sizes[0]
        self.entered[:size] = torch.stack([self.scores.start, self.scores.end])
        self.reached[:size] = self.entered[:size] + self.emitted[:size]
        for now in order.sizes[1:]:
            ways = self.reached[start : start + now, :, :, None] + self.steps
            start += size
            size = now
            here = slice(start, start + now)
            self.entered[here] = ways.amax(2)
            self.reached[here] = self.entered[here] + self.emitted[here]

    def met(self, left: Tensor, right: Tensor) -> Tensor:
        return (self.reached[left, 0] + self.entered[right, 1]).argmax(-1)

    def go_back(self, tags: Tensor, rows: slice) -> None:
        tags.copy_((self.sources[self.sides, tags] + self.reached[rows]).argmax(-1))

    def new_tags(self, rows: int) -> Tensor:
        return torch.empty(rows, 2, dtype=torch.int64, device=self.steps.device)

    def like(self, flags: np.ndarray[Any, Any]) -> Tensor:
        return torch.from_numpy(flags).to(self.steps.device)


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
