"""A linear-chain conditional random field over ragged sequences of tags.

Lafferty, McCallum and Pereira 2001, on top of a neural network's scores as in Lample et al. 2016
(arXiv 1603.01360, section 2.1). A tagging's score is the sum of its emissions, of a transition
score for each pair of neighbours, and of one for its first and its last tag; its probability is
the softmax of that over all legal taggings.

Parameters have the names that pytorch-crf gives them. All sums run in 64 bits, whatever the dtype
of the emissions and under autocast; the best tagging is searched in 32, or in 64 where the
emissions have them. lattice.py has the sums, paths.py the best taggings.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bertkit.errors import ConfigError, DataError
from bertkit.model.constraints import constraints_of, continuations_of, distances_of
from bertkit.model.lattice import Scores, sum_taggings
from bertkit.model.likelihood import Gold, LogLikelihood, edges, span_logs
from bertkit.model.padding import check_range
from bertkit.model.paths import NBest, best_tags, n_best_tags

__all__ = ["Crf", "NBest", "constraints_of"]

_log = logging.getLogger("bertkit")


class Crf(nn.Module):
    """Scores of taggings: how probable one is, which is the best, what each word may be.

    Sequences lie end to end: emissions [M, C], tags [M], and `counts` [B] on the CPU, the words of
    each (0 is fine). Illegal transitions have no parameter that counts: no sum runs over them, no
    path takes them, their gradient is exactly 0.

    Args:
        num_tags: C.
        starts: [C], whether a sequence may begin with a tag; None: with any.
        transitions: [C][C], whether the column's tag may follow the row's; None: any.
        ends: [C], whether it may end with a tag; None: with any.
        labels: the names of the tags, for `repair` and for where entities end. They constrain
            nothing by themselves: `Crf.of_labels` does.

    Attributes:
        start_transitions: [C].
        transitions: [C, C], from row to column.
        end_transitions: [C].
        repaired: how many illegal gold tags `log_likelihood` has repaired so far.

    Raises:
        ConfigError: under the constraints, sequences of some length have no legal tagging.
    """

    may_start: Tensor
    may_follow: Tensor
    may_end: Tensor
    goes_on: Tensor
    distances: Tensor

    def __init__(
        self,
        num_tags: int,
        starts: Sequence[bool] | None = None,
        transitions: Sequence[Sequence[bool]] | None = None,
        ends: Sequence[bool] | None = None,
        labels: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        if num_tags < 1:
            raise ConfigError(f"a CRF of {num_tags} tags; it has at least 1")
        self.num_tags = num_tags
        every = [True] * num_tags
        names = [str(i) for i in range(num_tags)] if labels is None else list(labels)
        tables = {
            "may_start": every if starts is None else starts,
            "may_follow": [every] * num_tags if transitions is None else transitions,
            "may_end": every if ends is None else ends,
            "goes_on": continuations_of(names),
            "distances": distances_of(names),
        }
        for name, values in tables.items():
            table = torch.tensor(values)
            shape = (num_tags,) if table.dim() == 1 else (num_tags, num_tags)
            if table.shape != shape:
                raise ConfigError(f"{name} of a CRF is {list(table.shape)}, not {list(shape)}")
            self.register_buffer(name, table, persistent=False)
        rules = [table.numpy() for table in (self.may_start, self.may_follow, self.may_end)]
        _check_all_lengths(*rules)
        self._free = all(rule.all() for rule in rules)
        self._mixing = _steps_to_mix(rules[1])
        self.repaired = 0
        self.start_transitions = nn.Parameter(torch.empty(num_tags))
        self.end_transitions = nn.Parameter(torch.empty(num_tags))
        self.transitions = nn.Parameter(torch.empty(num_tags, num_tags))
        self.reset_parameters()

    @classmethod
    def of_labels(cls, labels: Sequence[str]) -> Crf:
        """A CRF whose constraints are read from the names of its tags (`constraints_of`)."""
        return cls(len(labels), *constraints_of(labels), labels=labels)

    def reset_parameters(self) -> None:
        """Begin anew, uniform in [-0.1, 0.1], as pytorch-crf does."""
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.1, 0.1)

    def extra_repr(self) -> str:
        """What printing the module shows."""
        return f"num_tags={self.num_tags}, constrained={not self._free}"

    def log_likelihood(self, emissions: Tensor, tags: Tensor, counts: Tensor) -> Tensor:
        """How probable the given taggings are.

        A tagging that is illegal cannot be scored: it is repaired (see `repair`), counted in
        `repaired`, and logged when that happens first.

        Args:
            emissions: [M, C].
            tags: [M] int64.
            counts: [B] on the CPU.

        Returns:
            [B], the logarithms; 0 for sequences without words. float32, or as the emissions where
            those are wider. Differentiable once, in the emissions and the parameters.

        Raises:
            DataError: shapes disagree, or a tag is out of range.
        """
        counts = self._checked(emissions, counts)
        if tags.shape != emissions.shape[:1]:
            raise DataError(f"tags is {list(tags.shape)}; the emissions have {len(emissions)} rows")
        check_range("tags", tags, self.num_tags)
        tags = self._legal(tags.to(emissions.device, torch.int64), counts)
        parameters = self.start_transitions, self.transitions, self.end_transitions
        apply: Any = LogLikelihood.apply
        found: Tensor = apply(emissions, *parameters, Gold(tags, counts, self.scores()))
        return found

    @torch.no_grad()
    def log_partition(self, emissions: Tensor, counts: Tensor) -> Tensor:
        """[B]: the logarithm of the sum of exp(score) over all legal taggings. No gradient."""
        counts = self._checked(emissions, counts)
        found = emissions.new_zeros(len(counts), dtype=torch.float64)
        if len(emissions):
            lattice = sum_taggings(emissions, counts, self.scores())
            found[torch.from_numpy(lattice.order.chosen).to(found.device)] = lattice.log_z
        return found.to(_answer(emissions))

    @torch.no_grad()
    def marginals(self, emissions: Tensor, counts: Tensor) -> Tensor:
        """[M, C]: how probable each tag of each word is, all taggings considered. No gradient."""
        counts = self._checked(emissions, counts)
        if not len(emissions):
            return emissions.to(_answer(emissions))
        lattice = sum_taggings(emissions, counts, self.scores())
        return lattice.marginals().to(_answer(emissions))

    @torch.no_grad()
    def decode(self, emissions: Tensor, counts: Tensor) -> Tensor:
        """[M] int64: the most probable legal tagging of each sequence.

        Raises:
            DataError: shapes disagree.
        """
        counts = self._checked(emissions, counts)
        return best_tags(emissions, counts, self.scores())

    @torch.no_grad()
    def n_best(self, emissions: Tensor, counts: Tensor, n: int) -> NBest:
        """The n most probable legal taggings of each sequence, with their log-probabilities.

        Raises:
            DataError: shapes disagree, or n is below 1.
        """
        if n < 1:
            raise DataError(f"n is {n}; ask for 1 tagging or more")
        counts = self._checked(emissions, counts)
        tags, totals = n_best_tags(emissions, counts, self.scores(), n)
        log_z = self.log_partition(emissions.double(), counts)
        return NBest(tags, (totals - log_z[:, None]).to(_answer(emissions)))

    @torch.no_grad()
    def span_probability(
        self, emissions: Tensor, tags: Tensor, counts: Tensor, spans: Tensor
    ) -> Tensor:
        """How probable it is that some neighbouring words are tagged just so: an entity's score.

        Exact, by one pass over all sequences and then in the length of the spans. Where the labels
        are those of a scheme, the entity must also end there (the word after it does not go on with
        it) and begin there. (Culotta and McCallum 2004, Confidence Estimation for Information
        Extraction, found it by constrained forward-backward; the ratio is the same.)

        Args:
            emissions: [M, C].
            tags: [M] int64; those outside of the spans are not read.
            counts: [B] on the CPU.
            spans: [K, 2] int64, the first word of each (an index into M) and the one after its
                last; each in one sequence, none empty.

        Returns:
            [K], each in [0, 1].

        Raises:
            DataError: a span is empty, or lies in no sequence.
        """
        counts = self._checked(emissions, counts)
        spans = _checked_spans(spans, counts)
        if not len(spans):
            return emissions.new_zeros(0, dtype=_answer(emissions))
        check_range("tags", tags, self.num_tags)
        lattice = sum_taggings(emissions, counts, self.scores()).in_logs()
        found = span_logs(lattice, tags.to(emissions.device), counts, spans, self.goes_on)
        return found.exp().clamp(max=1.0).to(_answer(emissions))

    @torch.no_grad()
    def illegal(self, tags: Tensor, counts: Tensor) -> Tensor:
        """[M] bool: the words whose tag cannot stand after the one before it, first, or last."""
        first, last = edges(counts, tags.device)
        bad = torch.zeros_like(tags, dtype=torch.bool)
        bad[1:] = ~self.may_follow[tags[:-1], tags[1:]]
        bad[first] = ~self.may_start[tags[first]]
        bad[last] |= ~self.may_end[tags[last]]
        return bad

    @torch.no_grad()
    def repair(self, tags: Tensor, counts: Tensor) -> Tensor:
        """[M]: the nearest legal tagging of each sequence; a legal one stays as it is.

        Nearest is what changes least: with labels of a scheme an entity rather changes a B or an I
        than its type or its length (`constraints.distances_of`).
        """
        away = -self.distances.double()[tags]
        rules = (self.may_start, self.may_follow, self.may_end)
        flat = [torch.zeros_like(r, dtype=torch.float64).masked_fill(~r, -math.inf) for r in rules]
        start, between, end = flat
        return best_tags(away, counts.cpu(), Scores(start, between, end, self._mixing))

    def scores(self) -> Scores:
        """What is added to emissions, detached, in 64 bits; -inf where it is illegal."""
        with torch.no_grad():
            none = -math.inf
            return Scores(
                self.start_transitions.double().masked_fill(~self.may_start, none),
                self.transitions.double().masked_fill(~self.may_follow, none),
                self.end_transitions.double().masked_fill(~self.may_end, none),
                self._mixing,
            )

    def _legal(self, tags: Tensor, counts: Tensor) -> Tensor:
        if self._free or not bool(self.illegal(tags, counts).any()):
            return tags
        legal = self.repair(tags, counts)
        changed = int((legal != tags).sum())
        if not self.repaired:
            _log.warning(
                "%d gold tags make an illegal sequence and were repaired to the nearest legal one; "
                "later ones are counted in `repaired`",
                changed,
            )
        self.repaired += changed
        return legal

    def _checked(self, emissions: Tensor, counts: Tensor) -> Tensor:
        """The counts on the CPU as int64; shapes that disagree are refused."""
        if emissions.dim() != 2 or emissions.shape[1] != self.num_tags:
            shape = list(emissions.shape)
            raise DataError(f"emissions is {shape}; give [words, {self.num_tags}]")
        counts = counts.cpu().to(torch.int64)
        total = int(counts.sum())
        if counts.dim() != 1 or total != len(emissions) or bool((counts < 0).any()):
            raise DataError(f"counts adds up to {total} words; there are {len(emissions)}")
        return counts


def _answer(emissions: Tensor) -> torch.dtype:
    return torch.promote_types(emissions.dtype, torch.float32)


def _check_all_lengths(starts: Any, follows: Any, ends: Any) -> None:
    """Refuse constraints under which sequences of some length have no legal tagging."""
    now, seen = np.asarray(starts), set[bytes]()
    while now.tobytes() not in seen:
        seen.add(now.tobytes())
        if not (now & ends).any():
            raise ConfigError(
                f"the constraints leave no legal tagging of {len(seen)} words; "
                "allow more starts, transitions or ends"
            )
        now = now @ follows


def _steps_to_mix(follows: Any) -> int:
    """After how many steps any tag can have become any other; 0: never, or after very many."""
    reached = follows
    for steps in range(1, 2 * len(follows) + 1):
        if reached.all():
            return steps
        reached = reached @ follows
    return 0


def _checked_spans(spans: Tensor, counts: Tensor) -> Tensor:
    """The spans on the CPU as [K, 2] int64; those in no sequence are refused."""
    spans = spans.cpu().to(torch.int64).reshape(-1, 2)
    first, after = spans.t().contiguous()
    stops = counts.cumsum(0)
    sequence = torch.searchsorted(stops, first, right=True).clamp(max=max(len(stops) - 1, 0))
    total = int(counts.sum())
    bad = (first < 0) | (first >= after) | (after > total)
    if len(spans) and (not total or bool((bad | (after > stops[sequence])).any())):
        raise DataError("spans holds one that is empty or lies in no single sequence")
    return spans
