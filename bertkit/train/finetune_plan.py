"""What a fine-tuning run is asked to do: its files and settings; what cannot work is refused.

Importing this module loads no torch, so that plain mistakes are told at once.
"""

from __future__ import annotations

import filecmp
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import msgspec

from bertkit.checkpoint.config import BertConfig
from bertkit.checkpoint.files import config_file
from bertkit.checkpoint.hub import resolve_model
from bertkit.errors import UsageError
from bertkit.settings import FinetuneRecipe, TaskDataSettings, TaskTrainSettings, load_recipe
from bertkit.tasks.formats import OPENERS, Columns, RowFile, open_rows
from bertkit.train.early import check_out

BUDGETS = ("epochs", "steps", "minutes")
EPOCHS = 3.0
# Of the four rates that the paper tried (2e-5 to 5e-5), those in common use for each task.
LEARNING_RATES = {"classify": 2e-5, "regress": 2e-5, "choose": 2e-5, "tag": 3e-5, "qa": 3e-5}
# A field over tags begins at nothing and has few numbers: with the encoder's rate it would still be
# nothing when training ends (100 to 1,000 times it are in common use).
CRF_FASTER = 100.0
# Adapters begin at nothing as well; 4e-4 is what the paper has for RoBERTa (2106.09685, table 9).
LORA_FASTER = 20.0


@dataclass(frozen=True)
class Files:
    """The files of a run, as the user named them; None: there is none."""

    train: Path
    dev: Path | None = None
    test: Path | None = None

    def alike(self) -> list[str]:
        """A warning for each two that are one file, or hold the same bytes."""
        learned = "it was learned from, so that its figures say nothing of new rows"
        why = {"train": learned, "dev": "the weights are chosen by it, which flatters its figures"}
        there = [(name, path) for name, path in vars(self).items() if path is not None]
        return [
            f"warning: --{other} is the same as --{name}: {why[name]}"
            for (name, one), (other, two) in combinations(there, 2)
            if one.is_file() and two.is_file() and filecmp.cmp(one, two, shallow=False)
        ]


@dataclass(frozen=True)
class Place:
    """Where a run reads and writes.

    Attributes:
        files: its files.
        out: the run folder.
        fold: the number of the fold to measure on; None: no folds.
        first: of several runs the first, which tells what they have in common.
    """

    files: Files
    out: Path
    fold: int | None = None
    first: bool = True


def open_file(
    task: str, files: Files, what: Literal["train", "dev", "test"], data: TaskDataSettings
) -> RowFile | None:
    """One of the files, which must have labels; None: there is none.

    Raises:
        DataError: it is missing, or no labelled file for this task.
        UsageError: it is standard input, which cannot be read twice.
    """
    path: Path | None = getattr(files, what)
    if path is None:
        return None
    if str(path) == "-":
        raise UsageError(f"--{what} -: it is read several times; name a file")
    columns = Columns(
        text=data.text,
        pair=data.pair,
        label=data.label,
        header=data.header,
        format=data.format,
        joiner=data.joiner,
    )
    file = open_rows(path, task, columns)
    file.check_labelled()
    return file


def refuse_early(
    task: str, files: Files, out: Path, recipe: FinetuneRecipe, resume: bool, overwrite: bool
) -> None:
    """Refuse what `finetune` would refuse, as far as that can be told without torch.

    Raises:
        UsageError: settings contradict each other, or there is a run in `out`.
        DataError: a file is missing, or no labelled file for this task.
        CheckpointError: there is no such model.
        ConfigError: it is no BERT.
    """
    recipe = resolve(task, recipe, files.dev is not None, out / "recipe.toml" if resume else None)
    check_out(out, resume, overwrite)
    for what in ("train", "dev", "test"):
        open_file(task, files, what, recipe.data)
    assert recipe.model.init is not None
    if not resume:  # which goes on from its own checkpoint
        BertConfig.from_json_file(config_file(resolve_model(recipe.model.init)))


def usual_rates(task: str, recipe: FinetuneRecipe) -> dict[str, float | None]:
    """What the learning rates are where the recipe leaves them open."""
    usual = LEARNING_RATES[task] * (LORA_FASTER if recipe.train.lora_rank else 1.0)
    rate = recipe.train.learning_rate or usual
    of_crf = CRF_FASTER * rate if recipe.data.crf else None
    return {"learning_rate": usual, "head_learning_rate": rate, "crf_learning_rate": of_crf}


