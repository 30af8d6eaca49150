"""Texts and pairs with their labels: rows for classify and regress."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from bertkit.errors import DataError
from bertkit.tasks.columns import Columns, Roles, describe_roles, find_roles, is_number
from bertkit.tasks.inputs import Input
from bertkit.tasks.reading import Reading
from bertkit.tasks.records import TextRow, Where
from bertkit.tasks.tables import Table

Label = str | tuple[str, ...] | float
# OCNLI and SNLI write this where the annotators did not agree.
NO_AGREEMENT = "-"


class TextTable:
    """A table of texts or pairs.

    Attributes:
        labelled: there is a column of labels.
        pairs: there are two columns of texts.
    """

    def __init__(self, table: Table, columns: Columns, numeric: bool) -> None:
        self.table, self.numeric = table, numeric
        self.roles: Roles = find_roles(table, columns, numeric)
        self.names = table.labels.get(self.roles.label or "", [])
        self.labelled = self.roles.label is not None
        self.pairs = self.roles.pair is not None

    def describe(self) -> list[str]:
        """What was understood."""
        header = "" if self.table.header else ", no header"
        return [f"{self.table.format}{header}", describe_roles(self.roles, self.table)]

    def rows(self, reading: Reading) -> Iterator[TextRow]:
        """The rows; without agreement on the label a row is left out where labels are wanted."""
        if self.numeric and self.labelled and reading.labels:
            self._check_numbers()
        for line, record in self.table.read(reading):
            try:
                row = self._row(record, line, reading)
            except DataError as error:
                reading.refuse(error)
                continue
            reading.passed += 1
            if row is not None:
                yield row

    def _check_numbers(self) -> None:
        """Refuse labels of which the first ones are all words."""
        values = [record.get(self.roles.label or "") for record in self.table.sample]
        if values and not any(map(is_number, values)):
            what = f"labels must be numbers for regress; the column {self.roles.label} begins with"
            raise self.table.source.error(f"{what} {_short(values[0])}; are they for classify?")

    def _row(self, record: dict[str, Any], line: Where, reading: Reading) -> TextRow | None:
        roles, source = self.roles, self.table.source
        text = text_of(record, roles.text, source, line)
        pair = None if roles.pair is None else text_of(record, roles.pair, source, line)
        label: Label | None = None
        if reading.labels and roles.label is not None:
            value = record.get(roles.label)
            if value == NO_AGREEMENT and not self.numeric:
                reading.note(line, "left out, the label is -: the annotators did not agree")
                return None
            label = self._label(value, line)
        identity = id_of(record, roles.id, reading.passed)
        return TextRow(identity, text, pair, label, reading.place(line))

    def _label(self, value: Any, line: Where) -> Label:
        if self.numeric:
            return _number(value, self.table.source, line)
        if isinstance(value, list):
            return tuple(dict.fromkeys(self._name(item, line) for item in value))
        return self._name(value, line)

    def _name(self, value: Any, line: Where) -> str:
        """A label's name; numbers of classes that the file names get those names."""
        if self.names and isinstance(value, int) and 0 <= value < len(self.names):
            return self.names[value]
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # what pandas makes of whole numbers beside an empty cell
        if isinstance(value, (int, float)) and math.isfinite(value):
            return str(value)
        if isinstance(value, str) and value.strip():
            return value.strip()
        raise self.table.source.error(f"no label: {self.roles.label} is {_short(value)}", line)


def _number(value: Any, source: Input, line: Where) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise source.error(f"no number: the label is {_short(value)}", line)
    return number


def _short(value: Any) -> str:
    shown = "empty" if value is None or value == "" else repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def text_of(record: dict[str, Any], column: str, source: Input, line: Where) -> str:
    """A text field.

    Raises:
        DataError: it is missing, no string, blank, or holds NUL.
    """
    value = record.get(column)
    if not isinstance(value, str):
        missing = column not in record
        what = "is missing" if missing else f"is {_short(value)}, not a string"
        raise source.error(f"no text: {column} {what}", line)
    if not value.strip():
        raise source.error(f"empty text: {column} is blank", line)
    if "\0" in value:
        raise source.error(f"NUL: {column} holds a NUL character; is this text?", line)
    return value


def id_of(record: dict[str, Any], column: str | None, number: int) -> str:
    """The row's own id as a string, or its number from 0."""
    value = None if column is None else record.get(column)
    return str(number) if value is None or value == "" else str(value)
