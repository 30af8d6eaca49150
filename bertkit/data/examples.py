"""Examples: what the model reads at once, cut from documents as a pure function.

Next-sentence pairs are BERT's own (Devlin et al. 2018, and create_pretraining_data.py of
google-research/bert), with four differences, each for a reason:

- A chunk has at least two sentences where its document still has two. BERT closes it at one long
  sentence, and then B can only be random.
- The last sentence of a document is often left alone, and then B can only be random too. So that
  half of all B's are random, the others are random with a probability a little below one half,
  found once per corpus by cutting a sample of it (`balance`). Where lone sentences outnumber all
  others, only some of them are used in an epoch, other ones in the next.
- The short length is drawn for each example, not once a document.
- A sentence longer than an example is cut into pieces, so that nothing of it is lost.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np

from bertkit.data.order import Hashes, Units, hash_u64, permutation, uniform
from bertkit.data.shards import Bools, Ints, Tokens, TokenStore, flat_ranges
from bertkit.errors import UsageError

NO_PAIR = -100
# Which draw of an example a hash is for.
_LENGTH, _SPLIT, _RANDOM, _DOCUMENT, _START, _CUT, _CUT_B, _SWAP, _KEY = range(1, 10)


@dataclass(frozen=True, slots=True)
class ExampleRules:
    """How documents are cut.

    Attributes:
        objective: "mlm+nsp", "mlm" or "mlm+sop" (sentence order, Lan et al. 2019).
        segments: "long" fills max_length with sentences; "sentence" takes one a segment.
        max_length: tokens of an example, [CLS] and [SEP] included.
        short_probability: this share of the long pairs aims at a random shorter length.
        random_share: probability of a random B where the document could also give the next.
        lone_share: probability that a lone sentence, whose B can only be random, is used.
    """

    objective: Literal["mlm+nsp", "mlm", "mlm+sop"] = "mlm+nsp"
    segments: Literal["long", "sentence"] = "long"
    max_length: int = 128
    short_probability: float = 0.1
    random_share: float = 0.5
    lone_share: float = 1.0

    @property
    def room(self) -> int:
        """Tokens of text in an example: max_length without [CLS] and [SEP]'s."""
        return self.max_length - (2 if self.objective == "mlm" else 3)


@dataclass(frozen=True, slots=True)
class Examples:
    """n examples: the tokens of A, then of B, one example after the other.

    Attributes:
        tokens: [T] ids, without special tokens.
        a_lengths, b_lengths: [n] tokens of A and of B; B may be empty.
        nsp: [n] 0 B follows A (in order), 1 it does not (swapped), -100 no pair.
        keys: [n] uint64, the stable name of each example.
        words: [T] true where a word starts; None where the store does not say.
    """

    tokens: Tokens
    a_lengths: Ints
    b_lengths: Ints
    nsp: Ints
    keys: Hashes
    words: Bools | None

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def lengths(self) -> Ints:
        """[n] tokens of each example with its special tokens."""
        return self.a_lengths + self.b_lengths + 2 + (self.b_lengths > 0)

    def take(self, index: Ints) -> Examples:
        """The examples at these places, in this order."""
        sizes = self.a_lengths + self.b_lengths
        source = flat_ranges((np.cumsum(sizes) - sizes)[index], sizes[index])
        return Examples(
            self.tokens[source],
            self.a_lengths[index],
            self.b_lengths[index],
            self.nsp[index],
            self.keys[index],
            None if self.words is None else self.words[source],
        )


def join_examples(parts: Sequence[Examples]) -> Examples:
    """Several lists of examples as one; word starts are kept only if all have them."""
    words = [p.words for p in parts if p.words is not None]
    return Examples(
        np.concatenate([p.tokens for p in parts]),
        np.concatenate([p.a_lengths for p in parts]),
        np.concatenate([p.b_lengths for p in parts]),
        np.concatenate([p.nsp for p in parts]),
        np.concatenate([p.keys for p in parts]),
        np.concatenate(words) if len(words) == len(parts) else None,
    )


