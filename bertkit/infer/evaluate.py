"""A labelled file through one model or two: all that an evaluation tells, memory flat."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bertkit.checkpoint.config import BertConfig
from bertkit.checkpoint.files import config_file
from bertkit.checkpoint.hub import resolve_model
from bertkit.errors import BertkitError, DataError, UsageError
from bertkit.infer.compare import Comparison, Difference
from bertkit.infer.engine import stretches
from bertkit.infer.predict import (
    STRETCH_CHARACTERS,
    STRETCH_ROWS,
    Answered,
    answered,
    cut_notes,
    open_file,
)
from bertkit.infer.report import CALIBRATION_ERROR, Report
from bertkit.tasks.answers import TaskAnswers
from bertkit.tasks.asking import model_name
from bertkit.tasks.build import saved_task
from bertkit.tasks.formats import BadRows, Columns, RowFile, Summary
from bertkit.tasks.outcomes import (
    Figures,
    LabelFigures,
    Record,
    Table,
    figures_table,
    label_table,
    led_by,
    records_table,
)
from bertkit.tasks.task import Task
from bertkit.text.tokenizer import BertTokenizer

OVERWRITTEN = ("figures.md", "bad_cases.jsonl")
AVERAGES = ("micro_", "macro_", "weighted_")


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation tells.

    Attributes:
        task: of the model.
        model: where it is.
        file: what it was measured on.
        metric: the main figure: the one by which two models are compared, and by which the best
            weights are chosen in fine-tuning.
        rows: how many were measured.
        cut: how many of them are longer than the model reads, and lost their ends.
        figures: by their names in scikit-learn, seqeval and SQuAD, the main one first; None: these
            rows leave it undefined.
        per_label: figures by label, averages last.
        breakdown: by kind of rows, the figures of each group.
        skipped: bad rows left out.
        notes: what else a person should see.
        files: what was written.
        compared_with: where the second model is.
        other: its figures.
        difference: of the two, with its p-value.
        wins: who does better where.
    """

    task: str
    model: str
    file: str
    metric: str
    rows: int
    cut: int
    figures: Figures
    per_label: list[LabelFigures]
    breakdown: dict[str, list[Record]]
    skipped: BadRows
    notes: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    compared_with: str | None = None
    other: Figures | None = None
    difference: Difference | None = None
    wins: list[Record] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        found = {
            "task": self.task,
            "model": self.model,
            "file": self.file,
            "metric": self.metric,
            "rows": self.rows,
            "cut": self.cut,
            "figures": self.figures,
            "per_label": [asdict(line) for line in self.per_label],
            "breakdown": self.breakdown,
            "skipped": dict(self.skipped.counts),
            "notes": self.notes,
            "files": [str(path) for path in self.files],
        }
        if self.difference is not None:
            found |= {"compared_with": self.compared_with, "other": self.other}
            found |= {"difference": asdict(self.difference), "wins": self.wins}
        return found

    def tables(self) -> list[Table]:
        """Every table: of all figures first, but for averages that the one by label has."""
        shown = {
            name: value
            for name, value in self.figures.items()
            if not (self.per_label and name.startswith(AVERAGES)) or name == self.metric
        }
        found = [figures_table(shown)]
        if self.per_label:
            found.append(label_table(self.per_label))
        found += map(records_table, self.breakdown.values())
        return found if self.wins is None else [*found, records_table(self.wins)]


@dataclass(frozen=True)
class EvaluateOptions:
    """How a file is read and what is told of it.

    Attributes:
        columns: what the user says about the file.
        out: a folder for tables, pictures and the wrong cases; None: nothing is written.
        skip_bad_rows: leave bad rows out and count them.
        overwrite: replace an evaluation that is there.
        metric: the main figure, by which two models are compared; None: the task's.
    """

    columns: Columns = field(default_factory=Columns)
    out: Path | None = None
    skip_bad_rows: bool = False
    overwrite: bool = False
    metric: str | None = None


