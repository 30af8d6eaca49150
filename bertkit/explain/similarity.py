"""How alike two sets of vectors of the same things are, in sums that do not grow with their number.

CKA              linear centred kernel alignment (Kornblith et al. 2019, arXiv 1905.00414), here
                 || X^T Y ||^2 / (|| X^T X || || Y^T Y ||) of centred X and Y; no Gram matrix.
debiased CKA     the same of the unbiased HSIC (Song et al. 2012, JMLR 13, equation 5), whose terms
                 are sums over rows as well. With fewer rows than columns the plain one is near 1
                 for vectors that have nothing to do with each other; this one is near 0.
RSA              Spearman's correlation of the distances between the same things in two spaces
                 (Kriegeskorte et al. 2008), of a sample, for distances grow with its square.
anisotropy       the mean cosine of two vectors (Ethayarajh 2019, arXiv 1909.00512), over all pairs.
effective rank   exp of the entropy of the singular values (Roy and Vetterli 2007).
participation    (sum of variances)^2 / sum of their squares: how many directions carry the spread.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Pair = tuple[int, int]
Floats = NDArray[np.float64]


class Sums:
    """Sums over the rows of several matrices that have the same rows.

    Args:
        pairs: (i, j) with i <= j of the matrices to be compared. Pairs (i, i) are always kept.
    """

    def __init__(self, pairs: Iterable[Pair]) -> None:
        wanted = set(pairs)
        self.pairs = sorted(wanted | {(i, i) for pair in wanted for i in pair})
        self.rows = 0
        self.shift: list[Tensor] = []
        # Of the matrices: sums of rows, of squared lengths, of rows made one long.
        self.sums: list[Tensor] = []
        self.squares: list[float] = []
        self.directions: list[Tensor] = []
        # Of the pairs: X^T Y, sum |x|^2 |y|^2; and by (i, j) sum |x_i|^2 y_j.
        self.products: dict[Pair, Tensor] = {}
        self.fourth: dict[Pair, float] = {}
        self.weighted: dict[Pair, Tensor] = {}

    def add(self, matrices: Sequence[Tensor]) -> None:
        """Take more rows: [M, D_i] float64 of each matrix, the same things in the same order."""
        if not self.rows:
            self._begin(matrices)
        self.rows += len(matrices[0])
        # HSIC does not see a shift, but sums of squares of what lies far from 0 lose digits.
        rows = [m - shift for m, shift in zip(matrices, self.shift, strict=True)]
        lengths = [(row * row).sum(-1) for row in rows]
        for i, matrix in enumerate(matrices):
            self.sums[i] += rows[i].sum(0)
            self.squares[i] += float(lengths[i].sum())
            self.directions[i] += torch.nn.functional.normalize(matrix, dim=-1).sum(0)
        for i, j in self.pairs:
            self.products[i, j].addmm_(rows[i].T, rows[j])
            self.fourth[i, j] += float(lengths[i] @ lengths[j])
            self.weighted[i, j] += lengths[i] @ rows[j]
            if i != j:
                self.weighted[j, i] += lengths[j] @ rows[i]

    def _begin(self, matrices: Sequence[Tensor]) -> None:
        self.shift = [matrix.mean(0) for matrix in matrices]
        self.sums = [torch.zeros_like(shift) for shift in self.shift]
        self.directions = [torch.zeros_like(shift) for shift in self.shift]
        self.squares = [0.0] * len(matrices)
        for i, j in self.pairs:
            one, other = self.shift[i], self.shift[j]
            self.products[i, j] = one.new_zeros(len(one), len(other))
            self.fourth[i, j] = 0.0
            self.weighted[i, j] = torch.zeros_like(other)
            self.weighted[j, i] = torch.zeros_like(one)

    def hsic(self, i: int, j: int, debiased: bool) -> float:
        """HSIC of two matrices, times (n - 1)^2 where it is not debiased."""
        i, j = min(i, j), max(i, j)
        n, product = self.rows, self.products[i, j]
        one, other = self.sums[i], self.sums[j]
        if not debiased:
            return float((product - torch.outer(one, other) / n).square().sum())
        fourth = self.fourth[i, j]
        trace = float(product.square().sum()) - fourth
        ones = (float(one @ one) - self.squares[i]) * (float(other @ other) - self.squares[j])
        between = float(one @ product @ other) + fourth
        between -= float(self.weighted[i, j] @ other) + float(self.weighted[j, i] @ one)
        whole = trace + ones / ((n - 1) * (n - 2)) - 2 / (n - 2) * between
        return whole / (n * (n - 3))

    def cka(self, i: int, j: int, debiased: bool) -> float:
        """CKA of two matrices; NaN where one of them does not vary. Debiased, it needs 4 rows."""
        if not (self._varies(i) and self._varies(j)):
            return math.nan
        one, other = self.hsic(i, i, debiased), self.hsic(j, j, debiased)
        if one <= 0 or other <= 0:
            return math.nan
        return self.hsic(i, j, debiased) / math.sqrt(one) / math.sqrt(other)

    def _varies(self, i: int) -> bool:
        """Whether the rows differ by more than the rounding of what they have in common."""
        shift, spread = self.shift[i], float(self.covariance(i).diagonal().sum())
        lengths = self.squares[i] + self.rows * float(shift @ shift)
        return spread > 1e-20 * lengths

    def covariance(self, i: int) -> Tensor:
        """[D, D] of a matrix, times n."""
        return self.products[i, i] - torch.outer(self.sums[i], self.sums[i]) / self.rows

    def anisotropy(self, i: int) -> float:
        """The mean cosine of two different rows, over all pairs; NaN for a single row."""
        n, total = self.rows, self.directions[i]
        return (float(total @ total) - n) / (n * (n - 1)) if n > 1 else math.nan

    def ranks(self, i: int) -> tuple[float, float]:
        """Effective rank and participation ratio of a matrix; NaN where it does not vary."""
        if not self._varies(i):
            return math.nan, math.nan
        variances = torch.linalg.eigvalsh(self.covariance(i)).clamp_min(0)
        shares = variances.sqrt() / variances.sqrt().sum()
        entropy = -torch.xlogy(shares, shares).sum()
        return float(entropy.exp()), float(variances.sum() ** 2 / variances.square().sum())


class Sample:
    """The rows with the smallest draws: a sample that does not depend on the order of the rows.

    Args:
        size: how many rows at most.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.draws: Floats = np.empty(0)
        self.matrices: list[Floats] = []

    def add(self, draws: Floats, matrices: Sequence[Tensor]) -> None:
        """Take more rows with a draw each: [M] and [M, D_i]."""
        bound = self.draws.max(initial=0.0) if len(self.draws) == self.size else np.inf
        better = np.flatnonzero(draws < bound)
        new = [matrix[torch.from_numpy(better)].cpu().numpy() for matrix in matrices]
        joined = np.concatenate([self.draws, draws[better]])
        kept = np.argsort(joined, kind="stable")[: self.size]
        old = self.matrices or [matrix[:0] for matrix in new]
        self.draws = joined[kept]
        self.matrices = [np.concatenate(both)[kept] for both in zip(old, new, strict=True)]


