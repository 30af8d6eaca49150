"""Which tokens are hidden, and what stands in their place: one core for training and for users.

Every draw is a hash of (example, position), so a mask can be shown again, and it does not depend
on the batch that the example is in.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from bertkit.data.order import Floats, Hashes, hash_u64, to_uniform, uniform
from bertkit.data.shards import Bools, Ints
from bertkit.errors import UsageError

if TYPE_CHECKING:
    import torch

IGNORE = -100
# Which draw a hash is for.
_CHOOSE, _ACTION, _RANDOM, _SPAN = range(1, 5)

# SpanBERT (Joshi et al. 2019): span lengths in words, geometric with p = 0.2, at most 10.
_LONGEST = 10
_SPAN_LENGTHS = 0.8 ** np.arange(_LONGEST) / (0.8 ** np.arange(_LONGEST)).sum()


@dataclass(frozen=True)
class MaskRules:
    """How tokens are chosen and replaced.

    Attributes:
        mask_id: the id of [MASK].
        special: [V] true for ids that are never chosen and never put in.
        probability: each other token is chosen with this probability.
        mask_share: of the chosen, this share becomes [MASK].
        random_share: this share becomes a random ordinary token; the rest stays.
        scheme: "token", "word" (the pieces of a word share one draw) or "span" (runs of words).
        continuation: [V] true for ids that go on with a word ("##"); None: every token is a word.
    """

    mask_id: int
    special: Bools
    probability: float = 0.15
    mask_share: float = 0.8
    random_share: float = 0.1
    scheme: Literal["token", "word", "span"] = "token"
    continuation: Bools | None = None

    def __post_init__(self) -> None:
        if self.mask_share + self.random_share > 1 + 1e-9:
            raise UsageError("data.mask_share and data.random_share add up to more than 1")
        if self.special.all():
            raise UsageError("the vocabulary has special tokens only")

    @cached_property
    def ordinary(self) -> Ints:
        """The ids that a random replacement is drawn from."""
        return np.nonzero(~self.special)[0]


def choose_and_replace(
    ids: Ints, lengths: Ints, keys: Hashes, rules: MaskRules, word_starts: Bools | None = None
) -> tuple[Ints, Ints]:
    """Choose tokens and replace them.

    Args:
        ids: [T] sequences with their special tokens, laid end to end.
        lengths: [B] tokens of each sequence.
        keys: [B] the hash that names each sequence.
        rules: how.
        word_starts: [T] true where a word starts; else `rules.continuation` says it.

    Returns:
        [T] the ids after replacement, and [M] the chosen positions, ascending.
    """
    starts = np.cumsum(lengths) - lengths
    position = np.arange(len(ids)) - np.repeat(starts, lengths)
    key = np.repeat(keys, lengths)
    free = ~rules.special[ids]
    if rules.scheme == "token":
        chosen = np.nonzero(free & (uniform(key, position, _CHOOSE) < rules.probability))[0]
        action = uniform(key[chosen], position[chosen], _ACTION)
    else:
        chosen, action = _whole_words(ids, position, key, free, rules, word_starts)
    masked = ids.copy()
    masked[chosen[action < rules.mask_share]] = rules.mask_id
    both = rules.mask_share + rules.random_share
    swapped = chosen[(action >= rules.mask_share) & (action < both)]
    draw = uniform(key[swapped], position[swapped], _RANDOM)
    masked[swapped] = rules.ordinary[(draw * len(rules.ordinary)).astype(np.int64)]
    return masked, chosen


def _whole_words(
    ids: Ints, position: Ints, key: Hashes, free: Bools, rules: MaskRules, starts: Bools | None
) -> tuple[Ints, Floats]:
    """Chosen positions and the draw of each one's action, for schemes "word" and "span"."""
    if starts is None:
        going_on = rules.continuation
        starts = np.ones(len(ids), np.bool_) if going_on is None else ~going_on[ids]
    # The first free token of a segment starts a word whatever it is: truncation may cut a word.
    opens = free & (position == 0)
    opens[1:] |= free[1:] & ~free[:-1]
    starts = (starts & free) | opens
    word_of = np.cumsum(starts) - 1
    head = np.nonzero(starts)[0]
    if rules.scheme == "word":
        picked = uniform(key[head], position[head], _CHOOSE) < rules.probability
        chosen = np.nonzero(free)[0]
        chosen = chosen[picked[word_of[chosen]]]
        return chosen, uniform(key[chosen], position[chosen], _ACTION)
    picked, draw = _spans(head, opens, position, key, rules.probability)
    chosen = np.nonzero(free)[0]
    chosen = chosen[picked[word_of[chosen]]]
    # As in SpanBERT, one span has one fate: all [MASK], all random or all kept.
    return chosen, draw[word_of[chosen]]


