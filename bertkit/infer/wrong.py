"""The wrong cases of an evaluation, those that the model was surest of first."""

from __future__ import annotations

import heapq
import os
import tempfile
import weakref
from pathlib import Path
from typing import Any

import msgspec

from bertkit.tasks.outcomes import Outcome
from bertkit.tasks.records import ChoiceRow, QuestionRow, Row, TagRow, TextRow


class WrongCases:
    """A JSONL file of the wrong rows by falling confidence; for regression by falling error.

    Rows wait in an unnamed file beside the result: memory holds three numbers for each of at most
    `limit` rows, never a text.

    Args:
        path: the file; written by `close`, in one go.
        limit: how many rows at most, those of the highest confidence.
    """

    def __init__(self, path: Path, limit: int = 10_000) -> None:
        self.path, self.limit, self.seen = path, limit, 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._spool = tempfile.TemporaryFile(dir=path.parent)
        # An evaluation that ends in an error never gets to `close`.
        weakref.finalize(self, self._spool.close)
        # (confidence, minus the row's number, offset): the least sure, of equals the last, on top.
        self._kept: list[tuple[float, int, int]] = []
        self._end = 0

    def add(self, row: Row, outcome: Outcome) -> None:
        """Take a row if it is wrong."""
        if not outcome.wrong:
            return
        self.seen += 1
        place = (outcome.confidence, -self.seen, self._end)
        if len(self._kept) == self.limit and place < self._kept[0]:
            return
        line = msgspec.json.encode(case(row, outcome)) + b"\n"
        self._spool.write(line)
        self._end += len(line)
        (heapq.heappush if len(self._kept) < self.limit else heapq.heappushpop)(self._kept, place)

    def close(self) -> int:
        """Write the file; returns how many rows it holds."""
        unfinished = self.path.with_name(self.path.name + ".tmp")
        with self._spool, unfinished.open("wb") as file:
            for _, _, offset in sorted(self._kept, reverse=True):
                self._spool.seek(offset)
                file.write(self._spool.readline())
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(self.path)
        return len(self._kept)


def case(row: Row, outcome: Outcome) -> dict[str, Any]:
    """A wrong row as people want to see it."""
    found: dict[str, Any] = {
        "id": row.id,
        "file": row.place.path,
        "line" if isinstance(row.place.line, int) else "place": row.place.line,
        "confidence": outcome.confidence,
        "gold": outcome.gold,
        "predicted": outcome.predicted,
    }
    match row:
        case TextRow(text=text, pair=pair):
            return found | {"text": text} | ({} if pair is None else {"pair": pair})
        case TagRow(text=text):
            return found | {"text": text}
        case QuestionRow(question=question, context=context):
            return found | {"question": question, "context": context}
        case ChoiceRow(context=context, question=question, choices=choices):
            return found | {"context": context, "question": question, "choices": choices}
