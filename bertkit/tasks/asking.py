"""What every question to a model needs: rows end to end, a head that is there, no gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from bertkit.batch import Batch
from bertkit.errors import CheckpointError, MissingHeadError

if TYPE_CHECKING:
    from bertkit.text.tokenizer import BertTokenizer

# Tokens of one forward pass. A question asks at a few positions only, so that its logits, which
# are far wider than the hidden states, stay small beside this.
_CHUNK_TOKENS = 4096
_CHUNK_ASKED = 256


def pack(rows: Sequence[Sequence[int]], types: Sequence[Sequence[int]] | None = None) -> Batch:
    """Lay rows of ids end to end; `types` are their segments (None: all 0)."""
    lengths = torch.tensor([len(row) for row in rows])
    total = int(lengths.sum())
    segments = [t for row in types for t in row] if types else [0] * total
    return Batch(
        torch.tensor([i for row in rows for i in row]),
        torch.tensor(segments),
        torch.arange(total) - (lengths.cumsum(0) - lengths).repeat_interleave(lengths),
        lengths,
    )


@contextlib.contextmanager
def answering(model: Any) -> Iterator[None]:
    """Without dropout and gradients. (Not inference mode: caches outlive the call.)"""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def chunks(sizes: list[tuple[int, int]]) -> Iterator[list[int]]:
    """Indices of (tokens, asked positions), in groups of like length that fit a forward pass."""
    chunk: list[int] = []
    tokens = asked = 0
    for i in sorted(range(len(sizes)), key=lambda i: sizes[i][0]):
        tokens, asked = tokens + sizes[i][0], asked + sizes[i][1]
        if chunk and (tokens > _CHUNK_TOKENS or asked > _CHUNK_ASKED):
            yield chunk
            chunk, (tokens, asked) = [], sizes[i]
        chunk.append(i)
    if chunk:
        yield chunk


def check_head_is_there(model: Any, head: Any, parts: tuple[str, ...], what: str) -> None:
    """Raise MissingHeadError where a model lacks a head, or its checkpoint lacked a part of it.

    Args:
        model: any model.
        head: the head's module; None where its class has none.
        parts: what the names of its tensors start with.
        what: the head in words, for the error.
    """
    report = getattr(model, "load_report", None)
    lost = report and any(n.startswith(parts) for n in (*report.missing, *report.resized))
    if head is None or lost:
        raise MissingHeadError(
            f"{model_name(model)}: has no {what}; pretrain it with `bertkit pretrain`, or name a "
            "model that has one"
        )


def check_tokenizer_fits(model: Any, tokenizer: BertTokenizer) -> None:
    """Raise CheckpointError where a tokenizer has more tokens than the model has embeddings."""
    if len(tokenizer) > model.config.vocab_size:
        raise CheckpointError(
            f"{model_name(model)}: the tokenizer has {len(tokenizer)} tokens but the model only "
            f"{model.config.vocab_size}; they do not belong together"
        )


def model_name(model: Any) -> str:
    """Where a model came from, for an error."""
    return getattr(model, "name_or_path", "") or "the model"
