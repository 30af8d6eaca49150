"""Where a run stands: all that is needed to continue it bit for bit, and how it is kept on disk.

Order, pairs, masks and dropout are functions of (seed, epoch, index) and of the step, so no
generator's state is saved: a cursor, the weights and the optimisers' tensors are the whole state.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TypeVar

import msgspec
import torch
from msgspec import Struct

from bertkit.checkpoint.files import write_atomically
from bertkit.checkpoint.layout import read_tensor_file, write_tensors
from bertkit.checkpoint.store import save_step
from bertkit.errors import CheckpointError
from bertkit.model.pretrained import PretrainedModel
from bertkit.text.tokenizer import BertTokenizer
from bertkit.train.lora import has_adapters, merged_state
from bertkit.train.optim import OptimizerSet

STATE_NAME = "trainer_state.json"
OPTIMIZER_NAME = "optimizer.safetensors"
UNMERGED_NAME = "unmerged.safetensors"


class RunState(Struct):
    """The place of a run between two steps.

    Attributes:
        step: optimiser steps done, skipped ones included.
        phase: 0, or 1 in the second phase of a two-phase run.
        cursor: (epoch, block, step) of the loader.
        tokens: real tokens seen.
        seconds: wall-clock seconds spent, all sittings together.
        progress: share of the budget done.
        evals: evaluations done.
        skipped: steps skipped for a bad loss.
        skipped_in_a_row: the same, since the last good step.
        loss_mean: running mean of the loss.
        loss_variance: its running variance.
        losses: how many losses are in them.
        pair_loss_mean: running mean of the pairs' part of the loss; the rest is masked words'.
        threads: CPU threads a rank.
        world: ranks.
        replicas: copies of the model a rank.
        torch: version of torch.
    """

    step: int = 0
    phase: int = 0
    cursor: tuple[int, int, int] = (0, 0, 0)
    tokens: int = 0
    seconds: float = 0.0
    progress: float = 0.0
    evals: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    loss_mean: float = 0.0
    loss_variance: float = 0.0
    losses: int = 0
    pair_loss_mean: float = 0.0
    threads: int = 0
    world: int = 1
    replicas: int = 1
    torch: str = ""

    def is_spike(self, loss: float, sigma: float) -> bool:
        """Whether a loss is NaN, infinite, or `sigma` deviations above the running mean.

        The first 50 losses are never a spike: the mean is still falling too fast to judge. A
        deviation below 0.05 nats counts as 0.05: late in training small wobbles are normal.
        """
        if not math.isfinite(loss):
            return True
        if sigma == 0 or self.losses < 50:
            return False
        return loss > self.loss_mean + sigma * max(math.sqrt(self.loss_variance), 0.05)

    @property
    def share(self) -> float:
        """How much the latest loss counts in the running means: they are of about the last 50."""
        return max(0.02, 1.0 / self.losses)

    def record(self, loss: float) -> None:
        """Take a good loss into the running mean and variance."""
        self.losses += 1
        share = self.share
        distance = loss - self.loss_mean
        self.loss_mean += share * distance
        self.loss_variance = (1 - share) * (self.loss_variance + share * distance * distance)


StateT = TypeVar("StateT", bound=RunState)


def save_state(
    root: Path,
    state: RunState,
    model: PretrainedModel,
    optimizers: OptimizerSet,
    tokenizer: BertTokenizer,
    recipe: str,
    keep: int,
) -> Path:
    """Save a step folder that resumes the run and also opens as a model.

    Raises:
        CheckpointError: the disk is full or failed; earlier checkpoints are untouched.
    """

    def write(folder: Path) -> None:
        model.save_pretrained(folder, state_dict=merged_state(model))
        if has_adapters(model):  # merged, they could not be told apart to the last bit
            write_tensors(folder / UNMERGED_NAME, dict(model.state_dict()))
        tokenizer.save_pretrained(folder)
        write_tensors(folder / OPTIMIZER_NAME, optimizers.state_tensors())
        write_atomically(folder / "recipe.toml", recipe.encode())
        write_atomically(folder / STATE_NAME, msgspec.json.format(msgspec.json.encode(state)))

    return save_step(root, state.step, write, keep)


def restore_state(
    folder: Path, model: PretrainedModel, optimizers: OptimizerSet, kind: type[StateT]
) -> StateT:
    """Load a step folder into a model and its optimisers; the state is of the class `kind`.

    Raises:
        CheckpointError: a file is missing or does not fit the model.
    """
    try:
        state = msgspec.json.decode((folder / STATE_NAME).read_bytes(), type=kind)
    except (OSError, msgspec.MsgspecError) as error:
        raise CheckpointError(f"{folder / STATE_NAME}: {error}; it is no training state") from error
    if has_adapters(model):
        saved = read_tensor_file(folder / UNMERGED_NAME)
    else:
        saved = type(model).from_pretrained(folder).state_dict()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(saved[name])
    optimizers.load_state_tensors(read_tensor_file(folder / OPTIMIZER_NAME))
    return state