def _spans(
    head: Ints, opens: Bools, position: Ints, key: Hashes, probability: float
) -> tuple[Bools, Floats]:
    """Which words are covered by a span, and the draw that their span's fate hangs on.

    Every slot starts a span with the same small probability. Nine slots before the first word of
    each segment make the first words as likely as the others; a span that leaves its segment ends
    in the slots of the next, so segments stay apart.

    Args:
        head: [W] position in T of each word.
        opens: [T] true at the first word of each segment.
        position: [T] position in the sequence.
        key: [T] the sequence's hash.
        probability: of a word to be covered.
    """
    first = np.nonzero(opens[head])[0]
    segment = np.cumsum(opens[head]) - 1
    slot = np.arange(len(head)) + (_LONGEST - 1) * (segment + 1)
    counts = np.diff(np.append(first, len(head))) + _LONGEST - 1
    # A slot is named by its segment's first position in the sequence and its number in there.
    key_of = np.repeat(key[head[first]], counts)
    opening = np.repeat(position[head[first]], counts)
    inner = np.arange(len(key_of)) - np.repeat(np.cumsum(counts) - counts, counts)
    name = hash_u64(key_of, opening, inner, _SPAN)
    rate = _start_rate(probability)
    draw = to_uniform(name)
    at = np.nonzero(draw < rate)[0]
    size = np.searchsorted(np.cumsum(_SPAN_LENGTHS)[:-1], draw[at] / rate, side="right") + 1
    # The end of the span that reaches furthest so far, with its length in the lower bits.
    reach = np.zeros(len(key_of), dtype=np.int64)
    reach[at] = (at + size) * 16 + size
    reach = np.maximum.accumulate(reach)[slot]
    end, size_of = reach >> 4, reach & 15
    return end > slot, uniform(name[end - size_of], _ACTION)


@lru_cache(maxsize=16)
def _start_rate(probability: float) -> float:
    """How often a slot must start a span so that a word is covered with this probability.

    A word stays uncovered if no slot d before it starts a span longer than d.
    """
    longer = 1 - np.concatenate([[0.0], np.cumsum(_SPAN_LENGTHS)[:-1]])
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        covered = 1 - float(np.prod(1 - middle * longer))
        low, high = (middle, high) if covered < probability else (low, middle)
    return high


def mask_tokens(
    input_ids: torch.Tensor,
    tokenizer: Any,
    mlm_probability: float = 0.15,
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Dynamic masking for masked language modelling, as training does it: 80/10/10.

    Args:
        input_ids: [B, S] or [S] ids with special tokens and padding, which are never chosen.
        tokenizer: has `mask_token_id`, `all_special_ids` and a length.
        mlm_probability: each other token is chosen with this probability.
        generator: where the randomness comes from; None: torch's own.

    Returns:
        new input ids, and labels of the same shape: the old id where chosen, -100 elsewhere.

    Raises:
        UsageError: an id is outside the vocabulary, or a value is out of range.

    Source: Devlin et al. 2018, section 3.1.
    """
    import torch

    if not 0 <= mlm_probability <= 1:
        raise UsageError(f"mlm_probability={mlm_probability} is not between 0 and 1")
    if input_ids.ndim not in (1, 2):
        raise UsageError(f"input_ids must be [B, S] or [S], not {tuple(input_ids.shape)}")
    ids: NDArray[Any] = input_ids.detach().cpu().numpy().astype(np.int64).reshape(-1)
    size = len(tokenizer)
    if len(ids) and not (0 <= int(ids.min()) and int(ids.max()) < size):
        raise UsageError(f"input_ids holds an id outside the vocabulary of {size}")
    special = np.zeros(size, dtype=np.bool_)
    special[[i for i in tokenizer.all_special_ids if i < size]] = True
    rules = MaskRules(tokenizer.mask_token_id, special, probability=mlm_probability)
    device = "cpu" if generator is None else generator.device
    seed = int(torch.randint(2**62, (), generator=generator, device=device))
    length = input_ids.shape[-1]
    rows = len(ids) // length if length else 0
    keys = hash_u64(seed, np.arange(rows))
    masked, chosen = choose_and_replace(ids, np.full(rows, length), keys, rules)
    labels = np.full(len(ids), IGNORE, dtype=np.int64)
    labels[chosen] = ids[chosen]
    shape, place = input_ids.shape, input_ids.device
    new = torch.from_numpy(masked).to(input_ids.dtype).reshape(shape).to(place)
    return new, torch.from_numpy(labels).reshape(shape).to(place)
