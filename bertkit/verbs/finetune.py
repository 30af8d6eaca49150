"""`bertkit finetune`: a labelled file and a model in, a fine-tuned model folder out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from bertkit.errors import UsageError
from bertkit.verbs.ask import Model
from bertkit.verbs.columns import FileOptions
from bertkit.verbs.options import Common
from bertkit.verbs.recipes import RunOptions, given_settings

if TYPE_CHECKING:
    from bertkit.train.finetune_result import FinetuneResult

BUDGETS = ("epochs", "steps", "minutes")
# Short flags and the settings they stand for.
SHORT = {
    **{budget: f"train.{budget}" for budget in BUDGETS},
    "batch_size": "train.batch_size",
    "learning_rate": "train.learning_rate",
    "class_weights": "train.class_weights",
    "loss": "train.loss",
    "adversarial": "train.adversarial",
    "r_drop": "train.r_drop",
    "layer_decay": "train.layer_decay",
    "freeze_layers": "train.freeze_layers",
    "lora_rank": "train.lora_rank",
    "teacher": "train.teacher",
    "seeds": "train.seeds",
    "patience": "train.patience",
    "metric_for_best_model": "train.metric_for_best_model",
    "folds": "data.folds",
    "oversample": "data.oversample",
    "augment": "data.augment",
    "max_length": "data.max_length",
    "doc_stride": "data.doc_stride",
    "crf": "data.crf",
    "scheme": "data.scheme",
    "text_column": "data.text",
    "pair_column": "data.pair",
    "label_column": "data.label",
    "header": "data.header",
    "file_format": "data.format",
    "joiner": "data.joiner",
    "skip_bad_rows": "data.skip_bad_rows",
}


@Parameter(name="*")
@dataclass(kw_only=True)
class FinetuneOptions:
    """What is learned from, and what is measured."""

    train: Annotated[Path, Parameter(help="The rows to learn from; the format is found out.")]
    dev: Annotated[
        str | None,
        Parameter(help="Rows to choose the best weights by; or a share of --train, such as 0.1."),
    ] = None
    test: Annotated[
        Path | None, Parameter(help="Rows whose figures the result is reported with.")
    ] = None


@Parameter(name="*", group="Training")
@dataclass(kw_only=True)
class TrainingFlags:
    """The settings of training that people change most."""

    epochs: Annotated[
        float | None, Parameter(help="Budget in passes over the rows; 3 without any budget.")
    ] = None
    steps: Annotated[int | None, Parameter(help="Budget in optimiser steps.")] = None
    minutes: Annotated[float | None, Parameter(help="Budget in minutes of training.")] = None
    batch_size: Annotated[int | None, Parameter(help="Examples of one optimiser step.")] = None
    learning_rate: Annotated[float | None, Parameter(help="Highest learning rate.")] = None
    seeds: Annotated[
        int | None, Parameter(help="Train so often, with other seeds: mean ± deviation.")
    ] = None
    folds: Annotated[
        int | None, Parameter(help="k-fold: so many runs, each part held out once.")
    ] = None
    patience: Annotated[
        int | None,
        Parameter(
            help="Stop after so many evaluations (epochs, unless train.evals is set) without a "
            "better figure on dev."
        ),
    ] = None
    metric_for_best_model: Annotated[
        str | None, Parameter(help="The figure that the best weights are chosen by.")
    ] = None
    class_weights: Annotated[
        str | None, Parameter(help='balanced, or weights such as {"rare": 3}.')
    ] = None
    loss: Annotated[
        Literal["ce", "focal", "dice"] | None,
        Parameter(help="Cross-entropy, or for rare classes focal or dice loss."),
    ] = None
    oversample: Annotated[
        float | None, Parameter(help="Repeat rare classes up to this share of the largest.")
    ] = None
    augment: Annotated[
        Literal["none", "entities", "tokens", "both"] | None,
        Parameter(help="Swap entities for others of their type, hide words (tag)."),
    ] = None
    adversarial: Annotated[
        Literal["none", "fgm", "pgd"] | None,
        Parameter(help="Learn from worst-case word embeddings too; slower."),
    ] = None
    r_drop: Annotated[
        float | None, Parameter(help="Weight of R-Drop: two passes agree; twice the time.")
    ] = None
    layer_decay: Annotated[
        float | None, Parameter(help="Lower layers learn at this share of the one above.")
    ] = None
    freeze_layers: Annotated[
        int | None, Parameter(help="So many lowest layers are not trained.")
    ] = None
    lora_rank: Annotated[
        int | None, Parameter(help="Train LoRA adapters of this rank alone; merged at the end.")
    ] = None
    teacher: Annotated[
        str | None,
        Parameter(help="A model fine-tuned for the same labels, to learn from (distillation)."),
    ] = None


@Parameter(name="*", group="Reading the file")
@dataclass(kw_only=True)
class DataFlags:
    """How rows are read."""

    max_length: Annotated[int | None, Parameter(help="Tokens that are read at once.")] = None
    doc_stride: Annotated[
        int | None, Parameter(help="Tokens that windows of a long text share (tag, qa).")
    ] = None
    crf: Annotated[
        bool | None, Parameter(help="Decide tags together, by a conditional random field.")
    ] = None
    scheme: Annotated[
        Literal["BIO", "BIOES", "BMES", "IO", "plain"] | None,
        Parameter(help="The tags that the model learns, whatever the file's."),
    ] = None


def overrides(
    options: FinetuneOptions,
    training: TrainingFlags,
    data: DataFlags,
    files: FileOptions,
    *,
    seed: int | None,
    sets: Sequence[str] = (),
) -> tuple[dict[str, Any], Path | None]:
    """Every setting that the command line names, by its dotted name; and the dev file, if any.

    Raises:
        UsageError: a --set without "=", a setting given twice, or two budgets.
    """
    flags = vars(training) | vars(data) | vars(files)
    flags["skip_bad_rows"] = files.skip_bad_rows or None  # a recipe may ask for it too
    given = [(dotted, flags[flag]) for flag, dotted in SHORT.items()]
    share = _share(options.dev)
    given += [("train.seed", seed), ("data.dev", share)]
    dev = None if share is not None or options.dev is None else Path(options.dev)
    return given_settings(sets, given, BUDGETS), dev


def _share(dev: str | None) -> float | None:
    """A share of the training rows, where `dev` is a number and no file is called so."""
    try:
        share = float(dev) if dev is not None and not Path(dev).exists() else None
    except ValueError:
        return None
    if share is not None and not 0 < share < 1:
        raise UsageError(f"--dev {dev}: a file, or a share of --train between 0 and 1")
    return share


def finetune(
    task: Annotated[
        Literal["classify", "regress", "tag", "qa", "choose"], Parameter(help="What to learn.")
    ],
    model: Model,
    /,
    *,
    options: FinetuneOptions,
    run: RunOptions,
    training: TrainingFlags | None = None,
    files: FileOptions | None = None,
    data: DataFlags | None = None,
    common: Common | None = None,
) -> None:
    """Fine-tune a model on a labelled file: classify, regress, tag, qa, choose."""
    common = common or Common()
    training, data, files = training or TrainingFlags(), data or DataFlags(), files or FileOptions()
    from bertkit.settings import FinetuneRecipe, load_recipe
    from bertkit.train.stopping import stops_told

    settings, dev = overrides(options, training, data, files, seed=common.seed, sets=run.set)
    recipe = load_recipe(run.file(), settings, FinetuneRecipe)
    recipe.model.init = model
    speaks = os.environ.get("RANK", "0") == "0"  # under torchrun one rank speaks for all
    if speaks:
        from bertkit.train.finetune_plan import Files, refuse_early

        wanted = Files(options.train, dev, options.test)
        refuse_early(task, wanted, run.out, recipe, run.resume, run.overwrite)
    with stops_told(run.out, run.resume or run.overwrite):
        from bertkit.train.finetune import finetune as train

        result = train(
            task,
            model,
            options.train,
            dev,
            options.test,
            run.out,
            recipe,
            resume=run.resume,
            overwrite=run.overwrite,
            device=common.device,
            quiet=common.quiet,
        )
    if speaks:
        common.show(result.to_dict(), summary(result))
    if result.interrupted:
        raise KeyboardInterrupt


def summary(result: FinetuneResult) -> str:
    """The last word for people: what was done, how good it is, where it is."""
    from bertkit.train.log import counted

    steps, examples = counted(result.steps, "steps"), counted(result.examples, "examples")
    lines = [f"{steps}, {examples}, {result.seconds / 60:.1f} minutes"]
    if result.skipped:
        lines.append(f"{counted(result.skipped, 'steps')} skipped for a bad loss; see log.jsonl")
    for table in (result.runs_table(), result.table()):
        lines += table.lines() if table is not None else []
    if result.runs:
        lines.append(f"mean ± standard deviation of {len(result.runs)} runs")
    elif result.metric in result.figures:
        early = ", stopped early" if result.stopped_early else ""
        lines.append(
            f"best on dev by {result.metric}: {result.figures[result.metric]:.4f} at step "
            f"{result.best_step:,} of {result.steps:,}{early}"
        )
    if result.figures.get("conlleval_f1") == 0:  # of entities alone
        lines.append("no entity of dev was found: train longer, or raise the learning rate")
    if result.interrupted:
        return "\n".join([*lines, "continue it with --resume"])
    places = [path for path in result.run.glob("**/checkpoints") if path.is_dir()]
    size = sum(file.stat().st_size for place in places for file in place.rglob("*"))
    if size:
        where = places[0] if len(places) == 1 else f"{result.run}/*/checkpoints"
        lines.append(f"{size / 1e6:,.0f} MB in {where}, needed no more: rm -r {where}")
    none = "no model: each of the folds lacks rows; without --folds one learns from all of them"
    lines.append(f"model in {result.model}" if result.model else none)
    return "\n".join(lines)
