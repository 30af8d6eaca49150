"""Meters for labels, sets of labels, numbers and choices, equal to scikit-learn's and SciPy's.

What is undefined (0 / 0) is 0.0, as with scikit-learn's zero_division=0, without a warning.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from bertkit.errors import DataError
from bertkit.tasks.outcomes import (
    Counts,
    Figures,
    Floats,
    LabelFigures,
    Outcome,
    ScoredMeter,
    average_line,
    averages,
    label_lines,
    precision_recall_f1,
    ratio,
    unlabelled,
)
from bertkit.tasks.records import ChoiceRow, Place, TextRow


def _index(labels: dict[str, int], label: str, place: Place) -> int:
    try:
        return labels[label]
    except KeyError:
        known = ", ".join(list(labels)[:10]) + (", ..." if len(labels) > 10 else "")
        raise DataError(f"label {label!r} is none that the model knows: {known}", *place) from None


class LabelCounts:
    """How often each label is right, is predicted, and is both: all of classification's figures.

    Args:
        confusion: [C, C] int64, the right label by the predicted one.
        labels: [C] their names.
        positive: which label's precision, recall and F1 are *the* precision, recall and f1; None:
            the macro averages are.
    """

    def __init__(self, confusion: Counts, labels: Sequence[str], positive: int | None) -> None:
        self.labels = list(labels)
        self.tp, self.gold = confusion.diagonal(), confusion.sum(1)
        self.predicted = confusion.sum(0)
        self.positive = positive

    def present(self) -> Any:
        """Indices of the labels that the rows hold or that were predicted, as in scikit-learn."""
        return np.flatnonzero(self.gold + self.predicted)

    def averages(self) -> dict[str, Floats]:
        """Macro, micro and weighted figures over the labels that are present."""
        at = self.present()
        return averages(
            self.tp[at], self.predicted[at], self.gold[at], np.ones(len(at), dtype=bool)
        )

    def figures(self) -> dict[str, float]:
        """All figures."""
        sums = np.concatenate([self.tp, self.predicted, self.gold]).astype(np.float64)
        exact = self.averages()
        found = label_figures(sums[None], self.positive) | {k: v[None] for k, v in exact.items()}
        if self.positive is None:
            found |= {name: found[f"macro_{name}"] for name in ("precision", "recall", "f1")}
        return {name: float(value[0]) for name, value in found.items()}

    def lines(self) -> list[LabelFigures]:
        """As scikit-learn's classification_report."""
        at, total = self.present(), int(self.gold.sum())
        names = [self.labels[i] for i in at]
        accuracy = float(ratio(self.tp.sum(), total))
        return [
            *label_lines(names, self.tp[at], self.predicted[at], self.gold[at]),
            LabelFigures("accuracy", accuracy, accuracy, accuracy, total),
            average_line("macro avg", "macro", self.averages(), total),
            average_line("weighted avg", "weighted", self.averages(), total),
        ]


def label_figures(sums: Floats, positive: int | None) -> dict[str, Floats]:
    """Figures of single-label classification from counts.

    Args:
        sums: [R, 3 C]: for each label how often it was predicted rightly, predicted, right.
        positive: index of the positive label; None: precision, recall, f1 are macro averages.

    Returns:
        By name, [R] each.
    """
    tp, predicted, gold = np.split(np.asarray(sums, np.float64), 3, axis=-1)
    total, right = gold.sum(-1), tp.sum(-1)
    figures = {"accuracy": ratio(right, total)}
    over = averages(tp, predicted, gold, (gold + predicted) > 0)
    names = ("precision", "recall", "f1")
    if positive is None:
        figures |= {name: over[f"macro_{name}"] for name in names}
    else:
        at = (..., positive)
        binary = precision_recall_f1(tp[at], predicted[at], gold[at])
        figures |= dict(zip(names, binary, strict=True))
    # Gorodkin (2004), "Comparing two K-category assignments by a K-category correlation
    # coefficient": the covariances of the two indicator matrices, times the square of the total.
    both = right * total - (predicted * gold).sum(-1)
    spread = (total**2 - (predicted**2).sum(-1)) * (total**2 - (gold**2).sum(-1))
    figures["matthews_correlation"] = ratio(both, np.sqrt(spread))
    return figures | over


