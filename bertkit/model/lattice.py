"""Sums over all taggings of sequences laid end to end: the forward-backward algorithm.

After Lafferty, McCallum and Pereira 2001 (Conditional Random Fields) and Rabiner 1989 (A Tutorial
on Hidden Markov Models, section V.A: scaling). What makes it quick on a CPU:

- Forward and backward pass are one loop. Read backwards, a sequence has the same length, so that
  both stand side by side in one row of 2 C numbers and one product with a [2 C, 2 C] matrix moves
  both on: T steps of two operations each, and no tape of autograd.
- Sequences are sorted by length and lie time step by time step ("packed"), so that a step works on
  the first rows of the step before: no mask, no padding.
- The sums run over probabilities, not their logarithms, in 64 bits, scaled now and then. A bound
  says beforehand whether a number could leave the range of 64 bits; then, and for constraints
  under which some tag can never be left again, logarithms are summed instead.
- The gradient is written down (it is the expected counts), not traced.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

# A product of two numbers of either pass lies between exp(-650) and 1: 64 bits begin at exp(-708).
_ROOM = 325.0
_PAIRS = 1 << 22  # numbers in a block of [rows, C, C] when logarithms are summed


class Scores(NamedTuple):
    """What taggings are scored by, beside the emissions; 64 bits, -inf where it is illegal.

    Attributes:
        start: [C].
        between: [C, C], from row to column.
        end: [C].
        mixing: after how many steps any tag can have become any other; 0: not all can.
    """

    start: Tensor
    between: Tensor
    end: Tensor
    mixing: int


@dataclass(frozen=True, slots=True)
class Order:
    """Where the words of ragged sequences lie when they are packed.

    Packed, all first words come first, then all second ones, and so on; the sequences are sorted
    by length, the longest first. Z sequences are not empty.

    Attributes:
        sizes: for each time step how many sequences have it.
        offsets: [steps + 1] on the CPU, where each step begins among the packed rows.
        chosen: [Z] on the CPU, the numbers of the sequences that are not empty, longest first.
        lengths: [Z] on the CPU, of `chosen`.
        rows: [M] for each packed row its word.
        mirrored: [M] for each packed row the word that stands there when all is read backwards.
        both: [2 M] rows and mirrored in turn.
    """

    sizes: list[int]
    offsets: np.ndarray[Any, Any]
    chosen: np.ndarray[Any, Any]
    lengths: np.ndarray[Any, Any]
    rows: Tensor
    mirrored: Tensor
    both: Tensor

    @classmethod
    def of(cls, counts: Tensor, device: torch.device, halves: bool = False) -> Order:
        """Sort sequences by length.

        Args:
            counts: [B] on the CPU, the words of each sequence.
            device: where rows are to be picked.
            halves: the first `n // 2 + 1` words from either end instead of all n.
        """
        lengths = counts.numpy()
        chosen = np.argsort(-lengths, kind="stable")[: np.count_nonzero(lengths)]
        starts = (np.cumsum(lengths) - lengths)[chosen]
        lengths = lengths[chosen]
        steps = lengths // 2 + 1 if halves else lengths
        longest = int(steps[0]) if len(steps) else 0
        sizes = np.searchsorted(-steps, -np.arange(longest), side="left")
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        time = np.repeat(np.arange(longest), sizes)
        sequence = np.arange(len(time)) - offsets[time]
        first, last = starts[sequence], (starts + lengths - 1)[sequence]
        both = torch.from_numpy(np.stack([first + time, last - time], 1)).to(device)
        rows, mirrored = both.t().contiguous()
        return cls(sizes.tolist(), offsets, chosen, lengths, rows, mirrored, both.flatten())

    def at(self, steps: np.ndarray[Any, Any]) -> Tensor:
        """[Z]: the packed row of each sequence at its own step."""
        return torch.from_numpy(self.offsets[steps] + np.arange(len(steps))).to(self.rows.device)

    def opposite(self) -> Tensor:
        """[M]: for each packed row of one direction, the row of the same word in the other."""
        packed = torch.empty_like(self.rows)
        packed[self.mirrored] = torch.arange(len(packed), device=packed.device)
        return packed[self.rows]

    def before(self) -> Tensor:
        """[M - Z]: for each packed row but the first words', the row of the word before."""
        sizes = np.asarray(self.sizes)
        steps = np.repeat(sizes[:-1], sizes[1:])
        rows = np.arange(len(steps)) + len(self.chosen) - steps
        return torch.from_numpy(rows).to(self.rows.device)

    def unpacked(self, x: Tensor) -> Tensor:
        """Packed rows in the order of the words."""
        return torch.empty_like(x).index_copy_(0, self.rows, x)


