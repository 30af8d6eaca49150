"""Minimal pairs: of two texts that differ in one point, does the model prefer the good one?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bertkit.errors import UsageError
from bertkit.tasks.columns import Columns
from bertkit.tasks.formats import open_rows
from bertkit.tasks.inputs import TABLES, Input
from bertkit.tasks.records import Place, TextRow

# Names of columns that are known without being told: BLiMP's, CLiMP's, and plain ones.
NAMES = (("sentence_good", "sentence_bad"), ("good", "bad"), ("acceptable", "unacceptable"))
KINDS = ("UID", "phenomenon", "linguistics_term", "category", "kind", "type")


@dataclass(frozen=True, slots=True)
class MinimalPair:
    """Two texts, the first of which should be the likelier one; `kind` is "" where none is told."""

    good: str
    bad: str
    kind: str
    place: Place


def read_pairs(
    path: str | Path, good: str | None = None, bad: str | None = None, kind: str | None = None
) -> Iterator[MinimalPair]:
    """Stream the pairs of a CSV, TSV, JSONL or Parquet file.

    Without names, columns that are called as in BLiMP (sentence_good, sentence_bad, UID) or good
    and bad are taken, else the first two columns of a file without a header.

    Args:
        path: the file, also compressed; "-" is standard input, and then names must be given.
        good: the column of the good text: a name, or a number from 1 without a header.
        bad: of the bad text.
        kind: of what they differ in; pairs are counted by it.

    Raises:
        UsageError: only one of both columns is named.
        DataError: the file is bad, with the line.
    """
    if (good is None) != (bad is None):
        raise UsageError("name both columns, --good and --bad, or neither")
    columns = Columns(text=good, pair=bad, label=kind) if good else _found(str(path), kind)
    for row in open_rows(path, "classify", columns, labels=columns.label is not None).rows():
        assert isinstance(row, TextRow)
        assert row.pair is not None
        yield MinimalPair(row.text, row.pair, str(row.label or ""), row.place)


def _found(path: str, kind: str | None) -> Columns:
    """The columns of a file whose names nobody told."""
    if path == "-":
        raise UsageError("standard input: name its columns, --good and --bad")
    source = Input(path)
    first = "\n".join(source.first_lines(1)) if source.kind not in TABLES else _schema(path)
    for good, bad in NAMES:
        if good in first and bad in first:
            kinds = (name for name in KINDS if f'"{name}"' in first or name in _cells(first))
            return Columns(text=good, pair=bad, label=kind or next(kinds, None))
    return Columns(text="1", pair="2", label=kind, header=False)


def _cells(line: str) -> list[str]:
    return [cell.strip().strip('"') for cell in line.replace("\t", ",").split(",")]


def _schema(path: str) -> str:
    import pyarrow.parquet as pq

    return ",".join(pq.read_schema(path).names)
