"""The end of a fine-tuning run: the model folder, its figures on test, and all_results.json."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist

from bertkit.tasks.build import saved_task
from bertkit.tasks.task import Task
from bertkit.train.finetune_card import write_card
from bertkit.train.finetune_result import FinetuneResult, write_results
from bertkit.train.finetune_run import BEST, TaskRun, best_folder, measure
from bertkit.train.lora import merged_state
from bertkit.train.rows import Part


def finish(run: TaskRun) -> FinetuneResult:
    """The result; of a complete run the model folder with its card is written first."""
    state = run.state
    result = FinetuneResult(
        run=run.out,
        model=run.out / "model" if run.complete else None,
        task=run.task.name,
        metric=run.metric,
        figures=dict(state.figures),
        best_step=state.best_step or state.step,
        steps=state.step,
        examples=state.examples,
        tokens=state.tokens,
        seconds=run.budget.seconds,
        skipped=state.skipped,
        stopped_early=state.stopped,
        interrupted=not run.complete,
    )
    if run.complete:
        result = _write(run, result)
    if run.machine.world > 1:
        dist.barrier()  # torchrun ends the first rank, which writes, when another has left
    return result


def _write(run: TaskRun, result: FinetuneResult) -> FinetuneResult:
    """Model, figures on test, card, results: in this order, so that the last vouches for all."""
    first = run.machine.rank == 0
    model: Any = None
    task = run.task
    figures: dict[str, Any] = {}
    if first:
        model, task, figures = _final_model(run)
    figures = figures or result.figures
    result = replace(result, figures=figures | _majority(run, run.parts.dev if figures else None))
    if run.parts.test is not None:
        found = measure(run, model, run.parts.test, task).figures
        result = replace(result, test=found | _majority(run, run.parts.test))
        run.log.write("test", run.state.step, **result.test)
    if first:
        folder = run.out / "model"
        model.save_pretrained(folder)
        run.tokenizer.save_pretrained(folder)
        write_card(run, model, result)
        write_results(result)
        shutil.rmtree(run.out / BEST, ignore_errors=True)
    return result


def _majority(run: TaskRun, part: Part | None) -> dict[str, float]:
    """The accuracy of saying the most frequent label of train of every row: any model's floor."""
    if part is None or run.task.name != "classify" or run.task.options.multi_label:
        return {}
    [(label, _)] = run.parts.train.summary.labels.most_common(1)
    return {"majority_accuracy": part.summary.labels[label] / part.summary.rows}


def _final_model(run: TaskRun) -> tuple[Any, Task[Any], dict[str, Any]]:
    """The best weights as a plain model, the task as its configuration tells it, dev's figures.

    Where passages may have no answer, the threshold is the one that is best on dev.
    """
    best = best_folder(run)
    if best is not None:
        model = run.task.model_class.from_pretrained(best, dtype=torch.float32)
    else:
        if run.state.best is not None:
            run.progress.say(f"{run.out / BEST}: the best weights are gone; the last ones are kept")
        model = run.task.model_class(run.model.config)
        model.load_state_dict(merged_state(run.model))
    model = model.to(run.machine.device).eval()
    figures = dict(run.state.figures)
    threshold = figures.get("tuned_null_threshold")
    if threshold is not None and math.isfinite(threshold):
        model.config.bertkit_task["null_threshold"] = float(threshold)
        task = saved_task(model.config, run.tokenizer)
        if run.parts.dev is not None:
            figures = _figures(run, model, task)
    return model, saved_task(model.config, run.tokenizer), figures


def _figures(run: TaskRun, model: Any, task: Task[Any]) -> dict[str, Any]:
    """Dev's figures with another threshold, on this rank alone."""
    assert run.parts.dev is not None
    alone = replace(run.machine, world=1)
    return measure(replace(run, machine=alone), model, run.parts.dev, task).figures
