"""Figures by kinds of rows: how long they are, how much there is to find, what is right."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import Any, Self

from bertkit.tasks.outcomes import Record, ScoredMeter
from bertkit.tasks.records import ChoiceRow, QuestionRow, Row, TagRow, TextRow

# Upper ends of the classes of lengths, in characters, and of numbers of entities.
LENGTHS = (16, 32, 64, 128, 256, 512, 1024)
NUMBERS = (0, 1, 2, 4, 8)
# What a line shows, as far as the task has it.
SHOWN = ("accuracy", "f1", "macro_f1", "exact", "pearson", "spearman", "mae")


def size_class(size: int, ends: tuple[int, ...]) -> str:
    """The class that a size falls into, written as "17-32", "5" or ">1024"."""
    at = bisect_left(ends, size)
    if at == len(ends):
        return f">{ends[-1]}"
    low = ends[at - 1] + 1 if at else 0
    return f"{low}-{ends[at]}" if low < ends[at] else str(low)


def groups(row: Row) -> dict[str, str]:
    """Which groups a labelled row belongs to: {kind of group: group}; few groups, whatever rows."""
    match row:
        case TextRow(text=text, pair=pair, label=label):
            found = {"characters": size_class(len(text) + len(pair or ""), LENGTHS)}
            if isinstance(label, float):
                found["label"] = _whole(label)
            if isinstance(label, tuple):
                found["labels"] = size_class(len(label), NUMBERS)
            return found
        case TagRow(text=text, entities=entities):
            many = size_class(len(entities or ()), NUMBERS)
            return {"characters": size_class(len(text), LENGTHS), "entities": many}
        case QuestionRow(context=context, answers=answers):
            longest = max((len(answer.text) for answer in answers or ()), default=-1)
            of_answer = size_class(longest, LENGTHS) if longest >= 0 else "no answer"
            return {
                "characters of passage": size_class(len(context), LENGTHS),
                "characters of answer": of_answer,
            }
        case ChoiceRow():
            size = len(row.context) + len(row.question)
            return {
                "characters": size_class(size, LENGTHS),
                "choices": size_class(len(row.choices), NUMBERS),
            }


def _whole(number: float) -> str:
    low = int(number // 1)
    return f"{low} to {low + 1}" if abs(low) < 100 else "beyond 100"


def labels(row: Row) -> tuple[str, ...]:
    """What a labelled row is labelled: labels, or the types of its entities."""
    match row:
        case TextRow(label=str(label)):
            return (label,)
        case TextRow(label=tuple(several)):
            return several
        case TagRow(entities=entities):
            return tuple(sorted({span.label for span in entities or ()}))
    return ()


class Breakdown:
    """A meter for each group of rows. (By label, a meter itself tells: `per_label`.)

    Args:
        new_meter: makes an empty meter of the task.
        metric: the figure that a line shows first; "": the first of SHOWN.
    """

    def __init__(self, new_meter: Callable[[], Any], metric: str = "") -> None:
        self._new_meter, self.metric = new_meter, metric
        self.meters: dict[str, dict[str, ScoredMeter[Any]]] = {}
        self.rows: dict[str, dict[str, int]] = {}

    def add(self, row: Row, prediction: Any) -> None:
        """Count one labelled row in each of its groups."""
        for kind, group in groups(row).items():
            self._meter(kind, group).add(row, prediction)
            self.rows[kind][group] += 1

    def _meter(self, kind: str, group: str) -> ScoredMeter[Any]:
        meters = self.meters.setdefault(kind, {})
        self.rows.setdefault(kind, {}).setdefault(group, 0)
        if group not in meters:
            meters[group] = self._new_meter()
        return meters[group]

    def merge(self, other: Self) -> None:
        """Add what another rank has counted."""
        for kind, meters in other.meters.items():
            for group, meter in meters.items():
                self._meter(kind, group).merge(meter)
                self.rows[kind][group] += other.rows[kind][group]

    def records(self) -> dict[str, list[Record]]:
        """By kind of group: each group with its rows and the task's main figures."""
        found: dict[str, list[Record]] = {}
        for kind, meters in self.meters.items():
            figures = {group: meters[group].defined() for group in sorted(meters, key=by_size)}
            every = set.intersection(*map(set, figures.values()))
            names = [name for name in dict.fromkeys([self.metric, *SHOWN]) if name in every][:3]
            found[kind] = []
            for group, one in figures.items():
                line: Record = {kind: group, "rows": self.rows[kind][group]}
                found[kind].append(line | {name: one[name] for name in names})
        return found


def by_size(group: str) -> tuple[float, str]:
    """A key that puts groups of sizes in order; ">1024" last, names after numbers."""
    first = group.lstrip(">").split("-")[0].split(" ")[0]
    number = float(first) if first.isdigit() else float("inf")
    return (number + 0.5 if group.startswith(">") else number, group)
