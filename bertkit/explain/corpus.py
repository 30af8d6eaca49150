"""A stream of texts as batches with masked words, for every figure that is a mean over a corpus.

Which tokens are masked is a function of (seed, number of the text, position) alone, so that two
models, or one before and after a change, are asked the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch

from bertkit.batch import PretrainBatch
from bertkit.data.order import uniform
from bertkit.errors import DataError
from bertkit.explain.opening import Opened
from bertkit.tasks.asking import pack

BATCH_TOKENS = 4096
PROBABILITY = 0.15
# Texts that are read ahead, so that those of like length come together.
AHEAD = 512


class MaskedTexts(NamedTuple):
    """Texts laid end to end, some of their tokens masked.

    Attributes:
        batch: on the CPU; its `mlm_positions` are all [MASK], its `mlm_labels` what stood there.
        numbers: of the texts, in the order of the batch, counted from 0.
        cut: how many of these texts were longer than the model reads.
    """

    batch: PretrainBatch
    numbers: list[int]
    cut: int


def masked_batches(
    opened: Opened,
    texts: Iterable[str],
    *,
    probability: float = PROBABILITY,
    seed: int = 0,
    batch_tokens: int = BATCH_TOKENS,
    report: Callable[[int], None] = lambda done: None,
) -> Iterator[MaskedTexts]:
    """Mask each token with a probability, at least one a text; the masked ones become [MASK].

    Args:
        opened: whose tokenizer and length count.
        texts: any number; blank ones are passed over.
        probability: of each token that is not special.
        seed: of the choice.
        batch_tokens: tokens of a batch; a longer text goes by itself.
        report: told how many texts are done with: those of a batch when the next one is wanted.

    Raises:
        DataError: no text has a word in it.
    """
    room = opened.max_length - 2
    done = 0
    for ahead in _ahead(texts):
        rows = opened.tokenizer([text for _, text in ahead], add_special_tokens=False)["input_ids"]
        known = [(number, ids) for (number, _), ids in zip(ahead, rows, strict=True) if ids]
        known.sort(key=lambda pair: len(pair[1]))
        for part in _parts(known, room + 2, batch_tokens):
            yield _batch(opened, part, room, probability, seed)
            done += len(part)
            report(done)
    if not done:
        raise DataError("there is no text: every line is blank")


def _ahead(texts: Iterable[str]) -> Iterator[list[tuple[int, str]]]:
    ahead: list[tuple[int, str]] = []
    for number, text in enumerate(texts):
        ahead.append((number, text))
        if len(ahead) == AHEAD:
            yield ahead
            ahead = []
    if ahead:
        yield ahead


def _parts(
    known: list[tuple[int, list[int]]], longest: int, batch_tokens: int
) -> Iterator[list[tuple[int, list[int]]]]:
    part: list[tuple[int, list[int]]] = []
    tokens = 0
    for number, ids in known:
        size = min(len(ids) + 2, longest)
        if part and tokens + size > batch_tokens:
            yield part
            part, tokens = [], 0
        part.append((number, ids))
        tokens += size
    if part:
        yield part


def _batch(
    opened: Opened, part: list[tuple[int, list[int]]], room: int, probability: float, seed: int
) -> MaskedTexts:
    tokenizer = opened.tokenizer
    cls, sep, mask = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id
    special = np.array(tokenizer.all_special_ids)
    rows: list[list[int]] = []
    positions: list[int] = []
    labels: list[int] = []
    start = 0
    for number, whole in part:
        ids = np.array(whole[:room])
        draws = uniform(seed, number, np.arange(len(ids)))
        draws[np.isin(ids, special)] = np.inf  # never below any bound
        chosen = np.flatnonzero(draws < max(probability, draws.min(initial=np.inf) + 1e-12))
        positions += (start + 1 + chosen).tolist()
        labels += ids[chosen].tolist()
        ids[chosen] = mask
        rows.append([cls, *ids.tolist(), sep])
        start += len(rows[-1])
    batch = pack(rows)
    return MaskedTexts(
        PretrainBatch(
            batch.input_ids,
            batch.token_type_ids,
            batch.position_ids,
            batch.lengths,
            mlm_positions=torch.tensor(positions, dtype=torch.long),
            mlm_labels=torch.tensor(labels, dtype=torch.long),
            nsp_labels=torch.full((len(rows),), -100),
            real_tokens=start,
        ),
        [number for number, _ in part],
        sum(len(ids) > room for _, ids in part),
    )
