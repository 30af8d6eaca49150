"""Pictures as inline SVG: heatmaps, bars, and heads with a token matrix.

Every mark carries the number it stands for: `data-of` names the array in the page's JSON,
`data-at` the place in it ("2,0"), `data-value` the number itself. So a reader can hover, and a test
can compare the picture with the JSON.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bertkit.explain.result import plain

# Of one Latin character at the pages' 12 pixels; a Chinese one takes two.
CHARACTER = 7.6
CELL = 22
MOST_LABEL = 22  # Latin characters; longer ones are cut
Array = NDArray[Any]


def width_of(text: str) -> int:
    """In Latin characters."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def clipped(text: str, most: int = MOST_LABEL) -> str:
    """With white space made visible, cut to a width."""
    text = " ".join(text.split()) or "␣"
    if width_of(text) <= most:
        return text
    while width_of(text) >= most:
        text = text[:-1]
    return text + "…"


def colour(value: float | None, most: float) -> str:
    """White at 0; blue up to `most`, red down to minus `most`; grey where there is no number."""
    if value is None or not math.isfinite(value):
        return "#ddd"
    share = min(abs(value) / most, 1.0) if most > 0 else 0.0
    end = (11, 92, 173) if value >= 0 else (190, 30, 45)
    red, green, blue = (round(255 - (255 - x) * share) for x in end)
    return f"#{red:02x}{green:02x}{blue:02x}"


def ink(value: float | None, most: float) -> str:
    """The colour of text on that."""
    dark = value is not None and math.isfinite(value) and abs(value) > 0.55 * most
    return "#fff" if dark else "#1b1f24"


def brief(value: Any) -> str:
    """A number as a person reads it."""
    if value is None:
        return "–"
    if isinstance(value, int) or float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def layer_names(count: int) -> list[str]:
    """Names of `count` states, of which the first is what the embeddings give."""
    return ["embeddings", *(f"layer {i}" for i in range(1, count))]


def _text(x: float, y: float, text: str, more: str = "") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}"{more}>{escape(text)}</text>'


def _mark(of: str, at: Sequence[int], value: Any, shape: str, title: str) -> str:
    shown = "" if value is None else repr(value)
    place = ",".join(map(str, at))
    return (
        f'<g data-of="{escape(of)}" data-at="{place}" data-value="{shown}">'
        f"<title>{escape(title)}</title>{shape}</g>"
    )


def _svg(width: float, height: float, label: str, parts: Sequence[str], more: str = "") -> str:
    return (
        f'<div class="wide"><svg {more}role="img" aria-label="{escape(label)}" '
        f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}">'
        + "".join(parts)
        + "</svg></div>"
    )


def heatmap(
    of: str,
    values: Array,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    texts: Callable[[int, int], str] | None = None,
    most: float | None = None,
    places: Sequence[int] = (),
    mark: Callable[[int, int], str] = lambda i, j: "",
    name: str = "",
) -> str:
    """Squares whose colour is a number; rows below each other.

    Args:
        of: the name of the array in the page's JSON.
        values: [R, C].
        rows: R labels.
        columns: C labels; written upwards where they are wide.
        texts: what stands in the square at (row, column); None: nothing.
        most: the number of the deepest colour; None: the largest there is.
        places: the index of `values` in the array of the JSON, where it is a part of that.
        mark: attributes to add to a square, for scripts.
        name: the id of the picture, for scripts.
    """
    numbers: list[list[Any]] = plain(np.asarray(values))
    finite = [abs(v) for row in numbers for v in row if v is not None]
    top = most if most is not None else max(finite, default=0.0)
    labels, heads = [clipped(r) for r in rows], [clipped(c) for c in columns]
    inside = [[texts(i, j) if texts else "" for j in range(len(heads))] for i in range(len(labels))]
    widest = max((width_of(t) for row in inside for t in row), default=0)
    cell = max(CELL, widest * CHARACTER + 8)
    left = max(map(width_of, labels), default=0) * CHARACTER + 10
    upright = any(width_of(head) * CHARACTER > cell for head in heads)
    above = (max(map(width_of, heads), default=0) * CHARACTER if upright else 14) + 8
    parts = []
    for j, head in enumerate(heads):
        x = left + cell * (j + 0.5)
        turn = (
            f' transform="rotate(-90 {x + 4:.0f} {above - 6:.0f})"'
            if upright
            else (' text-anchor="middle"')
        )
        parts.append(_text(x + 4 if upright else x, above - 6, head, turn))
    for i, label in enumerate(labels):
        y = above + CELL * i
        parts.append(_text(left - 6, y + 15, label, ' text-anchor="end"'))
        for j, head in enumerate(heads):
            value, x = numbers[i][j], left + cell * j
            shape = (
                f'<rect x="{x:.0f}" y="{y}" width="{cell - 1:.0f}" height="{CELL - 1}" '
                f'fill="{colour(value, top)}"{mark(i, j)}/>'
            )
            if inside[i][j]:
                look = f' text-anchor="middle" fill="{ink(value, top)}" pointer-events="none"'
                shape += _text(x + cell / 2, y + 15, inside[i][j], look)
            title = f"{label} · {head}: {brief(value)}"
            parts.append(_mark(of, (*places, i, j), value, shape, title))
    more = f'id="{name}" data-most="{top!r}" ' if name else ""
    return _svg(left + cell * len(heads) + 2, above + CELL * len(labels) + 4, of, parts, more)


