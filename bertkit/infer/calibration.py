"""Does a confidence of 0.9 mean right nine times in ten? (Guo et al. 2017, "On Calibration".)"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

import numpy as np

from bertkit.tasks.outcomes import Counts, Floats, Table, ratio

BINS = 15


class Calibration:
    """Confidences and whether they were right, in bins of equal width.

    A confidence c falls into bin b where b / bins < c <= (b + 1) / bins; 0.0 falls into the first.

    Args:
        bins: how many.

    Attributes:
        counts: [bins] int64, decisions in each bin.
        right: [bins] int64, those that were right.
        confidence: [bins] float64, the sum of their confidences.
    """

    def __init__(self, bins: int = BINS) -> None:
        self.counts: Counts = np.zeros(bins, np.int64)
        self.right: Counts = np.zeros(bins, np.int64)
        self.confidence: Floats = np.zeros(bins)

    def add(self, judgements: Iterable[tuple[float, bool]]) -> None:
        """Count decisions, each with its confidence (0 to 1) and whether it was right."""
        bins = len(self.counts)
        for confidence, right in judgements:
            at = min(max(int(np.ceil(confidence * bins)) - 1, 0), bins - 1)
            self.counts[at] += 1
            self.right[at] += right
            self.confidence[at] += confidence

    def merge(self, other: Self) -> None:
        """Add what another rank has counted."""
        self.counts += other.counts
        self.right += other.right
        self.confidence += other.confidence

    def accuracy(self) -> Floats:
        """[bins] the share of right decisions; 0.0 in empty bins."""
        return ratio(self.right, self.counts)

    def mean_confidence(self) -> Floats:
        """[bins] the mean confidence; 0.0 in empty bins."""
        return ratio(self.confidence, self.counts)

    def error(self) -> float:
        """Expected calibration error: |accuracy - confidence| of bins, weighted by decisions."""
        gaps = np.abs(self.accuracy() - self.mean_confidence())
        return float(ratio((gaps * self.counts).sum(), self.counts.sum()))

    def table(self) -> Table:
        """One line for each bin that holds a decision."""
        bins = len(self.counts)
        lines = [
            (f"{i / bins:.2f}-{(i + 1) / bins:.2f}", f"{n:,}", f"{c:.4f}", f"{a:.4f}")
            for i, (n, c, a) in enumerate(
                zip(self.counts, self.mean_confidence(), self.accuracy(), strict=True)
            )
            if n
        ]
        return Table(("confidence", "decisions", "mean confidence", "right"), tuple(lines))