class ClassifyMeter(ScoredMeter[TextRow]):
    """One label a row: accuracy, F1 in all averages, Matthews correlation, the confusion matrix.

    Args:
        labels: [C] all labels, in the model's order.
        positive: the label whose precision, recall and F1 are *the* precision, recall and f1. None:
            the last of two labels (as scikit-learn's pos_label=1); of more, the macro averages.

    Attributes:
        confusion: [C, C] int64, the right label by the predicted one.
    """

    def __init__(self, labels: Sequence[str], positive: str | None = None) -> None:
        self.labels = list(labels)
        self._at = {label: i for i, label in enumerate(self.labels)}
        self._positive = 1 if len(self.labels) == 2 else None
        if positive is not None:
            self._positive = self._at[positive]
        self.confusion: Counts = np.zeros((len(self.labels),) * 2, np.int64)

    def _pair(self, row: TextRow, prediction: Any) -> tuple[int, int]:
        if not isinstance(row.label, str):
            raise unlabelled(row.place)
        return _index(self._at, row.label, row.place), self._at[prediction[0]["label"]]

    def add(self, row: TextRow, prediction: Any) -> None:
        """Count one row; `prediction` is [{"label", "score"}, ...], best first."""
        self.confusion[self._pair(row, prediction)] += 1

    def outcome(self, row: TextRow, prediction: Any) -> Outcome:
        """The row is right or wrong; counts are tp, predicted and gold of each label, [3 C]."""
        gold, predicted = self._pair(row, prediction)
        right, score = gold == predicted, float(prediction[0]["score"])
        counts = [0.0] * (3 * len(self.labels))
        counts[gold] += right
        counts[len(self.labels) + predicted] = counts[2 * len(self.labels) + gold] = 1.0
        names = self.labels[gold], self.labels[predicted]
        return Outcome(float(right), not right, score, *names, ((score, right),), tuple(counts))

    def merge(self, other: Self) -> None:
        """Add another meter's confusion matrix."""
        assert other.labels == self.labels, "meters of different models do not add up"
        self.confusion += other.confusion

    def figures(self) -> dict[str, float]:
        """Accuracy, precision, recall, f1, their averages, matthews_correlation; all 0 to 1."""
        return LabelCounts(self.confusion, self.labels, self._positive).figures()

    def per_label(self) -> list[LabelFigures]:
        """As scikit-learn's classification_report: labels, accuracy, macro and weighted average."""
        return LabelCounts(self.confusion, self.labels, self._positive).lines()

    def resampled(self, sums: Floats) -> dict[str, Floats]:
        """All figures."""
        return label_figures(sums, self._positive)


