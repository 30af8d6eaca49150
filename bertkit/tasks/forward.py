"""Rows through a model and out as predictions: what lies behind every answer that is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from bertkit.tasks.asking import answering
from bertkit.tasks.task import Feature, Prediction, Task

# Tokens of one forward pass.
BATCH_TOKENS = 4096


def predict(
    task: Task[Any],
    model: Any,
    rows: Sequence[Any],
    *,
    batch_tokens: int = BATCH_TOKENS,
    dtype: torch.dtype | None = None,
    watch: Callable[[list[list[Feature]]], None] = lambda features: None,
) -> list[Prediction]:
    """The prediction for each row, in order. Rows are tokenized in one call and run by length.

    Args:
        task: the model's.
        model: on any device; its mode is put back afterwards.
        rows: so many that their features fit in memory; labels are not looked at.
        batch_tokens: tokens of a forward pass; a sequence that is longer goes by itself.
        dtype: what matrix products are made in (autocast); None: as the caller has set it.
        watch: is shown what the model will read of each row.

    Raises:
        DataError: a row cannot be used, with its place.
    """
    features = task.features_of(rows, labelled=False)
    watch(features)
    flat = [feature for row in features for feature in row]
    scores: list[Any] = [None] * len(flat)
    kind = model.device.type
    # The caller's own autocast stays in force where no dtype is asked for.
    enabled = torch.is_autocast_enabled(kind) if dtype is None else dtype != torch.float32
    used = torch.get_autocast_dtype(kind) if dtype is None or not enabled else dtype
    with answering(model), torch.autocast(kind, used, enabled=enabled):
        for chosen in by_length(flat, batch_tokens):
            batch = task.collate([[flat[i]] for i in chosen]).to(model.device)
            for i, score in zip(chosen, task.scores(model, batch), strict=True):
                scores[i] = score
    found = iter(scores)
    return task.decode_rows(rows, features, [[next(found) for _ in row] for row in features])


def by_length(features: Sequence[Feature], batch_tokens: int) -> Iterator[list[int]]:
    """The numbers of features of like length, as many at once as the tokens allow."""
    chosen: list[int] = []
    tokens = 0
    for i in sorted(range(len(features)), key=lambda i: len(features[i].ids)):
        tokens += len(features[i].ids)
        if chosen and tokens > batch_tokens:
            yield chosen
            chosen, tokens = [], len(features[i].ids)
        chosen.append(i)
    if chosen:
        yield chosen
