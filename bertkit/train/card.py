"""The end of a run: the model folder with its card, and the curves of the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bertkit.checkpoint.files import write_atomically
from bertkit.data.shards import TokenStore
from bertkit.errors import DataError
from bertkit.settings import Recipe, dump_recipe
from bertkit.train.forgetting import before_after_markdown
from bertkit.train.log import clock, read_log
from bertkit.train.prepare import read_manifest
from bertkit.train.setup import PretrainResult, Source
from bertkit.train.step import Model

# Files that the card names, of each DATA folder.
NAMED = 8
CARD = """---
library_name: transformers
pipeline_tag: fill-mask
tags:
- bert
- bertkit
---

# {name}

A BERT {origin} with bertkit: {layers} layers, hidden size {hidden}, {heads}
heads, {vocabulary:,} words, {parameters:,} parameters. Objective: {objective}.

## Figures

On held-out documents, with masks that never change (15% of the tokens):

{figures}
{before_after}
Budget: {steps:,} steps, {tokens:,} tokens, {time}{skipped}.

![curves](curves.png)

## Use

```python
import bertkit

model = bertkit.load("{folder}")
print(model.fill("The [MASK] of the book."))
```

The folder also opens in `transformers`: `AutoModelForMaskedLM.from_pretrained("{folder}")`.

## Data

{data}

## Settings

```toml
{recipe}```
"""


def write_result(
    out: Path,
    source: Source,
    model: Model,
    recipe: Recipe,
    result: PretrainResult,
) -> None:
    """Write RUN/model: weights, configuration, tokenizer, card and curves."""
    folder = out / "model"
    model.save_pretrained(folder)
    source.tokenizer.save_pretrained(folder)
    lines = read_log(out / "log.jsonl")
    draw_curves(lines, folder / "curves.png")
    config, init = model.config, recipe.model.init
    card = CARD.format(
        name=out.name,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        vocabulary=config.vocab_size,
        parameters=model.num_parameters(),
        objective=recipe.data.objective,
        origin="pretrained from plain text" if init is None else f"that goes on from `{init}`",
        figures=figures_table(result.figures, recipe.data.objective),
        before_after=_before_after(result),
        steps=result.steps,
        tokens=result.tokens,
        time=clock(result.seconds),
        skipped=f", {result.skipped} steps skipped for a bad loss" if result.skipped else "",
        folder=folder,
        data="\n".join(_data_line(store, source) for store in source.train),
        recipe=dump_recipe(recipe),
    )
    write_atomically(folder / "README.md", card.encode())


def _data_line(store: TokenStore, source: Source) -> str:
    """Of one DATA folder: what it holds, what of it was held out, which files it is made from."""
    folder = store.folder.parent
    line = f"- `{folder.name}`: {store.documents:,} documents, {store.tokens:,} tokens"
    for dev in source.dev:
        if dev.folder.parent == folder:
            line += f"; held out {dev.documents:,} documents, {dev.tokens:,} tokens"
    try:
        names = [Path(file.name).name for file in read_manifest(folder).plan.inputs]
    except DataError:  # what was learned must not be lost for a damaged list of files
        return line
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return f"{line}; made from {', '.join(f'`{name}`' for name in names[:NAMED])}{more}"


def _before_after(result: PretrainResult) -> str:
    if not result.before_after:
        return ""
    lines = ["", "Before this run and after it, on the same masks:", ""]
    lines += [before_after_markdown(result.before_after), ""]
    if result.new_parts:
        lines += ["Untrained before: " + ", ".join(f"`{n}`" for n in result.new_parts) + ".", ""]
    return "\n".join(lines)


def figures_table(figures: dict[str, Any], objective: str) -> str:
    """The held-out figures as a Markdown table, beside them what needs no reading."""
    if not figures:
        return "No documents were held out."
    pairs = "sentence-order" if objective == "mlm+sop" else "next-sentence"
    rows = [
        ("masked-word loss (nats)", figures["mlm_loss"], figures["unigram_loss"]),
        ("masked-word accuracy", figures["mlm_accuracy"], figures["unigram_accuracy"]),
        ("mlm_perplexity", figures["mlm_perplexity"], None),
        (f"{pairs} accuracy", figures["nsp_accuracy"], figures["nsp_constant_accuracy"]),
    ]
    lines = ["| figure | this model | without reading |", "|---|---|---|"]
    for name, value, baseline in rows:
        if value is not None:
            beside = "" if baseline is None else f"{baseline:.3f}"
            lines.append(f"| {name} | {value:.3f} | {beside} |")
    told = "Without reading: each word guessed by its frequency in the training text"
    if figures["nsp_accuracy"] is not None:
        told += ", the same answer for every pair"
    return "\n".join([*lines, "", f"{told}."])


def draw_curves(lines: list[dict[str, Any]], path: Path) -> None:
    """Draw training and held-out loss, held-out accuracy and the learning rate over tokens."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    train = [line for line in lines if line["event"] == "train"]
    held_out = [line for line in lines if line["event"] == "eval"]
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    loss, accuracy, rate = figure.subplots(1, 3)
    _plot(loss, train, "mlm_loss", "training", alpha=0.35)
    _plot(loss, held_out, "mlm_loss", "held out", marker="o")
    _plot(loss, held_out, "unigram_loss", "unigram", linestyle="--")
    _plot(accuracy, held_out, "mlm_accuracy", "masked word", marker="o")
    _plot(accuracy, held_out, "nsp_accuracy", "next sentence", marker="o")
    _plot(accuracy, held_out, "unigram_accuracy", "unigram", linestyle="--")
    _plot(rate, train, "learning_rate", "learning rate")
    for axes, title in ((loss, "masked-word loss"), (accuracy, "accuracy"), (rate, "")):
        axes.set_title(title)
        axes.set_xlabel("million tokens")
        if axes.get_legend_handles_labels()[1]:
            axes.legend()
    FigureCanvasAgg(figure).print_png(str(path))


def _plot(axes: Any, lines: list[dict[str, Any]], key: str, label: str, **style: Any) -> None:
    points = [(line["tokens"] / 1e6, line[key]) for line in lines if isinstance(line[key], float)]
    if points:
        axes.plot(*zip(*points, strict=True), label=label, **style)
