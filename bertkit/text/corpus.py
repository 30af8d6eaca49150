"""Documents out of text files of every common kind, streamed: memory does not grow with the corpus.

    .txt and any other name   blank lines bound documents, each line is a paragraph
    .jsonl .ndjson .json      one JSON object a line, a named field: a string or a list of strings
    .csv .tsv                 a header line, a named field; in .tsv quotes are plain characters
    .parquet .arrow           a named column; .arrow as `datasets` saves it
    .gz .bz2 .xz .zst         any of the text kinds, compressed
    a folder                  all files of these kinds in it, or a saved Hugging Face dataset
    a glob, or -              what matches; text from standard input

Text is read by lines of bounded length, so neither a file without line ends nor a decompression
bomb takes more memory than a good file. A document that outgrows MAX_DOCUMENT_CHARS is cut between
two paragraphs into several: thus a file of gigabytes without a blank line, which is one document,
is streamed like any other. In the fields of rows each line is a paragraph.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, Literal

from bertkit.checkpoint.files import json_kind
from bertkit.errors import DataError, UsageError
from bertkit.text.column import BadFile, arrow_column, column_number, parquet_column
from bertkit.text.sources import BROKEN, ROWS, expand_sources, kind_of, open_source

MAX_DOCUMENT_CHARS = 1_000_000
KEPT_MESSAGES = 10


@dataclass(frozen=True, slots=True)
class Document:
    """One document.

    Attributes:
        paragraphs: its lines that are not blank, trimmed.
        source: the file it stands in, "-" for standard input.
        line: the line of its first paragraph, or its row in a table, from 1.
    """

    paragraphs: tuple[str, ...]
    source: str
    line: int


@dataclass
class CorpusReport:
    """What was read, and what was left out with skip_bad_rows.

    Attributes:
        files, documents, characters: how much was read.
        cut: documents that were cut because they outgrew MAX_DOCUMENT_CHARS.
        skipped: how many rows or files were bad, by reason.
        first_bad: the first few of them, as file:line: what.
    """

    files: int = 0
    documents: int = 0
    characters: int = 0
    cut: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    first_bad: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Refuse a corpus of which every row was skipped.

        Raises:
            DataError: how many were bad, by reason, and the first of them.
        """
        if self.skipped and not self.documents:
            counts = ", ".join(f"{count:,} {reason}" for reason, count in self.skipped.items())
            raise DataError(f"no good row is left ({counts}); the first: {self.first_bad[0]}")


@dataclass(frozen=True)
class CorpusOptions:
    """How files are read.

    Attributes:
        field: the field, column or key that holds the text.
        documents: where documents end in plain text: "auto" at blank lines, "line" at each line,
            "file" at the end of the file.
        skip_bad_rows: count what is bad and go on, instead of raising.
        encoding: of text files; any in which a line end is the byte 10 (UTF-16 is not).
        max_line_chars: a longer line or field is bad.
    """

    field: str = "text"
    documents: Literal["auto", "line", "file"] = "auto"
    skip_bad_rows: bool = False
    encoding: str = "utf-8"
    max_line_chars: int = 1_000_000

    def __post_init__(self) -> None:
        try:
            plain = "\n".encode(self.encoding) == b"\n"
        except LookupError as error:
            raise UsageError(f"there is no text encoding {self.encoding!r}") from error
        if not plain:
            raise UsageError(f"{self.encoding} text is not read; {_to_utf8(self.encoding)}")
        if self.max_line_chars < 1:
            raise UsageError(f"max_line_chars is {self.max_line_chars}; say 1 or more")


def _to_utf8(encoding: str) -> str:
    return f"convert it to UTF-8: iconv -f {encoding} -t UTF-8 FILE > NEW"


def read_documents(
    sources: Sequence[str],
    options: CorpusOptions = CorpusOptions(),
    report: CorpusReport | None = None,
) -> Iterator[Document]:
    """Stream the documents of files, folders, globs or standard input.

    Raises:
        DataError: a source is missing, or bad and options.skip_bad_rows is not set.
    """
    report = CorpusReport() if report is None else report
    for source in expand_sources(sources):
        yield from read_documents_of(source, options, report)


