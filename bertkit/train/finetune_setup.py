"""What stands before the first step of fine-tuning: settings, files, task, model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from bertkit.checkpoint.config import BertConfig
from bertkit.checkpoint.files import config_file
from bertkit.checkpoint.hub import resolve_model
from bertkit.errors import DataError, UsageError
from bertkit.settings import FinetuneRecipe, TaskDataSettings, TaskTrainSettings, load_recipe
from bertkit.tasks.build import TASKS, TaskOptions, new_task
from bertkit.tasks.formats import Columns, open_rows
from bertkit.tasks.load import compare_sizes
from bertkit.tasks.task import Task
from bertkit.text.tokenizer import BertTokenizer
from bertkit.train.lora import add_adapters
from bertkit.train.rates import freeze
from bertkit.train.rows import Census, Part, assign_folds, hold_out
from bertkit.train.start import set_dropout

BUDGETS = ("epochs", "steps", "minutes")
EPOCHS = 3.0
# Of the four rates that the paper tried (2e-5 to 5e-5), those in common use for each task.
LEARNING_RATES = {"classify": 2e-5, "regress": 2e-5, "choose": 2e-5, "tag": 3e-5, "qa": 3e-5}
# A field over tags begins at nothing and has few numbers: with the encoder's rate it would still be
# nothing when training ends (100 to 1,000 times it are in common use).
CRF_FASTER = 100.0
# Adapters begin at nothing as well; 4e-4 is what the paper has for RoBERTa (2106.09685, table 9).
LORA_FASTER = 20.0


@dataclass(frozen=True, slots=True)
class FinetuneResult:
    """What became of a run.

    Attributes:
        run: the run folder.
        model: the finished model folder; None when interrupted, and of k-fold runs.
        task: classify, regress, tag, qa or choose.
        metric: the figure that the best model was chosen by.
        figures: of the saved model on dev; empty without dev. Of several runs, the means.
        test: of the saved model on test.
        best_step: the step of the saved model.
        steps: optimiser steps done.
        examples: examples learned from, each as often as it was.
        tokens: real tokens of these.
        seconds: wall-clock seconds, all sittings together.
        skipped: steps skipped for a bad loss.
        stopped_early: the figures did not get better any more.
        interrupted: stopped before the end; everything is saved.
        runs: of several runs (seeds, folds) the folder and the figures of each.
        deviations: of several runs, the standard deviations of `figures` and `test` (n - 1).
    """

    run: Path
    model: Path | None
    task: str
    metric: str
    figures: dict[str, Any] = field(default_factory=dict)
    test: dict[str, Any] = field(default_factory=dict)
    best_step: int = 0
    steps: int = 0
    examples: int = 0
    tokens: int = 0
    seconds: float = 0.0
    skipped: int = 0
    stopped_early: bool = False
    interrupted: bool = False
    runs: list[dict[str, Any]] = field(default_factory=list)
    deviations: dict[str, dict[str, float]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = asdict(self)
        return values | {"run": str(self.run), "model": self.model and str(self.model)}


RESULTS_NAME = "all_results.json"


def read_result(out: Path) -> FinetuneResult | None:
    """What a finished run left in all_results.json; None where there is nothing of the kind."""
    try:
        values = json.loads((out / RESULTS_NAME).read_bytes())
        known = {f.name for f in fields(FinetuneResult)}
        mine = {name: value for name, value in values.items() if name in known}
        model = out / "model" if mine["model"] else None
        return FinetuneResult(**(mine | {"run": out, "model": model}))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def resolve(task: str, recipe: FinetuneRecipe, has_dev: bool, saved: Path | None) -> FinetuneRecipe:
    """Fill in what the recipe leaves open, and refuse what cannot work.

    Args:
        task: one of TASKS.
        recipe: as the user gave it.
        has_dev: there is a dev file.
        saved: the recipe of a run that is to go on; taken where `recipe` names no more than it.

    Raises:
        UsageError: there is no such task, or settings contradict each other.
    """
    if task not in TASKS:
        raise UsageError(f"there is no task {task!r}; there are {', '.join(TASKS)}")
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
    usual = LEARNING_RATES[task] * (LORA_FASTER if train.lora_rank else 1.0)
    train.learning_rate = train.learning_rate or usual
    train.head_learning_rate = train.head_learning_rate or train.learning_rate
    if recipe.data.crf:
        faster = CRF_FASTER * train.learning_rate
        train.crf_learning_rate = train.crf_learning_rate or faster
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


@dataclass(frozen=True)
class Files:
    """The files of a run, as the user named them; None: there is none."""

    train: Path
    dev: Path | None = None
    test: Path | None = None


@dataclass
class Parts:
    """The rows to learn from, to choose by and to report on."""

    train: Part
    dev: Part | None
    test: Part | None


def open_parts(task: str, files: Files, recipe: FinetuneRecipe, fold: int | None) -> Parts:
    """Open the files; part the training rows where dev is to come from them.

    Args:
        task: one of TASKS.
        files: the files.
        recipe: resolved.
        fold: the number of the fold to measure on; None: no folds.

    Raises:
        DataError: a file is missing, or no labelled file for this task.
        UsageError: a file is standard input, which cannot be read twice.
    """
    data = recipe.data
    columns = Columns(data.text, data.pair, data.label, None, data.header, data.format, None,
                      data.joiner)  # fmt: skip

    def opened(path: Path | None, what: str) -> Part | None:
        if path is None:
            return None
        if str(path) == "-":
            raise UsageError(f"--{what} -: it is read several times; name a file")
        file = open_rows(path, task, columns)
        if not file.labelled:
            raise DataError("there are no labels in it; to have it labelled: predict", path)
        return Part(file, data.skip_bad_rows)

    train = opened(files.train, "train")
    assert train is not None
    dev = opened(files.dev, "dev")
    held = None
    if fold is not None:
        held = assign_folds(train, data.folds, recipe.train.seed) == fold
    elif data.dev > 0:
        held = hold_out(train, data.dev, recipe.train.seed)
    if held is not None:
        dev = Part(train.file, data.skip_bad_rows, held)
        train.kept = np.logical_not(held)
    return Parts(train, dev, opened(files.test, "test"))


def options_of(data: TaskDataSettings) -> TaskOptions:
    """What the task keeps of the recipe."""
    names = {f.name for f in fields(TaskOptions)} & set(data.__struct_fields__)
    return TaskOptions(**{name: getattr(data, name) for name in names})


def build_task(
    name: str, tokenizer: BertTokenizer, config: BertConfig, parts: Parts, data: TaskDataSettings
) -> tuple[Task[Any], Census]:
    """The task that the training rows describe, and what was seen in them.

    Raises:
        DataError: nothing can be learned from the rows, or rows of dev or test have labels that
            those of train lack.
    """
    census = Census()
    watched = census.watch(parts.train)
    options = options_of(data)
    task = new_task(name, tokenizer, watched, options, config.max_position_embeddings)
    for _ in watched:  # a task that learns nothing from the rows does not look at them
        pass
    if not census.classes:
        raise DataError("no rows to learn from")
    for part in (parts.dev, parts.test):
        if part is not None:
            for row in Census().watch(part):
                task.check(row)
    return task, census


def open_model(
    init: str, task: Task[Any], recipe: FinetuneRecipe, say: Callable[[str], None]
) -> Any:
    """The model to fine-tune, in fp32; a head that it lacks, or has for other labels, begins anew.

    Raises:
        CheckpointError: it is missing, broken or no whole encoder.
        ConfigError: its configuration is no BERT's.
    """
    folder = resolve_model(init)
    path = config_file(folder)
    config = BertConfig.from_json_file(path, **task.config_changes())
    torch.manual_seed(recipe.train.seed)
    model = task.model_class.from_pretrained(
        folder, config=config, dtype=torch.float32, ignore_mismatched_sizes=True
    )
    report = model.load_report
    if report.is_clean:  # else it has been logged
        say(str(report))
    before = BertConfig.from_json_file(path)
    head = [name for name, _ in model.named_parameters() if not name.startswith("bert.")]
    if before.id2label != config.id2label and set(head) & set(report.used):
        say(f"the head of {init} is for other labels ({', '.join(before.id2label.values())}): anew")
        torch.manual_seed(recipe.train.seed)
        model = _without_head(model, folder, config, recipe.train.seed)
    return _for_training(model, recipe)


def _without_head(model: Any, folder: Path, config: BertConfig, seed: int) -> Any:
    """A model with the same encoder and a new head."""
    torch.manual_seed(seed)
    anew = type(model)(config)
    anew.bert.load_state_dict(model.bert.state_dict())
    anew.load_report = model.load_report
    return anew


def rebuild_model(folder: Path, task: Task[Any], recipe: FinetuneRecipe) -> Any:
    """A model of the shape of a checkpoint of this run, for `restore_state` to fill."""
    return _for_training(task.model_class.from_pretrained(folder, dtype=torch.float32), recipe)


def _for_training(model: Any, recipe: FinetuneRecipe) -> Any:
    train = recipe.train
    layers = len(model.bert.encoder.layer)
    if train.freeze_layers > layers:
        raise UsageError(f"train.freeze_layers is {train.freeze_layers}; there are {layers} layers")
    if train.dropout is not None:
        set_dropout(model, train.dropout)
    model.bert.encoder.gradient_checkpointing = train.gradient_checkpointing
    freeze(model, train.freeze_layers, train.freeze_embeddings)
    if train.lora_rank:
        add_adapters(model, train.lora_rank, train.lora_alpha, train.lora_targets)
    return model


def open_tokenizer(init: str) -> tuple[BertTokenizer, BertConfig]:
    """The tokenizer and the configuration of a model.

    Raises:
        CheckpointError: they do not belong together, or there are none.
    """
    folder = resolve_model(init)
    tokenizer = BertTokenizer.from_pretrained(folder)
    config = BertConfig.from_json_file(config_file(folder))
    compare_sizes(len(tokenizer), config.vocab_size, init)
    return tokenizer, config


def open_teacher(name: str, task: Task[Any]) -> Any:
    """The teacher, in eval mode: it must know the same words and the same labels.

    Raises:
        UsageError: it does not.
    """
    tokenizer, config = open_tokenizer(name)
    if tokenizer.get_vocab() != task.tokenizer.get_vocab():
        raise UsageError(f"train.teacher {name} has another vocabulary than the model")
    changes = task.config_changes()
    wanted = changes.get("id2label")
    if wanted is not None and config.id2label != wanted:
        raise UsageError(
            f"train.teacher {name} has the labels {', '.join(config.id2label.values())}; the "
            f"training rows have {', '.join(wanted.values())}"
        )
    teacher = task.model_class.from_pretrained(name, dtype=torch.float32)
    if teacher.load_report.missing:
        raise UsageError(
            f"train.teacher {name} lacks {teacher.load_report.missing[0]}: fine-tune it for "
            f"{task.name} first"
        )
    if config.max_position_embeddings < task.max_length:
        raise UsageError(
            f"train.teacher {name} reads {config.max_position_embeddings} tokens, rows have up to "
            f"{task.max_length}; set data.max_length"
        )
    return teacher.requires_grad_(False)
