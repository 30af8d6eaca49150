"""Pages that open from the disk: one HTML file with its style, its pictures and its numbers.

No network, no library. A page is readable on a telephone (360 px wide) and on paper: what is wider
than the screen scrolls inside its own frame. The numbers are in the page once more as JSON, in the
element with the id "data"; pictures are drawn from the same values (pictures.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple


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


STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 60rem; color: #1b1f24; background: #fff;
  font: 15px/1.5 system-ui, "Noto Sans CJK SC", "Microsoft YaHei", "PingFang SC", sans-serif;
  overflow-wrap: anywhere; }
h1 { font-size: 1.25rem; margin: 0 0 .5rem; }
h2 { font-size: 1.05rem; margin: 1.5rem 0 .25rem; }
p { margin: .25rem 0; }
.caution { border-left: 4px solid #c77700; padding: .25rem .75rem; background: #fff8ec; }
.note { color: #57606a; font-size: .9em; }
.wide { overflow-x: auto; margin: .5rem 0; }
svg { display: block; font: 12px system-ui, "Noto Sans CJK SC", "Microsoft YaHei", sans-serif; }
select { font: inherit; max-width: 100%; margin: .25rem .5rem .25rem 0; }
[data-head] { cursor: pointer; }
.chosen rect { stroke: #000; stroke-width: 2; }
footer { margin-top: 2rem; color: #57606a; font-size: .85em; }
@media print { body { max-width: none; padding: 0; } select { display: none; }
  .wide { overflow: visible; } .wide svg { max-width: 100%; height: auto; }
  section { break-inside: avoid; } * { print-color-adjust: exact; } }
"""


def html_page(
    title: str, cautions: Sequence[str], sections: Sequence[Section], data: Mapping[str, Any]
) -> str:
    """A whole page.

    Args:
        title: the heading.
        cautions: what the picture can and cannot tell, in each language.
        sections: in order.
        data: the result's plain values.
    """
    from bertkit import __version__

    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        # Nothing may be fetched, whatever a text holds.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:\">",
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        *(f'<p class="caution">{escape(line)}</p>' for line in cautions),
    ]
    for section in sections:
        parts.append(f"<section><h2>{escape(section.heading)}</h2>")
        if section.note:
            parts.append(f'<p class="note">{escape(section.note)}</p>')
        parts.append(f"{section.body}</section>")
    parts.append(f"<footer>bertkit {escape(__version__)}</footer>")
    parts.append(f'<script type="application/json" id="data">{_embedded(data)}</script>')
    return "\n".join([*parts, "</body></html>", ""])


def _embedded(data: Mapping[str, Any]) -> str:
    """JSON inside of a script element: nothing in it may end the element."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
