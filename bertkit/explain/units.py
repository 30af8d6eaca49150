"""The same things as vectors of one or two models: tokens, the user's words, or whole texts.

Two models are compared by what both have a vector for. With one tokenizer that is every token but
[CLS] and [SEP], which are alike in all texts and would drown the rest. With two tokenizers it is
the words of the user's own text (cut as BERT's pre-tokeniser does, each Han character a word): a
word's vector is the mean over its tokens, the tokens that begin in it. A word that one of the
models has no token of, or only a part of because the text was cut, is left out in both.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bertkit.batch import Batch
from bertkit.explain.opening import Opened
from bertkit.tasks.asking import pack
from bertkit.text.sentences import word_spans

if TYPE_CHECKING:
    from bertkit.text.tokenizer import BertTokenizer

Unit = Literal["token", "word", "text"]
# Tokens of a batch, few: the states of all layers are held at once, in fp64.
BATCH_TOKENS = 1024
AHEAD = 512


class Units(NamedTuple):
    """Texts as batches, one for each model, with M things in them.

    Attributes:
        batches: on the CPU.
        owners: for each model [T] which thing, from 0, a token belongs to; -1: to none.
        keys: [2, M] the number of the text, and of the thing in it.
        texts: how many texts.
        cut: how many of them were longer than a model reads.
    """

    batches: tuple[Batch, ...]
    owners: tuple[Tensor, ...]
    keys: NDArray[np.int64]
    texts: int
    cut: int


class _Read(NamedTuple):
    """A text: for each model its ids and their owners; the owners that all models have."""

    number: int
    rows: list[tuple[list[int], list[int]]]
    shared: list[int]
    cut: bool


def same_tokenizer(one: BertTokenizer, other: BertTokenizer) -> bool:
    """Whether two tokenizers make the same ids of every text."""
    return one is other or _described(one) == _described(other)


def _described(tokenizer: BertTokenizer) -> list[Any]:
    tree = json.loads(tokenizer.backend.to_str())
    return [tree[part] for part in ("model", "normalizer", "pre_tokenizer", "added_tokens")]


def unit_batches(models: Sequence[Opened], texts: Iterable[str], unit: Unit) -> Iterator[Units]:
    """Read texts for all models alike; texts of like length come together.

    Args:
        models: one or two; for tokens they share a tokenizer.
        texts: any number; those without a thing in them are passed over.
        unit: what has a vector.
    """
    source = enumerate(texts)
    while ahead := list(islice(source, AHEAD)):
        read = [one for one in _reads(models, ahead, unit) if one.shared]
        read.sort(key=lambda one: max(len(ids) for ids, _ in one.rows))
        part: list[_Read] = []
        for one in read:
            longest = max(len(ids) for ids, _ in one.rows) + 2
            if part and (len(part) + 1) * longest > BATCH_TOKENS:
                yield _together(models, part)
                part = []
            part.append(one)
        if part:
            yield _together(models, part)


def _reads(
    models: Sequence[Opened], ahead: Sequence[tuple[int, str]], unit: Unit
) -> Iterator[_Read]:
    texts = [text for _, text in ahead]
    encoded = [
        model.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=unit == "word")
        for model in models
    ]
    room = min(model.max_length for model in models) - 2
    for i, (number, text) in enumerate(ahead):
        rows, shared, cut = [], None, False
        words = [start for start, _ in word_spans(text)] if unit == "word" else []
        for tokens in encoded:
            ids = tokens["input_ids"][i]
            if unit == "word":
                starts = [start for start, _ in tokens["offset_mapping"][i]]
                owners = [bisect_right(words, start) - 1 for start in starts]
            else:
                owners = list(range(len(ids))) if unit == "token" else [0] * len(ids)
            has = set(owners[:room])
            if unit == "word":
                has -= set(owners[room:])
            rows.append((ids[:room], owners[:room]))
            shared, cut = has if shared is None else shared & has, cut or len(ids) > room
        yield _Read(number, rows, sorted((shared or set()) - {-1}), cut)


def _together(models: Sequence[Opened], part: Sequence[_Read]) -> Units:
    batches, owners = [], []
    for side, model in enumerate(models):
        tokenizer = model.tokenizer
        rows, found, first = [], [], 0
        for read in part:
            ids, own = read.rows[side]
            places = {thing: first + i for i, thing in enumerate(read.shared)}
            rows.append([tokenizer.cls_token_id, *ids, tokenizer.sep_token_id])
            found += [-1, *(places.get(thing, -1) for thing in own), -1]
            first += len(read.shared)
        batches.append(pack(rows))
        owners.append(torch.tensor(found))
    keys = [(read.number, thing) for read in part for thing in read.shared]
    return Units(
        tuple(batches),
        tuple(owners),
        np.array(keys, dtype=np.int64).T,
        len(part),
        sum(read.cut for read in part),
    )


def pooled(hidden: Tensor, owners: Tensor, count: int) -> Tensor:
    """[M, D] float64 means over the tokens of each thing.

    Args:
        hidden: [T, D].
        owners: [T] from 0 to M - 1, each at least once; -1 for tokens that are left out.
        count: M.
    """
    owners = owners.to(hidden.device)
    real = owners >= 0
    total = hidden.new_zeros(count, hidden.shape[1], dtype=torch.float64)
    total.index_add_(0, owners[real], hidden[real].double())
    return total / torch.bincount(owners[real], minlength=count).unsqueeze(1)