def make_examples(
    store: TokenStore, units: Units, rules: ExampleRules, seed: int, epoch: int
) -> Examples:
    """All examples of these units of one store: a pure function of (seed, epoch, each unit)."""
    pieces = _Pieces.of(store, units, rules)
    keys = _unit_keys(units, seed, epoch)[pieces.unit]
    keys = hash_u64(keys, pieces.ordinal())
    cuts = _cut(pieces, keys, rules)
    keys = keys[cuts.draw]
    a_starts, a_sizes = pieces.range(cuts.first, cuts.split)
    b_starts, b_sizes = pieces.range(cuts.split, cuts.end)
    nsp = np.where(b_sizes > 0, 0, NO_PAIR)
    here = np.nonzero(cuts.want >= 0)[0]
    if len(here):
        some = cuts.take(here)
        own = units.document[pieces.unit[some.first]]
        start, size = _random_segments(store, pieces, some, own, keys[here], rules.room)
        here, start, size = here[size > 0], start[size > 0], size[size > 0]
        b_starts[here], b_sizes[here], nsp[here] = start, size, 1
    if rules.objective == "mlm+sop":
        swap = (nsp == 0) & (uniform(keys, _SWAP) < 0.5)
        a_starts, b_starts = np.where(swap, b_starts, a_starts), np.where(swap, a_starts, b_starts)
        a_sizes, b_sizes = np.where(swap, b_sizes, a_sizes), np.where(swap, a_sizes, b_sizes)
        nsp[swap] = 1
    a_front, a_sizes, b_front, b_sizes = truncate_pairs(a_sizes, b_sizes, rules.room, keys)
    a_starts, b_starts = a_starts + a_front, b_starts + b_front
    starts = np.stack([a_starts, b_starts], axis=1).ravel()
    sizes = np.stack([a_sizes, b_sizes], axis=1).ravel()
    words = store.gather_words(starts, sizes) if store.with_words else None
    names = hash_u64(keys, _KEY)
    return Examples(store.gather(starts, sizes), a_sizes, b_sizes, nsp, names, words)


def _unit_keys(units: Units, seed: int, epoch: int) -> Hashes:
    return hash_u64(seed, epoch, units.corpus, units.document, units.first, units.turn)


