"""The CRF by enumeration of every tagging: plain, slow, and with autograd."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise, product

import torch
from torch import Tensor

from bertkit.model.crf import Crf


def taggings(crf: Crf, length: int) -> list[tuple[int, ...]]:
    """Every legal tagging of so many words."""
    start, between, end = (x.tolist() for x in (crf.may_start, crf.may_follow, crf.may_end))

    def legal(tags: tuple[int, ...]) -> bool:
        steps = pairwise(tags)
        return start[tags[0]] and end[tags[-1]] and all(between[i][j] for i, j in steps)

    every = product(range(crf.num_tags), repeat=length)
    return [tags for tags in every if not tags or legal(tags)]


def score(crf: Crf, emissions: Tensor, tags: tuple[int, ...]) -> Tensor:
    """The score of one tagging of one sequence."""
    if not tags:
        return emissions.new_zeros(())
    total = crf.start_transitions[tags[0]] + crf.end_transitions[tags[-1]]
    total = total + emissions[range(len(tags)), tags].sum()
    for i, j in pairwise(tags):
        total = total + crf.transitions[i, j]
    return total


def sequences(emissions: Tensor, counts: Tensor) -> Iterator[Tensor]:
    yield from emissions.split(counts.tolist())


def scored(crf: Crf, emissions: Tensor) -> tuple[list[tuple[int, ...]], Tensor]:
    """Every legal tagging of one sequence, and their scores."""
    found = taggings(crf, len(emissions))
    return found, torch.stack([score(crf, emissions, tags) for tags in found])


def log_partition(crf: Crf, emissions: Tensor, counts: Tensor) -> Tensor:
    return torch.stack([scored(crf, one)[1].logsumexp(0) for one in sequences(emissions, counts)])


def log_likelihood(crf: Crf, emissions: Tensor, tags: Tensor, counts: Tensor) -> Tensor:
    parts = zip(sequences(emissions, counts), tags.split(counts.tolist()), strict=True)
    gold = torch.stack([score(crf, one, tuple(t.tolist())) for one, t in parts])
    return gold - log_partition(crf, emissions, counts)


def marginals(crf: Crf, emissions: Tensor, counts: Tensor) -> Tensor:
    rows = [emissions.new_zeros(0, crf.num_tags)]
    for one in sequences(emissions, counts):
        found, scores = scored(crf, one)
        chances = scores.softmax(0)
        table = torch.zeros_like(one)
        for tags, chance in zip(found, chances, strict=True):
            table[range(len(tags)), tags] += chance
        rows.append(table)
    return torch.cat(rows)