def read_documents_of(
    source: str,
    options: CorpusOptions = CorpusOptions(),
    report: CorpusReport | None = None,
    name: str | None = None,
) -> Iterator[Document]:
    """Stream the documents of one file; see `read_documents`.

    `name` is what messages and documents call it, if not by its path.
    """
    report = CorpusReport() if report is None else report
    reader = _Reader(source, source if name is None else name, options, report)
    before = reader.report.documents, sum(reader.report.skipped.values())
    kind = kind_of(source)
    try:
        if kind in (".parquet", ".arrow"):
            yield from _from_rows(reader, _table_rows(reader, kind))
        elif kind in (".csv", ".tsv"):
            yield from _from_rows(reader, _csv_rows(reader, kind))
        elif kind in ROWS:
            yield from _from_rows(reader, _json_rows(reader))
        else:
            yield from _from_lines(reader)
    except BadFile as error:
        reader.bad(*error.args)
    except BROKEN as error:
        reader.bad("broken file", None, f"cannot be read: {_say(error)}")
    reader.report.files += 1
    if before == (reader.report.documents, sum(reader.report.skipped.values())):
        reader.bad("empty file", None, "there is no text in it")


def _say(error: BaseException) -> str:
    if isinstance(error, json.JSONDecodeError):  # its own text counts lines within the line
        return f"{error.msg} at column {error.colno}"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


@dataclass
class _Reader:
    """One file on its way through: where errors are raised or counted."""

    source: str
    name: str
    options: CorpusOptions
    report: CorpusReport

    def bad(self, reason: str, line: int | None, what: str) -> None:
        """Raise, or count and remember where skip_bad_rows is set."""
        error = DataError(f"{reason}: {what}", self.name, line)
        if not self.options.skip_bad_rows:
            raise DataError(f"{error.what} (or skip bad rows: --skip-bad-rows)", self.name, line)
        self.report.skipped[reason] += 1
        if len(self.report.first_bad) < KEPT_MESSAGES:
            self.report.first_bad.append(str(error))

    def document(self, paragraphs: list[str], line: int) -> Document:
        self.report.documents += 1
        self.report.characters += sum(map(len, paragraphs))
        return Document(tuple(paragraphs), self.name, line)


def _from_lines(reader: _Reader) -> Iterator[Document]:
    """Plain text: lines gathered into documents."""
    mode = reader.options.documents
    paragraphs: list[str] = []
    size = first = 0
    for number, line in _lines(reader):
        text = line.strip()
        ends = mode == "line" or (mode == "auto" and not text)
        if text:
            if size + len(text) > MAX_DOCUMENT_CHARS and paragraphs:
                reader.report.cut += 1
                yield reader.document(paragraphs, first)
                paragraphs, size = [], 0
            first = first if paragraphs else number
            paragraphs.append(text)
            size += len(text)
        if ends and paragraphs:
            yield reader.document(paragraphs, first)
            paragraphs, size = [], 0
    if paragraphs:
        yield reader.document(paragraphs, first)


def _from_rows(reader: _Reader, rows: Iterable[tuple[int, object]]) -> Iterator[Document]:
    """Rows of a table: the text of each is a document, its lines are the paragraphs."""
    limit = reader.options.max_line_chars
    name = reader.options.field
    for line, value in rows:
        values = value if isinstance(value, list) else [value]
        texts = [v for v in values if isinstance(v, str)]
        if len(texts) < len(values):
            kind = json_kind(value)
            reader.bad("not text", line, f"field {name!r} is {kind}, not a string")
            continue
        text = "\n".join(texts)
        if len(text) > limit:
            reader.bad("line too long", line, f"over {limit} characters; raise --max-line-chars")
        elif "\0" in text:
            reader.bad("NUL", line, f"field {name!r} holds a NUL character; is this text?")
        elif not _well_formed(text):
            reader.bad("bad encoding", line, f"field {name!r} holds half a surrogate pair")
        else:
            paragraphs = [p for p in map(str.strip, text.splitlines()) if p]
            if paragraphs:
                yield reader.document(paragraphs, line)


def _well_formed(text: str) -> bool:
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            return False
    return True


