"""Everything that a fine-tuning run works with, and how it comes together."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
import torch.distributed as dist
from torch import nn

from bertkit.checkpoint.files import CONFIG_NAME
from bertkit.checkpoint.store import newest_step, save_step, step_name
from bertkit.errors import UsageError
from bertkit.infer.engine import predict_rows
from bertkit.runtime import Runtime
from bertkit.settings import FinetuneRecipe, TaskTrainSettings
from bertkit.tasks.outcomes import LabelFigures
from bertkit.tasks.task import Task
from bertkit.text.tokenizer import BertTokenizer
from bertkit.train.budget import Budget
from bertkit.train.finetune_data import TrainData
from bertkit.train.finetune_plan import Files, Place
from bertkit.train.finetune_setup import (
    Parts,
    build_task,
    open_model,
    open_parts,
    open_teacher,
    open_tokenizer,
    rebuild_model,
)
from bertkit.train.finetune_step import wrap
from bertkit.train.log import Progress, RunLog
from bertkit.train.lora import merged_state
from bertkit.train.objectives import Objective, class_weights
from bertkit.train.rates import TaskOptimizer
from bertkit.train.replicas import with_replicas
from bertkit.train.run import check_same_machine, note_machine
from bertkit.train.setup import wants_compile
from bertkit.train.state import RunState, restore_state

# Figures that are better the lower they are.
LOWER = ("loss", "mse", "mae", "rmse", "error")
# Where the best weights so far are kept while a run lasts.
BEST = "best"
# Rows on which a run tries its dev file before the first step.
TRIED = 8
# Rows between signs of life while figures are taken.
SHOWN = 256


class TaskState(RunState):
    """Where a fine-tuning run stands; its cursor is (epoch, step in it, steps of it).

    Attributes:
        examples: learned from so far, each as often as it was.
        best: the best figure so far; None: there is none yet.
        best_step: the step that has it.
        figures: all figures of that step.
        labels: the same by label, averages last.
        stale: evaluations since.
        stopped: the figures did not get better any more.
        data: a checksum of the training data.
    """

    examples: int = 0
    best: float | None = None
    best_step: int = 0
    figures: dict[str, Any] = msgspec.field(default_factory=dict)
    labels: list[LabelFigures] = msgspec.field(default_factory=list)
    stale: int = 0
    stopped: bool = False
    data: int = 0


class TaskBudget(Budget):
    """A budget whose epochs are counted in steps, which hold examples, not tokens.

    Args:
        train: exactly one of epochs, steps, minutes is set.
        state: where the run stands at the start of this sitting.
        machine: for ranks to agree on the time.
        begun: time.monotonic() at the start of this sitting.
    """

    def __init__(
        self, train: TaskTrainSettings, state: TaskState, machine: Runtime, begun: float
    ) -> None:
        super().__init__(train, 0, state, machine, begun)
        self.examples_before = state.examples

    def examples_per_second(self, state: TaskState) -> float:
        """Examples learned from a second over this sitting, evaluations not counted."""
        seconds = time.monotonic() - self.stepping - self.measuring
        return (state.examples - self.examples_before) / max(seconds, 1e-9)

    def share(self, state: RunState) -> float:
        """The share of the budget that is spent, 0 to 1 (and a little over at the end)."""
        if self.train.epochs is None:
            return super().share(state)
        epoch, step, steps = state.cursor
        return (epoch + (step / steps if steps else 0.0)) / self.train.epochs


@dataclass
class TaskRun:
    """Everything that the loop works with."""

    out: Path
    files: Files
    recipe: FinetuneRecipe
    machine: Runtime
    task: Task[Any]
    parts: Parts
    data: TrainData
    model: Any
    module: nn.Module
    optimizers: TaskOptimizer
    state: TaskState
    budget: TaskBudget
    metric: str
    log: RunLog
    progress: Progress
    last_save: float = 0.0
    # A signal came to this rank; `stop` follows when all ranks have heard of it.
    asked: bool = False
    stop: bool = False

    @property
    def complete(self) -> bool:
        """The budget is spent, or there is nothing more to be gained."""
        return self.state.progress >= 1 or self.state.stopped

    @property
    def done(self) -> bool:
        """The run is complete, or all ranks agreed to stop."""
        return self.stop or self.complete

    @property
    def tokenizer(self) -> BertTokenizer:
        """The model's own."""
        return self.task.tokenizer


