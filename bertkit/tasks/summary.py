"""What a labelled file holds, in figures for people: labels with counts, lengths in characters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from bertkit.tasks.records import ChoiceRow, QuestionRow, Row, TagRow, TextRow

MOST_LABELS = 30


@dataclass
class Summary:
    """Figures over rows that pass by one at a time; memory does not grow with texts.

    Attributes:
        rows: how many.
        unlabelled: how many of them have no label.
        labels: how many of each label: of tags entities, of choices the number of the right one,
            of questions those that have no answer; empty for numbers.
        lengths: how many texts have each length in characters; pairs and passages with questions
            count together.
        low, high: the least and greatest number (regress).
    """

    rows: int = 0
    unlabelled: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    lengths: Counter[int] = field(default_factory=Counter)
    low: float | None = None
    high: float | None = None

    def add(self, row: Row) -> None:
        """Count one row."""
        self.rows += 1
        match row:
            case TextRow():
                self._add(row.label, row.text, row.pair or "")
            case TagRow():
                names = None if row.entities is None else tuple(s.label for s in row.entities)
                self._add(names, row.text)
            case QuestionRow():
                kind = "without an answer" if row.is_impossible else "with an answer"
                self._add(None if row.answers is None else kind, row.context, row.question)
            case ChoiceRow():
                label = None if row.label is None else str(row.label)
                self._add(label, row.context, row.question, max(row.choices, key=len))

    def _add(self, label: str | tuple[str, ...] | float | None, *texts: str) -> None:
        self.lengths[sum(map(len, texts))] += 1
        if label is None:
            self.unlabelled += 1
        elif isinstance(label, float):
            self.low = label if self.low is None else min(self.low, label)
            self.high = label if self.high is None else max(self.high, label)
        else:
            self.labels.update([label] if isinstance(label, str) else label)

    def length(self, share: float) -> int:
        """The length that this share of the texts does not exceed."""
        assert self.rows > 0, "no rows"
        wanted = share * self.rows
        seen = 0
        for length in sorted(self.lengths):
            seen += self.lengths[length]
            if seen >= wanted:
                break
        return length

    def lines(self) -> list[str]:
        """One line each for rows, labels and lengths."""
        rows = f"{self.rows:,} {'row' if self.rows == 1 else 'rows'}"
        if 0 < self.unlabelled < self.rows:
            rows += f", {self.unlabelled:,} without a label"
        found = [rows]
        if self.rows and self.unlabelled == self.rows:
            found.append("no labels")
        elif self.low is not None:
            found.append(f"labels: numbers from {self.low:g} to {self.high:g}")
        elif self.labels:
            shown = [f"{name} {count:,}" for name, count in self.labels.most_common(MOST_LABELS)]
            more = (
                f" and {len(self.labels) - MOST_LABELS} more"
                if len(self.labels) > MOST_LABELS
                else ""
            )
            found.append(f"labels: {', '.join(shown)}{more}")
        if self.rows:
            median, most, longest = (self.length(share) for share in (0.5, 0.95, 1.0))
            found.append(f"characters: median {median:,}, 95% up to {most:,}, longest {longest:,}")
        return found


def summarize(rows: Iterable[Row]) -> Summary:
    """The figures of rows, which are gone through once."""
    summary = Summary()
    for row in rows:
        summary.add(row)
    return summary
