"""The card of a fine-tuned model: what it does, how well, on what data, with what settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bertkit import __version__
from bertkit.checkpoint.files import write_atomically
from bertkit.settings import dump_recipe
from bertkit.tasks.outcomes import label_table
from bertkit.train.finetune_result import FinetuneResult
from bertkit.train.finetune_run import TaskRun
from bertkit.train.log import clock, counted, read_log

CARD = """---
library_name: transformers
pipeline_tag: {pipeline}
tags:
- bert
- bertkit
---

# {name}

A BERT fine-tuned with bertkit {version} for {what}, from `{origin}`: {layers} layers, hidden size
{hidden}, {parameters:,} parameters.
{labels}
## Figures

{figures}
{choice}

![curves](curves.png)
{by_label}
## Use

```python
import bertkit

model = bertkit.load("{folder}")
{use}
```

The folder also opens in `transformers`: `{auto}.from_pretrained("{folder}")`.

## Data

{data}

## Training

{done}, {time}{skipped}.

```toml
{recipe}```
"""
# By task: what it does, Hugging Face's name of it, a call, transformers' class.
SHOWN = {
    "classify": (
        "labels of texts",
        "text-classification",
        'print(model.classify(["A text."]))',
        "AutoModelForSequenceClassification",
    ),
    "regress": (
        "numbers for texts",
        "text-classification",
        'print(model.classify(["A text."]))',
        "AutoModelForSequenceClassification",
    ),
    "tag": (
        "entities and other labelled stretches of texts",
        "token-classification",
        'print(model.tag(["A text."]))',
        "AutoModelForTokenClassification",
    ),
    "qa": (
        "answers out of passages",
        "question-answering",
        'print(model.answer("A question?", "A passage."))',
        "AutoModelForQuestionAnswering",
    ),
    "choose": (
        "choices",
        "multiple-choice",
        'print(model.choose("A question?", ["one", "two"]))',
        "AutoModelForMultipleChoice",
    ),
}
MOST_LABELS = 40


def write_card(run: TaskRun, model: Any, result: FinetuneResult) -> None:
    """Write README.md and curves.png into RUN/model."""
    folder = run.out / "model"
    draw_curves(read_log(run.out / "log.jsonl"), folder / "curves.png", run.metric)
    what, pipeline, use, auto = SHOWN[run.task.name]
    card = CARD.format(
        name=run.out.name,
        version=__version__,
        pipeline=pipeline,
        what=what,
        origin=run.recipe.model.init,
        layers=model.config.num_hidden_layers,
        hidden=model.config.hidden_size,
        parameters=model.num_parameters(),
        labels=_labels(run, model),
        figures=figures_table(result),
        choice=_choice(run, result),
        by_label=_by_label(run),
        folder=folder,
        use=use,
        auto=auto,
        data=_data(run),
        done=", ".join(counted(getattr(result, x), x) for x in ("steps", "examples", "tokens")),
        time=clock(result.seconds),
        skipped=f"; skipped for a bad loss: {result.skipped}" if result.skipped else "",
        recipe=dump_recipe(run.recipe),
    )
    write_atomically(folder / "README.md", card.encode())


def _labels(run: TaskRun, model: Any) -> str:
    if run.task.name == "choose":
        return "\nThe label of an answer is the number of the choice, from 0.\n"
    if "label2id" not in run.task.config_changes():
        return ""
    names = list(model.config.id2label.values())
    more = f" and {len(names) - MOST_LABELS} more" if len(names) > MOST_LABELS else ""
    shown = ", ".join(f"`{name}`" for name in names[:MOST_LABELS])
    return f"\nLabels: {shown}{more}.\n"


def _choice(run: TaskRun, result: FinetuneResult) -> str:
    if not result.figures:
        return "\nNothing was measured on while it learned; these are the weights of the last step."
    early = ", after which it was not better any more" if result.stopped_early else ""
    return (
        f"\nThe weights are those of step {result.best_step:,} of {result.steps:,}{early}: the "
        f"best on dev by `{result.metric}`."
    )


def _data(run: TaskRun) -> str:
    files, data = run.files, run.recipe.data
    lines = []
    for name, part in vars(run.parts).items():
        if part is not None:
            path = getattr(files, name)
            where = f"held out of {files.train.name}" if path is None else path.name
            counts = part.summary.lines()[:-1]  # rows and labels; the last line is of lengths
            lines.append(f"- {name}: {where}, {'; '.join(counts)}")
    lines[0] += f"; {counted(len(run.data.store), 'examples')}"
    for name in ("oversample", "augment"):
        if (value := getattr(data, name)) not in (0.0, "none"):
            lines.append(f"- {name}: {value}")
    return "\n".join(lines)


def _by_label(run: TaskRun) -> str:
    """The figures of each label on dev, with the weights that are saved."""
    labels = run.state.labels
    return f"\nBy label, on dev:\n\n{label_table(labels).markdown()}\n" if labels else ""


def figures_table(result: FinetuneResult) -> str:
    """The figures on dev and test as a Markdown table."""
    table = result.table()
    return "There was no dev file and no test file." if table is None else table.markdown()


def write_card_of_several(together: FinetuneResult, best: FinetuneResult) -> None:
    """Put the figures of all runs in place of its own into the card of the best one's model.

    Args:
        together: of all runs; its model is a copy of the best one's.
        best: of the best run.
    """
    assert together.model is not None
    path, runs = together.model / "README.md", together.runs_table()
    before, _, rest = path.read_text("utf-8").partition("## Figures\n")
    curves = rest.index("\n![curves]")
    count = len(together.runs)
    figures = f"Mean ± standard deviation of {count} runs that differ in their seeds.\n\n"
    figures += figures_table(together)
    if runs is not None:
        figures += f"\n\n{runs.markdown()}"
    figures += (
        f"\n\nThe weights and all that stands below are those of `{best.run.name}`, step "
        f"{best.best_step:,} of {best.steps:,}"
        + (f": the best on dev by `{best.metric}`.\n" if best.figures else ".\n")
    )
    card = f"{before}## Figures\n\n{figures}{rest[curves:]}"
    card = card.replace(f"\n# {best.run.name}\n", f"\n# {together.run.name}\n")
    write_atomically(path, card.replace(str(best.model), str(together.model)).encode())


def draw_curves(lines: list[dict[str, Any]], path: Path, metric: str) -> None:
    """Draw the training loss, the figure on dev and the learning rate over examples."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    train = [line for line in lines if line["event"] == "train"]
    measured = [line for line in lines if line["event"] == "eval"]
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    panels = figure.subplots(1, 3)
    for axes, points, key, title in zip(
        panels,
        (train, measured, train),
        ("loss", metric, "learning_rate"),
        ("training loss", f"{metric} on dev", "learning rate"),
        strict=True,
    ):
        shown = [(p["examples"], p[key]) for p in points if isinstance(p.get(key), float)]
        if shown:
            axes.plot(*zip(*shown, strict=True), marker="o" if points is measured else None)
        axes.set_title(title)
        axes.set_xlabel("examples")
    FigureCanvasAgg(figure).print_png(str(path))