def prepare_run(
    task_name: str,
    place: Place,
    recipe: FinetuneRecipe,
    machine: Runtime,
    resume: bool,
    progress: Progress,
) -> TaskRun:
    """Put a run together: from a model, or from its newest checkpoint that verifies.

    Args:
        task_name: one of TASKS.
        place: the files, the run folder, the fold to measure on, if any.
        recipe: the settings, resolved.
        machine: device, format, ranks.
        resume: go on from a checkpoint where there is one.
        progress: where remarks go.

    Raises:
        DataError: a file is missing, bad, or nothing can be learned from it.
        CheckpointError: the model or every checkpoint of the run is unusable.
        UsageError: model, data and settings do not go together.
    """
    begun = time.monotonic()
    files, out, train = place.files, place.out, recipe.train
    assert recipe.model.init is not None
    parts = open_parts(task_name, files, recipe, place.fold)
    found = newest_step(out / "checkpoints", progress.warn) if resume else None
    tokenizer, config = open_tokenizer(str(found or recipe.model.init))
    task, census, told = build_task(task_name, tokenizer, config, parts, recipe.data)
    data = TrainData(task, parts.train, census, recipe)
    if place.first:
        told["train"] = census.summary.lines() + data.lines()
        _tell(progress, files, parts, told)
    compiled = wants_compile(recipe, machine)
    machine = with_replicas(machine, train, compiled, config.hidden_size, data.step_tokens)
    model, optimizers, state = _begin(found, task, data, recipe, machine, progress, place.first)
    note_machine(state, machine)
    board = out / "tensorboard" if recipe.log.tensorboard else None
    objective = _objective(task, recipe, data, machine)
    return TaskRun(
        out=out,
        files=files,
        recipe=recipe,
        machine=machine,
        task=task,
        parts=parts,
        data=data,
        model=model,
        module=wrap(model, objective, machine, compiled),
        optimizers=optimizers,
        state=state,
        budget=TaskBudget(train, state, machine, begun),
        metric=(train.metric_for_best_model or task.metric).removeprefix("eval_"),
        log=RunLog(out / "log.jsonl", state.step, board, silent=machine.rank > 0),
        progress=progress,
        last_save=time.monotonic(),
    )


def _begin(
    found: Path | None,
    task: Task[Any],
    data: TrainData,
    recipe: FinetuneRecipe,
    machine: Runtime,
    progress: Progress,
    show: bool,
) -> tuple[Any, TaskOptimizer, TaskState]:
    """Model, optimiser and state: of the checkpoint `found`, else of the first step."""
    assert recipe.model.init is not None
    if found is None:
        say = progress.say if show else lambda text: None
        model = open_model(recipe.model.init, task, recipe, say)
    else:
        model = rebuild_model(found, task, recipe)
    model = model.to(machine.device).train()
    optimizers = TaskOptimizer(model, recipe.train)
    state = TaskState(data=data.fingerprint)
    if found is not None:
        state = restore_state(found, model, optimizers, TaskState)
        if state.data != data.fingerprint:
            where = data.part.file.path
            raise UsageError(f"{where}: not the rows that {found} learned from; start anew")
        check_same_machine(state, machine, progress)
        progress.say(f"continuing from {found} (step {state.step:,})")
    return model, optimizers, state


def _tell(progress: Progress, files: Files, parts: Parts, told: dict[str, list[str]]) -> None:
    """Say what was understood of the files, before anything is trained."""
    said: list[str] = []  # what is wrong with rows of train is so of those held out of it
    for name, part in (("train", parts.train), ("dev", parts.dev), ("test", parts.test)):
        if part is None:
            continue
        path = getattr(files, name)
        progress.say(f"{name}: {path or 'held out of ' + str(files.train)}")
        lines = part.file.describe() if path else []
        for line in lines + told[name]:
            progress.say(f"  {line}")
        faults = [f"left out: {line}" for line in part.bad.lines()] + part.file.findings.lines()
        for line in faults:
            if line not in said:
                progress.say(f"  {line}")
        said += faults
    for line in files.alike():
        progress.warn(line)


