"""Several runs of one recipe: other seeds, or each part of the training rows held out once."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import msgspec
import torch.distributed as dist

from bertkit.runtime import Runtime
from bertkit.settings import FinetuneRecipe
from bertkit.train.finetune_card import write_card_of_several
from bertkit.train.finetune_result import FinetuneResult, write_results
from bertkit.train.finetune_run import LOWER
from bertkit.train.log import Progress

# Runs one recipe into one folder; the last argument is the number of the fold, if any.
RunOne = Callable[[Path, FinetuneRecipe, int | None], FinetuneResult]


def finetune_all(
    out: Path, recipe: FinetuneRecipe, one: RunOne, machine: Runtime, progress: Progress
) -> FinetuneResult:
    """Run after run into `out`/seed-S or `out`/fold-K; the means and deviations of all.

    The model of the best seed becomes `out`/model. Folds have none: each of their models lacks a
    part of the data, and the figures tell how well a model of all the data may be expected to do.
    """
    results: list[FinetuneResult] = []
    for name, own, fold in _plan(recipe):
        progress.say(f"{name}:")
        result = one(out / name, own, fold)
        if result.interrupted:
            return replace(result, run=out)
        results.append(result)
    together = summarize(out, results)
    if machine.rank == 0:
        if not recipe.data.folds:
            number = best_run(results)
            best, together.runs[number]["kept"] = results[number], True
            assert best.model is not None
            shutil.copytree(best.model, out / "model", dirs_exist_ok=True)
            together = replace(together, model=out / "model", best_step=best.best_step)
            write_card_of_several(together, best)
        write_results(together)
    if machine.world > 1:
        dist.barrier()
    return together


def _plan(recipe: FinetuneRecipe) -> list[tuple[str, FinetuneRecipe, int | None]]:
    """The name, the recipe and the fold of each run."""
    plan: list[tuple[str, FinetuneRecipe, int | None]] = []
    for number in range(recipe.data.folds or recipe.train.seeds):
        own = msgspec.convert(msgspec.to_builtins(recipe), FinetuneRecipe)
        own.train.seeds = 1
        if recipe.data.folds:
            plan.append((f"fold-{number}", own, number))
        else:
            own.train.seed += number
            plan.append((f"seed-{own.train.seed}", own, None))
    return plan


def summarize(out: Path, results: Sequence[FinetuneResult]) -> FinetuneResult:
    """The means of the runs' figures, and their standard deviations (n - 1)."""
    figures, deviations = {}, {}
    for kind in ("figures", "test"):
        tables: list[dict[str, Any]] = [getattr(result, kind) for result in results]
        figures[kind], deviations[kind] = _means(tables)
    return FinetuneResult(
        run=out,
        model=None,
        task=results[0].task,
        metric=results[0].metric,
        figures=figures["figures"],
        test=figures["test"],
        steps=sum(r.steps for r in results),
        examples=sum(r.examples for r in results),
        tokens=sum(r.tokens for r in results),
        seconds=sum(r.seconds for r in results),
        skipped=sum(r.skipped for r in results),
        runs=[{"run": str(r.run), "figures": r.figures, "test": r.test} for r in results],
        deviations=deviations,
    )


def _means(tables: Sequence[dict[str, Any]]) -> tuple[dict[str, float], dict[str, float]]:
    names = [
        name for name in tables[0] if all(isinstance(t.get(name), int | float) for t in tables)
    ]
    columns = {name: [float(table[name]) for table in tables] for name in names}
    means = {name: mean(values) for name, values in columns.items()}
    spread = {
        name: stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else 0.0
        for name, values in columns.items()
    }
    return means, spread


def best_run(results: Sequence[FinetuneResult]) -> int:
    """The number of the run with the best figure on dev; without dev, the first."""
    metric = results[0].metric
    sign = -1.0 if any(word in metric for word in LOWER) else 1.0
    values = [sign * float(r.figures.get(metric, 0.0)) for r in results]
    return max(range(len(values)), key=lambda n: (not math.isnan(values[n]), values[n], -n))
