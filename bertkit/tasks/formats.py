"""From a labelled file to rows, whatever the file's format: `open_rows`.

Formats are told by extension and content:

    classify, regress   label<TAB>text<TAB>pair with or without a header, GLUE's TSV, CSV, JSONL,
                        Parquet; a text a line
    tag                 CoNLL columns, CLUENER, doccano, {text, entities}, lists of tokens; a text
                        a line
    qa                  SQuAD 1.1 and 2.0, DRCD, CMRC 2018, tables with question and context
    choose              SWAG, RACE, C3, ARC, tables with choices
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from bertkit.errors import DataError
from bertkit.tasks.choices import C3File, ChoiceTable
from bertkit.tasks.columns import Columns, is_header
from bertkit.tasks.conll import ConllFile, holds_tags, looks_like_conll
from bertkit.tasks.entities import EntityTable
from bertkit.tasks.inputs import TABLES, Input
from bertkit.tasks.labelled import TextTable
from bertkit.tasks.reading import BadRows, Findings, Reading
from bertkit.tasks.records import Row, TagRow, TextRow
from bertkit.tasks.squad import QuestionTable, SquadFile
from bertkit.tasks.summary import Summary, summarize
from bertkit.tasks.tables import BLANK, Table, json_form, open_table

__all__ = ["BadRows", "Columns", "Findings", "RowFile", "Summary", "open_rows", "summarize"]

# The columns of what `predict` writes without --with_text.
PREDICTED = {
    frozenset(names.split())
    for names in (
        "id prediction", "id label prediction", "id labels prediction", "id label score",
        "id labels scores", "id score", "id entity_group score word start end",
        "id answer score start end null_odds", "id label score choice",
    )
}  # fmt: skip


class _Reader(Protocol):
    """One format: what was understood of a file, and its rows."""

    labelled: bool

    def describe(self) -> list[str]: ...

    def rows(self, reading: Reading) -> Iterator[Row]: ...


class RowFile:
    """A labelled file, understood and ready to be read.

    Attributes:
        path: as the user named it.
        task: what its rows are for.
        labelled: it has labels, and they are wanted.
        header: its columns have names, or need none.
        pairs: its rows are pairs of texts (classify, regress); None: neither pairs nor texts.
        findings: what the last pass over the rows mended or left out on purpose.
    """

    def __init__(self, path: str, task: str, reader: _Reader, labels: bool) -> None:
        self.path, self.task, self._reader, self._labels = path, task, reader, labels
        self.labelled = reader.labelled and labels
        self.pairs: bool | None = getattr(reader, "pairs", None)
        self.header = getattr(getattr(reader, "table", None), "header", True)
        self.findings = Findings()

    @property
    def shown(self) -> str:
        """Its path, for people."""
        return "standard input" if self.path == "-" else self.path

    def check_labelled(self) -> None:
        """Refuse a file that says nothing to learn from or to measure by.

        Raises:
            DataError: it has no labels.
        """
        if self.labelled:
            return
        taken = self.describe()[-1]
        what = f"there are no labels in it ({taken}); to have it labelled: bertkit predict"
        if (whole := getattr(self._reader, "whole", None)) is not None:
            what = f"there are no entities in it, but texts with a label ({whole}): for classify"
        raise DataError(what, self.path)

    def describe(self) -> list[str]:
        """Lines for people: the format, and what the columns were taken for."""
        return self._reader.describe()

    def rows(self, bad: BadRows | None = None) -> Iterator[Row]:
        """Stream the rows; a file can be read again, standard input cannot.

        Args:
            bad: collects bad rows, which are skipped; None: the first one raises.

        Raises:
            DataError: a row is bad, with file and line; the file breaks off, or has no rows.
        """
        self.findings = Findings()
        empty = True
        for row in self._reader.rows(Reading(self.path, bad, self.findings, self._labels)):
            empty = False
            yield row
        if empty and not bad and not self.findings:
            raise DataError("empty file: there are no rows in it", self.path)


def open_rows(
    path: str | Path, task: str, columns: Columns | None = None, *, labels: bool = True
) -> RowFile:
    """Find out what a file is and how its rows are read.

    Args:
        path: a file, also compressed (.gz .bz2 .xz .zst), or "-" for standard input.
        task: "classify", "regress", "tag", "qa" or "choose".
        columns: what the user says about the file.
        labels: whether labels are wanted. Where they are not (prediction), rows are unlabelled,
            none is left out, and no label can be wrong.

    Raises:
        DataError: the file is missing, cannot be read, is for another task, or can be understood
            in several ways.
    """
    columns = columns or Columns()
    source = Input(str(path))
    if columns.format is not None and source.kind not in TABLES:
        source.kind = "." + columns.format
    elif task != "tag" and holds_tags(source):
        raise source.error(f"words with tags, a word a line; that is for tag, not for {task}")
    return RowFile(source.path, task, OPENERS[task](source, columns), labels)


def _open_texts(source: Input, columns: Columns) -> _Reader:
    if _is_lines(source):
        return LinesFile(source, tags=False)
    return TextTable(_table(source, columns), columns, numeric=False)


def _open_numbers(source: Input, columns: Columns) -> _Reader:
    if _is_lines(source):
        return LinesFile(source, tags=False)
    return TextTable(_table(source, columns), columns, numeric=True)


def _open_tags(source: Input, columns: Columns) -> _Reader:
    if source.kind in (*TABLES, ".csv") or json_form(source):
        return EntityTable(_table(source, columns), columns)
    if source.kind != ".lines" and looks_like_conll(source):
        return ConllFile(source, columns)
    if source.kind == ".tsv" or (source.kind != ".lines" and not _is_lines(source)):
        return EntityTable(_table(source, columns), columns)
    return LinesFile(source, tags=True)


def _open_questions(source: Input, columns: Columns) -> _Reader:
    articles = b'"qas"' in source.head or b'"paragraphs"' in source.head
    if articles and source.kind not in TABLES and json_form(source) == "document":
        return SquadFile(source, columns)
    return QuestionTable(_table(source, columns), columns)


def _open_choices(source: Input, columns: Columns) -> _Reader:
    if source.kind not in TABLES and json_form(source) == "document":
        if b"".join(source.head[:4096].split()).startswith((b"[[", b"\xef\xbb\xbf[[")):
            return C3File(source)
    return ChoiceTable(_table(source, columns), columns)


OPENERS: dict[str, Callable[[Input, Columns], _Reader]] = {
    "classify": _open_texts,
    "regress": _open_numbers,
    "tag": _open_tags,
    "qa": _open_questions,
    "choose": _open_choices,
}


def _table(source: Input, columns: Columns) -> Table:
    told = (columns.text, columns.pair, columns.label, columns.id)

    def header(first: list[str], rest: list[list[str]]) -> bool:
        if columns.header is not None:
            return columns.header
        named = any(name in map(str.strip, first) for name in told if name is not None)
        return named or is_header(first, rest)

    table = open_table(source, header)
    if frozenset(table.names) in PREDICTED:
        what = "these are predictions without their texts; give the file that they were made for"
        raise source.error(f"{what}, or predict again with --with_text")
    return table


def _is_lines(source: Input) -> bool:
    """A file with a text on each line: no table by its name, and no tab where one would be."""
    if source.kind in (*TABLES, ".csv", ".tsv") or json_form(source):
        return False
    first = next((line for line in source.first_lines() if line.strip()), "")
    return source.kind == ".lines" or "\t" not in first


class LinesFile:
    """Plain text without labels: each line is a row, its id the line's number from 0.

    Blank lines have nothing to answer: they are passed over and told.

    Attributes:
        labelled: never.
        pairs: never; None where the texts are to be tagged.
    """

    labelled = False

    def __init__(self, source: Input, tags: bool) -> None:
        self.source, self.tags = source, tags
        self.pairs = None if tags else False

    def describe(self) -> list[str]:
        """What was understood."""
        return ["plain text, a row a line, no labels"]

    def rows(self, reading: Reading) -> Iterator[Row]:
        """The lines."""
        for line, text in self.source.lines():
            place = reading.place(line)
            if isinstance(text, DataError):
                reading.refuse(text)
            elif not text.strip():
                reading.note(line, BLANK)
            elif self.tags:
                yield TagRow(str(line - 1), text, None, None, place)
            else:
                yield TextRow(str(line - 1), text, None, None, place)