def _objective(
    task: Task[Any], recipe: FinetuneRecipe, data: TrainData, machine: Runtime
) -> Objective:
    train = recipe.train
    weights = None
    if train.class_weights != "none":
        labels = list(task.config_changes()["id2label"].values())
        several = data.store.targets.is_floating_point()
        weights = class_weights(
            train.class_weights, labels, data.class_counts(len(labels)), several
        )
    teacher = None
    if train.teacher is not None:
        teacher = open_teacher(train.teacher, task).to(machine.device)
    return Objective(task, train, weights, teacher)


def try_metric(run: TaskRun) -> None:
    """Predict a few dev rows: what cannot be measured is told before training.

    Raises:
        UsageError: there is no such figure as `train.metric_for_best_model`.
    """
    if run.parts.dev is None or run.state.step:
        return
    few = [row for row, _ in zip(run.parts.dev, range(TRIED), strict=False)]
    figures = measure(run, run.model, few).figures
    if run.machine.rank == 0 and run.metric not in figures:
        known = ", ".join(name for name, value in figures.items() if isinstance(value, float))
        raise UsageError(f"train.metric_for_best_model={run.metric}: there are {known}")


class Measured(NamedTuple):
    """All figures of some rows, and those by label, averages last."""

    figures: dict[str, Any]
    labels: list[LabelFigures]


def measure(
    run: TaskRun, model: Any, rows: Iterable[Any], task: Task[Any] | None = None
) -> Measured:
    """The figures of labelled rows, on the first rank; nothing on others, who wait."""
    found = Measured({}, [])
    task = task or run.task
    if run.machine.rank == 0:
        meter: Any = task.meter()
        predicted = predict_rows(task, model, rows, dtype=run.machine.dtype)
        for number, (row, prediction) in enumerate(predicted, 1):
            meter.add(row, prediction)
            if number % SHOWN == 0:  # below 1: the whole is shown at once, every time
                share = min(run.state.progress, 0.999)
                run.progress.update(share, f"measuring: {number:,} rows", math.nan)
        found = Measured(meter.figures(), meter.per_label())
    if run.machine.world > 1:
        dist.barrier()
    return found


def take_figures(run: TaskRun, found: Measured) -> bool:
    """Note a new evaluation; whether its weights are to be kept. All ranks decide alike."""
    state, figures = run.state, found.figures
    mine = torch.tensor(float(figures.get(run.metric, 0.0)), dtype=torch.float64)
    value = float(run.machine.sum(mine.to(run.machine.device)))
    lower = any(word in run.metric for word in LOWER)
    better = value == value and (
        state.best is None or (value < state.best if lower else value > state.best)
    )
    # A figure that is still 0 tells nothing about weights (a tagger says O everywhere for a while);
    # of such the later ones have learned more. Of equal figures above 0 the first wins.
    kept = better or (not lower and value == state.best == 0.0)
    if kept:
        state.best, state.best_step = value, state.step
        state.figures, state.labels = figures, found.labels
    state.stale = 0 if better else state.stale + 1
    patience = run.recipe.train.patience
    state.stopped = 0 < patience <= state.stale
    return kept


def save_best(run: TaskRun) -> None:
    """Keep the weights of this step, which are the best so far, beside those before them."""
    if run.machine.rank == 0:
        # Two, for a run that is killed before its next checkpoint needs those before once more.
        save_step(run.out / BEST, run.state.step, lambda folder: save_model(run, folder), keep=2)


def save_model(run: TaskRun, folder: Path) -> None:
    """The model as it is, as a plain model folder."""
    run.model.save_pretrained(folder, state_dict=merged_state(run.model))
    run.tokenizer.save_pretrained(folder)


def best_folder(run: TaskRun) -> Path | None:
    """Where the best weights are; None: nothing was measured, the last ones count."""
    folder = run.out / BEST / step_name(run.state.best_step)
    return folder if (folder / CONFIG_NAME).is_file() else None