def _json_rows(reader: _Reader) -> Iterator[tuple[int, object]]:
    name = reader.options.field
    for number, line in _lines(reader):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            what = f"one JSON object a line is expected ({_say(error)})"
            reader.bad("broken JSON", number, what)
            continue
        if not isinstance(row, dict):
            what = f"a JSON object is expected, not {json_kind(row)}"
            reader.bad("broken JSON", number, what)
        elif name not in row:
            known = ", ".join(map(repr, list(row)[:10])) or "none"
            what = f"no field {name!r}; there are {known}; name one with --field"
            reader.bad("missing field", number, what)
        else:
            yield number, row[name]


def _csv_rows(reader: _Reader, kind: str) -> Iterator[tuple[int, object]]:
    """Rows after the header. A quote that is never closed ends at the length limit."""
    name = reader.options.field
    csv.field_size_limit(reader.options.max_line_chars)
    lines = (line + "\n" for _, line in _lines(reader))
    if kind == ".tsv":
        rows = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        rows = csv.reader(lines)
    column = -1
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:
            what = f"{_say(error)}; is a quote left open?"
            reader.bad("broken CSV", rows.line_num, what)
            continue
        if row is None:
            return
        if not row:
            continue
        if column < 0:
            column = column_number(row, name, rows.line_num)
        elif column >= len(row):
            what = f"{len(row)} columns, {name!r} would be number {column + 1}"
            reader.bad("missing field", rows.line_num, what)
        else:
            yield rows.line_num, row[column]


def _table_rows(reader: _Reader, kind: str) -> Iterator[tuple[int, object]]:
    """Rows of a Parquet file or an Arrow stream, a batch at a time."""
    import pyarrow as pa

    number = 0
    try:
        batches = parquet_column if kind == ".parquet" else arrow_column
        for column in batches(reader.source, reader.options.field):
            for value in column:
                number += 1
                try:
                    yield number, value.as_py()
                except UnicodeDecodeError:
                    reader.bad("bad encoding", number, "the field is not UTF-8")
    except pa.ArrowException as error:
        what = f"cannot be read as {kind[1:]}: {_say(error)[:200]}"
        reader.bad("broken file", number or None, what)


def _lines(reader: _Reader) -> Iterator[tuple[int, str]]:
    """(number, text) of each good line, without its end; bad ones go to `reader.bad`."""
    options = reader.options
    utf8 = codecs.lookup(options.encoding).name in ("utf-8", "utf-8-sig")
    too_long = f"over {options.max_line_chars} characters; raise --max-line-chars"
    with open_source(reader.source) as file:
        for number, raw in enumerate(_raw_lines(reader, file), start=1):
            if number == 1 and utf8 and raw is not None:
                raw = raw.removeprefix(codecs.BOM_UTF8)
                if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                    raise BadFile("bad encoding", None, f"this is UTF-16; {_to_utf8('UTF-16')}")
            if raw is None:
                reader.bad("line too long", number, too_long)
            elif b"\0" in raw:
                reader.bad("NUL", number, "a NUL byte; is this text, and in UTF-8?")
            else:
                try:
                    text = raw.decode(options.encoding).rstrip("\r\n")
                except UnicodeDecodeError as error:
                    place = f"byte {error.start + 1} of the line"
                    what = f"not {options.encoding} at {place}; name the right --encoding"
                    reader.bad("bad encoding", number, what)
                    continue
                if len(text) > options.max_line_chars:
                    reader.bad("line too long", number, too_long)
                else:
                    yield number, text


def _raw_lines(reader: _Reader, file: BinaryIO) -> Iterator[bytes | None]:
    """The lines as bytes with their ends; None for one that is too long, which is passed over."""
    # No character of UTF-8, GB 18030 and their like takes more than four bytes.
    most = 4 * reader.options.max_line_chars + 2
    number = 0
    while True:
        try:
            raw: bytes | None = file.readline(most)
            if raw is not None and len(raw) == most and not raw.endswith(b"\n"):
                raw = None
                while (rest := file.readline(1 << 20)) and not rest.endswith(b"\n"):
                    pass
        except BROKEN as error:
            reader.bad("broken file", number + 1, f"it breaks off here: {_say(error)}")
            return
        if raw == b"":
            return
        number += 1
        yield raw
