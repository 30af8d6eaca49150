"""From texts to ids for all tasks: many texts a call, pairs cut, windows of long texts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bertkit.errors import DataError
from bertkit.tasks.records import Place
from bertkit.tasks.task import bad_row

if TYPE_CHECKING:
    from bertkit.text.tokenizer import BertTokenizer

Ids = list[int]


def encode(tokenizer: BertTokenizer, texts: Sequence[str], places: Sequence[Place]) -> list[Ids]:
    """The ids of each text, without special tokens and uncut.

    Raises:
        DataError: a text is no text, with its place.
    """
    return _encoded(tokenizer, texts, places, offsets=False)["input_ids"]  # type: ignore[no-any-return]


def encode_spans(
    tokenizer: BertTokenizer, texts: Sequence[str], places: Sequence[Place]
) -> list[tuple[Ids, list[tuple[int, int]]]]:
    """As `encode`, with the characters of the text under each token."""
    rows = _encoded(tokenizer, texts, places, offsets=True)
    return list(zip(rows["input_ids"], rows["offset_mapping"], strict=True))


def _encoded(
    tokenizer: BertTokenizer, texts: Sequence[str], places: Sequence[Place], *, offsets: bool
) -> Any:
    if not texts:
        return {"input_ids": [], "offset_mapping": []}

    def call(part: list[str]) -> Any:
        return tokenizer(
            part,
            add_special_tokens=False,
            return_offsets_mapping=offsets,
            return_token_type_ids=False,
            return_attention_mask=False,
        )

    try:
        return call(list(texts))
    except DataError as error:
        for text, place in zip(texts, places, strict=True):
            try:
                call([text])
            except DataError as one:
                raise bad_row(one.what, place) from one
        raise AssertionError("one of the texts is bad") from error


def framed(tokenizer: BertTokenizer, first: Ids, second: Ids | None = None) -> tuple[Ids, int]:
    """[CLS] A [SEP], or [CLS] A [SEP] B [SEP]; and where the second segment begins."""
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    ids = [cls, *first, sep]
    split = len(ids)
    return (ids, split) if second is None else ([*ids, *second, sep], split)


def cut_pair(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of each text stay: the longer loses first, as in the original BERT.

    (Where both lose alike and one token is over, transformers' fast tokenizer leaves it to the one
    that was not longer; so is it here.)
    """
    if first + second <= room:
        return first, second
    short, long = sorted((first, second))
    if short > room // 2:
        short, long = room // 2, room - room // 2
    else:
        long = room - short
    return (long, short) if first > second else (short, long)


class Window(NamedTuple):
    """A stretch of a text's units (words or tokens) that the model reads at once.

    Attributes:
        start: the first unit.
        end: behind the last.
        first: the first unit that has more context here than in any other window.
        last: behind the last such unit. These stretches of all windows make up the whole text.
    """

    start: int
    end: int
    first: int
    last: int


def windows(sizes: Sequence[int], room: int, shared: int) -> list[Window]:
    """Cut a text into overlapping windows; at least one, which may be empty.

    Args:
        sizes: tokens of each unit; none is larger than `room`.
        room: tokens of a window.
        shared: tokens that neighbours share, at most; never more than half the room.

    Returns:
        Windows in order. A unit's context is the smaller number of tokens beside its first one,
        on either side, plus a hundredth of the window's length: the rule of BERT's run_squad.
    """
    ends: NDArray[np.int64] = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    shared = min(shared, room // 2)
    cuts = [(0, _last_fit(ends, 0, room))]
    while cuts[-1][1] < len(sizes):
        start, end = cuts[-1]
        begin = int(np.searchsorted(ends, ends[end] - shared))
        begin = max(begin, start + 1)
        # A wide unit behind a full overlap must fit as well, or nothing new would be read.
        while ends[end + 1] - ends[begin] > room:
            begin += 1
        cuts.append((begin, _last_fit(ends, begin, room)))
    bounds = [0]
    for one, other in pairwise(cuts):
        both = np.arange(other[0], one[1])
        better = _context(ends, other, both) > _context(ends, one, both)
        bound = other[0] + int(better.argmax()) if better.any() else one[1]
        bounds.append(max(bound, bounds[-1]))
    bounds.append(len(sizes))
    return [Window(*cut, *bounds[i : i + 2]) for i, cut in enumerate(cuts)]


def _last_fit(ends: NDArray[np.int64], start: int, room: int) -> int:
    return int(np.searchsorted(ends, ends[start] + room, side="right")) - 1


def _context(
    ends: NDArray[np.int64], window: tuple[int, int], units: NDArray[np.int64]
) -> NDArray[np.float64]:
    start, end = ends[window[0]], ends[window[1]]
    before, after = ends[units] - start, end - ends[units] - 1
    context: NDArray[np.float64] = np.minimum(before, after) + 0.01 * (end - start)
    return context
