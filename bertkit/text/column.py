"""One column of a table, by its name: where it is, and of Parquet and Arrow files its batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


class BadFile(Exception):
    """A file that cannot be read, or no further: the reason, the line, what to do."""


def column_number(names: list[str], name: str, line: int | None = None) -> int:
    """Where the column is, from 0.

    Raises:
        BadFile: there is none of that name.
    """
    if name not in names:
        known = ", ".join(map(repr, names[:10]))[:300]
        what = f"no column {name!r}; there are {known}; name one with --field"
        raise BadFile("file without the field", line, what)
    return names.index(name)


def parquet_column(path: str, name: str) -> Iterator[Any]:
    """Stream a column of a Parquet file, an Arrow array at a time.

    Raises:
        BadFile: see column_number.
        pyarrow.ArrowException: the file is broken.
    """
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, pre_buffer=False) as file:
        column_number(file.schema_arrow.names, name)
        for batch in file.iter_batches(batch_size=256, columns=[name]):
            yield batch.column(0)


def arrow_column(path: str, name: str) -> Iterator[Any]:
    """The same of an Arrow file, or a stream as `datasets` saves it."""
    import pyarrow as pa

    with pa.OSFile(path, "rb") as file:
        magic = file.read(6) == b"ARROW1"
        file.seek(0)
        if magic:
            table = pa.ipc.open_file(file)
            column_number(table.schema.names, name)
            for i in range(table.num_record_batches):
                yield table.get_batch(i).column(name)
        else:
            stream = pa.ipc.open_stream(file)
            column_number(stream.schema.names, name)
            for batch in stream:
                yield batch.column(name)
