"""Tables for the terminal that never cut a number: what does not fit goes below.

A column of numbers is as wide as its widest cell. Where they do not fit side by side, further ones
follow in a table of their own, behind the same first columns. Columns of text are wrapped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bertkit.explain.pictures import width_of

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

# A column of text is at least as wide as this where it is wrapped; and what rich draws beside it.
NARROW, FRAME = 16, 3


def digits(value: float, sign: str = "") -> str:
    """Three significant digits, trailing zeros too; empty where there is no number.

    Args:
        value: the number.
        sign: "+" writes the sign of what is above 0 too.
    """
    if not np.isfinite(value):
        return ""
    value = float(value) or 0.0  # no sign before 0
    text = f"{value:#.3g}" if abs(value) < 999.5 else f"{value:,.0f}"
    return (sign if value >= 0 else "") + text.removesuffix(".")


def with_error(mean: float, error: float, sign: str = "") -> str:
    """A mean and how far it may be off, where that is known (of one observation it is not)."""
    return digits(mean, sign) + (f" ± {digits(error)}" if np.isfinite(error) else "")


def wrapped(text: str, width: int) -> str:
    """Lines of at most `width` Latin characters, broken at spaces; at double ones if it has any."""
    gap = "  " if "  " in text else " "
    lines = []
    for line in text.split("\n"):
        row = ""
        for part in line.split(gap):
            joined = row + gap + part if row else part
            if width_of(joined) <= width:
                row = joined
                continue
            lines += [row] if row else []
            *full, row = _pieces(part, width)
            lines += full
        lines.append(row)
    return "\n".join(lines)


def _pieces(word: str, width: int) -> list[str]:
    """A word in pieces of at most `width`."""
    pieces = [""]
    for character in word:
        if width_of(pieces[-1] + character) > width:
            pieces.append("")
        pieces[-1] += character
    return pieces


@dataclass(frozen=True)
class Grid:
    """A table; rich draws it, as wide as it may be.

    Attributes:
        title: above; "" for none.
        columns: names.
        rows: a cell a column.
        texts: names of columns that may be wrapped; the first one always may.
        keys: so many first columns say what a row is, and stand in each part.
        note: below: what is not plain from the names.
        sections: rows behind which a line is drawn.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: Sequence[str] = ()
    keys: int = 1
    note: str = ""
    sections: Sequence[int] = ()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Title, as many parts as are needed, note."""
        from rich.table import Table
        from rich.text import Text

        room = options.max_width
        if self.title:
            yield Text(wrapped(self.title, room), style="italic")
        widths = self._widths(room)
        for part in self._parts(widths, room):
            table = Table()
            for i in part:
                table.add_column(Text(wrapped(self.columns[i], widths[i])), width=widths[i])
            for n, row in enumerate(self.rows):
                cells = (Text(wrapped(row[i], widths[i])) for i in part)
                table.add_row(*cells, end_section=n in self.sections)
            yield table
        if self.note:
            yield Text(wrapped(self.note, room), style="dim")

    def _widths(self, room: int) -> list[int]:
        """Of all columns: whole cells; where these are too many, text is narrower."""
        whole, least = [], []
        for i, name in enumerate(self.columns):
            cells = max((width_of(x) for row in self.rows for x in row[i].split("\n")), default=0)
            longest = max(map(width_of, name.split()), default=0)
            may_wrap = i == 0 or name in self.texts
            whole.append(max(width_of(name), cells))
            least.append(max(longest, min(cells, NARROW) if may_wrap else cells))
        left = room - 1 - sum(width + FRAME for width in least)
        for i, (wide, narrow) in enumerate(zip(whole, least, strict=True)):
            more = min(wide - narrow, max(left, 0))
            least[i] += more
            left -= more
        return least

    def _parts(self, widths: Sequence[int], room: int) -> list[list[int]]:
        """Which columns stand side by side."""
        keys = list(range(self.keys))
        parts = [list(keys)]
        for i in range(self.keys, len(widths)):
            taken = 1 + sum(widths[j] + FRAME for j in (*parts[-1], i))
            if taken > room and len(parts[-1]) > self.keys:
                parts.append(list(keys))
            parts[-1].append(i)
        return parts


def grid(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    texts: Sequence[str] = (),
    note: str = "",
) -> Grid:
    """A table whose first column says what a row is."""
    return Grid(title, columns, list(rows), texts, note=note)