def evaluate_file(
    answers: TaskAnswers,
    path: str | Path,
    options: EvaluateOptions | None = None,
    *,
    other: TaskAnswers | None = None,
    say: Callable[[str], None] = lambda line: None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Measure a model on a labelled file; with `other` compare both on the same rows.

    Args:
        answers: the model.
        path: the file, or "-".
        options: how.
        other: a second model, for the same task and the same labels.
        say: takes remarks.
        report: takes progress.

    Raises:
        UsageError: the two models do not go together, the folder holds an evaluation, or there is
            no such figure as `options.metric`.
        DataError: the file is bad, has no labels, or a label that the model does not know.
    """
    options, task = options or EvaluateOptions(), answers.task
    _check_free(options)
    if other is not None:
        _check_alike(task, other.task)
    _check_figure(metric := options.metric or task.metric, task)
    file = _open_labelled(path, task, options, say)
    total = 0 if file.path == "-" else _look_through(file, task, options.skip_bad_rows, say)
    model, bad = model_name(answers.model), BadRows()
    kept = bad if options.skip_bad_rows else None
    gathered = Report(task.meter, options.out, metric, f"{model} on {file.shown}")
    pair = None if other is None else Pair(answers, other, metric)
    parts = _answers_of(answers, file, kept) if pair is None else pair.read(file, kept)
    cut = _gather(parts, gathered, lambda done: report(done, total))
    if not gathered.rows:
        why = f": {'; '.join(bad.lines())}" if bad else ""
        raise DataError(f"no row of it could be measured{why}", path)
    if metric not in (found := gathered.figures()):
        raise UsageError(f"these rows have no figure {metric!r}; choose of {', '.join(found)}")
    notes = cut_notes(task, cut, gathered.rows) + ([] if total else file.findings.lines())
    compared = {} if pair is None else pair.told()
    notes = gathered.close(notes, [] if pair is None else pair.markdown(compared))
    return Evaluation(
        task.name,
        model,
        str(path),
        metric,
        gathered.rows,
        cut,
        found,
        gathered.meter.per_label(),
        gathered.breakdown.records(),
        bad,
        notes,
        [] if options.out is None else sorted(options.out.iterdir()),
        **compared,
    )


def _open_labelled(
    path: str | Path, task: Task[Any], options: EvaluateOptions, say: Callable[[str], None]
) -> RowFile:
    file = open_file(path, task, options.columns, say, labels=True)
    file.check_labelled()
    return file


def check_metric(metric: str, model: str, revision: str | None = None, **options: Any) -> None:
    """Refuse a figure that there is not before any weights are read.

    Args:
        metric: the figure.
        model: a folder, a run or a hub id; what is wrong with it is told when it is opened.
        revision: branch, tag or commit of a hub model.
        options: of TaskOptions, for decoding.

    Raises:
        UsageError: the model's task has no such figure.
    """
    try:
        folder = resolve_model(model, revision=revision)
        config = BertConfig.from_json_file(config_file(folder))
        task = saved_task(config, BertTokenizer.from_pretrained(folder)).with_options(**options)
    except BertkitError:
        return
    _check_figure(metric, task)


def _check_figure(metric: str, task: Task[Any]) -> None:
    meter: Any = task.meter()
    known = [*meter.names(), *([] if task.name == "regress" else [CALIBRATION_ERROR])]
    if metric not in known:
        raise UsageError(f"there is no figure {metric!r}; choose of {', '.join(known)}")


def _check_free(options: EvaluateOptions) -> None:
    if options.out is None or options.overwrite:
        return
    for path in (options.out / name for name in OVERWRITTEN):
        if path.exists():
            raise UsageError(f"{path} is there already; say --overwrite to replace it")


def _check_alike(task: Task[Any], other: Task[Any]) -> None:
    """Two models can be compared on one file.

    Raises:
        UsageError: they are for different tasks, or know different labels.
    """
    if task.name != other.name:
        raise UsageError(f"--other is for {other.name}, the model for {task.name}")
    mine, others = (set(getattr(one, "types", getattr(one, "labels", ()))) for one in (task, other))
    if mine != others:
        odd = sorted(mine ^ others)
        raise UsageError(f"--other knows other labels: one of the two lacks {', '.join(odd[:10])}")


def _look_through(
    file: RowFile, task: Task[Any], skip_bad_rows: bool, say: Callable[[str], None]
) -> int:
    """Go through a file before anything is computed: rows are counted, bad ones told.

    Raises:
        DataError: a row is bad, and bad rows are not to be skipped.
    """
    summary, kept = Summary(), BadRows() if skip_bad_rows else None
    try:
        for row in task.measurable(file.rows(kept), kept):
            summary.add(row)
    except DataError as error:
        if error.line != 1 or file.header:
            raise
        what = f"{error.what}; if the first line names the columns: --text NAME --label NAME"
        raise DataError(what, error.path, error.line) from error
    for line in [*summary.lines(), *file.findings.lines()]:
        say(f"  {line}")
    return summary.rows


def _answers_of(answers: TaskAnswers, file: RowFile, bad: BadRows | None) -> Iterator[Answered]:
    """The rows with their predictions."""
    rows = answers.task.measurable(file.rows(bad), bad)
    for ahead in stretches(rows, STRETCH_ROWS, STRETCH_CHARACTERS):
        yield answered(answers, ahead, bad)


def _gather(parts: Iterator[Answered], gathered: Report, report: Callable[[int], None]) -> int:
    """Count all rows; returns how many lost their ends."""
    cut = 0
    report(0)
    for part in parts:
        for row, prediction in zip(part.rows, part.predictions, strict=True):
            gathered.add(row, prediction)
        cut += part.cut
        report(gathered.rows)
    return cut


class Pair:
    """Two models on one stream of rows.

    Args:
        first: the model that is measured.
        second: the one that it is compared with.
        metric: the figure that is compared.
    """

    def __init__(self, first: TaskAnswers, second: TaskAnswers, metric: str) -> None:
        self.first, self.second, self.metric = first, second, metric
        self.meter: Any = second.task.meter()
        self.comparison = Comparison(first.task.meter(), self.meter)  # type: ignore[arg-type]

    def told(self) -> dict[str, Any]:
        """What Evaluation says of two models."""
        return {
            "compared_with": model_name(self.second.model),
            "other": led_by(self.metric, self.meter.defined()),
            "difference": self.comparison.difference(self.metric),
            "wins": self.comparison.records(),
        }

    def markdown(self, told: dict[str, Any]) -> list[str]:
        """The same for figures.md."""
        names = f"first: {model_name(self.first.model)}; second: {told['compared_with']}"
        return [names, records_table(told["wins"]).markdown(), told["difference"].sentence()]

    def read(self, file: RowFile, bad: BadRows | None) -> Iterator[Answered]:
        """The rows that both can take, counted, with the first model's predictions.

        Raises:
            UsageError: there is no such figure, or it cannot be compared; at the first row.
        """
        rows = self.first.task.measurable(file.rows(bad), bad)
        for ahead in stretches(rows, STRETCH_ROWS, STRETCH_CHARACTERS):
            first = answered(self.first, ahead, bad)
            of_first = dict(zip(map(id, first.rows), first.predictions, strict=True))
            second = answered(self.second, first.rows, bad)
            for row, prediction in zip(second.rows, second.predictions, strict=True):
                self.comparison.add(row, of_first[id(row)], prediction)
                self.meter.add(row, prediction)
                if self.comparison.kinds.total() == 1:
                    self.comparison.difference(self.metric, resamples=1)
            yield Answered(second.rows, [of_first[id(row)] for row in second.rows], first.cut)
