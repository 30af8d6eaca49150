"""Pages that open from the disk: one HTML file with its style, its pictures and its numbers.

No network, no library. A page is readable on a telephone (360 px wide), in the dark and on paper:
what is wider than the screen scrolls inside its own frame. The numbers are in the page once more
as JSON, in the element with the id "data"; pictures are drawn from the same values (pictures.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from bertkit.explain.page_style import SCRIPT, STYLE
from bertkit.explain.wording import named, say, spoken

if TYPE_CHECKING:
    from rich.console import RenderableType

# Characters of JSON in a page, and of a heading; parts (positions, targets) with pictures.
MOST_JSON = 2_000_000
MOST_HEADING = 200
MOST_PARTS = 20


class Section(NamedTuple):
    """A part of a page.

    Attributes:
        heading: in words.
        body: HTML, from pictures.py.
        note: how to read it, in a sentence or two.
    """

    heading: str
    body: str
    note: str = ""


@runtime_checkable
class Tabular(Protocol):
    """A table of the terminal (tables.Grid)."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def rest(items: Sequence[Any]) -> list[Section]:
    """What is said of the parts behind the first MOST_PARTS, which have no pictures."""
    if len(items) <= MOST_PARTS:
        return []
    note = say(
        "Of {n} the first {m} are drawn; the numbers of all are in --json and --npz.",
        n=f"{len(items):,}",
        m=MOST_PARTS,
    )
    return [Section(say("Not drawn"), "", note)]


def html_page(
    title: str,
    caution: str,
    sections: Sequence[Section],
    data: Mapping[str, Any],
    *,
    model: str = "",
    numbers: str = "",
) -> str:
    """A whole page, in the language that is spoken (wording.py).

    Args:
        title: the heading: what was asked.
        caution: what the picture can and cannot tell.
        sections: in order.
        data: the result's plain values.
        model: of which model it was asked.
        numbers: HTML: the table that the terminal shows.
    """
    from bertkit import __version__

    drawn = set(re.findall(r'data-of="([^"]*)"', "".join(s.body for s in sections)))
    kept, gone = _lighter(data, drawn)
    head = title if len(title) <= MOST_HEADING else title[:MOST_HEADING] + "…"
    parts = [
        "<!doctype html>",
        f'<html lang="{"zh-CN" if spoken() == "zh" else "en"}"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        # Nothing may be fetched, whatever a text holds.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:\">",
        f"<title>{escape(head)}{escape(f' · {model}' if model else '')}</title>",
        f'<style>{STYLE}</style></head><body><main><h1 dir="auto">{escape(head)}</h1>',
    ]
    if model:
        parts.append(f'<p class="of">{escape(say("Model: {model}", model=model))}</p>')
    if head != title:
        whole = escape(say("The whole text"))
        parts.append(f'<details><summary>{whole}</summary><p dir="auto">{escape(title)}</p>')
        parts.append("</details>")
    parts.append(f'<p class="caution">{escape(caution)}</p>')
    for section in sections:
        parts.append(f'<section><h2 dir="auto">{escape(section.heading)}</h2>')
        if section.note:
            parts.append(f'<p class="note">{escape(section.note)}</p>')
        parts.append(f"{section.body}</section>")
    parts += _below(numbers, gone)
    parts.append(f"</main><footer>bertkit {escape(__version__)}</footer>")
    parts.append(f'<p id="told" role="status"></p><script>{SCRIPT}</script>')
    parts.append(f'<script type="application/json" id="data">{_embedded(kept)}</script>')
    return "\n".join([*parts, "</body></html>", ""])


def _below(numbers: str, gone: Sequence[str]) -> list[str]:
    """The folded table, and what the page's JSON lacks."""
    parts = []
    if numbers:
        parts.append(
            f'<details class="numbers"><summary>{escape(say("The numbers as a table"))}</summary>'
            f'<div class="wide" tabindex="0">{numbers}</div></details>'
        )
    if gone:
        told = "; ".join(gone)
        left = say(
            "Left out of the JSON in this page, to keep it small: {what}; see --json, --npz.",
            what=told,
        )
        parts.append(f'<p class="note">{escape(left)}</p>')
    return parts


def _embedded(data: Mapping[str, Any]) -> str:
    """JSON inside of a script element: nothing in it may end the element."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _lighter(data: Mapping[str, Any], drawn: set[str]) -> tuple[Mapping[str, Any], list[str]]:
    """The data without the largest arrays that no picture shows (null), and their names."""
    size = len(_embedded(data))
    if size <= MOST_JSON:
        return data, []
    copy = json.loads(json.dumps(data))
    groups: dict[str, list[tuple[Any, Any]]] = {}
    for name, holder, key in _arrays(copy, ""):
        groups.setdefault(name, []).append((holder, key))
    sizes = {name: sum(len(json.dumps(h[k])) for h, k in at) for name, at in groups.items()}
    shown = {re.sub(r"\b\d+\b", "*", name) for name in drawn}
    gone = []
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        if size > MOST_JSON and name not in shown:
            for holder, key in groups[name]:
                holder[key] = None
            size -= sizes[name]
            gone.append(name)
    return copy, gone


def _arrays(value: Any, name: str) -> Iterator[tuple[str, Any, Any]]:
    """Every list of numbers (of lists of ...) with its name, its holder and its key there."""
    for key in value if isinstance(value, dict) else range(len(value)):
        inner, step = value[key], "*" if isinstance(value, list) else str(key)
        path = f"{name}.{step}" if name else step
        first = inner
        while isinstance(first, list) and first:
            first = first[0]
        if isinstance(inner, list) and inner and isinstance(first, int | float | None):
            yield path, value, key
        elif isinstance(inner, dict | list):
            yield from _arrays(inner, path)


def as_html(told: RenderableType) -> str:
    """The tables of a result as they are in the terminal, for browsers."""
    from rich.console import Group

    if isinstance(told, Group):
        return "".join(as_html(part) for part in told.renderables)
    if not isinstance(told, Tabular):
        return f"<p>{escape(str(told))}</p>"
    caption = f"<caption>{escape(told.title)}</caption>" if told.title else ""
    heads = "".join(f'<th scope="col">{escape(named(name))}</th>' for name in told.columns)
    body = "".join(
        "<tr>" + "".join(f"<td><bdi>{escape(cell)}</bdi></td>" for cell in row) + "</tr>"
        for row in told.rows
    )
    return f"<table>{caption}<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"
