"""Records out of tables: CSV, TSV, JSONL, JSON lists, Parquet and Arrow.

A record is its place and a mapping from column names to values. Columns of a table without a
header are called "1", "2" and so on.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from bertkit.errors import DataError
from bertkit.tasks.inputs import TABLES, Input, Line, decode_json, json_items, say
from bertkit.tasks.reading import Reading
from bertkit.tasks.records import Where

SAMPLE = 100
MAX_FIELD = 1 << 26
BLANK = "blank lines, passed over"

Record = tuple[Where, dict[str, Any]]


@dataclass
class Table:
    """A source of records.

    Attributes:
        source: the file.
        format: what it is, for people.
        names: the columns; of JSON the keys of the sample in the order of their first appearance.
        header: the columns have names of the file's own.
        sample: the first records that are good.
        read: the records, from the first; bad ones go to the reading.
        labels: names of the classes by column, where the file has them (Hugging Face's ClassLabel).
    """

    source: Input
    format: str
    names: list[str]
    header: bool
    sample: list[dict[str, Any]]
    read: Callable[[Reading], Iterator[Record]]
    labels: dict[str, list[str]] = field(default_factory=dict)

    def columns(self) -> str:
        """The columns, for messages; where they have no names, the first row."""
        cells = (
            self.names
            if self.header
            else [str(x)[:20] for x in next(iter(self.sample), {}).values()]
        )
        shown = ", ".join(map(repr, cells[:20]))
        count = f"{len(self.names)} column{'s' if len(self.names) > 1 else ''}"
        return shown if self.header else f"{count} without names ({shown})"


def numbered(count: int) -> list[str]:
    """Names for columns without a header."""
    return [str(i + 1) for i in range(count)]


def open_json_lines(source: Input) -> Table:
    """JSONL: one object a line."""
    sample = []
    for line in source.first_lines(SAMPLE):
        try:
            value = decode_json(line, source, None) if line.strip() else None
        except DataError:
            continue  # told with its line when the rows are read
        if isinstance(value, dict):
            sample.append(value)

    def read(reading: Reading) -> Iterator[Record]:
        for number, line in source.lines():
            if isinstance(line, DataError):
                reading.refuse(line)
            elif line.strip():
                try:
                    yield number, _object(decode_json(line, source, number), source, number)
                except DataError as error:
                    reading.refuse(error)
            else:
                reading.note(number, BLANK)

    return Table(source, "JSON lines", _keys(sample), True, sample, read)


def open_json(source: Input) -> Table:
    """A JSON file that is a list of objects, or an object with such a list under "data"."""

    def read(reading: Reading) -> Iterator[Record]:
        for number, value in enumerate(json_items(source, "data"), start=1):
            place = f"row {number}"
            try:
                yield place, _object(value, source, place)
            except DataError as error:
                reading.refuse(error)

    values = islice(json_items(source, "data"), SAMPLE)
    sample = [value for value in values if isinstance(value, dict)]
    return Table(source, "JSON list", _keys(sample), True, sample, read)


def _object(value: Any, source: Input, place: Where) -> dict[str, Any]:
    if not isinstance(value, dict):
        kind = type(value).__name__
        raise source.error(f"broken JSON: an object is expected, not a {kind}", place)
    return value


def _keys(sample: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for record in sample for key in record))


def open_separated(
    source: Input, separator: str, header: Callable[[list[str], list[list[str]]], bool]
) -> Table:
    """CSV (quotes are CSV's) or, where the separator is a tab, TSV (quotes are plain characters).

    Args:
        source: the file.
        separator: one character.
        header: tells, from the first row and those behind it, whether the first one names columns.
    """
    split = _tab_rows if separator == "\t" else _quoted_rows
    lines: Iterator[Line] = enumerate(source.first_lines(SAMPLE), start=1)
    rows = [row for _, row in split(lines, separator) if row and not isinstance(row, DataError)]
    if not rows:
        raise source.error("broken file: no line of it can be read")
    first, rest = rows[0], rows[1:]
    has_header = header(first, rest)
    names = [cell.strip() for cell in first] if has_header else numbered(len(first))
    if has_header and not names[0]:
        names[0] = "index" if "index" not in names else "0"  # pandas leaves its index nameless
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise source.error(f"the column {twice!r} stands twice in the header", 1)
    good = [row for row in (rest if has_header else rows) if len(row) == len(names)]
    sample = [dict(zip(names, row, strict=True)) for row in good]

    def read(reading: Reading) -> Iterator[Record]:
        found = split(source.lines(), separator)
        if has_header:
            next((row for _, row in found if row), None)
        for number, row in found:
            if isinstance(row, DataError):
                reading.refuse(DataError(row.what, source.path, row.line))
            elif not row:
                reading.note(number, BLANK)
            elif len(row) != len(names):
                what = f"columns: {len(row)} of them here, {len(names)} in the first line"
                reading.refuse(source.error(what, number))
            else:
                yield number, dict(zip(names, row, strict=True))

    called = {"\t": "tab-separated", ",": "CSV"}.get(separator, f"CSV with {separator!r}")
    return Table(source, called, names, has_header, sample, read)


def _tab_rows(lines: Iterator[Line], separator: str) -> Iterator[tuple[int, list[str] | DataError]]:
    for number, line in lines:
        if isinstance(line, DataError):
            yield number, line
        else:
            yield number, line.split(separator) if line.strip() else []


def _quoted_rows(
    lines: Iterator[Line], separator: str
) -> Iterator[tuple[int, list[str] | DataError]]:
    """Rows of a CSV file, each with the line that it begins in."""
    csv.field_size_limit(MAX_FIELD)
    taken = 0  # lines of the row that is being read
    errors: list[tuple[int, DataError]] = []
    at, ended = 0, False

    def feed() -> Iterator[str]:
        nonlocal taken, at, ended
        for number, line in lines:
            at = number
            if isinstance(line, DataError):
                errors.append((number, line))
            else:
                taken += 1
                yield line + "\n"
        ended = True

    rows = csv.reader(feed(), delimiter=separator)
    row: list[str] | None = []
    while row is not None:
        problem = ""
        try:
            row = next(rows, None)
            # Only within quotes is another line asked for.
            problem = "the file ends inside of quotes" if row is not None and ended else ""
        except csv.Error as error:
            problem = say(error)
        begins = at - taken + 1
        yield from errors
        if problem:
            what = f"broken CSV: {problem}; is a quote left open?"
            yield begins, DataError(what, None, begins)
        elif row is not None:
            yield begins, row
        errors.clear()
        taken = 0


def open_columnar(source: Input) -> Table:
    """Parquet, or Arrow as `datasets` saves it."""
    import pyarrow as pa

    try:
        schema = _schema(source)
        sample = [row for _, row in islice(_columnar_rows(source), SAMPLE)]
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _columnar_error(source, error) from error

    def read(reading: Reading) -> Iterator[Record]:
        try:
            yield from _columnar_rows(source)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            reading.refuse(_columnar_error(source, error))

    called = source.kind.removeprefix(".").capitalize()
    return Table(source, called, schema.names, True, sample, read, _class_names(schema))


def _columnar_error(source: Input, error: Exception) -> DataError:
    what = say(error)[:200]
    return source.error(f"broken file: cannot be read as {source.kind.removeprefix('.')}: {what}")


def _schema(source: Input) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if source.kind == ".parquet":
        return pq.read_schema(source.path)
    with pa.OSFile(source.path, "rb") as file:
        return _arrow(file).schema


def _arrow(file: Any) -> Any:
    import pyarrow as pa

    magic = file.read(6) == b"ARROW1"
    file.seek(0)
    return pa.ipc.open_file(file) if magic else pa.ipc.open_stream(file)


def _columnar_rows(source: Input) -> Iterator[Record]:
    number = 0
    for batch in _batches(source):
        for row in batch.to_pylist():
            number += 1
            yield f"row {number}", row


def _batches(source: Input) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if source.kind == ".parquet":
        with pq.ParquetFile(source.path, pre_buffer=False) as file:
            yield from file.iter_batches(batch_size=256)
    else:
        with pa.OSFile(source.path, "rb") as file:
            opened = _arrow(file)
            if hasattr(opened, "num_record_batches"):
                yield from map(opened.get_batch, range(opened.num_record_batches))
            else:
                yield from opened


def _class_names(schema: Any) -> dict[str, list[str]]:
    """Names of classes that Hugging Face's `datasets` leaves in a file, by column."""
    try:
        info = json.loads((schema.metadata or {})[b"huggingface"])
        features = info["info"]["features"].items()
        found = {}
        for column, feature in features:
            inner = feature.get("feature", feature) if isinstance(feature, dict) else feature[0]
            if isinstance(inner, dict) and inner.get("_type") == "ClassLabel":
                found[column] = list(map(str, inner["names"]))
        return found
    except (KeyError, ValueError, TypeError, AttributeError, IndexError):
        return {}


def open_table(source: Input, header: Callable[[list[str], list[list[str]]], bool]) -> Table:
    """The records of a file of any of these kinds, told by its extension and first characters."""
    if source.kind in TABLES:
        return open_columnar(source)
    form = json_form(source)
    if form:
        return open_json_lines(source) if form == "lines" else open_json(source)
    return open_separated(source, separator_of(source), header)


def separator_of(source: Input) -> str:
    """What separates columns: of .tsv a tab, of .csv what its first line holds, else a tab."""
    first = source.first_lines(1)[0]
    if source.kind == ".csv":
        return next((mark for mark in ",\t;" if mark in first), ",")
    return "\t"


def json_form(source: Input) -> str:
    """Tell JSONL ("lines") from a file that is one JSON value ("document") and from others ("")."""
    if source.kind in (".jsonl", ".ndjson"):
        return "lines"
    lines = [line for line in source.first_lines(3) if line.strip()]
    first = lines[0].lstrip() if lines else ""
    if source.kind != ".json" and not _looks_like_json(source):
        return ""
    if not first.startswith("{"):
        return "document"
    value = _loads(first)
    if value is None:
        # A bad line among lines is told later; the first line of one long value is no value.
        return "lines" if len(lines) > 1 and isinstance(_loads(lines[1]), dict) else "document"
    alone = len(lines) == 1 and isinstance(value, dict) and isinstance(value.get("data"), list)
    return "document" if alone else "lines"


def _loads(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _looks_like_json(source: Input) -> bool:
    """The beginning is an object with a key, or a list of objects, lists or strings."""
    text = source.head[:4096].decode("utf-8", "replace").removeprefix("\ufeff")
    begins = "".join(text.split())[:3]
    return begins.startswith(('{"', "{}", "[{", '[["', "[[["))
