"""What a model is asked about texts, and how its head answers.

A question is a masked word (the same ones before and after a change, see corpus.py), the label of a
text or of a word, a yes or no to each of several labels, the start or the end of an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bertkit.batch import Batch
from bertkit.errors import DataError, MissingHeadError, UsageError
from bertkit.explain.asked import has_words
from bertkit.explain.corpus import AHEAD, BATCH_TOKENS, PROBABILITY, masked_batches
from bertkit.explain.opening import Opened
from bertkit.model.heads import BertForNextSentencePrediction
from bertkit.model.losses import ROW_MULTIPLE
from bertkit.model.task_heads import (
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
)
from bertkit.tasks.asking import pack

# A text, or a pair of them for a model that was fine-tuned on pairs.
Given = str | tuple[str, str]


class Asked(NamedTuple):
    """Texts laid end to end with R rows that the head reads and Q questions about them.

    Attributes:
        batch: T tokens in B texts, on the model's device.
        rows: [R] indices into T, ascending, on the model's device.
        counts: [B] on the CPU, how many of the rows each text has.
        owners: [Q] on the CPU, the text that each question is about.
        labels: [Q] the right answers; None: nobody knows them.
        cut: how many of the texts were longer than the model reads.
    """

    batch: Batch
    rows: Tensor
    counts: Tensor
    owners: Tensor
    labels: Tensor | None
    cut: int


class Head(NamedTuple):
    """How answers are read from the last layer.

    Attributes:
        what: in words.
        logs: [R, D] -> [Q, C] log-probabilities, fp32 at least.
        loss: [R, D] and [Q] labels -> the summed cross-entropy, for gradients.
        single: question i is about row i, so that rows may be read in parts.
    """

    what: str
    logs: Callable[[Tensor, Asked], Tensor]
    loss: Callable[[Tensor, Asked, Tensor], Tensor]
    single: bool


def head_of(opened: Opened) -> Head:
    """How the model answers.

    Raises:
        MissingHeadError: it has no head that chooses among words, labels or places.
    """
    model = opened.model
    if has_words(model):
        predictions = model.cls.predictions
        return Head(
            "masked words",
            lambda hidden, asked: _logs(_of_words(predictions, hidden)),
            lambda hidden, asked, labels: predictions.loss(hidden, labels)[0],
            True,
        )
    if isinstance(model, BertForTokenClassification):
        return _head("labels of words", lambda hidden, asked: _logs(model.head(hidden)), True)
    if isinstance(model, BertForQuestionAnswering):
        return _head("starts and ends of answers", _places(model.head), False)
    if isinstance(model, BertForNextSentencePrediction):
        return _head("next sentence", _of_texts(model, several=False), True)
    if isinstance(model, BertForSequenceClassification):
        kind = model.config.problem_type
        if kind == "multi_label_classification":
            return _head("yes or no to each label", _of_texts(model, several=True), False)
        if kind != "regression" and model.config.num_labels > 1:
            return _head("labels of texts", _of_texts(model, several=False), True)
    raise MissingHeadError(
        f"{opened.name}: has no head that chooses among words, labels or places of an answer, so "
        "that no change of its predictions can be told"
    )


def _head(what: str, logs: Callable[[Tensor, Asked], Tensor], single: bool) -> Head:
    def loss(hidden: Tensor, asked: Asked, labels: Tensor) -> Tensor:
        return -logs(hidden, asked).gather(-1, labels[:, None]).sum()

    return Head(what, logs, loss, single)


def _logs(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def _of_words(predictions: Any, hidden: Tensor) -> Tensor:
    """[R, V] logits; their rows lie as far apart as suits a matrix product (losses.py)."""
    weight, bias = predictions.decoder.weight, predictions.decoder.bias
    width = -(-len(weight) // ROW_MULTIPLE) * ROW_MULTIPLE
    logits = hidden.new_empty(len(hidden), width)[:, : len(weight)]
    return torch.addmm(bias, predictions.transform(hidden), weight.t(), out=logits)


def _of_texts(model: Any, several: bool) -> Callable[[Tensor, Asked], Tensor]:
    """Labels of a text from its first token; `several`: B C questions of yes (1) or no (0)."""

    def logs(hidden: Tensor, asked: Asked) -> Tensor:
        logits = model.head(model.bert.pooler(hidden))
        if several:
            logits = torch.stack([torch.zeros_like(logits), logits], -1).flatten(0, 1)
        return _logs(logits)

    return logs


def _places(head: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Asked], Tensor]:
    """[2 B, S] over the tokens of each text: its start, its end."""

    def logs(hidden: Tensor, asked: Asked) -> Tensor:
        logits, lengths = head(hidden), asked.batch.lengths
        real = torch.arange(int(lengths.max())) < lengths[:, None]
        lowest = torch.finfo(logits.dtype).min  # no number is left of it, and 0 times it is 0
        padded = logits.new_full((*real.shape, 2), lowest)
        padded = padded.masked_scatter(real[..., None].to(logits.device), logits)
        return _logs(padded.transpose(1, 2).flatten(0, 1))

    return logs


def asked_batches(
    opened: Opened,
    texts: str | Iterable[Given],
    *,
    seed: int = 0,
    probability: float = PROBABILITY,
    batch_tokens: int = BATCH_TOKENS,
) -> Iterator[Asked]:
    """The questions of texts, batch by batch.

    Of a model with a masked-word head: masked words (`masked_batches`), or, of a single text that
    has masks in it, these. Of a model that labels words: the first token of each word.

    Args:
        opened: the model.
        texts: one, or any number.
        seed: of the choice of masked words.
        probability: that a token is masked.
        batch_tokens: tokens of a batch; a longer text goes by itself.

    Raises:
        DataError: no text has a word in it.
        UsageError: a pair is given to a model of masked words.
    """
    one = texts if isinstance(texts, str) else None
    several: Iterable[Given] = [one] if one is not None else texts
    if not has_words(opened.model):
        yield from _plain_batches(opened, several, batch_tokens)
        return
    if one is not None and opened.tokenizer.mask_token in one:
        sentence = opened.read(one)
        masks = sentence.masks(opened.tokenizer.mask_token_id)
        yield _asked(opened, sentence.batch(), torch.tensor(masks), None, 0)
        return
    told = {"seed": seed, "probability": probability, "batch_tokens": batch_tokens}
    for masked in masked_batches(opened, map(_single, several), **told):  # type: ignore[arg-type]
        whole = masked.batch
        batch = Batch(whole.input_ids, whole.token_type_ids, whole.position_ids, whole.lengths)
        yield _asked(opened, batch, whole.mlm_positions, whole.mlm_labels, masked.cut)


def _single(text: Given) -> str:
    if isinstance(text, str):
        return text
    raise UsageError("a pair of texts is for a model that was fine-tuned on pairs; give one text")


def _asked(
    opened: Opened, batch: Batch, rows: Tensor, labels: Tensor | None, cut: int, each: int = 1
) -> Asked:
    """With `each` questions about each row, or each text, of which the order is that of texts."""
    device = opened.encoder.device
    owners = torch.searchsorted(batch.lengths.cumsum(0), rows, right=True)
    counts = torch.bincount(owners, minlength=len(batch.lengths))
    if isinstance(opened.model, BertForQuestionAnswering):
        owners, each = torch.arange(len(batch.lengths)), 2
    labels = None if labels is None else labels.to(device)
    owners = owners.repeat_interleave(each)
    return Asked(batch.to(device), rows.to(device), counts, owners, labels, cut)


def _plain_batches(opened: Opened, texts: Iterable[Given], most: int) -> Iterator[Asked]:
    """Texts as they are, a window of them sorted by length."""
    source, empty = iter(texts), True
    while ahead := list(islice(source, AHEAD)):
        rows = [row for text in ahead if (row := _row(opened, text)) is not None]
        rows.sort(key=lambda row: len(row.ids))
        while rows:
            empty, tokens, count = False, 0, 0
            while count < len(rows) and (not count or tokens + len(rows[count].ids) <= most):
                tokens, count = tokens + len(rows[count].ids), count + 1
            yield _of_rows(opened, rows[:count])
            rows = rows[count:]
    if empty:
        raise DataError("there is no text: every line is blank")


class _Row(NamedTuple):
    ids: list[int]
    types: list[int]
    words: list[int]  # the first token of each
    cut: bool


def _row(opened: Opened, text: Given) -> _Row | None:
    """A text or pair as the model reads it, cut behind its longest; None for a blank one."""
    parts = (text,) if isinstance(text, str) else text
    encoded = opened.tokenizer(*parts)
    ids, types, room = encoded["input_ids"], encoded["token_type_ids"], opened.max_length
    numbers, sides = encoded.word_ids(0), encoded.sequence_ids(0)
    seen: set[tuple[int | None, int]] = set()
    words = []
    for i, number in enumerate(numbers[: room - 1]):
        if number is not None and (sides[i], number) not in seen:
            seen.add((sides[i], number))
            words.append(i)
    if not words:
        return None
    cut = len(ids) > room
    if cut:
        ids, types = [*ids[: room - 1], ids[-1]], [*types[: room - 1], types[-1]]
    return _Row(list(ids), list(types), words, cut)


def _of_rows(opened: Opened, rows: Sequence[_Row]) -> Asked:
    batch = pack([row.ids for row in rows], [row.types for row in rows])
    cut = sum(row.cut for row in rows)
    starts = batch.starts.tolist()
    if isinstance(opened.model, BertForTokenClassification):
        places = [s + w for s, row in zip(starts, rows, strict=True) for w in row.words]
        return _asked(opened, batch, torch.tensor(places), None, cut)
    if isinstance(opened.model, BertForQuestionAnswering):
        return _asked(opened, batch, torch.arange(len(batch.input_ids)), None, cut)
    several = getattr(opened.model.config, "problem_type", None) == "multi_label_classification"
    each = opened.model.config.num_labels if several else 1
    return _asked(opened, batch, batch.starts, None, cut, each)


def one_text(asked: Asked, number: int) -> Asked:
    """The questions about one text of a batch, by themselves."""
    batch = asked.batch
    start, length = int(batch.starts[number]), int(batch.lengths[number])
    tokens = slice(start, start + length)
    before = int(asked.counts[:number].sum())
    rows = asked.rows[before : before + int(asked.counts[number])] - start
    mine = asked.owners == number
    alone = Batch(
        batch.input_ids[tokens],
        batch.token_type_ids[tokens],
        batch.position_ids[tokens],
        batch.lengths[number : number + 1],
    )
    labels = None if asked.labels is None else asked.labels[mine.to(asked.labels.device)]
    return Asked(alone, rows, asked.counts[number : number + 1], asked.owners[mine] * 0, labels, 0)
