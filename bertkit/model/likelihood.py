"""The probability of given taggings: of whole sequences with its gradient, and of short spans."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bertkit.model import lattice as lattices
from bertkit.model.lattice import Lattice, Scores, by_sequence, sum_taggings


class Gold(NamedTuple):
    """Taggings to be scored.

    Attributes:
        tags: [M] int64, on the device of the emissions; legal ones.
        counts: [B] int64 on the CPU.
        scores: of the CRF, detached.
    """

    tags: Tensor
    counts: Tensor
    scores: Scores


class LogLikelihood(torch.autograd.Function):
    """[B] from emissions [M, C] and the parameters start [C], between [C, C] and end [C].

    The gradient of a sequence's log-likelihood is what was observed less what is expected: its
    tags less the marginals, its transitions less the expected ones.
    """

    @staticmethod
    def forward(
        ctx: Any, emissions: Tensor, start: Tensor, between: Tensor, end: Tensor, gold: Gold
    ) -> Tensor:
        """Both passes, at once: what the gradient needs is kept."""
        ctx.gold, ctx.lattice = gold, None
        ctx.dtypes = [x.dtype for x in (emissions, start, between, end)]
        dtype = torch.promote_types(emissions.dtype, torch.float32)
        if not len(emissions):
            ctx.shapes = [x.shape for x in (emissions, start, between, end)]
            return emissions.new_zeros(len(gold.counts), dtype=dtype)
        ctx.lattice = lattice = sum_taggings(emissions, gold.counts, gold.scores)
        found = by_sequence(_gold_scores(emissions, gold), gold.counts)
        found[torch.from_numpy(lattice.order.chosen).to(found.device)] -= lattice.log_z
        return found.to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The four gradients."""
        gold, lattice, dtypes = ctx.gold, ctx.lattice, ctx.dtypes
        if lattice is None:
            parts = [grad.new_zeros(shape) for shape in ctx.shapes]
        else:
            counts = gold.counts.to(grad.device)
            weights = grad.double().repeat_interleave(counts, output_size=len(gold.tags))
            words = lattice.marginals().mul_(-weights[:, None])
            chosen = gold.tags[:, None]
            words.scatter_(1, chosen, words.gather(1, chosen) + weights[:, None])
            first, last = edges(gold.counts, grad.device)
            moves = _observed(gold.tags, weights.index_fill(0, first, 0.0), words.shape[1])
            moves -= lattice.transitions(weights)
            parts = [words, words[first].sum(0), moves, words[last].sum(0)]
        return *(part.to(dtype) for part, dtype in zip(parts, dtypes, strict=True)), None


def edges(counts: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """The first and the last word of each sequence that has any, as indices into M."""
    ends = counts.cumsum(0)
    some = counts > 0
    first, last = (ends - counts)[some], ends[some] - 1
    return first.to(device), last.to(device)


def _gold_scores(emissions: Tensor, gold: Gold) -> Tensor:
    """[M]: what each word adds to its sequence's score."""
    tags, scores = gold.tags, gold.scores
    first, last = edges(gold.counts, tags.device)
    found = emissions.gather(1, tags[:, None]).squeeze(1).double()
    moves = torch.empty_like(found)
    moves[1:] = scores.between[tags[:-1], tags[1:]]
    moves[first] = scores.start[tags[first]]
    moves[last] += scores.end[tags[last]]
    return found.add_(moves)


def _observed(tags: Tensor, weights: Tensor, c: int) -> Tensor:
    """[C, C]: the weights of the words by their own tag and the one before."""
    before, now, weights = tags[:-1], tags[1:], weights[1:]
    if lattices.in_numpy(tags):
        return torch.bincount(before * c + now, weights, c * c).view(c, c).to(weights)
    # On a GPU bincount adds in any order; a product does not.
    one = torch.eye(c, dtype=weights.dtype, device=weights.device)
    return (one[before] * weights[:, None]).t() @ one[now]


def span_logs(
    lattice: Lattice, tags: Tensor, counts: Tensor, spans: Tensor, goes_on: Tensor
) -> Tensor:
    """[K]: log-probabilities that the words of each span are tagged so, and that it ends there.

    Given its tag, what stands left of a word and what stands right of it are independent: the
    first word's marginal, times each next tag's probability given the one before, times that of a
    neighbour on either side that is no part of it.

    Args:
        lattice: in logarithms.
        tags: [M].
        counts: [B] on the CPU.
        spans: [K, 2], first words and those after the last.
        goes_on: [C, C] bool, the column's tag goes on with the entity of the row's tag.
    """
    between, right = lattice.scores.between, lattice.right
    packed = torch.empty_like(lattice.order.rows)
    packed[lattice.order.rows] = torch.arange(len(packed), device=packed.device)
    starts, ends = spans.to(packed.device).unbind(1)
    row, tag = packed[starts], tags[starts]
    found = lattice.entered[row, tag] + right[row, tag] - lattice.norm[row]

    inner = ends - starts - 1
    span = torch.arange(len(spans), device=packed.device).repeat_interleave(inner)
    place = torch.arange(len(span), device=packed.device) - (inner.cumsum(0) - inner)[span]
    words = starts[span] + place + 1
    ways = between[tags[words - 1]] + right[packed[words]]
    steps = ways.gather(1, tags[words, None]).squeeze(1) - ways.logsumexp(1)
    found += by_sequence(steps, inner.cpu())

    first, last = edges(counts, packed.device)
    after = ~torch.isin(ends - 1, last)
    words, tag = ends[after], tags[ends[after] - 1]
    found[after] += _share(between[tag] + right[packed[words]], goes_on[tag])
    before = ~torch.isin(starts, first)
    words, tag = starts[before], tags[starts[before]]
    ways = lattice.left[packed[words - 1]] + between.t()[tag]
    found[before] += _share(ways, goes_on.t()[tag])
    # Where nothing legal leads, there is nothing to take a share of.
    return found.nan_to_num(nan=-math.inf, neginf=-math.inf)


def _share(ways: Tensor, barred: Tensor) -> Tensor:
    """[K]: the logarithm of the share of [K, C] ways (logarithms) that are not barred."""
    return ways.masked_fill(barred, -math.inf).logsumexp(1) - ways.logsumexp(1)
