"""Lines over places, such as the steps of a training run, as inline SVG that fits any width."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from bertkit.explain.pictures import Array, brief, label_of, legend, mark
from bertkit.explain.result import plain

# Lines that colours and shapes still tell apart.
MOST_LINES = 6
TALL = 220


def lines(
    of: str,
    values: Array,
    labels: Sequence[str],
    places: Sequence[float],
    ticks: Sequence[str],
) -> str:
    """Up to MOST_LINES lines on one scale; where a number is missing, a line is broken.

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
    across = 100.0 / ((places[-1] - places[0]) or 1.0)
    parts = []
    for i, label in enumerate(labels):
        at: tuple[float, float] | None = None
        for j, value in enumerate(numbers[i]):
            if value is None:
                at = None
                continue
            x = (places[j] - places[0]) * across
            y = TALL - TALL * (value - low) / ((high - low) or 1.0)
            if at is not None:
                parts.append(
                    f'<line class="c{i}" x1="{at[0]:.2f}%" y1="{at[1]:.1f}" '
                    f'x2="{x:.2f}%" y2="{y:.1f}"/>'
                )
            at = (x, y)
            told = escape(f"{label} · {ticks[j]}: {brief(value)}")
            parts.append(
                f'<circle class="c{i}" {mark((i, j), value)} cx="{x:.2f}%" cy="{y:.1f}" r="4">'
                f"<title>{told}</title></circle>"
            )
    ends = f"<span>{brief(high)}</span><span>{brief(low) if high > low else ''}</span>"
    names = ", ".join(labels)
    return (
        f'{legend(labels)}<div class="plot"><div class="ends">{ends}</div>'
        f'<svg role="img" aria-label="{escape(names)}" width="100%" height="{TALL}" '
        f'data-of="{escape(of)}">{"".join(parts)}</svg><div class="ticks">'
        f"{label_of(ticks[0])}{label_of(ticks[-1]) if len(ticks) > 1 else ''}</div></div>"
    )
