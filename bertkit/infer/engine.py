"""Streams of rows through a model: order kept, memory flat."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from bertkit.runtime import return_freed_memory
from bertkit.tasks.forward import BATCH_TOKENS, predict
from bertkit.tasks.records import ChoiceRow, QuestionRow, Row, TagRow, TextRow
from bertkit.tasks.task import Prediction, Task

# How far to look ahead for rows of like length.
WINDOW_ROWS = 1024
WINDOW_CHARACTERS = 500_000


def predict_rows(
    task: Task[Any],
    model: Any,
    rows: Iterable[Any],
    device: torch.device | str | None = None,
    batch_tokens: int = BATCH_TOKENS,
    *,
    dtype: torch.dtype | None = None,
) -> Iterator[tuple[Any, Prediction]]:
    """Each row with its prediction, in order.

    A stretch of rows is read ahead, run in batches of like length, and given back before the next
    is read, so that memory does not grow with the number of rows.

    Args:
        task: the model's.
        model: moved to `device`; its mode is put back after each stretch.
        rows: any number of them; labels are not looked at.
        device: None: where the model is.
        batch_tokens: tokens of a forward pass.
        dtype: what matrix products are made in (autocast); None: as the caller has set it.

    Raises:
        DataError: a row cannot be used, with its place.
    """
    if device is not None:
        model.to(device)
    for ahead in stretches(rows):
        predictions = predict(task, model, ahead, batch_tokens=batch_tokens, dtype=dtype)
        yield from zip(ahead, predictions, strict=True)


def stretches(
    rows: Iterable[Row], most_rows: int | None = None, most_characters: int | None = None
) -> Iterator[list[Row]]:
    """Rows in lists that are run at once; where they are cut follows from the rows alone.

    Args:
        rows: any number of them.
        most_rows: of a list; None: WINDOW_ROWS.
        most_characters: with so many a list is full; None: WINDOW_CHARACTERS.
    """
    most_rows, most_characters = most_rows or WINDOW_ROWS, most_characters or WINDOW_CHARACTERS
    ahead: list[Row] = []
    characters = 0
    for row in rows:
        ahead.append(row)
        characters += _characters(row)
        if len(ahead) >= most_rows or characters >= most_characters:
            yield ahead
            return_freed_memory()
            ahead, characters = [], 0
    if ahead:
        yield ahead


def _characters(row: Row) -> int:
    """About how much of the model's time a row takes."""
    match row:
        case TextRow():
            return len(row.text) + len(row.pair or "")
        case TagRow():
            return len(row.text)
        case QuestionRow():
            return len(row.question) + len(row.context)
        case ChoiceRow():
            shared = (len(row.context) + len(row.question)) * len(row.choices)
            return shared + sum(map(len, row.choices))
