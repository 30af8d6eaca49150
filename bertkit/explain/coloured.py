"""A text whose words have the colours of their numbers, for pages."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from bertkit.explain.pictures import Array, brief, colour, ink
from bertkit.explain.result import plain


def coloured_text(of: str, values: Array, words: Sequence[str], gaps: Sequence[str]) -> str:
    """Running text, blue behind words above 0 and red behind words below.

    Args:
        of: the name of the numbers in the page's JSON, as `pictures.bars` takes it.
        values: [R].
        words: R of them.
        gaps: R + 1 stretches of text: before the first word, between words, behind the last.
    """
    numbers: list[Any] = plain(np.asarray(values))
    most = max((abs(value) for value in numbers if value is not None), default=0.0)
    parts = [escape(gaps[0])]
    for i, (word, value) in enumerate(zip(words, numbers, strict=True)):
        look = f"background:{colour(value, most)};color:{ink(value, most)}"
        shown = "" if value is None else repr(value)
        parts.append(
            f'<span data-of="{escape(of)}" data-at="{i}" data-value="{shown}" style="{look}" '
            f'title="{escape(f"{word}: {brief(value)}")}">{escape(word)}</span>'
        )
        parts.append(escape(gaps[i + 1]))
    return f'<p style="white-space:pre-wrap;line-height:1.9">{"".join(parts)}</p>'
