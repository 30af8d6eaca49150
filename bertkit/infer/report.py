"""All that an evaluation tells, gathered as rows pass by and written to a folder at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bertkit.checkpoint.files import write_atomically
from bertkit.infer.breakdown import Breakdown
from bertkit.infer.calibration import Calibration
from bertkit.infer.figures import draw_calibration, draw_confusion
from bertkit.infer.wrong import WrongCases
from bertkit.tasks.metrics import ClassifyMeter
from bertkit.tasks.outcomes import Figures, ScoredMeter, figures_table, led_by, records_table
from bertkit.tasks.records import Row
from bertkit.tasks.span_metrics import TagMeter

CALIBRATION_ERROR = "expected_calibration_error"


@dataclass
class Report:
    """Figures, tables, pictures and wrong cases of one model on one file.

    Memory does not grow with texts. Whatever the task lacks is left out: numbers have no
    calibration, only labels and entity types have a confusion matrix.

    Attributes:
        new_meter: makes an empty meter of the task (`task.meter`).
        folder: where `close` writes figures.md, confusion.png, calibration.png,
            bad_cases.jsonl; None: nothing is written.
        metric: the task's main figure, which leads all tables; "": as the meter has them.
        title: which model, and on what.
        most_wrong: how many wrong cases are kept.
        meter: the figures of all rows.
        breakdown: by kinds of rows.
        calibration: of the decisions.
        rows: how many have passed.
    """

    new_meter: Callable[[], Any]
    folder: Path | None
    metric: str = ""
    title: str = ""
    most_wrong: int = 10_000
    meter: ScoredMeter[Any] = field(init=False)
    breakdown: Breakdown = field(init=False)
    calibration: Calibration = field(init=False, default_factory=Calibration)
    rows: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.meter = self.new_meter()
        self.breakdown = Breakdown(self.new_meter, self.metric)
        self._wrong = None
        if self.folder is not None:
            self._wrong = WrongCases(self.folder / "bad_cases.jsonl", self.most_wrong)

    def add(self, row: Row, prediction: Any) -> None:
        """Count one labelled row and what was predicted for it.

        Raises:
            DataError: the row is unlabelled, or its label is none that the model knows.
        """
        outcome = self.meter.outcome(row, prediction)
        self.meter.add(row, prediction)
        self.breakdown.add(row, prediction)
        self.calibration.add(outcome.judgements)
        if self._wrong is not None:
            self._wrong.add(row, outcome)
        self.rows += 1

    def figures(self) -> Figures:
        """The task's figures, the main one first; the calibration error where there is one."""
        figures = led_by(self.metric, self.meter.defined())
        if self.calibration.counts.any():
            figures[CALIBRATION_ERROR] = self.calibration.error()
        return figures

    def markdown(self) -> str:
        """Every table."""
        about = f"{self.title}, " if self.title else ""
        parts = [f"{about}{self.rows:,} rows", figures_table(self.figures()).markdown()]
        if self.meter.per_label():
            parts.append(self.meter.table().markdown())
        parts += [records_table(x).markdown() for x in self.breakdown.records().values()]
        if isinstance(self.meter, TagMeter) and self.meter.errors:
            parts.append(figures_table(dict(sorted(self.meter.errors.items()))).markdown())
        if self.calibration.counts.any():
            parts.append(self.calibration.table().markdown())
        return "\n\n".join(parts)

    def close(self, notes: Sequence[str] = (), more: Sequence[str] = ()) -> list[str]:
        """Write the folder.

        Args:
            notes: lines that a person should see.
            more: what figures.md says behind the tables.

        Returns:
            The notes, and more of them.
        """
        notes = [*notes]
        if isinstance(self.meter, TagMeter) and self.meter.says_nothing:
            notes.append("no entity was predicted")
        if self.folder is None or self._wrong is None:
            return notes
        if isinstance(self.meter, ClassifyMeter):
            matrix, labels = self.meter.confusion, self.meter.labels
            notes += draw_confusion(matrix, labels, self.folder / "confusion.png")
        elif isinstance(self.meter, TagMeter):
            labels, matrix = self.meter.confusion()
            notes += draw_confusion(matrix, labels, self.folder / "confusion.png")
        if self.calibration.counts.any():
            draw_calibration(self.calibration, self.folder / "calibration.png")
        kept = self._wrong.close()
        if kept < self._wrong.seen:
            notes.append(
                f"{self._wrong.seen:,} rows are wrong; bad_cases.jsonl has the {kept:,} surest"
            )
        text = "\n\n".join([self.markdown(), *more, *notes]) + "\n"
        write_atomically(self.folder / "figures.md", text.encode())
        return notes
