"""From examples to a batch: special tokens, masks, and everything laid end to end."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
import torch

from bertkit.batch import PretrainBatch
from bertkit.data.examples import NO_PAIR, Examples
from bertkit.data.masking import MaskRules, choose_and_replace
from bertkit.data.shards import Bools, Ints, flat_ranges


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """What the data needs to know of a tokenizer.

    Attributes:
        size: ids lie below it.
        pad, cls, sep, mask: ids of the special tokens.
        specials: all special ids, [UNK] included: never chosen for masking, never put in.
        continuation: [size] true for ids that go on with a word ("##"); None: none does.
    """

    size: int
    pad: int
    cls: int
    sep: int
    mask: int
    specials: tuple[int, ...]
    continuation: Bools | None = None

    @property
    def special_table(self) -> Bools:
        """[size] true for special ids."""
        table = np.zeros(self.size, dtype=np.bool_)
        table[list({*self.specials, self.pad, self.cls, self.sep, self.mask})] = True
        return table


def collate(
    examples: Examples,
    vocabulary: Vocabulary,
    rules: MaskRules,
    pad_to: int | None = None,
    max_length: int = 512,
) -> PretrainBatch:
    """Lay examples end to end, longest first, and mask them.

    Args:
        examples: n of them; none at all gives one token of padding.
        vocabulary: for the ids of [CLS], [SEP] and [PAD].
        rules: how to mask; draws depend on each example's key and nothing else.
        pad_to: append sequences of padding until T is this.
        max_length: no sequence of padding is longer.
    """
    n = len(examples)
    examples = examples.take(np.lexsort((np.arange(n), -examples.lengths)))
    lengths, a, b = examples.lengths, examples.a_lengths, examples.b_lengths
    starts = np.cumsum(lengths) - lengths
    real = int(lengths.sum())
    ids = np.full(real, vocabulary.sep, dtype=np.int64)
    ids[starts] = vocabulary.cls
    # Where the text goes: A after [CLS], B after A's [SEP].
    sizes = np.stack([a, b], axis=1).ravel()
    places = flat_ranges(np.stack([starts + 1, starts + a + 2], axis=1).ravel(), sizes)
    ids[places] = examples.tokens
    words = None
    if examples.words is not None:
        words = np.zeros(real, dtype=np.bool_)
        words[places] = examples.words
    masked, chosen = choose_and_replace(ids, lengths, examples.keys, rules, words)
    position = np.arange(real) - np.repeat(starts, lengths)
    segment = position >= np.repeat(a + 2, lengths)
    return _padded(
        (masked, segment.astype(np.int64), position, lengths, examples.nsp),
        (chosen, ids[chosen]),
        pad=_padding(real, pad_to, max_length),
        pad_id=vocabulary.pad,
    )


def _padding(real: int, pad_to: int | None, max_length: int) -> Ints:
    """The lengths of the sequences of padding."""
    missing = max(real, 1) - real if pad_to is None else pad_to - real
    assert missing >= 0, f"{real} tokens do not fit pad_to={pad_to}"
    full, rest = divmod(missing, max_length)
    return np.array([max_length] * full + [rest] * (rest > 0), dtype=np.int64)


def _padded(
    parts: tuple[Ints, Ints, Ints, Ints, Ints], targets: tuple[Ints, Ints], pad: Ints, pad_id: int
) -> PretrainBatch:
    ids, segments, positions, lengths, nsp = parts
    real = len(ids)
    if len(pad):
        extra = flat_ranges(np.zeros_like(pad), pad)
        ids = np.concatenate([ids, np.full(len(extra), pad_id, dtype=np.int64)])
        segments = np.concatenate([segments, np.zeros_like(extra)])
        positions = np.concatenate([positions, extra])
        lengths = np.concatenate([lengths, pad])
        nsp = np.concatenate([nsp, np.full(len(pad), NO_PAIR, dtype=np.int64)])
    arrays = (ids, segments, positions, lengths, *targets, nsp)
    t = [torch.from_numpy(np.ascontiguousarray(v, dtype=np.int64)) for v in arrays]
    return PretrainBatch(t[0], t[1], t[2], t[3], t[4], t[5], t[6], real)


def pack(lengths: Ints, budget: int, reserve: int) -> tuple[list[Ints], Ints]:
    """Fill bins of `budget` tokens with examples, nearly in their order.

    A bin takes examples in order until about two and a half more fit; the one to three lengths
    that fill the rest best are then taken from anywhere in the pool. Where several fill it alike,
    the more abundant lengths go first, so that no length runs out.

    Args:
        lengths: [n] tokens of each example, in the order wanted; none exceeds the budget.
        budget: tokens of a bin.
        reserve: stop when fewer tokens than this are left (at least `budget`).

    Returns:
        the bins as indices, and the indices left over, in order.
    """
    pool = _Pool(lengths)
    bins = []
    while pool.tokens >= max(reserve, budget):
        bins.append(np.array(pool.fill(budget), dtype=np.int64))
    return bins, np.nonzero(pool.unused)[0]


class _Pool:
    """Examples not yet in a bin: in order, and by length."""

    def __init__(self, lengths: Ints) -> None:
        self.lengths: list[int] = lengths.tolist()
        self.unused = np.ones(len(lengths), dtype=np.bool_)
        self.tokens = int(lengths.sum())
        self.cursor = 0
        self.counts = np.bincount(lengths, minlength=1)
        order = np.argsort(lengths, kind="stable")
        ends = np.cumsum(self.counts)
        # The unused examples of each length, the first in order at the end.
        self.stacks: list[list[int]] = [
            order[end - count : end][::-1].tolist()
            for end, count in zip(ends.tolist(), self.counts.tolist(), strict=True)
        ]
        self.close_at = int(2.5 * self.tokens / max(len(lengths), 1))

    def take(self, length: int) -> int:
        """The first unused example of this length."""
        index = self.stacks[length].pop()
        self.unused[index] = False
        self.counts[length] -= 1
        self.tokens -= length
        return index

    def next_length(self) -> int:
        """The length of the first unused example; 0 when there is none."""
        while self.cursor < len(self.lengths) and not self.unused[self.cursor]:
            self.cursor += 1
        return self.lengths[self.cursor] if self.cursor < len(self.lengths) else 0

    def fill(self, budget: int) -> list[int]:
        chosen: list[int] = []
        room = budget
        while room > self.close_at:
            length = self.next_length()
            if not 0 < length <= room:
                break
            chosen.append(self.take(length))
            room -= length
        while lengths := self.best(room, budget // 500):
            chosen += [self.take(length) for length in lengths]
            room -= sum(lengths)
        return chosen

    def best(self, room: int, slack: int) -> list[int]:
        """Up to three lengths whose sum comes closest to `room` from below."""
        best = self.best_two(room)
        if room - sum(best) <= slack or len(best) < 2:
            return best
        firsts = np.argsort(-self.counts[: room + 1], kind="stable")[:24]
        for first in firsts[self.counts[firsts] > 0].tolist():
            self.counts[first] -= 1
            found = [first, *self.best_two(room - first)]
            self.counts[first] += 1
            if sum(found) > sum(best):
                best = found
                if room - sum(best) <= slack:
                    break
        return best

    def best_two(self, room: int) -> list[int]:
        """One or two lengths whose sum comes closest to `room` from below."""
        top = min(room, len(self.counts) - 1)
        counts = self.counts[: top + 1]
        first = np.nonzero(counts)[0]
        if len(first) == 0:
            return []
        below = np.maximum.accumulate(np.where(counts > 0, np.arange(top + 1), 0))
        second = below[np.minimum(room - first, top)]
        twice = (second == first) & (counts[first] < 2)
        second[twice] = below[first[twice] - 1]
        abundance = counts[first] * (counts[second] + 1.0)
        k = int(np.argmax(first + second + abundance / (abundance.max() + 1)))
        return [int(first[k])] + [int(second[k])] * int(second[k] > 0)


def split_evenly(lengths: Ints, parts: int) -> list[Ints]:
    """Deal examples to parts, longest first, each to the part with the fewest tokens so far."""
    loads = [(0, part) for part in range(parts)]
    dealt: list[list[int]] = [[] for _ in range(parts)]
    order = np.argsort(-lengths, kind="stable")
    for index, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        load, part = heapq.heappop(loads)
        dealt[part].append(index)
        heapq.heappush(loads, (load + length, part))
    return [np.array(d, dtype=np.int64) for d in dealt]
