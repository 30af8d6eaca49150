"""What a meter says of one row and of all rows: outcomes, figures by label, tables, averages."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar
from unicodedata import east_asian_width

import numpy as np
from numpy.typing import NDArray

from bertkit.errors import DataError
from bertkit.tasks.records import Place, Row
from bertkit.tasks.task import Meter

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
RowT = TypeVar("RowT", bound=Row)
# One line of a table as plain values: names, counts, figures.
Record = dict[str, str | int | float | None]
# By name; None: the rows leave it undefined.
Figures = dict[str, float | None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one row went.

    Attributes:
        score: how right the row is, 1.0 all right; for regression minus the absolute error. Only
            meant to be compared with another model's score on the same row.
        wrong: whether the row belongs among the wrong cases.
        confidence: how sure the model was; for regression the absolute error.
        gold: what was right, for people.
        predicted: what was said, for people.
        judgements: (confidence, was it right) of each decision, for calibration; regression has
            none.
        counts: [K] numbers whose sums over rows are all that `resampled` needs.
    """

    score: float
    wrong: bool
    confidence: float
    gold: str
    predicted: str
    judgements: tuple[tuple[float, bool], ...]
    counts: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class LabelFigures:
    """One line of a per-label table.

    Attributes:
        label: the label, or the name of an average.
        precision: of what was predicted so, the share that is so.
        recall: of what is so, the share that was predicted so.
        f1: their harmonic mean.
        support: how many are so.
    """

    label: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True, slots=True)
class Table:
    """A table for people: cells are text, the first column is names."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def lines(self) -> list[str]:
        """Aligned lines for a terminal; Chinese characters count as two columns."""
        grid = [self.header, *self.rows]
        widths = [max(_width(row[i]) for row in grid) for i in range(len(self.header))]
        return [
            "  ".join(
                _pad(cell, width, left=i == 0)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in grid
        ]

    def markdown(self) -> str:
        """The same as a Markdown table."""
        rows = [self.header, ("---",) + ("---:",) * (len(self.header) - 1), *self.rows]
        return "\n".join(
            "| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in rows
        )


def _width(text: str) -> int:
    return sum(2 if east_asian_width(c) in "WF" else 1 for c in text)


def _pad(text: str, width: int, left: bool) -> str:
    space = " " * (width - _width(text))
    return text + space if left else space + text


class ScoredMeter(Meter, Generic[RowT]):
    """A meter that also explains itself row by row and label by label.

    Meters of several ranks add up: `merge` gives the figures of all rows, whoever saw them.
    """

    @abstractmethod
    def add(self, row: RowT, prediction: Any) -> None:
        """Count one labelled row and what was predicted for it."""

    @abstractmethod
    def outcome(self, row: RowT, prediction: Any) -> Outcome:
        """How one row went; counts nothing.

        Raises:
            DataError: the row is unlabelled, or its label is none that the model knows.
        """

    def defined(self) -> Figures:
        """The figures, None where the rows leave one undefined and `figures` has 0.0."""
        return {**self.figures()}

    def names(self) -> list[str]:
        """All figures that rows can have."""
        return list(self.figures())

    @abstractmethod
    def merge(self, other: Self) -> None:
        """Add what another meter of the same kind has counted."""

    @abstractmethod
    def per_label(self) -> list[LabelFigures]:
        """Figures by label, averages last; empty for tasks without labels."""

    @abstractmethod
    def resampled(self, sums: Floats) -> dict[str, Floats]:
        """Figures from summed `Outcome.counts`.

        Args:
            sums: [R, K], one line for each resample of the rows.

        Returns:
            By figure, [R]; those figures that sums are enough for.
        """

    def table(self) -> Table:
        """The per-label table, or, without labels, the figures one by one."""
        labels = self.per_label()
        if not labels:
            return figures_table(self.figures())
        return label_table(labels)


def records_table(records: Sequence[Record]) -> Table:
    """One line for each record; of all, the keys of the first."""
    rows = (tuple(x if isinstance(x, str) else written(x) for x in one.values()) for one in records)
    return Table(tuple(records[0]), tuple(rows))


def figures_table(figures: Mapping[str, float | None]) -> Table:
    """One line for each figure."""
    return Table(("figure", "value"), tuple((k, written(v)) for k, v in figures.items()))


def led_by(main: str, figures: Mapping[str, Any]) -> dict[str, Any]:
    """The same figures with the main one, if it is among them, first."""
    return {name: figures[name] for name in dict.fromkeys([main, *figures]) if name in figures}


def label_table(labels: Iterable[LabelFigures]) -> Table:
    """One line for each label."""
    return Table(
        ("label", "precision", "recall", "f1", "support"),
        tuple(
            (x.label, written(x.precision), written(x.recall), written(x.f1), f"{x.support:,}")
            for x in labels
        ),
    )


def written(value: float | None) -> str:
    """A figure in a table: counts whole, all else with four digits, "-" if it is undefined."""
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def unlabelled(place: Place) -> DataError:
    """The error for a row that has nothing to compare with."""
    return DataError("the row has no label; evaluation needs one in every row", *place)


def ratio(part: Any, whole: Any) -> Floats:
    """Divide, with 0.0 where `whole` is 0 (scikit-learn's zero_division=0), in float64."""
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    zeros = np.zeros(np.broadcast_shapes(part.shape, whole.shape))
    return np.asarray(np.divide(part, whole, out=zeros, where=whole != 0))


def precision_recall_f1(tp: Any, predicted: Any, gold: Any) -> tuple[Floats, Floats, Floats]:
    """From counts of any one shape, as scikit-learn computes them."""
    return (
        ratio(tp, predicted),
        ratio(tp, gold),
        ratio(2 * np.asarray(tp), np.asarray(predicted) + gold),
    )


def averages(tp: Any, predicted: Any, gold: Any, present: Any) -> dict[str, Floats]:
    """Macro, micro and weighted figures over labels.

    Args:
        tp: [..., C] how often each label was predicted where it is right.
        predicted: [..., C] how often it was predicted.
        gold: [..., C] how often it is right.
        present: [..., C] which labels count in the macro average.

    Returns:
        Each figure by its name, [...].
    """
    tp, predicted, gold = (np.asarray(a, np.float64) for a in (tp, predicted, gold))
    figures: dict[str, Floats] = {}
    names = ("precision", "recall", "f1")
    for name, values in zip(names, precision_recall_f1(tp, predicted, gold), strict=True):
        shown = np.where(present, values, 0.0)
        figures[f"macro_{name}"] = ratio(shown.sum(-1), np.sum(present, axis=-1))
        figures[f"weighted_{name}"] = ratio((values * gold).sum(-1), gold.sum(-1))
    micro = precision_recall_f1(tp.sum(-1), predicted.sum(-1), gold.sum(-1))
    figures["micro_precision"], figures["micro_recall"], figures["micro_f1"] = micro
    return figures


def label_lines(
    labels: Sequence[str], tp: Counts, predicted: Counts, gold: Counts
) -> list[LabelFigures]:
    """One line for each label, from [C] counts."""
    columns = (*precision_recall_f1(tp, predicted, gold), gold)
    return [
        LabelFigures(label, float(p), float(r), float(f), int(n))
        for label, p, r, f, n in zip(labels, *columns, strict=True)
    ]


def average_line(name: str, kind: str, figures: dict[str, Any], support: int) -> LabelFigures:
    """The line of an average: `kind` is macro, micro or weighted."""
    p, r, f = (float(figures[f"{kind}_{what}"]) for what in ("precision", "recall", "f1"))
    return LabelFigures(name, p, r, f, support)
