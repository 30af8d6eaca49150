"""Predictions from files to files: order kept, memory flat, continued after a kill."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from bertkit import __version__
from bertkit.errors import DataError, UsageError
from bertkit.infer.engine import stretches
from bertkit.infer.outputs import Writer, choose_format, squad_files, squad_text
from bertkit.infer.partial import (
    PartialFile,
    checksum,
    open_partial,
    read_done,
    take_result,
    write_pieces,
)
from bertkit.tasks.answers import TaskAnswers
from bertkit.tasks.build import TASKS
from bertkit.tasks.formats import BadRows, Columns, Findings, RowFile, open_rows
from bertkit.tasks.forward import predict
from bertkit.tasks.load import load
from bertkit.tasks.qa import Answer
from bertkit.tasks.records import Place, Row
from bertkit.tasks.task import Feature, Prediction, Task

# What is run, written and counted as done at once. Rows lie end to end, so that little is gained by
# more of them, while a kill loses up to so many.
STRETCH_ROWS = 256
STRETCH_CHARACTERS = 100_000

Say = Callable[[str], None]
# (done, total); total 0: not known.
Report = Callable[[int, int], None]


@dataclass(frozen=True)
class PredictOptions:
    """How a file is read and predictions are written.

    Attributes:
        columns: what the user says about the file.
        format: of the output, one of infer/outputs.py; None: by its extension, else JSONL.
        texts: also write the texts that were read.
        skip_bad_rows: leave bad rows out and count them.
        overwrite: begin anew, whatever is there.
    """

    columns: Columns = field(default_factory=Columns)
    format: str | None = None
    texts: bool = False
    skip_bad_rows: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class Predicted:
    """What became of a file.

    Attributes:
        rows: predictions written, by earlier runs too.
        continued: how many rows an earlier run had dealt with.
        files: where they are; empty: on standard output.
        skipped: bad rows left out.
        findings: what else was found in the file: blank lines.
        cut: how many rows are longer than the model reads, in earlier runs too.
        notes: what a person should see of that.
    """

    rows: int
    continued: int = 0
    files: tuple[Path, ...] = ()
    skipped: BadRows = field(default_factory=BadRows)
    findings: Findings = field(default_factory=Findings)
    cut: int = 0
    notes: Sequence[str] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "rows": self.rows,
            "continued": self.continued,
            "files": [str(path) for path in self.files],
            "skipped": dict(self.skipped.counts),
            "findings": dict(self.findings.counts),
            "cut": self.cut,
        }


def open_answers(
    model: str | os.PathLike[str],
    device: str | None = None,
    *,
    revision: str | None = None,
    **options: Any,
) -> TaskAnswers:
    """A fine-tuned model, ready to answer.

    Args:
        model: a folder, a run or a hub id.
        device: None: the best there is.
        revision: branch, tag or commit of a hub model.
        options: of TaskOptions, for decoding: threshold, null_threshold ...; None: as the model
            has it.

    Raises:
        MissingHeadError: it has no head of a task, or an untrained one.
        CheckpointError: there is no such model, or it is broken.
    """
    opened = load(model, device, revision=revision)
    answers = TaskAnswers(opened.model, opened.tokenizer, *TASKS)
    given = {name: value for name, value in options.items() if value is not None}
    if given:
        answers.task = answers.task.with_options(**given)
        _check_used(answers.task, given)
    return answers


def _check_used(task: Task[Any], given: Collection[str]) -> None:
    """Refuse options of decoding that would change nothing.

    Raises:
        UsageError: there is one.
    """
    for name in given:
        if name == "threshold" and not task.options.multi_label:
            raise UsageError(
                "--threshold is for models that give several labels; this one does not"
            )
        if name != "threshold" and task.name != "qa":
            raise UsageError(f"--{name} is for questions (qa); the model is for {task.name}")
    if "null_threshold" in given and not task.options.no_answer:
        raise UsageError("--null_threshold needs --no_answer: the model answers every question")


def open_file(
    path: str | Path, task: Task[Any], columns: Columns, say: Say, *, labels: bool
) -> RowFile:
    """Open a file for a model, and say what it was taken for.

    Raises:
        DataError: the file is bad, or holds single texts for a model of pairs, or the reverse.
    """
    file = open_rows(path, task.name, columns, labels=labels)
    _check_pairs(file, task)
    say(f"{file.shown}:")
    for line in file.describe():
        say(f"  {line}")
    return file


def _check_pairs(file: RowFile, task: Task[Any]) -> None:
    wanted = task.options.pairs
    if wanted is None or file.pairs in (None, wanted):
        return
    learnt, these, todo = "single texts", "pairs", "name the text with --text"
    if wanted:
        learnt, these, todo = these, learnt, "name the second with --pair"
    taken = file.describe()[-1]
    raise DataError(
        f"the model learnt from {learnt}, these are {these} ({taken}); {todo}", file.path
    )


class Answered(NamedTuple):
    """Rows that were run at once.

    Attributes:
        rows: without those that cannot be tokenized.
        predictions: for each of them.
        cut: how many of them are longer than the model reads, and lost their ends.
    """

    rows: list[Any]
    predictions: list[Prediction]
    cut: int


def answered(answers: TaskAnswers, rows: list[Any], bad: BadRows | None) -> Answered:
    """Run rows at once.

    Raises:
        DataError: one cannot be tokenized, and bad rows are not to be skipped.
    """
    cut = 0

    def count(features: list[list[Feature]]) -> None:
        nonlocal cut
        cut = sum(any(feature.cut for feature in row) for row in features)

    try:
        predictions = predict(answers.task, answers.model, rows, watch=count)
    except DataError:
        if bad is None:
            raise
        rows = [row for row in rows if _usable(answers.task, row, bad)]
        predictions = predict(answers.task, answers.model, rows, watch=count)
    return Answered(rows, predictions, cut)


def cut_notes(task: Task[Any], cut: int, rows: int) -> list[str]:
    """A line where rows lost their ends; what is read in windows loses nothing."""
    most = f"{task.max_length} tokens"
    if isinstance(task, Answer):
        most = f"{task.query} tokens of a question"
    said = f"{cut:,} of {rows:,} rows are longer than the {most} that the model reads"
    return [f"{said}: cut off at the end"] if cut else []


def _usable(task: Task[Any], row: Row, bad: BadRows) -> bool:
    try:
        task.features(row, labelled=False)
    except DataError as error:
        bad.add(row.place, error.what)
        return False
    return True


def count_rows(file: RowFile, skip_bad_rows: bool) -> int:
    """How many good rows there are: what is bad is told before any work is done.

    Raises:
        DataError: a row is bad, and bad rows are not to be skipped.
    """
    return sum(1 for _ in file.rows(BadRows() if skip_bad_rows else None))


def predict_file(
    answers: TaskAnswers,
    path: str | Path,
    out: str | Path,
    options: PredictOptions | None = None,
    *,
    say: Say = lambda line: None,
    report: Report = lambda done, total: None,
) -> Predicted:
    """Write the predictions for a file of any format; run again after a kill, it goes on.

    The result is byte for byte what a run without a kill would have written.

    Args:
        answers: the model.
        path: the file, "-" for standard input (which cannot be gone on with).
        out: the file to write; for SQuAD's files a folder, or predictions.json.
        options: how.
        say: takes remarks.
        report: takes progress.

    Raises:
        UsageError: the output is there already, or its format does not fit.
        StaleDataError: an unfinished output was made from another input, model or other options.
        DataError: the file is bad; what was predicted before it stays in OUT.partial.
    """
    options, task = options or PredictOptions(), answers.task
    format = choose_format(Path(out), options.format, task.name)
    options = replace(options, format=format)
    files = squad_files(Path(out)) if format == "squad" else (Path(out),)
    made_from = _made_from(answers, str(path), options)
    if (done := take_result(files[0], made_from)) is not None:
        rows = done.rows - len(done.dropped)
        notes = cut_notes(task, done.cut, rows)
        return Predicted(rows, done.rows, files, cut=done.cut, notes=notes)
    _check_free(files, options.overwrite)
    file = open_file(path, task, options.columns, say, labels=False)
    total = 0 if file.path == "-" else count_rows(file, options.skip_bad_rows)
    bad = BadRows() if options.skip_bad_rows else None
    with open_partial(files[0], made_from, options.overwrite) as partial:
        before = partial.done.rows
        if before:
            say(f"{partial.partial}: going on behind {before:,} rows")
        _write(answers, file, partial, options, bad, lambda done: report(done, total))
        partial.finish()
        if format == "squad":
            for number, name in enumerate(files):
                write_pieces(name, squad_text(partial.lines(), number))
            partial.remove()
        else:
            partial.become()
    rows, cut = partial.done.rows - len(partial.done.dropped), partial.done.cut
    skipped, notes = bad if bad is not None else BadRows(), cut_notes(task, cut, rows)
    return Predicted(rows, before, files, skipped, file.findings, cut, notes)


def _check_free(files: tuple[Path, ...], overwrite: bool) -> None:
    done = read_done(files[0])
    ours = overwrite or (done is not None and done.finished)
    for path in files:
        if path.is_dir():
            raise UsageError(f"{path}: a folder; name a file")
        if path.exists() and not ours:
            raise UsageError(f"{path} is there already; say --overwrite to replace it")


def _made_from(answers: TaskAnswers, path: str, options: PredictOptions) -> dict[str, str]:
    """Checksums of all that an output follows from."""
    if path != "-" and not Path(path).is_file():
        raise DataError("no such file" if not Path(path).exists() else "not a file", path)
    source = answers.model.load_report.source
    kept = sorted(p for p in source.iterdir() if p.suffix != ".md" and p.is_file())
    chosen = asdict(replace(options, skip_bad_rows=False, overwrite=False))
    chosen |= {"task": asdict(answers.task.options), "bertkit": __version__}
    return {
        # Standard input is another each time.
        "input": checksum([Path(path)]) if path != "-" else os.urandom(16).hex(),
        "model": checksum(kept),
        "options": msgspec.json.encode(chosen, order="sorted").decode(),
    }


def _write(
    answers: TaskAnswers,
    file: RowFile,
    partial: PartialFile,
    options: PredictOptions,
    bad: BadRows | None,
    report: Callable[[int], None],
) -> None:
    """Predict and write all rows behind those that are done."""
    assert options.format is not None
    writer, done = Writer(answers.task, options.format, options.texts), partial.done
    errors: list[DataError] = []
    rows = islice(until_bad(file.rows(bad), errors), done.rows, None)
    for ahead in stretches(rows, STRETCH_ROWS, STRETCH_CHARACTERS):
        dropped = None if bad is None else BadRows()
        good, predictions, cut = answered(answers, ahead, dropped)
        text = "" if done.rows else writer.header(ahead[0])
        text += "".join(map(writer.write, good, predictions))
        done.cut += cut
        partial.commit(text, len(ahead), [(place.line, what) for place, what in dropped or ()])
        report(done.rows)
    if bad is not None:
        for line, what in done.dropped:
            bad.add(Place(file.path, line), what)
    for error in errors:
        what = f"{error.what}; what was predicted before it is in {partial.partial}"
        raise DataError(what, error.path, error.line) from error


def until_bad(rows: Iterable[Row], errors: list[DataError]) -> Iterator[Row]:
    """The rows before the first bad one, whose error goes to `errors`."""
    try:
        yield from rows
    except DataError as error:
        errors.append(error)
