"""What stands before the first step of fine-tuning: settings, files, task, model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from bertkit.checkpoint.config import BertConfig
from bertkit.checkpoint.files import config_file
from bertkit.checkpoint.hub import resolve_model
from bertkit.errors import DataError, UsageError
from bertkit.settings import FinetuneRecipe, TaskDataSettings
from bertkit.tasks.build import TaskOptions, new_task
from bertkit.tasks.formats import Summary
from bertkit.tasks.load import compare_sizes
from bertkit.tasks.schemes import PLAIN
from bertkit.tasks.task import Task
from bertkit.text.tokenizer import BertTokenizer
from bertkit.train.features import Lengths, chunks
from bertkit.train.finetune_plan import Files, open_file
from bertkit.train.log import counted
from bertkit.train.lora import add_adapters
from bertkit.train.rates import freeze
from bertkit.train.rows import Census, Part, assign_folds, hold_out, text_key
from bertkit.train.start import set_dropout


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

    def opened(what: Literal["train", "dev", "test"]) -> Part | None:
        file = open_file(task, files, what, data)
        return None if file is None else Part(file, data.skip_bad_rows)

    train, dev = opened("train"), opened("dev")
    assert train is not None
    held = None
    if fold is not None:
        held = assign_folds(train, data.folds, recipe.train.seed) == fold
    elif data.dev > 0:
        held = hold_out(train, data.dev, recipe.train.seed)
    if held is not None:
        dev = Part(train.file, data.skip_bad_rows, held)
        train.kept = np.logical_not(held)
    return Parts(train, dev, opened("test"))


def options_of(data: TaskDataSettings) -> TaskOptions:
    """What the task keeps of the recipe."""
    names = {f.name for f in fields(TaskOptions)} & set(data.__struct_fields__)
    return TaskOptions(**{name: getattr(data, name) for name in names})


def build_task(
    name: str, tokenizer: BertTokenizer, config: BertConfig, parts: Parts, data: TaskDataSettings
) -> tuple[Task[Any], Census, dict[str, list[str]]]:
    """The task that the training rows describe, what was seen in them, and in dev and test.

    Labels are those of the whole training file, also of the rows that are held out of it: all
    folds have the same.

    Raises:
        DataError: nothing can be learned from the rows, or rows of dev or test have labels that
            those of train lack.
    """
    options, census = options_of(data), Census()
    watched = census.watch(Part(parts.train.file, data.skip_bad_rows))
    task = new_task(name, tokenizer, watched, options, config.max_position_embeddings)
    for _ in watched:  # a task that learns nothing from the rows does not look at them
        pass
    if parts.train.kept is not None:
        census = Census()
        for _ in census.watch(parts.train):
            pass
    if not census.classes:
        raise DataError("no rows to learn from")
    parts.train.summary = census.summary
    _refuse_wrong_task(name, census.summary, task, parts.train.file.path)
    told = {
        what: _look_at(part, task, census.texts)
        for what, part in (("dev", parts.dev), ("test", parts.test))
        if part is not None
    }
    if parts.dev is not None and parts.dev.kept is not None:
        told["dev"].insert(0, _share_held(parts.dev.kept, data))
    return task, census, told


def _share_held(held: NDArray[np.bool_], data: TaskDataSettings) -> str:
    """What share of the training rows was held out and, where it is another than asked, why."""
    asked = 1 / data.folds if data.folds else data.dev
    line = f"{held.mean():.1%} of its rows"
    if abs(held.sum() - asked * len(held)) > max(1, 0.1 * asked * len(held)):
        line += f", not {asked:.1%}: rows of one text, or passage, stay together"
    return line


def _refuse_wrong_task(name: str, seen: Summary, task: Task[Any], path: str) -> None:
    """Refuse a file of tags read as a table of texts, and a table of texts read as tags."""
    labels = list(seen.labels)
    if name == "classify" and "O" in labels and all(x == "O" or x[1:2] == "-" for x in labels):
        raise DataError("the labels are tags of words; `finetune tag` learns them", path)
    if name == "tag" and seen.rows == 1 and task.options.scheme == PLAIN:
        raise DataError(
            "all lines are one text, no tag like B-PER: blank lines part the texts of a CoNLL "
            "file; `finetune classify` learns labels of whole texts",
            path,
        )


def _look_at(part: Part, task: Task[Any], learned: set[int]) -> list[str]:
    """What dev or test hold, for people; `learned` are the keys of the texts of train.

    Raises:
        DataError: there are no rows, or one has a label that the training rows lack and bad rows
            are not skipped.
    """
    part.measured_by = task
    census, lengths = Census(), Lengths(task)
    known = 0
    for rows in chunks(census.watch(part)):
        known += sum(text_key(row) in learned for row in rows)
        lengths.add(task.features_of(rows, labelled=False))
    if not census.classes:
        raise DataError("no rows to measure on", part.file.path)
    part.summary = census.summary
    lines = census.summary.lines() + lengths.lines()
    if known:
        share = f"{counted(known, 'rows')} ({known / census.summary.rows:.1%})"
        lines.append(f"{share} with a text that is in train too")
    return lines


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
