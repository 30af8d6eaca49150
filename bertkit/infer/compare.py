"""Two models on the same rows: who wins where, and whether that could be chance.

The paired bootstrap of Koehn (2004), "Statistical Significance Tests for Machine Translation
Evaluation", centred as in Berg-Kirkpatrick et al. (2012): rows are drawn again with replacement,
both models' figures are taken on each draw, and the p-value is how often their difference strays
from the observed one by at least as much as the observed one strays from nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from bertkit.errors import UsageError
from bertkit.infer.breakdown import by_size, groups, labels
from bertkit.tasks.outcomes import Floats, Record, ScoredMeter
from bertkit.tasks.records import Row

RESAMPLES = 10_000
# Numbers held at once while resampling: 32 MiB of float64.
AT_ONCE = 1 << 22
# Differences that only rounding keeps apart are the same difference.
ROUNDING = 1e-12
LOWER_IS_BETTER = frozenset({"mse", "mae", "hamming_loss"})

Figure = Callable[[Floats], Floats]


@dataclass(frozen=True, slots=True)
class Difference:
    """What two models differ by in one figure.

    Attributes:
        metric: the figure.
        rows: on how many rows.
        first: the first model's figure.
        second: the second model's.
        low: lower end of the 95% interval of second - first (percentiles of the resamples).
        high: upper end of it.
        p_value: two-sided.
    """

    metric: str
    rows: int
    first: float
    second: float
    low: float
    high: float
    p_value: float

    def sentence(self) -> str:
        """In words."""
        gap = self.second - self.first
        better = "first" if (gap < 0) != (self.metric in LOWER_IS_BETTER) else "second"
        says = "no difference" if gap == 0 else f"the {better} model is better"
        return (
            f"{self.metric}: {self.first:.4f} and {self.second:.4f} on {self.rows:,} rows, {says}; "
            f"difference {gap:+.4f} (95%: {self.low:+.4f} to {self.high:+.4f}), "
            f"p = {self.p_value:.4f}"
        )


def paired_bootstrap(
    kinds: Counter[tuple[tuple[float, ...], tuple[float, ...]]],
    figures: tuple[Figure, Figure],
    metric: str,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """How sure the difference of two models is.

    Rows that added the same numbers to both models' sums are interchangeable, so that drawing how
    many rows of each kind a resample holds (a multinomial) is drawing rows, at the cost of kinds.

    Args:
        kinds: how many rows there are of each kind: what a row adds to the sums of the first model,
            [K], and of the second.
        figures: [R, K] sums -> [R] figures, of each model.
        metric: what it is called.
        resamples: R.
        seed: of the draws.

    Raises:
        UsageError: there are no rows.
    """
    rows = kinds.total()
    if not rows:
        raise UsageError("there are no rows to compare two models on")
    many = np.array(list(kinds.values()), np.int64)
    adds = tuple(np.array([kind[side] for kind in kinds], np.float64) for side in (0, 1))
    first, second = (
        float(figure((many @ add)[None])[0]) for figure, add in zip(figures, adds, strict=True)
    )
    gaps = np.empty(resamples)
    at = 0
    for drawn in _draws(many, resamples, seed, max(len(many), *(add.shape[1] for add in adds))):
        sides = [figure(drawn @ add) for figure, add in zip(figures, adds, strict=True)]
        gaps[at : at + len(drawn)] = sides[1] - sides[0]
        at += len(drawn)
    gap = second - first
    strays = int((np.abs(gaps - gap) >= abs(gap) - ROUNDING).sum())
    low, high = np.quantile(gaps, [0.025, 0.975])
    p_value = (strays + 1) / (resamples + 1)
    return Difference(metric, rows, first, second, float(low), float(high), p_value)


def _draws(many: Any, resamples: int, seed: int, width: int) -> Iterator[Floats]:
    """[r, U] how many rows of each kind are in each resample, a bounded number of them at once."""
    draw = np.random.default_rng(seed)
    share = many / many.sum()
    step = max(1, AT_ONCE // width)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        yield draw.multinomial(int(many.sum()), share, size=size).astype(np.float64)


class Comparison:
    """Two models' predictions for the same rows, row by row.

    Memory holds one entry for each kind of row (see `paired_bootstrap`) and each group.

    Args:
        first: an empty meter of the first model.
        second: an empty meter of the second; its labels may stand in another order.
    """

    def __init__(self, first: ScoredMeter[Any], second: ScoredMeter[Any]) -> None:
        self.meters = first, second
        self.kinds: Counter[tuple[tuple[float, ...], tuple[float, ...]]] = Counter()
        # By (kind of group, group): rows that the first does better, the second, equal.
        self.wins: dict[tuple[str, str], list[int]] = {}

    def add(self, row: Row, first: Any, second: Any) -> None:
        """Count one labelled row with both predictions."""
        one = self.meters[0].outcome(row, first)
        other = self.meters[1].outcome(row, second)
        self.kinds[one.counts, other.counts] += 1
        winner = 0 if one.score > other.score else 1 if other.score > one.score else 2
        of_label = [("label", label) for label in labels(row)]
        for group in [("all", "all rows"), *of_label, *groups(row).items()]:
            self.wins.setdefault(group, [0, 0, 0])[winner] += 1

    def merge(self, other: Self) -> None:
        """Add what another rank has counted."""
        self.kinds.update(other.kinds)
        for group, counts in other.wins.items():
            mine = self.wins.setdefault(group, [0, 0, 0])
            mine[:] = [a + b for a, b in zip(mine, counts, strict=True)]

    def difference(self, metric: str, resamples: int = RESAMPLES, seed: int = 0) -> Difference:
        """The two models' figures, their difference, its interval and p-value.

        Raises:
            UsageError: no rows, or a figure that cannot be resampled (spearman).
        """
        one = np.array([next(iter(self.kinds))[0]], np.float64) if self.kinds else None
        known = list(self.meters[0].resampled(one)) if one is not None else [metric]
        if metric not in known:
            raise UsageError(f"{metric!r} cannot be compared; choose of {', '.join(known)}")

        def figure(meter: ScoredMeter[Any]) -> Figure:
            return lambda sums: meter.resampled(sums)[metric]

        sides = figure(self.meters[0]), figure(self.meters[1])
        return paired_bootstrap(self.kinds, sides, metric, resamples, seed)

    def records(self) -> list[Record]:
        """Who does better where, row by row."""
        order = sorted(
            self.wins, key=lambda g: (g[0] != "all", g[0] != "label", g[0], by_size(g[1]))
        )
        names = ("first better", "second better", "equal")
        return [
            {"rows": f"{kind}: {group}" if kind != "all" else group}
            | dict(zip(names, self.wins[kind, group], strict=True))
            for kind, group in order
        ]
