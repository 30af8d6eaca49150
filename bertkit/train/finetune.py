"""Fine-tuning: one plain loop over steps, which a kill at any instant cannot hurt.

RUN/recipe.toml        the settings as resolved
RUN/log.jsonl          every figure, one JSON object a line
RUN/checkpoints/       step folders; each also opens as a model
RUN/best/              the best weights so far, while the run lasts
RUN/model/             the result: a Hugging Face folder with a card and the curves
RUN/all_results.json   the figures of the result; written last
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

import msgspec
import torch.distributed as dist

from bertkit import runtime
from bertkit.runtime import Runtime
from bertkit.settings import FinetuneRecipe, dump_recipe
from bertkit.train.finetune_end import finish
from bertkit.train.finetune_plan import Files, Place, resolve
from bertkit.train.finetune_result import FinetuneResult, read_result
from bertkit.train.finetune_run import (
    TaskRun,
    measure,
    prepare_run,
    save_best,
    take_figures,
    try_metric,
)
from bertkit.train.finetune_step import Micro, StepResult, forward_backward
from bertkit.train.finetune_told import announce
from bertkit.train.folds import finetune_all
from bertkit.train.log import Progress, counted
from bertkit.train.optim import learning_rate_at
from bertkit.train.setup import (
    leaving_nothing_if_refused,
    only_one,
    open_run,
    wants_compile,
)
from bertkit.train.state import save_state
from bertkit.train.stopping import save_due, stop_signals
from bertkit.train.update import update


def finetune(
    task: str,
    model: str | Path | None,
    train: str | Path,
    dev: str | Path | None,
    test: str | Path | None,
    out: str | Path,
    recipe: FinetuneRecipe | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    device: str | None = None,
    quiet: bool = False,
) -> FinetuneResult:
    """Fine-tune a BERT on a labelled file; under torchrun, on several ranks.

    Args:
        task: classify, regress, tag, qa or choose.
        model: a folder, a run or a hub id; None takes `model.init` of the recipe.
        train: the rows to learn from, in any format of tasks/formats.py.
        dev: rows to choose the best weights by; None: see `data.dev`, else the last ones count.
        test: rows whose figures the result is reported with.
        out: the run folder.
        recipe: the settings; unset ones are resolved by task and saved. None: BERT's own.
        resume: continue from the newest checkpoint that verifies; step 0 where there is none.
        overwrite: replace a run that is there.
        device: "cpu", "cuda:0", ...; None: the best there is.
        quiet: show no progress.

    Returns:
        The result, also when interrupted (`interrupted` is then True and all is saved). With
        `train.seeds` or `data.folds`, of all the runs together.

    Raises:
        UsageError: the settings contradict each other, the data or the run that is there.
        DataError: a file is missing or bad, or nothing can be learned from it.
        CheckpointError: the model or every checkpoint of the run is unusable.
        TrainingError: the loss is bad and the recipe says to stop, or too many steps were skipped.
    """
    out = Path(out)
    files = Files(*(None if path is None else Path(path) for path in (train, dev, test)))  # type: ignore[arg-type]
    recipe = msgspec.convert(msgspec.to_builtins(recipe or FinetuneRecipe()), FinetuneRecipe)
    if model is not None:
        recipe.model.init = str(model)
    saved = out / "recipe.toml" if resume else None
    recipe = resolve(task, recipe, dev is not None, saved)
    with ExitStack() as stack:
        machine = stack.enter_context(runtime.start(device, recipe.train.precision))
        progress = stack.enter_context(Progress(quiet, rank=machine.rank))

        def one(folder: Path, own: FinetuneRecipe, fold: int | None) -> FinetuneResult:
            first = own.train.seed == recipe.train.seed and not fold
            place = Place(files, folder, fold, first)
            return _finetune_one(task, place, own, machine, (resume, overwrite), progress)

        if recipe.train.seeds == 1 and not recipe.data.folds:
            return one(out, recipe, None)
        stack.enter_context(leaving_nothing_if_refused(out, machine))
        open_run(out, recipe, resume, overwrite, machine)
        return finetune_all(out, recipe, one, machine, progress)


def _finetune_one(
    task: str,
    place: Place,
    recipe: FinetuneRecipe,
    machine: Runtime,
    going_on: tuple[bool, bool],
    progress: Progress,
) -> FinetuneResult:
    """One run into one folder; a run that is finished already is not touched."""
    out, (resume, overwrite) = place.out, going_on
    with ExitStack() as stack:
        with leaving_nothing_if_refused(out, machine):
            open_run(out, recipe, resume, overwrite, machine)
            if resume and (done := read_result(out)) is not None:
                progress.say(f"{out}: finished before")
                return done
            stack.enter_context(only_one(out, machine))
            run = prepare_run(task, place, recipe, machine, resume, progress)
            stack.enter_context(run.log)
            try_metric(run)
        stack.enter_context(stop_signals(run))
        announce(run, place.first)
        _loop(run)
        _save(run)
        return finish(run)


def _loop(run: TaskRun) -> None:
    """Epoch after epoch, step after step, until the budget is spent or a stop is asked for."""
    state = run.state
    if wants_compile(run.recipe, run.machine) and not run.done:
        _compile(run)
    run.budget.start_stepping()
    while not run.done:
        number, first, _ = state.cursor
        epoch = run.data.epoch(number)
        for index in range(first, epoch.steps):
            result = _step(run, epoch.step(index, run.machine))
            ended = index + 1 == epoch.steps
            state.cursor = (number + 1, 0, 0) if ended else (number, index + 1, epoch.steps)
            state.tokens += result.tokens
            state.examples += result.examples
            state.progress = run.budget.share(state)
            _after_step(run, result, ended)
            if run.done:
                break


def _compile(run: TaskRun) -> None:
    """Compile on the first batch; only then is a schedule laid over the minutes left."""
    run.progress.say("compiling ...")
    forward_backward(run.module, run.data.epoch(0).step(0, run.machine), run.machine)
    run.optimizers.zero_grad()


def _step(run: TaskRun, parts: list[Micro]) -> StepResult:
    """One update, or none where the loss is bad: nothing bad is ever written over good weights."""
    state, train = run.state, run.recipe.train
    begin = time.monotonic()
    rate = run.optimizers.set_learning_rate(learning_rate_at(state.progress, train))
    seeds = (train.seed, state.step)
    result = forward_backward(run.module, parts, run.machine, seeds, run.asked)
    norm = update(run, result.loss)
    if state.step % run.recipe.log.every_steps == 0 or state.step == 1:
        seconds = time.monotonic() - begin
        run.log.write(
            "train",
            state.step,
            loss=result.loss,
            examples=state.examples + result.examples,
            tokens=state.tokens + result.tokens,
            learning_rate=rate,
            grad_norm=norm,
            seconds=run.budget.seconds,
            tokens_per_second=result.tokens / seconds,
            examples_per_second=result.examples / seconds,
        )
    return result


def _after_step(run: TaskRun, result: StepResult, epoch_ended: bool) -> None:
    """Show, evaluate, save, as due."""
    state, train = run.state, run.recipe.train
    run.stop = result.stop
    text = f"step {state.step:,}  loss {state.loss_mean:.3f}  "
    text += f"{run.budget.examples_per_second(state):,.1f} examples/s  "
    text += f"{run.budget.tokens_per_second(state):,.0f} tokens/s"
    run.progress.update(min(state.progress, 1.0), text, run.budget.seconds_left(state))
    due = epoch_ended
    if train.evals is not None:
        reached = int(state.progress * train.evals)
        due, state.evals = reached > state.evals, max(reached, state.evals)
    if run.parts.dev is not None and (due or state.progress >= 1):
        _evaluate(run)
    every = run.recipe.checkpoint
    if save_due(every, state.step, run.last_save) and not run.done:
        _save(run)


def _evaluate(run: TaskRun) -> None:
    assert run.parts.dev is not None
    begin = time.monotonic()
    found = measure(run, run.model, run.parts.dev)
    figures, kept = found.figures, take_figures(run, found)
    if kept:
        save_best(run)
    seconds = time.monotonic() - begin
    run.budget.measuring += seconds
    state = run.state
    run.log.write("eval", state.step, **figures, examples=state.examples, best=state.best_step)
    told = {name: value for name, value in figures.items() if isinstance(value, float)}
    first = {run.metric: told.pop(run.metric)} if run.metric in told else {}
    shown = list((first | told).items())[:4]
    run.progress.say(
        f"dev at step {state.step:,}: "
        + ", ".join(f"{name} {value:.4f}" for name, value in shown)
        + (" (best so far)" if kept else "")
        + f", {seconds:.1f} s"
    )
    if state.stopped:
        run.progress.say(f"not better for {counted(state.stale, 'evaluations')}: stopped")


def _save(run: TaskRun) -> None:
    run.state.seconds = run.budget.seconds
    if run.machine.rank == 0:
        run.log.sync()
        recipe, keep = dump_recipe(run.recipe), run.recipe.checkpoint.keep
        root = run.out / "checkpoints"
        save_state(root, run.state, run.model, run.optimizers, run.tokenizer, recipe, keep)
    if run.machine.world > 1:
        dist.barrier()
    run.last_save = time.monotonic()
