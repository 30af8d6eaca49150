"""Pictures of an evaluation: the confusion matrix and the calibration curve, as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from bertkit.infer.calibration import Calibration
from bertkit.tasks.outcomes import Counts, ratio

# More labels than this and the numbers in the squares could not be read.
MOST_NUMBERS = 25
# More than this and a picture of squares shows nothing; the labels that occur most are drawn.
MOST_LABELS = 80
LONGEST_NAME = 24
# Fonts with Chinese that systems bring, tried before all others.
CHINESE_FONTS = (
    "Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei", "Microsoft YaHei", "SimHei", "PingFang SC", "Hiragino Sans GB",
    "Heiti SC", "Droid Sans Fallback", "AR PL UMing CN", "Arial Unicode MS",
)  # fmt: skip


@cache
def font_families(characters: frozenset[str]) -> tuple[str, ...] | None:
    """Installed fonts that show all these characters between them; None if there are none.

    matplotlib's own font stands first, then as few others as it takes.
    """
    from matplotlib import font_manager

    chosen = ["DejaVu Sans"]
    missing = _unknown(font_manager.findfont("DejaVu Sans"), characters)
    # The font of last resort knows every character, as a box.
    fonts = {
        font.name: font.fname
        for font in font_manager.fontManager.ttflist
        if not font.name.startswith("Last Resort")
    }
    for name in [*(n for n in CHINESE_FONTS if n in fonts), *sorted(fonts)]:
        if not missing:
            break
        still = _unknown(fonts[name], missing)
        if len(still) < len(missing):
            chosen.append(name)
            missing = still
    return None if missing else tuple(chosen)


def _unknown(font: str, characters: frozenset[str]) -> frozenset[str]:
    from matplotlib.font_manager import get_font

    try:
        known = get_font(font).get_charmap()
    except (OSError, RuntimeError):  # a font file that is broken, or gone since it was listed
        return characters
    return frozenset(c for c in characters if ord(c) not in known)


def shown_names(labels: Sequence[str]) -> tuple[list[str], tuple[str, ...], str | None]:
    """Labels as a picture can show them.

    Returns:
        The names (numbers from 1 where no installed font has the labels' characters), the fonts to
        draw them with, and in that case a line that says so.
    """
    families = font_families(frozenset("".join(labels)) - {"\n", "\t", " "})
    if families is None:
        key = ", ".join(f"{i} {label}" for i, label in enumerate(labels, 1))
        note = (
            "no installed font shows these labels, so the picture has their numbers "
            f"(install one with Chinese, such as Noto Sans CJK): {key}"
        )
        return [str(i + 1) for i in range(len(labels))], ("DejaVu Sans",), note
    # A dollar sign would begin a formula.
    clipped = [x if len(x) <= LONGEST_NAME else x[: LONGEST_NAME - 1] + "…" for x in labels]
    return [" ".join(x.split()).replace("$", r"\$") for x in clipped], families, None


def draw_confusion(matrix: Counts, labels: Sequence[str], path: Path) -> list[str]:
    """Draw how often each label (row) was predicted as each (column).

    Colours are shares of the row. Labels that neither occur nor were predicted are left out.

    Args:
        matrix: [C, C] counts.
        labels: [C] names.
        path: the PNG file.

    Returns:
        What the picture leaves out, a line each; without counts there is no picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    notes = []
    occur = matrix.sum(0) + matrix.sum(1)
    order = np.argsort(-occur, kind="stable")[:MOST_LABELS]
    kept = np.sort(order[occur[order] > 0])
    if not len(kept):
        return ["there is nothing to draw a confusion matrix of"]
    if (left := int((occur > 0).sum()) - len(kept)) > 0:
        notes.append(f"the picture has the {len(kept)} most frequent labels; {left} are left out")
    shown = matrix[np.ix_(kept, kept)]
    names, families, note = shown_names([labels[i] for i in kept])
    notes += [note] if note else []
    side = 2.5 + 0.45 * len(kept) if len(kept) <= MOST_NUMBERS else 2.5 + 0.16 * len(kept)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    share = ratio(shown, shown.sum(1, keepdims=True))
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    style: dict[str, Any] = {"family": list(families)}
    small = style | {"fontsize": 9 if len(kept) <= MOST_NUMBERS else 5}
    axes.set_xticks(range(len(kept)), names, rotation=90, **small)
    axes.set_yticks(range(len(kept)), names, **small)
    axes.set_xlabel("predicted")
    axes.set_ylabel("right")
    if len(kept) <= MOST_NUMBERS:
        for i, j in zip(*np.nonzero(shown), strict=True):
            colour = "white" if share[i, j] > 0.5 else "black"
            axes.text(j, i, f"{shown[i, j]}", ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(image, label="share of the row", fraction=0.046)
    FigureCanvasAgg(figure).print_png(str(path))
    return notes


def draw_calibration(calibration: Calibration, path: Path) -> None:
    """Draw how often decisions were right over how sure they were, and how many there were."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 5.2), layout="constrained")
    curve, many = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    bins = len(calibration.counts)
    edges, full = np.arange(bins) / bins, calibration.counts > 0
    bars: dict[str, Any] = {"width": 1 / bins, "align": "edge", "edgecolor": "white"}
    curve.bar(edges[full], calibration.accuracy()[full], label="right", **bars)
    curve.plot([0, 1], [0, 1], "--", color="grey", label="perfect")
    sure = calibration.mean_confidence()[full]
    curve.plot(sure, calibration.accuracy()[full], "o-", color="black", markersize=3)
    curve.set(xlim=(0, 1), ylim=(0, 1), ylabel="share right")
    curve.set_title(f"expected calibration error {calibration.error():.4f}")
    curve.legend(loc="upper left")
    many.bar(edges, calibration.counts, color="grey", **bars)
    many.set(xlabel="confidence", ylabel="decisions")
    FigureCanvasAgg(figure).print_png(str(path))
