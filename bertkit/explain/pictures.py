"""Pictures as HTML tables: heat maps and bars that fit any width and that a screen reader reads.

Every mark carries the number it stands for: `data-of` (its own, or its table's) names the array in
the page's JSON, `data-at` the place in it ("2,0"), `data-value` the number itself. So a reader can
point at it, and a test can compare the picture with the JSON. Colours are in page_style.py.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bertkit.explain.result import plain
from bertkit.explain.wording import say

Array = NDArray[Any]
# Characters of a label; longer ones are cut, and whole in the numbers beneath.
MOST_LABEL = 120
# Rows of bars beyond which they are folded.
MOST_ROWS = 40


def label_of(text: str) -> str:
    """A user's text as HTML: white space made visible, in its own direction of writing."""
    text = " ".join(text.split()) or "␣"
    return f"<bdi>{escape(text if len(text) <= MOST_LABEL else text[:MOST_LABEL] + '…')}</bdi>"


def brief(value: Any) -> str:
    """A number as a person reads it: three significant digits."""
    if value is None or not math.isfinite(value):
        return "–"
    if isinstance(value, int) or float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def terse(value: float) -> str:
    """A number for a small square: at most six characters of what is below 1."""
    return (
        f"{value:.2g}" if abs(value) >= 1e-3 or not value else f"{value:.0e}".replace("e-0", "e-")
    )


def percent(value: float | None) -> str:
    """A share in whole percent."""
    return "–" if value is None or not math.isfinite(value) else f"{round(100 * value)}"


def layer_names(count: int) -> list[str]:
    """Names of `count` states, of which the first is what the embeddings give."""
    return [say("embeddings"), *(say("layer {n}", n=i) for i in range(1, count))]


def share(value: float | None, most: float) -> float:
    """How deep the colour of a number is, from 0 to 1."""
    if value is None or not most > 0:
        return 0.0
    return min(abs(value) / most, 1.0)


def mark(at: Sequence[int], value: Any) -> str:
    """The attributes that tell which number is shown."""
    return f'data-at="{",".join(map(str, at))}" data-value="{"" if value is None else repr(value)}"'


def scale(
    most: float, known: Sequence[float], what: str, figure: Callable[[Any], str] = brief
) -> str:
    """The legend of a scale of colours to `most`, and from -`most` where numbers are below 0.

    Numbers beyond its ends have the deepest colour, and the legend says so.
    """
    low, high = min(known, default=0.0), max(known, default=0.0)
    least = f"{'≤ ' if low < -most else ''}{figure(-most)}"
    told = f'{least} <i class="below"></i> 0 ' if low < 0 else "0 "
    if low >= 0 or high > 0:
        top = f"{'≥ ' if high > most else ''}{figure(most)}"
        told += f'<i class="above"></i> <span class="high">{top}</span> '
    return f'<p class="scale">{told}<span>{escape(what)}</span></p>'


class Look(NamedTuple):
    """How a heat map looks.

    Attributes:
        scale: what the colour is, for the legend.
        words: what stands in the cell at (row, column), above the figure; None: the figure alone.
        figure: how a number is written in its cell.
        most: the number of the deepest colour, where larger ones say no more; None: the largest.
        square: cells are small squares, as between tokens; figures where there is room.
        outlined: cells that stand out.
        name: the id of the table, for scripts.
    """

    scale: str
    words: Callable[[int, int], str] | None = None
    figure: Callable[[Any], str] = brief
    most: float | None = None
    square: bool = False
    outlined: Callable[[int, int], bool] = lambda i, j: False
    name: str = ""


