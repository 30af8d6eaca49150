"""Predictions to a stream: what comes through standard input is answered as soon as it is there."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bertkit.errors import DataError
from bertkit.infer.engine import stretches
from bertkit.infer.outputs import Writer, choose_format
from bertkit.infer.predict import (
    STRETCH_CHARACTERS,
    STRETCH_ROWS,
    Predicted,
    PredictOptions,
    Say,
    answered,
    cut_notes,
    open_file,
    until_bad,
)
from bertkit.tasks.answers import TaskAnswers
from bertkit.tasks.formats import BadRows


def predict_stream(
    answers: TaskAnswers,
    path: str | Path,
    write: Callable[[str], None],
    options: PredictOptions | None = None,
    *,
    say: Say = lambda line: None,
) -> Predicted:
    """Pass predictions on in the order of the rows.

    From standard input no row waits for another: whatever has arrived is answered before more is
    waited for.

    Args:
        answers: the model.
        path: the file, or "-".
        write: takes text, and has it on its way when it returns.
        options: how.
        say: takes remarks.

    Raises:
        UsageError: the format does not fit.
        DataError: a row is bad; those before it have been answered.
    """
    options, path = options or PredictOptions(), str(path)
    format = choose_format(None, options.format, answers.task.name)
    stream = _Stream(answers, Writer(answers.task, format, options.texts), write, options)
    errors: list[DataError] = []
    with told_before_waiting(stream.answer if path == "-" else lambda: None) as raised:
        file = open_file(path, answers.task, options.columns, say, labels=False)
        rows = until_bad(file.rows(stream.bad), errors)
        if path == "-":
            for row in rows:
                stream.take(row)
        else:
            for ahead in stretches(rows, STRETCH_ROWS, STRETCH_CHARACTERS):
                stream.pending = ahead
                stream.answer()
        for stopped in raised:
            raise stopped
    stream.answer()
    for error in errors:
        raise error
    bad = stream.bad if stream.bad is not None else BadRows()
    notes = cut_notes(answers.task, stream.cut, stream.rows)
    return Predicted(stream.rows, 0, (), bad, file.findings, stream.cut, notes)


class _Stream:
    """Rows that wait to be answered.

    Attributes:
        pending: the rows.
        rows: how many have been answered.
        cut: how many of them lost their ends.
        bad: those that were left out; None: they are not to be.
    """

    def __init__(
        self,
        answers: TaskAnswers,
        writer: Writer,
        write: Callable[[str], None],
        options: PredictOptions,
    ) -> None:
        self.answers, self.writer, self.write = answers, writer, write
        self.pending: list[Any] = []
        self.rows = self.cut = 0
        self.bad = BadRows() if options.skip_bad_rows else None

    def take(self, row: Any) -> None:
        """Let one more wait, if not too many do."""
        self.pending.append(row)
        if len(self.pending) >= STRETCH_ROWS:
            self.answer()

    def answer(self) -> None:
        """Answer all that wait."""
        ahead, self.pending = self.pending, []
        if not ahead:
            return
        good, predictions, cut = answered(self.answers, ahead, self.bad)
        if not good:
            return
        self.cut += cut
        header = "" if self.rows else self.writer.header(good[0])
        self.rows += len(good)
        self.write(header + "".join(map(self.writer.write, good, predictions)))


@contextmanager
def told_before_waiting(act: Callable[[], None]) -> Iterator[list[BaseException]]:
    """While this is open, `act` is called whenever reading standard input is about to wait.

    Yields:
        What `act` has raised, if anything; standard input then seems to end. (The reader would take
        an error of writing for one of its own.)
    """
    raised: list[BaseException] = []
    before = sys.stdin
    try:
        handle = before.fileno()
    except (OSError, ValueError, AttributeError):  # it is no file, and never waits
        yield raised
        return

    class Watched:
        """As much of a binary file as readers of standard input need."""

        def read1(self, most: int) -> bytes:
            if raised:
                return b""
            try:
                if not _is_ready(handle):
                    act()
            except Exception as error:
                raised.append(error)
                return b""
            return os.read(handle, most)

        read = read1

    class Input:
        buffer = Watched()

    sys.stdin = Input()
    try:
        yield raised
    finally:
        sys.stdin = before


def _is_ready(handle: int) -> bool:
    try:
        return bool(select.select([handle], [], [], 0)[0])
    except OSError:  # Windows cannot tell
        return False