@dataclass(frozen=True, slots=True)
class Lattice:
    """What both passes found, packed as the words are; a row of either pass has a scale of its own.

    With `logs` all but `between` are logarithms.

    Attributes:
        order: how the rows are packed.
        scores: of the CRF.
        logs: the numbers are logarithms.
        entered: [M, C], all beginnings up to a tag, without its emission.
        left: [M, C], the same with its emission.
        right: [M, C], all endings from a tag on, with its emission.
        norm: [M], the sum over the tags of a word of `entered` times `right`.
        log_z: [Z], the logarithm of the sum over all taggings, of `order.chosen`.
    """

    order: Order
    scores: Scores
    logs: bool
    entered: Tensor
    left: Tensor
    right: Tensor
    norm: Tensor
    log_z: Tensor

    def marginals(self) -> Tensor:
        """[M, C] in the order of the words: how probable each tag is."""
        if self.logs:
            packed = (self.entered + self.right - self.norm[:, None]).exp()
        else:
            packed = self.entered * self.right
            packed /= self.norm[:, None]
        return self.order.unpacked(packed)

    def transitions(self, weights: Tensor) -> Tensor:
        """[C, C]: how often each tag is expected to follow each, every word counted `weights` [M].

        (Of `weights`, those of first words take no part.)
        """
        before = self.order.before()
        later = slice(len(self.order.chosen), None)
        weights = weights.index_select(0, self.order.rows[later])
        left, right, norm = self.left.index_select(0, before), self.right[later], self.norm[later]
        if not self.logs:
            left *= (weights / norm)[:, None]
            between = self.scores.between - self.scores.between.amax()  # as the passes had it
            return (left.t() @ right).mul_(between.exp_())
        total = torch.zeros_like(self.scores.between)
        rows = max(1, _PAIRS // total.numel())
        for start in range(0, len(left), rows):
            part = slice(start, start + rows)
            ends = (right[part] - norm[part, None])[:, None, :]
            pairs = (left[part, :, None] + self.scores.between + ends).exp()
            total += torch.einsum("m,mij->ij", weights[part], pairs)
        return total

    def in_logs(self) -> Lattice:
        """The same in logarithms."""
        if self.logs:
            return self
        parts = [x.log() for x in (self.entered, self.left, self.right, self.norm)]
        entered, left, right, norm = parts
        return Lattice(self.order, self.scores, True, entered, left, right, norm, self.log_z)


def sum_taggings(emissions: Tensor, counts: Tensor, scores: Scores) -> Lattice:
    """Both passes over all sequences.

    Args:
        emissions: [M, C], M at least 1.
        counts: [B] on the CPU.
        scores: of the CRF; every length that occurs has a legal tagging.
    """
    order = Order.of(counts, emissions.device)
    emissions = emissions.double()
    highest = emissions.amax(1)
    below = emissions - highest[:, None]
    every = _steps_between_scalings(-float(below.amin()), scores)
    if every == 0:
        return _sum_logs(emissions, scores, order)
    shifts = by_sequence(highest, counts)[torch.from_numpy(order.chosen).to(highest.device)]
    return _sum_scaled(below, shifts, scores, order, every)


def _steps_between_scalings(spread: float, scores: Scores) -> int:
    """After how many steps a pass has to be scaled; 0: scaling would not do.

    A step changes a number by at most r = the spread of the scores + log C. The tags of one word
    differ by at most (mixing + 1) r: each could have come from the best one `mixing` words before.
    """
    parts = (scores.start, scores.between, scores.end)
    legal = [part[part > -math.inf] for part in parts]
    r = spread + math.log(len(scores.start))
    r += max(float(part.amax() - part.amin()) for part in legal if len(part))
    # (Written so that a NaN means no.)
    if not scores.mixing or not r < _ROOM:
        return 0
    return max(0, int(_ROOM / max(r, 0.1)) - scores.mixing - 1)


def in_numpy(x: Tensor) -> bool:
    """Whether steps are numpy's: on a CPU, where its calls cost a third of torch's."""
    return x.device.type == "cpu"


class _Steps(NamedTuple):
    """The operations of a step."""

    product: Callable[..., Any]
    multiply: Callable[..., Any]
    highest: Callable[[Any], Any]


_NUMPY = _Steps(np.dot, np.multiply, lambda x: x.max(-1))
_TORCH = _Steps(torch.mm, torch.mul, lambda x: x.amax(-1))


def _sum_scaled(
    emissions: Tensor, shifts: Tensor, scores: Scores, order: Order, every: int
) -> Lattice:
    """Both passes over probabilities.

    Args:
        emissions: [M, C], the highest of each word 0; overwritten.
        shifts: [Z], what was taken off those of each sequence.
        scores: of the CRF.
        order: how to pack.
        every: after how many steps to scale.
    """
    c = len(scores.start)
    parts = (scores.start, scores.between, scores.end)
    tops = [part.amax() for part in parts]
    start, between, end = ((part - top).exp() for part, top in zip(parts, tops, strict=True))
    emitted = emissions.exp_().index_select(0, order.both).view(-1, 2 * c)
    entered, reached = torch.empty_like(emitted), torch.empty_like(emitted)
    entered[: order.sizes[0]] = torch.cat([start, end])
    torch.mul(entered[: order.sizes[0]], emitted[: order.sizes[0]], out=reached[: order.sizes[0]])
    scales = emissions.new_ones((len(order.sizes) - 1) // every, order.sizes[0])
    tensors = (entered, reached, emitted, torch.block_diag(between, between.t()), scales)
    plain = in_numpy(emissions)
    arrays: list[Any] = [x.numpy() if plain else x for x in tensors]
    _run(_NUMPY if plain else _TORCH, arrays, order.sizes, every)
    right = reached.index_select(0, order.opposite())[:, c:]
    norm = (entered[:, :c] * right).sum(1)
    ends = order.at(order.lengths - 1)
    words = torch.from_numpy(order.lengths).to(ends.device)
    log_z = (reached[ends, :c] @ end).log() + scales.log().sum(0)
    log_z += (words - 1) * tops[1] + tops[0] + tops[2]
    log_z += shifts
    return Lattice(order, scores, False, entered[:, :c], reached[:, :c], right, norm, log_z)


def _run(do: _Steps, arrays: list[Any], sizes: list[int], every: int) -> None:
    """Both passes from their first step on.

    Args:
        do: numpy's operations or torch's.
        arrays: `entered` and `reached` (to be filled) and `emitted`, packed [M, 2 C]; the matrix
            [2 C, 2 C]; the scales of the forward pass [times, Z].
        sizes: of the steps.
        every: after how many steps to scale.
    """
    entered, reached, emitted, matrix, scales = arrays
    start, size = 0, sizes[0]
    halves = matrix.shape[0] // 2
    product, multiply = do.product, do.multiply
    for step in range(1, len(sizes)):
        now = sizes[step]
        before = reached[start : start + now]
        if step % every == 0:
            sides = before.reshape(now, 2, halves)
            high = do.highest(sides)
            sides /= high[..., None]
            scales[step // every - 1, :now] = high[:, 0]
        start += size
        size = now
        here = slice(start, start + now)
        came = entered[here]
        product(before, matrix, out=came)
        multiply(came, emitted[here], out=reached[here])


def by_sequence(x: Tensor, counts: Tensor) -> Tensor:
    """[B]: the sums of [M] over the words of each sequence, in the same order on every run."""
    lengths = counts.to(x.device)
    return torch.segment_reduce(x, "sum", lengths=lengths, initial=0.0, unsafe=True)


def _sum_logs(emissions: Tensor, scores: Scores, order: Order) -> Lattice:
    """Both passes over logarithms: slower, and right whatever the scores are."""
    c = len(scores.start)
    emitted = emissions.index_select(0, order.both).view(-1, 2, c)
    entered, reached = torch.empty_like(emitted), torch.empty_like(emitted)
    entered[: order.sizes[0]] = torch.stack([scores.start, scores.end])
    reached[: order.sizes[0]] = entered[: order.sizes[0]] + emitted[: order.sizes[0]]
    matrix = torch.stack([scores.between, scores.between.t()])
    for step in range(1, len(order.sizes)):
        size, start = order.sizes[step], int(order.offsets[step])
        past = int(order.offsets[step - 1])
        here = slice(start, start + size)
        moved = reached[past : past + size, :, :, None] + matrix
        entered[here] = moved.logsumexp(2)
        reached[here] = entered[here] + emitted[here]
    right = reached[:, 1].index_select(0, order.opposite())
    norm = (entered[:, 0] + right).logsumexp(1)
    log_z = norm[order.at(order.lengths - 1)]
    return Lattice(order, scores, True, entered[:, 0], reached[:, 0], right, norm, log_z)