def heat(
    of: str,
    values: Array,
    rows: Sequence[str],
    columns: Sequence[str],
    look: Look,
    *,
    places: Sequence[int] = (),
    turned: bool = False,
) -> str:
    """Cells whose colour is a number: blue above 0, orange below.

    Args:
        of: the name of the array in the page's JSON.
        values: [R, C].
        rows: R labels.
        columns: C labels.
        look: of the cells.
        places: the index of `values` in the array of the JSON, where it is a part of that.
        turned: the array of the JSON is [C, R].
    """
    numbers: list[list[Any]] = plain(np.asarray(values))
    known = [v for row in numbers for v in row if v is not None]
    most = look.most if look.most is not None else max(map(abs, known), default=0.0)
    heads = "".join(f'<th scope="col">{label_of(c)}</th>' for c in columns)
    lines = []
    for i, row in enumerate(rows):
        cells = [
            _cell((*places, *((j, i) if turned else (i, j))), numbers[i][j], most, look, i, j)
            for j in range(len(columns))
        ]
        lines.append(f'<tr><th scope="row">{label_of(row)}</th>{"".join(cells)}</tr>')
    kind = "heat"
    if look.square:
        # Beside many others a figure has no room; it is told where one points, and on demand.
        kind += " square" + (" dense" if len(columns) > 14 else "")
        kind += " up" if max(map(width_of, columns), default=0) > 3 else ""
    name = f' id="{look.name}"' if look.name else ""
    table = (
        f'<div class="wide" tabindex="0"><table{name} class="{kind}" data-of="{escape(of)}" '
        f'style="--n:{len(columns)}"><thead><tr><td></td>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )
    ask = ""
    if look.square:
        ask = f'<label class="ask"><input type="checkbox"> {escape(say("figures"))}</label>'
    return f'<div class="map">{scale(most, known, look.scale, look.figure)}{ask}{table}</div>'


def _cell(at: Sequence[int], value: Any, most: float, look: Look, i: int, j: int) -> str:
    kinds = [
        *(["x"] if value is None else ["n"] if value < 0 else []),
        *(["o"] if look.outlined(i, j) else []),
    ]
    kind = f' class="{" ".join(kinds)}"' if kinds else ""
    word = f"<b>{label_of(look.words(i, j))}</b>" if look.words else ""
    return (
        f'<td {mark(at, value)}{kind} style="--s:{share(value, most):.3g}">'
        f"{word}<span>{escape(look.figure(value))}</span></td>"
    )


def width_of(text: str) -> int:
    """In Latin characters."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def bars(of: str, values: Sequence[float] | Array, labels: Sequence[str]) -> str:
    """A bar for each number, to the right for more than 0 and to the left for less.

    Args:
        of: the name of the list in the page's JSON; "words.*.score" for a field of its items.
        values: [R].
        labels: R of them.
    """
    return grouped_bars([(of, "", values)], labels)


def grouped_bars(
    series: Sequence[tuple[str, str, Sequence[float] | Array]],
    labels: Sequence[str],
    errors: Sequence[Array] = (),
) -> str:
    """For each label some bars below each other, as before and after, on one scale.

    Args:
        series: up to four of (name of the list in the page's JSON, name for people, [R] numbers).
        labels: R of them.
        errors: for each series the [R] standard errors, drawn as a line of one on either side.
    """
    numbers: list[list[Any]] = [plain(np.asarray(values)) for _, _, values in series]
    spreads = np.nan_to_num(np.array(errors)) if len(errors) else np.zeros((len(series), 1))
    reach = np.array(numbers, dtype=float).reshape(len(series), -1)
    high = float(np.nanmax(reach + spreads, initial=0.0))
    low = float(np.nanmin(reach - spreads, initial=0.0))
    wide = (high - low) or 1.0

    def stretch(tag: str, a: float, b: float, kind: str) -> str:
        left, right = sorted((100 * (a - low) / wide, 100 * (b - low) / wide))
        return f'<{tag} class="{kind}" style="left:{left:.2f}%;width:{right - left:.2f}%"></{tag}>'

    groups = []
    for i, label in enumerate(labels):
        short = ' class="short"' if width_of(label) <= 18 else ""
        head = f'<th scope="rowgroup" rowspan="{len(series)}"{short}>{label_of(label)}</th>'
        rows = []
        for k, (of, _, _) in enumerate(series):
            value = numbers[k][i]
            kind = f"c{k}" if len(series) > 1 else "c0" if (value or 0.0) >= 0 else "below"
            drawn = stretch("i", 0.0, value or 0.0, kind)
            told = brief(value)
            if len(errors) and value is not None and math.isfinite(error := float(errors[k][i])):
                drawn += stretch("u", value - error, value + error, "")
                told += f" ± {brief(error)}"
            drawn += stretch("s", 0.0, 0.0, "")
            rows.append(
                f'<tr data-of="{escape(of)}" {mark((i,), value)}>{"" if k else head}'
                f'<td class="bar" aria-hidden="true">{drawn}</td><td class="num">{told}</td></tr>'
            )
        groups.append(f"<tbody>{''.join(rows)}</tbody>")
    keys = legend([name for _, name, _ in series]) if len(series) > 1 else ""
    table = f'{keys}<table class="bars">{"".join(groups)}</table>'
    if len(labels) <= MOST_ROWS:
        return table
    fold = say("All {n} rows", n=f"{len(labels):,}")
    return f"<details><summary>{escape(fold)}</summary>{table}</details>"


def legend(names: Sequence[str]) -> str:
    """Which colour is what."""
    keys = (f'<li><i class="c{k}"></i>{label_of(name)}</li>' for k, name in enumerate(names))
    return f'<ul class="legend">{"".join(keys)}</ul>'


def coloured_text(of: str, values: Array, words: Sequence[str], gaps: Sequence[str]) -> str:
    """Running text, blue behind words above 0 and orange behind words below.

    Args:
        of: the name of the numbers in the page's JSON, as `bars` takes it.
        values: [R].
        words: R of them.
        gaps: R + 1 stretches of text: before the first word, between words, behind the last.
    """
    numbers: list[Any] = plain(np.asarray(values))
    known = [value for value in numbers if value is not None]
    most = max(map(abs, known), default=0.0)
    parts = [escape(gaps[0])]
    for i, (word, value) in enumerate(zip(words, numbers, strict=True)):
        kind = ' class="n"' if (value or 0.0) < 0 else ""
        look = f'style="--s:{share(value, most):.3g}" title="{brief(value)}"'
        parts.append(f"<span {mark((i,), value)}{kind} {look}>{escape(word)}</span>")
        parts.append(escape(gaps[i + 1]))
    text = f'<p class="text" dir="auto" data-of="{escape(of)}">{"".join(parts)}</p>'
    return scale(most, known, "") + text
