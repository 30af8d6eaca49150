"""Everything that a pretraining run works with, and how it comes together."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from bertkit import runtime
from bertkit.batch import PretrainBatch
from bertkit.checkpoint.store import newest_step
from bertkit.runtime import Runtime
from bertkit.settings import Recipe
from bertkit.text.tokenizer import BertTokenizer
from bertkit.train.budget import Budget
from bertkit.train.forgetting import Watch, old_batches
from bertkit.train.log import Progress, RunLog
from bertkit.train.optim import Optimizers
from bertkit.train.replicas import with_replicas
from bertkit.train.setup import (
    Source,
    build_loader,
    wants_compile,
)
from bertkit.train.start import build_model, rebuild_model
from bertkit.train.state import RunState, restore_state
from bertkit.train.step import Model, StepResult, wrap
from bertkit.train.unigram import (
    Baseline,
    has_new_bias,
    start_at_unigram,
    unigram_baseline,
    word_shares,
)


@dataclass
class Run:
    """Everything that the loop works with."""

    out: Path
    recipe: Recipe
    machine: Runtime
    source: Source
    model: Model
    module: nn.Module
    optimizers: Optimizers
    state: RunState
    budget: Budget
    dev: list[PretrainBatch]
    baseline: Baseline
    peak_flops: float
    log: RunLog
    progress: Progress
    watch: Watch | None = None
    last_eval: StepResult | None = None
    last_save: float = 0.0
    # A signal came to this rank; `stop` follows when all ranks have heard of it.
    asked: bool = False
    stop: bool = False

    @property
    def done(self) -> bool:
        """The budget is spent, or all ranks agreed to stop."""
        return self.stop or self.state.progress >= 1

    def evals_due(self) -> int:
        """How many evaluations should be done by now, but for the last.

        None reads more tokens than were trained on since the one before it: a run of a few steps
        would else spend its time on looking at itself.
        """
        log = self.recipe.log
        held_out = sum(store.tokens for store in self.source.dev)
        old = self.watch.old_tokens if self.watch else 0
        affordable = self.state.tokens // max(min(log.eval_tokens, held_out) + old, 1)
        return min(int(self.state.progress * log.evals), affordable)


def prepare_run(
    out: Path,
    recipe: Recipe,
    machine: Runtime,
    source: Source,
    resume: bool,
    progress: Progress,
) -> Run:
    """Put a run together: new, from a model, or from its newest checkpoint that verifies.

    Args:
        out: the run folder.
        recipe: the settings, resolved.
        machine: device, format, ranks.
        source: the data, opened.
        resume: go on from a checkpoint where there is one.
        progress: where remarks go.

    Raises:
        CheckpointError: `model.init` or every checkpoint of the run is unusable.
        UsageError: the model and the data do not go together.
    """
    train = recipe.train
    begun = time.monotonic()
    torch.manual_seed(train.seed)
    shares = word_shares(source.train, source.tokenizer)
    found = newest_step(out / "checkpoints", progress.warn) if resume else None
    model = _model(recipe, source, shares, found, progress).to(machine.device).train()
    assert train.learning_rate is not None
    compiled = wants_compile(recipe, machine)
    machine = _replicated(machine, recipe, model, compiled)
    optimizers = Optimizers(model, train, train.learning_rate)
    state = RunState()
    if found is not None:
        state = restore_state(found, model, optimizers, RunState)
        check_same_machine(state, machine, progress)
        progress.say(f"continuing from {found} (step {state.step:,})")
    note_machine(state, machine)
    loader = build_loader(source.train, recipe, source.tokenizer, machine, phase=0)
    epoch_tokens = loader.epoch_tokens() if train.epochs is not None else 0
    dev = _held_out(recipe, machine, source)
    watch = _watch(recipe, source.tokenizer, machine, dev, model)
    return Run(
        out=out,
        recipe=recipe,
        machine=machine,
        source=source,
        model=model,
        module=wrap(model, machine, compiled),
        optimizers=optimizers,
        state=state,
        budget=Budget(train, epoch_tokens, state, machine, begun),
        dev=dev,
        baseline=unigram_baseline(shares, dev),
        peak_flops=runtime.matrix_peak(machine.device, machine.dtype),
        log=RunLog(out / "log.jsonl", state.step, _board(out, recipe), silent=machine.rank > 0),
        progress=progress,
        watch=watch,
        last_save=time.monotonic(),
    )


def _replicated(machine: Runtime, recipe: Recipe, model: Model, compiled: bool) -> Runtime:
    train = recipe.train
    assert train.batch_tokens is not None
    tokens = min(train.batch_tokens, train.micro_tokens or train.batch_tokens)
    return with_replicas(machine, train, compiled, model.config.hidden_size, tokens)


def _model(
    recipe: Recipe,
    source: Source,
    shares: NDArray[np.float64],
    found: Path | None,
    progress: Progress,
) -> Model:
    """The model before its first step, or one for the checkpoint `found` to fill."""
    if found is not None:
        return rebuild_model(recipe, found)
    model = build_model(recipe, source.tokenizer, recipe.model.init, progress.say)
    if recipe.train.unigram_bias and has_new_bias(model):
        start_at_unigram(model, shares)
    return model


def _held_out(recipe: Recipe, machine: Runtime, source: Source) -> list[PretrainBatch]:
    """The batches, fixed for the run, that it is evaluated on."""
    if not source.dev or not recipe.log.evals:
        return []
    loader = build_loader(source.dev, recipe, source.tokenizer, machine, phase=0)
    return loader.dev_batches(recipe.log.eval_tokens)


def _watch(
    recipe: Recipe,
    tokenizer: BertTokenizer,
    machine: Runtime,
    dev: list[PretrainBatch],
    model: Model,
) -> Watch | None:
    """What is watched of a run that goes on from a model."""
    if recipe.model.init is None:
        return None
    report = model.load_report
    return Watch(
        old_batches(recipe, tokenizer, machine), dev, () if report is None else report.missing
    )


def figures_before(run: Run) -> None:
    """The figures that a run goes on from: taken now, or in an earlier sitting."""
    watch, state = run.watch, run.state
    if watch is None or not (watch.old or watch.new):
        return
    if state.step:
        if remark := watch.recall(run.out / "log.jsonl"):
            run.progress.warn(remark)
        return
    run.log.write("before", 0, **watch.begin(run.module, run.machine))
    shown = [f"{text} text {figures['mlm_loss']:.3f}" for text, figures in watch.before.items()]
    if watch.old:
        shown[0] += f" (the same {watch.old_tokens:,} tokens of it in every evaluation)"
    run.progress.say(f"held-out masked-word loss before training: {', '.join(shown)}")


def _board(out: Path, recipe: Recipe) -> Path | None:
    return out / "tensorboard" if recipe.log.tensorboard else None


def note_machine(state: RunState, machine: Runtime) -> None:
    """Note what a later sitting's bits depend on."""
    state.threads, state.world, state.replicas = machine.threads, machine.world, machine.replicas
    state.torch = str(torch.__version__)