class MultiLabelMeter(ScoredMeter[TextRow]):
    """Any number of labels a row: those whose score reaches the threshold.

    As scikit-learn on label indicators: `accuracy` is that of whole sets, and every label counts in
    the macro average. precision, recall and f1 are the micro averages.

    Args:
        labels: [C] all labels, in the model's order.
        threshold: the least score of a label that is predicted.

    Attributes:
        tp: [C] int64, how often each label is predicted where it is right.
        predicted: [C] int64, how often it is predicted.
        gold: [C] int64, how often it is right.
    """

    def __init__(self, labels: Sequence[str], threshold: float = 0.5) -> None:
        self.labels, self.threshold = list(labels), threshold
        self._at = {label: i for i, label in enumerate(self.labels)}
        self.tp, self.predicted, self.gold = np.zeros((3, len(self.labels)), np.int64)
        self.rows = self.exact = 0

    def _sets(self, row: TextRow, prediction: Any) -> tuple[set[int], set[int]]:
        if row.label is None or isinstance(row.label, float):
            raise unlabelled(row.place)
        names = (row.label,) if isinstance(row.label, str) else row.label
        said = {self._at[p["label"]] for p in prediction if p["score"] >= self.threshold}
        return {_index(self._at, name, row.place) for name in names}, said

    def add(self, row: TextRow, prediction: Any) -> None:
        """Count one row; `prediction` holds every label with its score."""
        gold, predicted = self._sets(row, prediction)
        self.gold[list(gold)] += 1
        self.predicted[list(predicted)] += 1
        self.tp[list(gold & predicted)] += 1
        self.rows += 1
        self.exact += gold == predicted

    def outcome(self, row: TextRow, prediction: Any) -> Outcome:
        """Score: the F1 of the two sets. Counts [3 C + 2]: as ClassifyMeter's, exact, rows."""
        gold, predicted = self._sets(row, prediction)
        sure = {self._at[p["label"]]: float(p["score"]) for p in prediction}
        judgements = tuple(
            (max(score, 1 - score), (i in predicted) == (i in gold)) for i, score in sure.items()
        )
        sets = (gold & predicted, predicted, gold)
        counts = [float(i in s) for s in sets for i in range(len(self.labels))]
        both = len(gold) + len(predicted)
        return Outcome(
            score=2 * len(gold & predicted) / both if both else 1.0,
            wrong=gold != predicted,
            confidence=min((c for c, _ in judgements), default=1.0),
            gold=", ".join(self.labels[i] for i in sorted(gold)),
            predicted=", ".join(self.labels[i] for i in sorted(predicted)),
            judgements=judgements,
            counts=(*counts, float(gold == predicted), 1.0),
        )

    def merge(self, other: Self) -> None:
        """Add another meter's counts."""
        assert other.labels == self.labels, "meters of different models do not add up"
        self.tp += other.tp
        self.predicted += other.predicted
        self.gold += other.gold
        self.rows += other.rows
        self.exact += other.exact

    def figures(self) -> dict[str, float]:
        """Accuracy of sets, hamming_loss, precision, recall, f1 and their averages."""
        counts = (*self.tp, *self.predicted, *self.gold, self.exact, self.rows)
        found = self.resampled(np.array([counts], np.float64))
        return {name: float(value[0]) for name, value in found.items()}

    def per_label(self) -> list[LabelFigures]:
        """Every label, then the micro, macro and weighted averages."""
        lines = label_lines(self.labels, self.tp, self.predicted, self.gold)
        over = averages(self.tp, self.predicted, self.gold, np.ones(len(self.labels), dtype=bool))
        total = int(self.gold.sum())
        kinds = ("micro", "macro", "weighted")
        return lines + [average_line(f"{kind} avg", kind, over, total) for kind in kinds]

    def resampled(self, sums: Floats) -> dict[str, Floats]:
        """All figures."""
        tp, predicted, gold = np.split(sums[:, :-2], 3, axis=-1)
        exact, rows = sums[:, -2], sums[:, -1]
        over = averages(tp, predicted, gold, np.ones(len(self.labels), dtype=bool))
        errors = (predicted + gold - 2 * tp).sum(-1)
        figures = {"accuracy": ratio(exact, rows)}
        figures |= {name: over[f"micro_{name}"] for name in ("precision", "recall", "f1")}
        figures["hamming_loss"] = ratio(errors, rows * len(self.labels))
        return figures | over