def bars(of: str, values: Sequence[float] | Array, labels: Sequence[str]) -> str:
    """A bar for each number, to the right for more than 0 and to the left for less.

    Args:
        of: the name of the list in the page's JSON; "words.*.score" for a field of its items.
        values: [R].
        labels: R of them.
    """
    numbers: list[Any] = plain(np.asarray(values))
    finite = [v for v in numbers if v is not None]
    high, low = max([0.0, *finite]), min([0.0, *finite])
    names = [clipped(label, 16) for label in labels]
    left = max(map(width_of, names), default=0) * CHARACTER + 8
    room = 150.0
    scale = room / (high - low) if high > low else 0.0
    zero = left - low * scale
    parts = []
    for i, (name, value) in enumerate(zip(names, numbers, strict=True)):
        y = CELL * i + 2
        length = abs(value) * scale if value is not None else 0.0
        x = zero - length if value is not None and value < 0 else zero
        fill = "#0b5cad" if value is None or value >= 0 else "#be1e2d"
        shape = (
            f'<rect x="{x:.1f}" y="{y}" width="{length:.1f}" height="{CELL - 5}" fill="{fill}"/>'
        )
        shape += _text(left - 6, y + 13, name, ' text-anchor="end"')
        shape += _text(left + room + 6, y + 13, brief(value))
        parts.append(_mark(of, (i,), value, shape, f"{labels[i]}: {brief(value)}"))
    return _svg(left + room + 60, CELL * len(names) + 6, of, parts)


PICKER = """
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const choice = document.getElementById("head"), kind = document.getElementById("kind");
  const matrix = document.getElementById("matrix");
  const shade = (value, most) => {
    const share = most > 0 ? Math.min(Math.abs(value) / most, 1) : 0;
    const mix = end => Math.round(255 - (255 - end) * share);
    return `rgb(${mix(11)},${mix(92)},${mix(173)})`;
  };
  const show = () => {
    const [layer, head] = choice.value.split(",").map(Number);
    const values = data[kind.value][layer][head];
    const most = Math.max(...values.map(row => Math.max(...row)));
    for (const mark of matrix.querySelectorAll("[data-at]")) {
      const [row, column] = mark.dataset.at.split(",").slice(-2).map(Number);
      const value = values[row][column];
      mark.dataset.of = kind.value;
      mark.dataset.at = [layer, head, row, column].join();
      mark.dataset.value = value;
      mark.querySelector("rect").setAttribute("fill", shade(value, most));
      const title = mark.querySelector("title");
      title.textContent = title.textContent.replace(/: [^:]*$/, ": " + value.toPrecision(3));
    }
    for (const square of document.querySelectorAll("[data-head]"))
      square.parentNode.classList.toggle("chosen", square.dataset.head === choice.value);
  };
  for (const square of document.querySelectorAll("[data-head]"))
    square.addEventListener("click", () => { choice.value = square.dataset.head; show(); });
  choice.addEventListener("change", show);
  kind.addEventListener("change", show);
  show();
})();
"""


def head_grid(of: str, values: Array) -> str:
    """A square for each head, [L, N]; one that is clicked is shown by `token_matrix`."""
    layers, heads = values.shape
    return heatmap(
        of,
        values,
        [f"layer {i + 1}" for i in range(layers)],
        [str(j + 1) for j in range(heads)],
        mark=lambda i, j: f' data-head="{i},{j}"',
    )


def token_matrix(kinds: Sequence[tuple[str, str]], maps: Array, labels: Sequence[str]) -> str:
    """One head's [S, S] numbers, from each token (row) to each (column), with a choice of heads.

    Without scripts, and before a choice, it is the first head of the first layer.

    Args:
        kinds: (name in the page's JSON, name for people) of arrays of [L, N, S, S]; the first is
            shown at first.
        maps: the first of these arrays.
        labels: S of them.
    """
    layers, heads = maps.shape[:2]
    options = "".join(
        f'<option value="{i},{j}">layer {i + 1}, head {j + 1}</option>'
        for i in range(layers)
        for j in range(heads)
    )
    choices = "".join(f'<option value="{escape(k)}">{escape(name)}</option>' for k, name in kinds)
    picture = heatmap(kinds[0][0], maps[0, 0], labels, labels, places=(0, 0), name="matrix")
    # The page's JSON stands behind this script; both are there when the page is loaded.
    script = f'<script>window.addEventListener("DOMContentLoaded", () => {{{PICKER}}});</script>'
    return (
        f'<select id="head" aria-label="head">{options}</select>'
        f'<select id="kind" aria-label="what is shown">{choices}</select>{picture}{script}'
    )


