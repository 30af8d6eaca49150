"""Attention on a page: every head's map in small, and one of them token by token."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from bertkit.explain.pictures import Array, Look, heat, layer_names, scale, terse
from bertkit.explain.wording import say

# The small maps are painted from the page's JSON, so that they cost no bytes.
PICKER = """
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const choice = document.getElementById("head"), kind = document.getElementById("kind");
  const matrix = document.getElementById("matrix");
  const most = values => Math.max(...values.map(row => Math.max(...row)));
  const terse = value => value && Math.abs(value) < 1e-3 ? value.toExponential(0)
    : Number(value.toPrecision(2));
  const show = () => {
    const [layer, head] = choice.value.split(",").map(Number);
    const values = data[kind.value][layer][head], top = most(values);
    matrix.dataset.of = kind.value;
    for (const cell of matrix.querySelectorAll("[data-at]")) {
      const [row, column] = cell.dataset.at.split(",").slice(-2).map(Number);
      cell.dataset.at = [layer, head, row, column].join();
      cell.dataset.value = values[row][column];
      cell.style.setProperty("--s", top > 0 ? values[row][column] / top : 0);
      cell.lastChild.textContent = terse(values[row][column]);
    }
    const legend = matrix.closest(".map").querySelector(".scale .high");
    legend.textContent = Number(top.toPrecision(3));
    for (const button of document.querySelectorAll("[data-head]"))
      button.setAttribute("aria-pressed", button.dataset.head === choice.value);
  };
  const paint = () => {
    const style = getComputedStyle(document.documentElement);
    const ink = style.getPropertyValue("--above").split(" ").map(Number);
    for (const button of document.querySelectorAll("[data-head]")) {
      const [layer, head] = button.dataset.head.split(",").map(Number);
      const values = data[kind.value][layer][head], top = most(values), size = values.length;
      const canvas = button.firstChild, pen = canvas.getContext("2d");
      const image = pen.createImageData(size, size);
      canvas.width = canvas.height = size;
      button.title = button.ariaLabel + ": 0–" + terse(top);
      values.flat().forEach((value, i) => image.data.set(
        [...ink, top > 0 ? 255 * value / top : 0], 4 * i));
      pen.putImageData(image, 0, 0);
    }
  };
  for (const button of document.querySelectorAll("[data-head]"))
    button.addEventListener("click", () => { choice.value = button.dataset.head; show(); });
  choice.addEventListener("change", show);
  kind.addEventListener("change", () => { show(); paint(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
  show(); paint();
})();
"""


def head_grid(of: str, values: Array, scale: str) -> str:
    """A cell for each head, [L, N]."""
    layers, heads = values.shape
    return heat(
        of, values, layer_names(layers + 1)[1:], [str(j + 1) for j in range(heads)], Look(scale)
    )


def head_views(layers: int, heads: int) -> str:
    """A button for each head with its map in small, in shares of its own largest number."""
    rows = []
    for i, name in enumerate(layer_names(layers + 1)[1:]):
        rows.append(f"<span>{escape(name)}</span>")
        for j in range(heads):
            told = escape(say("layer {n}, head {m}", n=i + 1, m=j + 1))
            rows.append(
                f'<button type="button" data-head="{i},{j}" aria-label="{told}" title="{told}">'
                "<canvas></canvas></button>"
            )
    legend = scale(1.0, (), say("of each head's largest"))
    views = f'<div class="heads" style="--n:{heads}">{"".join(rows)}</div>'
    return f'{legend}<div class="wide">{views}</div>'


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
        f'<option value="{i},{j}">{escape(say("layer {n}, head {m}", n=i + 1, m=j + 1))}</option>'
        for i in range(layers)
        for j in range(heads)
    )
    choices = "".join(f'<option value="{escape(k)}">{escape(name)}</option>' for k, name in kinds)
    look = Look(say("weight"), figure=terse, square=True, name="matrix")
    picture = heat(kinds[0][0], maps[0, 0], labels, labels, look, places=(0, 0))
    # The page's JSON stands behind this script; both are there when the page is loaded.
    script = f'<script>window.addEventListener("DOMContentLoaded", () => {{{PICKER}}});</script>'
    return (
        f'<select id="head" aria-label="{escape(say("head"))}">{options}</select>'
        f'<select id="kind" aria-label="{escape(say("what is shown"))}">{choices}</select>'
        f"{picture}{script}"
    )
