"""Minimal pairs: of two texts that differ in one point, does the model prefer the good one?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bertkit.errors import UsageError
from bertkit.tasks.columns import Columns, is_header, plain_name
from bertkit.tasks.formats import open_rows
from bertkit.tasks.inputs import Input
from bertkit.tasks.records import Place, TextRow
from bertkit.tasks.tables import open_table

# Names of columns that are known without being told, as `plain_name` writes them: BLiMP's, CLiMP's,
# and plain ones.
NAMES = [
    tuple(pair.split("|"))
    for pair in (
        "sentence_good|sentence_bad", "good_sentence|bad_sentence", "good|bad", "right|wrong",
        "correct|incorrect", "better|worse", "grammatical|ungrammatical",
        "acceptable|unacceptable", "sentence_grammatical|sentence_ungrammatical",
        "good_text|bad_text", "正确|错误", "好|坏", "好句|坏句", "正确句|错误句",
    )
]  # fmt: skip
KINDS = "uid phenomenon linguistics_term category kind type topic 类别 类型 现象".split()


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

    Without names, columns that are called as in BLiMP (sentence_good, sentence_bad, UID), or good
    and bad, right and wrong and the like (NAMES) are taken, else the first two of a file without
    a header.

    Args:
        path: the file, also compressed; "-" is standard input, and then names must be given.
        good: the column of the good text: a name, or a number from 1 without a header.
        bad: of the bad text.
        kind: of what they differ in; pairs are counted by it.

    Raises:
        UsageError: only one of both columns is named.
        DataError: the file is bad, with the line; or its columns have names that are not known.
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
    table = open_table(source, _names_columns)
    names = {plain_name(name): name for name in table.names}
    for good, bad in NAMES:
        if good in names and bad in names:
            kind = kind or next((names[name] for name in KINDS if name in names), None)
            return Columns(text=names[good], pair=names[bad], label=kind, header=True)
    if table.header or len(table.names) < 2:
        raise source.error(
            f"cannot tell the better text from the worse: there are {table.columns()}; "
            "name both columns, --good and --bad"
        )
    return Columns(text="1", pair="2", label=kind, header=False)


def _names_columns(first: list[str], rest: list[list[str]]) -> bool:
    """The first row is a header: a known name is in it, or single words stand above texts."""
    known = {name for pair in NAMES for name in pair} | set(KINDS)
    words = all(len(cell.split()) < 2 for cell in first)
    texts = any(len(cell.split()) > 1 for row in rest for cell in row)
    return (
        is_header(first, rest) or not known.isdisjoint(map(plain_name, first)) or (words and texts)
    )