@dataclass(frozen=True, slots=True)
class _Pieces:
    """The sentences of some units, the overlong ones cut into pieces.

    `bounds` [units + 1]: the pieces before each unit; `ends` [pieces + 1]: the tokens before each
    piece; `start`: where a piece starts in the store; `sentence`: its sentence in the store.
    """

    unit: Ints
    sentence: Ints
    start: Ints
    ends: Ints
    bounds: Ints

    @classmethod
    def of(cls, store: TokenStore, units: Units, rules: ExampleRules) -> _Pieces:
        counts = units.last - units.first
        sentence = flat_ranges(units.first, counts)
        start = store.sentence_offsets(sentence)
        size = store.sentence_offsets(sentence + 1) - start
        unit = np.repeat(np.arange(len(units)), counts)
        # Two pieces make a pair that fills an example.
        limit = rules.room if rules.objective == "mlm" else rules.room // 2
        parts = np.where(size > rules.room, -(-size // limit), 1)
        if (parts > 1).any():
            part = flat_ranges(np.zeros_like(parts), parts)
            parts_of, size_of = np.repeat(parts, parts), np.repeat(size, parts)
            low, high = size_of * part // parts_of, size_of * (part + 1) // parts_of
            start, size = np.repeat(start, parts) + low, high - low
            sentence, unit = np.repeat(sentence, parts), np.repeat(unit, parts)
        ends = np.concatenate([[0], np.cumsum(size)])
        bounds = np.searchsorted(unit, np.arange(len(units) + 1))
        return cls(unit, sentence, start, ends, bounds)

    def ordinal(self) -> Ints:
        """Each piece's number in its unit; no unit has more examples than pieces."""
        return np.arange(len(self.unit)) - self.bounds[self.unit]

    def range(self, first: Ints, end: Ints) -> tuple[Ints, Ints]:
        """Where the pieces [first, end) start in the store, and their tokens."""
        inside = np.minimum(first, len(self.start) - 1)
        return self.start[inside], self.ends[end] - self.ends[first]


@dataclass(frozen=True, slots=True)
class _Cuts:
    """A is the pieces [first, split), its true continuation [split, end), B random or that.

    `draw`: the piece whose hash the example uses; `want`: tokens that a random B aims at,
    -1 where B is not random.
    """

    first: Ints
    split: Ints
    end: Ints
    draw: Ints
    want: Ints

    def take(self, index: Ints) -> _Cuts:
        columns = (self.first, self.split, self.end, self.draw, self.want)
        return _Cuts(*(c[index] for c in columns))


def _cut(pieces: _Pieces, keys: Hashes, rules: ExampleRules) -> _Cuts:
    if rules.objective == "mlm":
        rows = _cut_single(pieces, rules)
    else:
        rows = _cut_pairs(pieces, keys, rules)
    table = np.array(rows, dtype=np.int64).reshape(-1, 5).T
    return _Cuts(*table)


def _cut_single(pieces: _Pieces, rules: ExampleRules) -> list[tuple[int, int, int, int, int]]:
    """Full sentences, as many as fit; what is left at the end of a unit is kept."""
    ends, bounds = pieces.ends.tolist(), pieces.bounds.tolist()
    rows = []
    room = rules.room if rules.segments == "long" else 0
    for low, high in pairwise(bounds):
        draw = first = low
        while first < high:
            end = bisect_right(ends, ends[first] + room, first + 1, high + 1) - 1
            end = max(end, first + 1)
            rows.append((first, end, end, draw, -1))
            first, draw = end, draw + 1
    return rows


def _cut_pairs(
    pieces: _Pieces, keys: Hashes, rules: ExampleRules
) -> list[tuple[int, int, int, int, int]]:
    """Rows of (first, split, end, draw, tokens wanted of a random B or -1)."""
    ends, bounds = pieces.ends.tolist(), pieces.bounds.tolist()
    goals = _goals(keys, rules).tolist()
    splits, coins = uniform(keys, _SPLIT).tolist(), uniform(keys, _RANDOM).tolist()
    nsp = rules.objective == "mlm+nsp"
    rows = []
    for low, high in pairwise(bounds):
        draw = first = low
        while first < high:
            before, goal, coin = ends[first], goals[draw], coins[draw]
            end = bisect_left(ends, before + goal, first + 1, high + 1)
            end = min(max(end, first + 2), high)
            split = first + 1 + int(splits[draw] * (end - first - 1))
            lone = end == first + 1
            if nsp and coin < (rules.lone_share if lone else rules.random_share):
                # The sentences that B would have been are put back.
                rows.append((first, split, end, draw, max(goal - ends[split] + before, 0)))
                end = split
            elif not (nsp and lone):
                rows.append((first, split, end, draw, -1))
            first, draw = end, draw + 1
    return rows


def _goals(keys: Hashes, rules: ExampleRules) -> Ints:
    """How many tokens the chunk of each example aims at; 0 closes it after two sentences."""
    if rules.segments == "sentence":
        return np.zeros(len(keys), dtype=np.int64)
    draw = uniform(keys, _LENGTH)
    short = draw < rules.short_probability
    # Within the short ones the same draw is uniform again.
    again = draw / max(rules.short_probability, 1e-12)
    return np.where(short, 2 + (again * (rules.room - 1)).astype(np.int64), rules.room)


def _random_segments(
    store: TokenStore, pieces: _Pieces, cuts: _Cuts, own: Ints, keys: Hashes, room: int
) -> tuple[Ints, Ints]:
    """Where a B from elsewhere starts in the store and its tokens; 0 tokens: there is none."""
    # A, and the sentence that follows it; a sentence cut into pieces is barred whole.
    low, high = pieces.sentence[cuts.first], pieces.sentence[cuts.split - 1] + 2
    sentence, stop = choose_elsewhere(store.document_sentences, own, low, high, keys)
    start = store.sentence_offsets(np.maximum(sentence, 0))
    end = np.maximum(store.sentence_at(start + cuts.want), sentence + 1)
    sizes = store.sentence_offsets(np.minimum(end, stop)) - start
    return start, np.where(sentence < 0, 0, np.minimum(sizes, room))


def choose_elsewhere(
    bounds: Ints, own: Ints, barred_low: Ints, barred_high: Ints, keys: Hashes
) -> tuple[Ints, Ints]:
    """A random sentence of another document; of the same one where there is no other.

    Args:
        bounds: [documents + 1] sentences before each document.
        own: [n] the document of each example.
        barred_low: [n] from here on, sentences must not be chosen (where there is one document).
        barred_high: [n] from here on, they may again.
        keys: [n] the examples' hashes.

    Returns:
        [n] a sentence, -1 where there is none, and [n] where a run that starts there must stop.
    """
    draw, documents = uniform(keys, _START), len(bounds) - 1
    if documents > 1:
        other = (uniform(keys, _DOCUMENT) * (documents - 1)).astype(np.int64)
        other += other >= own
        low, high = bounds[other], bounds[other + 1]
        return low + (draw * (high - low)).astype(np.int64), high
    hole = np.minimum(barred_high, bounds[1]) - barred_low
    free = bounds[1] - bounds[0] - hole
    sentence = bounds[0] + (draw * free).astype(np.int64)
    before = sentence < barred_low
    sentence = np.where(before, sentence, sentence + hole)
    return np.where(free > 0, sentence, -1), np.where(before, barred_low, bounds[1])


def truncate_pairs(
    a_sizes: Ints, b_sizes: Ints, room: int, keys: Hashes
) -> tuple[Ints, Ints, Ints, Ints]:
    """Cut pairs to `room` tokens as BERT does: each token off the longer, front or back by a coin.

    Returns:
        [n] tokens off the front of A, tokens left of A, off the front of B, left of B.
    """
    excess = np.maximum(a_sizes + b_sizes - room, 0)
    uneven = np.minimum(np.abs(a_sizes - b_sizes), excess)
    rest = excess - uneven
    a_loss = np.where(a_sizes > b_sizes, uneven, 0) + rest // 2
    b_loss = excess - a_loss
    a_front, b_front = _coins(a_loss, keys, _CUT), _coins(b_loss, keys, _CUT_B)
    return a_front, a_sizes - a_loss, b_front, b_sizes - b_loss


def _coins(tosses: Ints, keys: Hashes, stream: int) -> Ints:
    """How many of so many fair coins fall on heads: the set bits among so many hash bits."""
    heads = np.zeros(len(tosses), dtype=np.int64)
    for word in range(int(tosses.max(initial=0) + 63) // 64):
        here = np.nonzero(tosses > 64 * word)[0]
        bits = hash_u64(keys[here], stream, word)
        left = np.minimum(tosses[here] - 64 * word, 64)
        bits >>= (64 - left).astype(np.uint64)
        heads[here] += _ones(bits)
    return heads


def _ones(bits: Hashes) -> Ints:
    """The set bits of each number."""
    found: Ints = np.unpackbits(bits.view(np.uint8).reshape(-1, 8), axis=1).sum(1, dtype=np.int64)
    return found


def balance(
    store: TokenStore, units: Units, rules: ExampleRules, sample: int = 300_000
) -> ExampleRules:
    """Rules under which half of this store's B's are random; see the head of this file.

    Args:
        store: a split.
        units: all its units.
        rules: what is wanted.
        sample: tokens of the sample that is cut.

    Raises:
        UsageError: no document has two sentences, so no B could follow its A.
    """
    if rules.objective != "mlm+nsp" or len(units) == 0:
        return rules
    order = permutation(len(units), seed=0)
    enough = int(np.searchsorted(np.cumsum(units.tokens[order]), sample)) + 1
    pieces = _Pieces.of(store, units.take(order[:enough]), rules)
    keys = hash_u64(0, np.arange(len(pieces.unit)))
    trial, lone = replace(rules, random_share=0.5, lone_share=1.0), 0.0
    for _ in range(8):
        cuts = _cut(pieces, keys, trial)
        lone = float(np.mean((cuts.want >= 0) & (cuts.split == cuts.end)))
        wanted = max(0.5 - lone, 0.0) / max(1 - lone, 1e-9)
        # A random B puts sentences back, which leaves more of them alone: go half the way.
        trial = replace(trial, random_share=(trial.random_share + wanted) / 2)
    if lone < 0.5:
        return trial
    if lone == 1.0:
        raise UsageError(
            "data.objective=mlm+nsp needs documents of two sentences or more, and "
            f"{store.folder} has none; set data.objective=mlm, or prepare with other documents"
        )
    return replace(trial, random_share=0.0, lone_share=(1 - lone) / lone)