class RegressMeter(ScoredMeter[TextRow]):
    """A number a row: Pearson's and Spearman's correlation, mean squared and absolute error.

    Two numbers are kept for each row, which ranks need. Correlations of fewer than two rows, or
    with a side that never varies, are 0.0.
    """

    def __init__(self) -> None:
        self.gold, self.predicted = array("d"), array("d")

    @staticmethod
    def _pair(row: TextRow, prediction: Any) -> tuple[float, float]:
        if not isinstance(row.label, int | float):
            raise unlabelled(row.place)
        return float(row.label), float(prediction["score"])

    def add(self, row: TextRow, prediction: Any) -> None:
        """Count one row; `prediction` is {"score": number}."""
        gold, predicted = self._pair(row, prediction)
        self.gold.append(gold)
        self.predicted.append(predicted)

    def outcome(self, row: TextRow, prediction: Any) -> Outcome:
        """Counts [7]: rows, x, y, x^2, y^2, x y, |x - y|."""
        x, y = self._pair(row, prediction)
        error = abs(x - y)
        counts = (1.0, x, y, x * x, y * y, x * y, error)
        return Outcome(-error, error > 0, error, f"{x:g}", f"{y:g}", (), counts)

    def merge(self, other: Self) -> None:
        """Add another meter's numbers."""
        self.gold.extend(other.gold)
        self.predicted.extend(other.predicted)

    def figures(self) -> dict[str, float]:
        """Pearson, spearman (both -1 to 1), mse, mae."""
        x, y = np.array(self.gold), np.array(self.predicted)
        return {
            "pearson": pearson(x, y),
            "spearman": pearson(average_ranks(x), average_ranks(y)),
            "mse": float(np.mean((x - y) ** 2)) if len(x) else 0.0,
            "mae": float(np.mean(np.abs(x - y))) if len(x) else 0.0,
        }

    def defined(self) -> Figures:
        """The same; of numbers that are all alike, on either side, there is no correlation."""
        alike = min(len(set(self.gold)), len(set(self.predicted))) < 2
        return self.figures() | (dict.fromkeys(("pearson", "spearman")) if alike else {})

    def per_label(self) -> list[LabelFigures]:
        """None: numbers have no labels."""
        return []

    def resampled(self, sums: Floats) -> dict[str, Floats]:
        """Pearson, mse and mae; ranks cannot be had from sums."""
        n, x, y, xx, yy, xy, error = np.moveaxis(sums, -1, 0)
        spread = np.maximum(n * xx - x * x, 0.0) * np.maximum(n * yy - y * y, 0.0)
        return {
            "pearson": np.clip(ratio(n * xy - x * y, np.sqrt(spread)), -1.0, 1.0),
            "mse": ratio(xx + yy - 2 * xy, n),
            "mae": ratio(error, n),
        }


def pearson(x: Floats, y: Floats) -> float:
    """The correlation of two columns [n], by centred unit vectors, as SciPy computes it."""
    if len(x) < 2 or (x == x[0]).all() or (y == y[0]).all():
        return 0.0
    units = []
    for column in (x, y):
        centred = column - column.mean()
        largest = np.abs(centred).max()
        # With an axis NumPy sums squares pairwise, as in SciPy; without, the last digit differs.
        units.append(centred / (largest * np.linalg.norm(centred / largest, axis=-1)))
    found = float(np.clip(np.vecdot(*units), -1.0, 1.0))
    return found if len(x) > 2 else float(round(found))


def average_ranks(values: Floats) -> Floats:
    """Ranks from 1; equal values share the mean of theirs. [n] -> [n]."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[place])


class ChooseMeter(ScoredMeter[ChoiceRow]):
    """One choice of several a row: accuracy."""

    def __init__(self) -> None:
        self.rows = self.right = 0

    def outcome(self, row: ChoiceRow, prediction: Any) -> Outcome:
        """Counts [2]: right, rows."""
        if row.label is None:
            raise unlabelled(row.place)
        said = int(prediction[0]["label"])
        right, score = said == row.label, float(prediction[0]["score"])
        names = row.choices[row.label], row.choices[said]
        return Outcome(
            float(right), not right, score, *names, ((score, right),), (float(right), 1.0)
        )

    def add(self, row: ChoiceRow, prediction: Any) -> None:
        """Count one row; `prediction` is [{"label": number of the choice, ...}, ...]."""
        self.right += not self.outcome(row, prediction).wrong
        self.rows += 1

    def merge(self, other: Self) -> None:
        """Add another meter's counts."""
        self.right += other.right
        self.rows += other.rows

    def figures(self) -> dict[str, float]:
        """Accuracy, 0 to 1."""
        return {"accuracy": self.right / self.rows if self.rows else 0.0}

    def per_label(self) -> list[LabelFigures]:
        """None: the number of a choice means nothing by itself."""
        return []

    def resampled(self, sums: Floats) -> dict[str, Floats]:
        """Accuracy."""
        return {"accuracy": ratio(sums[:, 0], sums[:, 1])}
