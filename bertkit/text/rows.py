"""From the tokens of many texts, laid end to end, to rows: cut, framed by special tokens, padded.

What the Rust engine does encoding by encoding is done here for a whole batch in a few array
operations. Equal to the engine, number for number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bertkit.text.inputs import Shape

Ints = NDArray[Any]


class Texts(NamedTuple):
    """Many texts laid end to end: their tokens [T], tokens in each [B], characters under each."""

    tokens: Ints
    lengths: Ints
    spans: Ints | None  # [T, 2]


@dataclass(frozen=True, slots=True)
class Frame:
    """What stands around texts: the ids of the special tokens, and the side that is cut off."""

    cls: int
    sep: int
    pad: int
    pad_type: int
    cut_left: bool


def rows_of(
    first: Texts, second: Texts | None, shape: Shape, frame: Frame, wanted: dict[str, bool]
) -> dict[str, Any] | None:
    """The columns of a batch, by name; arrays [B, S] if the rows are padded, else lists.

    Args:
        first: the texts, or the first texts of pairs.
        second: the second texts of pairs.
        shape: how to cut (only "longest_first") and pad.
        frame: special tokens.
        wanted: which columns beside input_ids.

    Returns:
        None where rows would be longer than the length they are to be padded to.
    """
    sides = [first] if second is None else [first, second]
    special = len(sides) + 1 if shape.add_special_tokens else 0
    kept = [side.lengths for side in sides]
    if shape.truncation is not None:
        kept = _cut(kept, shape.max_length - special)
    sizes = np.sum(kept, axis=0) + special
    grid = None
    if shape.padding is not None:
        width = shape.max_length if shape.padding == "max_length" else int(sizes.max(initial=0))
        width += -width % (shape.pad_to_multiple_of or 1)
        if sizes.max(initial=0) > width:
            return None
        grid = _Grid(sizes, width, left=shape.padding_side == "left")
    flat = _framed(sides, kept, sizes, shape.add_special_tokens, frame)
    fillers = {
        "input_ids": frame.pad,
        "token_type_ids": frame.pad_type,
        "attention_mask": 0,
        "special_tokens_mask": 1,
        "offset_mapping": 0,
    }
    wanted = {"input_ids": True, **wanted}
    data: dict[str, Any] = {}
    for name, filler in fillers.items():
        if wanted[name]:
            values = flat[name]
            data[name] = _ragged(values, sizes) if grid is None else grid.fill(values, filler)
    if wanted["length"]:
        data["length"] = sizes.tolist() if grid is None else np.full(len(sizes), grid.width)
    return data


def _cut(lengths: list[Ints], room: int) -> list[Ints]:
    """How many tokens of each text stay: the longer of a pair loses first, then both alike."""
    if len(lengths) == 1:
        return [np.minimum(lengths[0], room)]
    a, b = lengths
    short, long = np.minimum(a, b), np.maximum(a, b)
    long = np.where(short > room, short, np.maximum(short, room - short))
    both = short + long > room
    short = np.where(both, room // 2, short)
    long = np.where(both, room // 2 + room % 2, long)
    fits = a + b <= room
    return [np.where(fits, a, np.where(a > b, long, short)),
            np.where(fits, b, np.where(a > b, short, long))]  # fmt: skip


def _runs(starts: Ints, lengths: Ints) -> Ints:
    """start, start + 1, ... for each run, one after another."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(total)


def _framed(
    sides: list[Texts], kept: list[Ints], sizes: Ints, special: bool, frame: Frame
) -> dict[str, Ints]:
    """Every column laid end to end, without padding."""
    total = int(sizes.sum())
    flat = {
        "input_ids": np.empty(total, dtype=np.int64),
        "token_type_ids": np.zeros(total, dtype=np.int64),
        "attention_mask": np.ones(total, dtype=np.int64),
        "special_tokens_mask": np.zeros(total, dtype=np.int64),
        "offset_mapping": np.zeros((total, 2), dtype=np.int64),
    }
    place = np.cumsum(sizes) - sizes  # where the next token of each row goes

    def put(token: int) -> None:
        flat["input_ids"][place] = token
        flat["special_tokens_mask"][place] = 1

    if special:
        put(frame.cls)
        place += 1
    for number, (side, count) in enumerate(zip(sides, kept, strict=True)):
        first = np.cumsum(side.lengths) - side.lengths
        first += (side.lengths - count) if frame.cut_left else 0
        source, target = _runs(first, count), _runs(place, count)
        flat["input_ids"][target] = side.tokens[source]
        flat["token_type_ids"][target] = number
        if side.spans is not None:
            flat["offset_mapping"][target] = side.spans[source]
        place += count
        if special:
            put(frame.sep)
            flat["token_type_ids"][place] = number
            place += 1
    return flat


class _Grid:
    """Where the tokens of ragged rows stand in a rectangle."""

    def __init__(self, sizes: Ints, width: int, *, left: bool) -> None:
        self.width, self.rows = width, len(sizes)
        starts = np.arange(self.rows) * width
        self.places = _runs(starts + (width - sizes if left else 0), sizes)

    def fill(self, values: Ints, filler: int) -> Ints:
        """[B, S] (or [B, S, 2]) of values laid end to end."""
        shape = (self.rows * self.width, *values.shape[1:])
        grid = np.full(shape, filler, dtype=np.int64)
        grid[self.places] = values
        return grid.reshape(self.rows, self.width, *values.shape[1:])


def _ragged(values: Ints, sizes: Ints) -> list[Any]:
    """Values laid end to end as a list of lists; pairs of numbers as tuples."""
    flat = values.tolist() if values.ndim == 1 else list(zip(*values.T.tolist(), strict=True))
    ends = np.cumsum(sizes).tolist()
    return [flat[end - size : end] for end, size in zip(ends, sizes.tolist(), strict=True)]


def as_lists(data: dict[str, Any]) -> dict[str, Any]:
    """Arrays of padded rows as the lists that a call without return_tensors answers with."""
    lists = {name: v.tolist() if isinstance(v, np.ndarray) else v for name, v in data.items()}
    if isinstance(data.get("offset_mapping"), np.ndarray):
        spans = lists["offset_mapping"]
        lists["offset_mapping"] = [[(start, end) for start, end in row] for row in spans]
    return lists