def changed(task: str, recipe: FinetuneRecipe) -> dict[str, Any]:
    """The settings of a resolved recipe that are not the defaults, by dotted names."""
    mine, usual = msgspec.to_builtins(recipe), msgspec.to_builtins(FinetuneRecipe())
    usual["train"] |= {"epochs": EPOCHS} | usual_rates(task, recipe)
    return {
        f"{section}.{name}": value
        for section in mine
        for name, value in mine[section].items()
        if value not in (None, usual[section][name]) and section != "model"
    }


def resolve(task: str, recipe: FinetuneRecipe, has_dev: bool, saved: Path | None) -> FinetuneRecipe:
    """Fill in what the recipe leaves open, and refuse what cannot work.

    Args:
        task: one of OPENERS.
        recipe: as the user gave it.
        has_dev: there is a dev file.
        saved: the recipe of a run that is to go on; taken where `recipe` names no more than it.

    Raises:
        UsageError: there is no such task, or settings contradict each other.
    """
    if task not in OPENERS:
        raise UsageError(f"there is no task {task!r}; there are {', '.join(OPENERS)}")
    recipe = msgspec.convert(msgspec.to_builtins(recipe), FinetuneRecipe)  # a copy
    if saved is not None and saved.is_file():
        init = recipe.model.init
        recipe.model.init = None
        if recipe == FinetuneRecipe():
            recipe = load_recipe(saved, {}, FinetuneRecipe)
        recipe.model.init = init or recipe.model.init
    if recipe.model.init is None:
        raise UsageError("name the model to begin with, or set model.init")
    train = recipe.train
    given = [name for name in BUDGETS if getattr(train, name) is not None]
    if len(given) > 1:
        raise UsageError(f"one budget, please: {' and '.join(f'train.{g}' for g in given)} are set")
    if not given:
        train.epochs = EPOCHS
    for name, rate in usual_rates(task, recipe).items():
        setattr(train, name, getattr(train, name) or rate)
    for wrong, why in _contradictions(task, recipe.data, train, has_dev):
        if wrong:
            raise UsageError(why)
    return recipe


def _contradictions(
    task: str, data: TaskDataSettings, train: TaskTrainSettings, has_dev: bool
) -> list[tuple[bool, str]]:
    """Whether settings do not go together, each with what to say then."""
    classes = task in ("classify", "tag")
    frozen = train.freeze_embeddings or train.freeze_layers > 0 or train.lora_rank > 0
    changed = train.loss != "ce" or train.class_weights != "none"
    measured = has_dev or data.dev > 0 or data.folds > 0
    return [
        (train.loss != "ce" and not classes, f"train.loss={train.loss} is for classify and tag"),
        (train.class_weights != "none" and not classes, "train.class_weights is for classify, tag"),
        (data.oversample > 0 and not classes, "data.oversample is for classify and tag"),
        (train.loss == "dice" and data.multi_label, "train.loss=dice needs one label a text"),
        (data.crf and task != "tag", "data.crf is for tag"),
        (
            data.crf and changed,
            "data.crf scores whole sequences of tags: train.loss=ce, no train.class_weights",
        ),
        (data.augment != "none" and task != "tag", "data.augment is for tag"),
        (
            frozen and train.adversarial != "none",
            f"train.adversarial={train.adversarial} moves the word embeddings, which "
            "train.freeze_layers, train.freeze_embeddings and train.lora_rank freeze",
        ),
        (
            train.freeze_layers > 0 and train.lora_rank > 0,
            "train.lora_rank freezes all layers already; leave out train.freeze_layers",
        ),
        (has_dev and data.dev > 0, "data.dev is for runs without a dev file; leave one out"),
        (data.folds == 1, "data.folds is 1; two or more, or 0 for none"),
        (
            data.folds > 0 and (has_dev or data.dev > 0 or train.seeds > 1),
            "data.folds takes its dev rows from train: without a dev file, data.dev or train.seeds",
        ),
        (train.patience > 0 and not measured, "train.patience needs a dev file, or data.dev"),
    ]