SERIES = ("#0b5cad", "#c77700", "#5a7d2a", "#7a4fa3")


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
    reach = np.array(numbers, dtype=float)
    high = np.nanmax(reach + spreads, initial=0.0)
    low = np.nanmin(reach - spreads, initial=0.0)
    names = [clipped(label, 16) for label in labels]
    heads = [clipped(name, 30) for _, name, _ in series]
    left = max(map(width_of, names), default=0) * CHARACTER + 8
    room, thick = 150.0, 13
    scale = room / (high - low) if high > low else 0.0
    zero, top = left - low * scale, 18 * len(series) + 6
    parts = []
    for k, head in enumerate(heads):
        parts.append(f'<rect x="4" y="{18 * k + 4}" width="12" height="11" fill="{SERIES[k]}"/>')
        parts.append(_text(22, 18 * k + 14, head))
    for i, label in enumerate(labels):
        group = top + i * (thick * len(series) + 9)
        middle = group + thick * len(series) / 2 + 4
        parts.append(_text(left - 6, middle, names[i], ' text-anchor="end"'))
        for k, (of, head, _) in enumerate(series):
            value, y = numbers[k][i], group + thick * k
            end = zero + (value or 0.0) * scale
            shape = (
                f'<rect x="{min(zero, end):.1f}" y="{y}" width="{abs(end - zero):.1f}" '
                f'height="{thick - 2}" fill="{SERIES[k]}"/>'
            )
            spread = float(errors[k][i]) * scale if errors else math.nan
            if math.isfinite(spread):
                shape += (
                    f'<path d="M{end - spread:.1f} {y + 5.5}H{end + spread:.1f}" stroke="#1b1f24"/>'
                )
            shape += _text(left + room + 14, y + 10, brief(value))
            parts.append(_mark(of, (i,), value, shape, f"{label} · {head}: {brief(value)}"))
    height = top + len(labels) * (thick * len(series) + 9)
    width = max(left + room + 70, 30 + max(map(width_of, heads), default=0) * CHARACTER)
    return _svg(width, height, series[0][0], parts)


LINES = ("#0b5cad", "#be1e2d", "#5a7d2a", "#c77700", "#7a4fa3", "#57606a")


def lines(
    of: str,
    values: Array,
    labels: Sequence[str],
    places: Sequence[float],
    ticks: Sequence[str],
) -> str:
    """Up to six lines over places on one scale; where a number is missing, a line is broken.

    Args:
        of: the name of the array in the page's JSON.
        values: [R, C].
        labels: R names of lines.
        places: C ascending numbers, such as steps.
        ticks: C names of places; the first and the last are written.
    """
    numbers: list[list[Any]] = plain(np.asarray(values))
    finite = [v for row in numbers for v in row if v is not None] or [0.0]
    low, high = min(finite), max(finite)
    left, wide, tall, top = 58.0, 250.0, 150.0, 18.0 * len(labels) + 10
    across = wide / ((places[-1] - places[0]) or 1.0)
    up = tall / (high - low) if high > low else 0.0
    parts = [f'<path d="M{left - 6} {top}v{tall + 6}h{wide + 12}" fill="none" stroke="#57606a"/>']
    for value, y in {low: top + tall, high: top}.items():
        parts.append(_text(left - 10, y + 4, brief(value), ' text-anchor="end"'))
    parts.append(_text(left, top + tall + 22, clipped(ticks[0], 14)))
    if len(ticks) > 1:
        end = _text(left + wide, top + tall + 22, clipped(ticks[-1], 14), ' text-anchor="end"')
        parts.append(end)
    for i, label in enumerate(labels):
        ink_of = LINES[i]
        parts.append(f'<rect x="4" y="{18 * i + 4}" width="12" height="11" fill="{ink_of}"/>')
        parts.append(_text(22, 18 * i + 14, clipped(label, 36)))
        way, pen = "", "M"
        for j, value in enumerate(numbers[i]):
            x, y = left + (places[j] - places[0]) * across, top + tall
            if value is None:
                pen = "M"
                parts.append(_mark(of, (i, j), None, "", f"{label} · {ticks[j]}: –"))
                continue
            y -= (value - low) * up
            way, pen = f"{way}{pen}{x:.1f} {y:.1f}", "L"
            dot = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{ink_of}"/>'
            parts.append(_mark(of, (i, j), value, dot, f"{label} · {ticks[j]}: {brief(value)}"))
        parts.append(f'<path d="{way}" fill="none" stroke="{ink_of}" stroke-width="1.5"/>')
    widest = max(map(width_of, (clipped(label, 36) for label in labels)), default=0)
    return _svg(max(left + wide + 20, 30 + widest * CHARACTER), top + tall + 32, of, parts)
