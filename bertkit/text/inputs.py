"""What goes into the Rust engine and what comes out: batches, windows, columns, mistakes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Encoding

from bertkit.errors import DataError, UsageError
from bertkit.text.wordpiece import well_formed

TRUNCATIONS = ("longest_first", "only_first", "only_second")


@dataclass(frozen=True, slots=True)
class Shape:
    """How the engine is to cut and pad: what `padding`, `truncation` and the like come down to."""

    padding: str | None  # "longest", "max_length"
    truncation: str | None  # one of TRUNCATIONS
    max_length: int
    stride: int
    pad_to_multiple_of: int | None
    padding_side: str
    add_special_tokens: bool
    words: bool  # the texts are lists of words


def as_batch(text: Any, pair: Any, words: bool) -> tuple[Sequence[Any], bool, bool]:
    """The inputs of the engine; whether a list was given; whether they are pairs."""
    if words:
        batched = bool(
            isinstance(text, (list, tuple)) and text and isinstance(text[0], (list, tuple))
        )
    else:
        batched = isinstance(text, (list, tuple))
    if not batched:
        return ([(text, pair)] if pair else [text]), False, bool(pair)
    if pair is None:
        # A list of pairs. (The engine takes a list of two texts for a pair as well.)
        firsts = [item[0] if item else None for item in text] if words else text
        return text, True, any(isinstance(first, (list, tuple)) for first in firsts)
    if isinstance(pair, str) or len(pair) != len(text):
        raise UsageError(
            f"there are {len(text)} texts, so text_pair must be a list of {len(text)} texts"
        )
    return list(zip(text, pair, strict=True)), True, bool(text)


def check_window(length: int, stride: int, special: int) -> None:
    """The engine panics, or cuts nothing, where the window has no room."""
    if length < special or length < 1:
        raise UsageError(f"max_length {length} has no room for the {special} special tokens")
    if stride < 0 or (stride and stride >= length - special):
        raise UsageError(
            f"stride {stride} leaves no new token in a window of {length - special} tokens "
            f"(max_length {length} less {special} special tokens)"
        )


def with_overflow(rows: list[Encoding]) -> tuple[list[Encoding], list[int]]:
    """Each text's windows as rows of their own, and the number of the text that each is of."""
    groups = [[row, *row.overflowing] for row in rows]
    owners = [i for i, group in enumerate(groups) for _ in group]
    return [row for group in groups for row in group], owners


def columns_of(
    rows: list[Encoding], wanted: dict[str, bool], *, padded: bool, pair: bool
) -> dict[str, list[Any]]:
    """Lists by name; constant ones are made here, which is faster than asking the engine."""
    ids = [row.ids for row in rows]
    data: dict[str, list[Any]] = {"input_ids": ids}
    if wanted["token_type_ids"]:
        data["token_type_ids"] = [r.type_ids for r in rows] if pair else [[0] * len(i) for i in ids]
    if wanted["attention_mask"]:
        data["attention_mask"] = (
            [row.attention_mask for row in rows] if padded else [[1] * len(i) for i in ids]
        )
    if wanted["special_tokens_mask"]:
        data["special_tokens_mask"] = [row.special_tokens_mask for row in rows]
    if wanted["offset_mapping"]:
        data["offset_mapping"] = [row.offsets for row in rows]
    if wanted["length"]:
        data["length"] = [len(i) for i in ids]
    return data


def input_error(inputs: Sequence[Any], words: bool) -> Exception:
    """Why the engine refused its inputs."""
    for number, item in enumerate(inputs):
        for text in _leaves(item):
            if not isinstance(text, str):
                return TypeError(f"text {number} is {type(text).__name__}, not a string")
            if not well_formed(text):
                return _surrogate_error(text, number)
    kind = "lists of words" if words else "texts"
    return TypeError(f"a tokenizer takes {kind} or pairs of {kind}")


def _surrogate_error(text: str, number: int) -> DataError:
    at = next(i for i, char in enumerate(text) if "\ud800" <= char <= "\udfff")
    return DataError(
        f"text {number} holds a lone surrogate, U+{ord(text[at]):04X}, at character {at}: "
        "it is broken UTF-16; mend it with text.encode('utf-16', 'surrogatepass')"
        ".decode('utf-16', 'replace')"
    )


def _leaves(item: Any) -> Iterable[Any]:
    if isinstance(item, (list, tuple)):
        for part in item:
            yield from _leaves(part)
    else:
        yield item


def as_list(value: Any) -> Any:
    """Tensors and arrays, also inside a list, as lists of ints."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, (list, tuple)) and value and hasattr(value[0], "tolist"):
        return [v.tolist() for v in value]
    return value
