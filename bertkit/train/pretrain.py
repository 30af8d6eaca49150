"""Pretraining: one plain loop over steps, which a kill at any instant cannot hurt.

RUN/recipe.toml        the settings as resolved
RUN/log.jsonl          every figure, one JSON object a line
RUN/checkpoints/       step folders; each also opens as a model
RUN/model/             the result: a Hugging Face folder with a card and the curves
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import torch.distributed as dist

from bertkit import runtime
from bertkit.batch import PretrainBatch
from bertkit.settings import Recipe, dump_recipe
from bertkit.train.card import write_result
from bertkit.train.evaluation import sample_fills
from bertkit.train.log import Progress, clock
from bertkit.train.optim import learning_rate_at
from bertkit.train.run import Run, announce, figures_before, prepare_run
from bertkit.train.setup import (
    PretrainResult,
    build_loader,
    check_word_starts,
    leaving_nothing_if_refused,
    only_one,
    open_data,
    open_run,
    resolve,
    wants_compile,
)
from bertkit.train.state import save_state
from bertkit.train.step import (
    StepDropped,
    StepResult,
    evaluate,
    flops_per_token,
    forward_backward,
)
from bertkit.train.stopping import save_due, stop_signals
from bertkit.train.update import update

# Seconds of a step from which on its size is worth a word.
SLOW_STEP = 30.0
# What the share of pairs that are told right is called.
PAIRS = {"mlm+nsp": "next-sentence accuracy", "mlm+sop": "sentence-order accuracy"}


def pretrain(
    data: Sequence[Path],
    out: Path,
    recipe: Recipe,
    *,
    init: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    device: str | None = None,
    quiet: bool = False,
) -> PretrainResult:
    """Pretrain a BERT on prepared shards; under torchrun, on several ranks.

    Args:
        data: folders that `prepare` made, all with one tokenizer.
        out: the run folder.
        recipe: the settings; unset ones are resolved by size and device and saved.
        init: a model to go on from instead of random weights; the same as `model.init`.
        resume: continue from the newest checkpoint that verifies; step 0 where there is none.
        overwrite: replace a run that is there.
        device: "cpu", "cuda:0", ...; None: the best there is.
        quiet: show no progress.

    Returns:
        The result, also when interrupted (`interrupted` is then True and all is saved).

    Raises:
        UsageError: the settings contradict each other, the data or the run that is there.
        CheckpointError: `init` or every checkpoint of the run is unusable.
        TrainingError: the loss is NaN or has spiked and the recipe says to stop, or too many
            steps in a row were skipped.
    """
    with ExitStack() as stack:
        machine = stack.enter_context(runtime.start(device, recipe.train.precision))
        source = open_data(data)
        if init is not None:
            own = msgspec.structs.replace(recipe.model, init=init)
            recipe = msgspec.structs.replace(recipe, model=own)
        recipe = resolve(recipe, machine.device, out, resume)
        check_word_starts(recipe, source)
        progress = stack.enter_context(Progress(quiet, rank=machine.rank))
        with leaving_nothing_if_refused(out, machine):
            open_run(out, recipe, resume, overwrite, machine)
            stack.enter_context(only_one(out, machine))
            run = prepare_run(out, recipe, machine, source, resume, progress)
        stack.enter_context(run.log)
        stack.enter_context(stop_signals(run))
        announce(run)
        figures_before(run)
        _loop(run)
        return _finish(run)


def _loop(run: Run) -> None:
    """Phase after phase, step after step, until the budget is spent or a stop is asked for."""
    state, recipe, source = run.state, run.recipe, run.source
    switch = 1 - recipe.data.final_share if recipe.data.final_max_length else 2.0
    warm = False
    while not run.done:
        if state.phase == 0 and state.progress >= switch:
            state.phase, state.cursor = 1, (0, 0, 0)
        loader = build_loader(source.train, recipe, source.tokenizer, run.machine, state.phase)
        for parts, cursor in loader.batches(state.cursor):
            mine = parts[run.machine.rank :: run.machine.world]
            if not warm:
                _warm_up(run, mine)
                warm = True
            try:
                result = _step(run, mine)
            except StepDropped:  # resuming repeats it from its start
                run.stop = True
                break
            state.cursor = (cursor.epoch, cursor.block, cursor.step)
            state.tokens += result.tokens
            state.progress = run.budget.share(state)
            _after_step(run, result, loader.max_length)
            if run.done or (state.phase == 0 and state.progress >= switch):
                break


def _warm_up(run: Run, parts: list[PretrainBatch]) -> None:
    """Compile on the first batch, and only then lay a schedule over the minutes that are left."""
    if wants_compile(run.recipe, run.machine):
        run.progress.say("compiling ...")
        forward_backward(run.module, parts, run.machine)
        run.optimizers.zero_grad()
    run.budget.start_stepping()


def _step(run: Run, parts: list[PretrainBatch]) -> StepResult:
    """One update, or none where the loss is bad: nothing bad is ever written over good weights."""
    state, train = run.state, run.recipe.train
    begin = time.monotonic()
    rate = run.optimizers.set_learning_rate(learning_rate_at(state.progress, train))
    seeds = (train.seed, state.step)
    result = forward_backward(run.module, parts, run.machine, seeds, lambda: run.asked)
    norm = update(run, result.loss)
    if not state.skipped_in_a_row:
        state.pair_loss_mean += state.share * (result.nsp_loss - state.pair_loss_mean)
    if state.step % run.recipe.log.every_steps == 0 or state.step == 1:
        figures = asdict(result)
        del figures["stop"], figures["tokens"]
        figures |= {"learning_rate": rate, "grad_norm": norm}
        figures |= {"tokens": state.tokens + result.tokens, "seconds": run.budget.seconds}
        figures["tokens_per_second"] = result.tokens / (time.monotonic() - begin)
        run.log.write("train", state.step, **figures)
    return result


def _after_step(run: Run, result: StepResult, max_length: int) -> None:
    """Show, evaluate, save, as due."""
    state, recipe = run.state, run.recipe
    run.stop = result.stop or (run.asked and run.machine.world == 1)
    _tell_if_slow(run, result.tokens)
    rate = run.budget.tokens_per_second(state)
    flops = flops_per_token(run.model, max_length, recipe.data.mlm_probability)
    share = rate * flops / (run.peak_flops * run.machine.world)
    # Apart: only the masked words' part compares with held-out losses and the unigram baseline.
    text = f"step {state.step:,}  loss: words {state.loss_mean - state.pair_loss_mean:.3f}"
    text += f", pairs {state.pair_loss_mean:.3f}" if result.pairs else ""
    text += f"  {rate:,.0f} tokens/s  {share:.0%} of peak"
    run.progress.update(min(state.progress, 1.0), text, run.budget.seconds_left(state))
    due = run.evals_due()
    if run.dev and (due > state.evals or state.progress >= 1):
        state.evals = due
        _evaluate(run)
    if save_due(run.recipe.checkpoint, run.state.step, run.last_save) and not run.done:
        _save(run)


def _tell_if_slow(run: Run, tokens: int) -> None:
    """After the first step of a sitting: what makes steps shorter, where they take long."""
    seconds = time.monotonic() - run.budget.stepping
    if seconds >= SLOW_STEP and run.state.tokens == run.budget.tokens_before + tokens:
        run.progress.say(
            f"a step takes {clock(seconds)} on this machine, for it has {tokens:,} tokens; "
            "for shorter ones begin a new run with a smaller train.batch_tokens (--batch_tokens)"
        )


def _evaluate(run: Run) -> None:
    begin = time.monotonic()
    result = run.last_eval = evaluate(run.module, run.dev, run.machine)
    perplexity = math.exp(min(result.mlm_loss, 700))
    watched = run.watch.look(run.module, run.machine, result) if run.watch else {}
    old = {name: value for name, value in watched.items() if name.startswith("old_")}
    run.log.write(
        "eval",
        run.state.step,
        mlm_loss=result.mlm_loss,
        mlm_accuracy=result.mlm_accuracy,
        mlm_perplexity=perplexity,
        nsp_accuracy=result.nsp_accuracy,
        unigram_loss=run.baseline.loss,
        unigram_accuracy=run.baseline.accuracy,
        tokens=run.state.tokens,
        seconds=run.budget.seconds,
        **old,
    )
    pair = f", {PAIRS[run.recipe.data.objective]} {result.nsp_accuracy:.3f}" if result.pairs else ""
    pair += f", old text: masked-word loss {old['old_mlm_loss']:.3f}" if old else ""
    run.progress.say(
        f"held out at step {run.state.step:,} ({clock(run.budget.seconds)}): "
        f"masked-word loss {result.mlm_loss:.3f} (unigram {run.baseline.loss:.3f}), "
        f"accuracy {result.mlm_accuracy:.3f} (unigram {run.baseline.accuracy:.3f}), "
        f"mlm_perplexity {perplexity:,.1f}{pair}"
    )
    fills = sample_fills(run.model, run.source.tokenizer, run.dev, run.machine)
    run.log.write("samples", run.state.step, fills=fills)
    for line in fills:
        run.progress.say(f"  {line}")
    run.budget.measuring += time.monotonic() - begin


def _save(run: Run) -> None:
    run.state.seconds = run.budget.seconds
    if run.machine.rank == 0:
        run.log.sync()
        recipe = dump_recipe(run.recipe)
        keep = run.recipe.checkpoint.keep
        root = run.out / "checkpoints"
        tokenizer = run.source.tokenizer
        save_state(root, run.state, run.model, run.optimizers, tokenizer, recipe, keep)
    run.last_save = time.monotonic()


def _finish(run: Run) -> PretrainResult:
    """Save the last state; at the end of the budget also the model folder, its card and curves."""
    complete = run.state.progress >= 1
    _save(run)
    figures: dict[str, Any] = {}
    if complete and run.dev and run.last_eval is None:
        # The run was stopped between its last checkpoint and here: the log has the figures already.
        run.last_eval = evaluate(run.module, run.dev, run.machine)
    watch = run.watch
    if complete and watch is not None and not watch.now:
        watch.look(run.module, run.machine, run.last_eval)
    if run.last_eval is not None:
        figures = {
            "mlm_loss": run.last_eval.mlm_loss,
            "mlm_accuracy": run.last_eval.mlm_accuracy,
            "mlm_perplexity": math.exp(min(run.last_eval.mlm_loss, 700)),
            "nsp_accuracy": run.last_eval.nsp_accuracy if run.last_eval.pairs else None,
            "unigram_loss": run.baseline.loss,
            "unigram_accuracy": run.baseline.accuracy,
            "nsp_constant_accuracy": run.baseline.nsp_accuracy if run.last_eval.pairs else None,
        }
    result = PretrainResult(
        run=run.out,
        model=run.out / "model" if complete else None,
        steps=run.state.step,
        tokens=run.state.tokens,
        seconds=run.budget.seconds,
        skipped=run.state.skipped,
        figures=figures,
        interrupted=not complete,
        before_after=watch.rows() if watch is not None and complete else [],
        new_parts=watch.new_parts if watch is not None else (),
    )
    if complete and run.machine.rank == 0:
        write_result(run.out, run.source, run.model, run.recipe, result)
    if run.machine.world > 1:
        dist.barrier()  # torchrun ends the first rank, which saves, when another has left
    return result
