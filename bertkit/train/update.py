"""What both loops do with the gradients of a step: update, or leave a bad step out."""

from __future__ import annotations

import math
from typing import Any, Protocol

from torch import nn

from bertkit.errors import TrainingError
from bertkit.train.log import Progress, RunLog
from bertkit.train.optim import OptimizerSet
from bertkit.train.state import RunState

# A run that had to skip this many steps in a row is not learning any more.
MOST_SKIPS = 25


class Trained(Protocol):
    """A run of either loop."""

    recipe: Any
    log: RunLog
    progress: Progress

    @property
    def model(self) -> nn.Module:
        """What is trained."""

    @property
    def optimizers(self) -> OptimizerSet:
        """What trains it."""

    @property
    def state(self) -> RunState:
        """Where the run stands."""


def update(run: Trained, loss: float) -> float:
    """One update, or none where the loss is bad: nothing bad is ever written over good weights.

    Args:
        run: its parameters hold the gradients of the step; they are forgotten here.
        loss: of the step.

    Returns:
        The norm of the gradients, before clipping.

    Raises:
        TrainingError: the loss is bad and the recipe says to stop, or too many were.
    """
    state, train = run.state, run.recipe.train
    parameters = [p for p in run.model.parameters() if p.grad is not None]
    norm = float(nn.utils.clip_grad_norm_(parameters, train.max_grad_norm or math.inf))
    bad = state.is_spike(loss, train.spike_sigma) or not math.isfinite(norm)
    if not bad:
        run.optimizers.step()
        state.record(loss)
    run.optimizers.zero_grad()
    state.step += 1
    state.skipped_in_a_row = state.skipped_in_a_row + 1 if bad else 0
    if bad:
        _skip(run, loss, norm)
    return norm


def _skip(run: Trained, loss: float, norm: float) -> None:
    state = run.state
    state.skipped += 1
    line = f"step {state.step}: loss {loss:.4g}, gradient norm {norm:.4g}: bad"
    run.log.write("bad_step", state.step, loss=loss, grad_norm=norm, mean=state.loss_mean)
    if run.recipe.train.on_bad_step == "stop":
        raise TrainingError(f"{line}; stopped as train.on_bad_step says, checkpoints are untouched")
    if state.skipped_in_a_row >= MOST_SKIPS:
        raise TrainingError(
            f"{line}; {MOST_SKIPS} in a row were skipped, the run is not learning: lower "
            "train.learning_rate and --resume from the last good checkpoint"
        )
    run.progress.warn(f"{line}, skipped")