def check_same_machine(state: RunState, machine: Runtime, progress: Progress) -> None:
    """Continuing elsewhere is allowed; bit-identical it is only on the same footing."""
    for name, before, now in (
        ("CPU threads", state.threads, machine.threads),
        ("ranks", state.world, machine.world),
        ("replicas", state.replicas, machine.replicas),
        ("torch", state.torch, str(torch.__version__)),
    ):
        if before != now:
            progress.warn(
                f"note: {name} were {before}, now {now}: the run goes on, not bit for bit"
            )


def announce(run: Run) -> None:
    """Say and log what is trained, on what machine, and which figures it has to beat."""
    machine, config = run.machine, run.model.config
    threads = f"{machine.threads} thread{'s' if machine.threads > 1 else ''}"
    threads += f", {machine.replicas} replicas" if machine.replicas > 1 else ""
    run.progress.say(
        f"{type(run.model).__name__}: {config.num_hidden_layers} layers of {config.hidden_size}, "
        f"{config.vocab_size:,} words, {run.model.num_parameters():,} parameters; "
        f"{machine.device}, {str(machine.dtype).removeprefix('torch.')}, "
        f"{f'{machine.world} ranks of ' if machine.world > 1 else ''}{threads}, "
        f"matrix peak {run.peak_flops / 1e9:,.0f} GFLOP/s"
    )
    step, part = run.recipe.train.batch_tokens, run.recipe.train.micro_tokens
    assert step is not None
    run.progress.say(
        f"a step: {step:,} tokens (train.batch_tokens)"
        + (f", {part:,} at a time (train.micro_tokens)" if part and part < step else "")
    )
    if run.dev:
        run.progress.say(
            f"unigram baseline on the held-out masks: masked-word loss {run.baseline.loss:.3f}, "
            f"accuracy {run.baseline.accuracy:.3f}"
        )
    elif run.recipe.log.evals:
        run.progress.say(
            "no text is held out, so nothing tells whether the model learns more than its training "
            "text; prepare the data with --held_out 0.01 for evaluations"
        )
    if run.state.step == 0:
        run.log.write(
            "start",
            0,
            parameters=run.model.num_parameters(),
            unigram_loss=run.baseline.loss,
            unigram_accuracy=run.baseline.accuracy,
            device=str(machine.device),
            dtype=str(machine.dtype).removeprefix("torch."),
            matrix_peak_flops=run.peak_flops,
        )