def distances(vectors: NDArray[Any]) -> Floats:
    """[n (n - 1) / 2] of [n, D] vectors: 1 - Pearson's correlation of two of them."""
    centred = vectors.astype(np.float64) - vectors.mean(-1, keepdims=True)
    lengths = np.linalg.norm(centred, axis=-1, keepdims=True)
    centred = centred / np.maximum(lengths, 1e-300)
    # What is equal but for rounding is equal.
    found = np.round(1 - centred @ centred.T, 12)
    upper: Floats = found[np.triu_indices(len(vectors), 1)]
    return upper


def ranked(values: Floats) -> Floats:
    """[n] ranks from 1; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    found: Floats = (ends - (counts - 1) / 2)[inverse]
    return found


def rsa(ours: Sequence[NDArray[Any]], theirs: Sequence[NDArray[Any]]) -> Floats:
    """[A, B] Spearman's correlation of the distances in A and in B matrices with the same rows."""
    one, other = (
        np.stack([_standard(ranked(distances(matrix))) for matrix in side])
        for side in (ours, theirs)
    )
    found: Floats = one @ other.T
    return found


def _standard(ranks: Floats) -> Floats:
    centred = ranks - ranks.mean()
    length = np.linalg.norm(centred)
    return centred / length if length > 0 else np.full_like(centred, np.nan)
