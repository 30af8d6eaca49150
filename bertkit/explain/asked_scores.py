"""The number that `attribute` explains: of a masked word, a label, an entity or an answer.

A number is a sum of logits, each of one class at one token: of all pieces of a masked word, of the
tags of all words of an entity, of an answer's start and end; of a text's label one. As a
probability it is the product of theirs. It may be set against another one at the same places.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from bertkit.batch import Batch
from bertkit.explain.opening import Opened
from bertkit.explain.words import Sentence
from bertkit.model.bert import readers_at
from bertkit.model.buckets import Spans
from bertkit.model.task_heads import (
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
)

Quantity = Literal["logit", "probability"]


class Part(NamedTuple):
    """A logit: of a class at a token of the text."""

    token: int
    column: int


class Aim(NamedTuple):
    """A number that the model says.

    Attributes:
        sentence: the text as the model is to read it, asked words masked.
        name: what is said, and of which word.
        label: what is said: a label, a type of entity; what totals are counted by.
        parts: the logits that are added.
        against: those that are taken away; empty: none are.
        note: what a reader must know of it.
    """

    sentence: Sentence
    name: str
    label: str
    parts: tuple[Part, ...]
    against: tuple[Part, ...] = ()
    note: str = ""

    @property
    def tokens(self) -> list[int]:
        """The tokens whose last state is read, ascending."""
        return sorted({part.token for part in (*self.parts, *self.against)})


class Copies(NamedTuple):
    """Copies of one text laid end to end, some tokens of each changed or left out.

    Attributes:
        batch: B sequences of T tokens, on the CPU.
        places: [B, S] where in T each token of the text stands in each copy; -1 where it is left
            out.
    """

    batch: Batch
    places: Tensor

    @classmethod
    def of(cls, sentence: Sentence, count: int) -> Copies:
        """So many that are all the same."""
        one = sentence.batch()
        rows = (one.input_ids, one.token_type_ids, one.position_ids, one.lengths)
        batch = Batch(*(row.repeat(count) for row in rows))
        return cls(batch, torch.arange(len(batch.input_ids)).view(count, -1))


def numbers(
    opened: Opened, aim: Aim, quantity: Quantity, copies: Copies, vectors: Tensor | None = None
) -> Tensor:
    """The number of each copy, [B].

    Args:
        opened: the model; its mode and gradients are the caller's matter.
        aim: which number.
        quantity: "logit" or "probability"; with `aim.against` the difference of two.
        copies: what the model reads; the last layer answers at the asked tokens only.
        vectors: [T, D] in place of the copies' word embeddings.
    """
    encoder, tokens = opened.encoder, aim.tokens
    batch, places = copies.batch.to(encoder.device), copies.places[:, tokens]
    if vectors is None:
        vectors = encoder.embeddings.word_embeddings(batch.input_ids)
    hidden = encoder.embeddings(None, batch.token_type_ids, batch.position_ids, vectors)
    spans = Spans.of(batch.lengths, hidden.device)
    sure = quantity == "probability"
    if isinstance(opened.model, BertForQuestionAnswering):
        # Starts compete with each other, and ends: over all tokens of a copy.
        logits = opened.model.head(encoder.encoder(hidden, spans))
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if sure:
            rows = logits.split(batch.lengths.tolist())
            logits = torch.cat([row.log_softmax(0) for row in rows])
        table = logits[places.to(logits.device)]
    else:
        read = encoder.encoder(hidden, spans, readers_at(batch, places.flatten()))
        logits = _head(opened.model, read).unflatten(0, places.shape)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        table = _compared(opened.model, logits) if sure else logits
    found = _summed(table, aim.parts, tokens, sure)
    return found - _summed(table, aim.against, tokens, sure) if aim.against else found


def _summed(table: Tensor, parts: tuple[Part, ...], tokens: list[int], sure: bool) -> Tensor:
    """[B] of a [B, P, C] table of logits or log-probabilities at P tokens."""
    rows, columns = [tokens.index(part.token) for part in parts], [part.column for part in parts]
    total = table[:, rows, columns].sum(-1)
    return total.exp() if sure else total


def _head(model: Any, hidden: Tensor) -> Tensor:
    """[R, D] -> [R, C]."""
    if isinstance(model, BertForSequenceClassification):
        pooler: Any = model.bert.pooler
        return model.head(pooler(hidden))
    if isinstance(model, BertForTokenClassification):
        return model.head(hidden)
    return model.cls.predictions(hidden)  # type: ignore[no-any-return]


def _compared(model: Any, logits: Tensor) -> Tensor:
    """Log-probabilities: labels that exclude each other compete, others do not."""
    several = isinstance(model, BertForSequenceClassification)
    if several and model.config.problem_type == "multi_label_classification":
        return torch.nn.functional.logsigmoid(logits)
    return logits.log_softmax(-1)
