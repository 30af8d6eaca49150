"""How far a run is: its budget in steps, tokens, epochs or minutes, and the time it has taken."""

from __future__ import annotations

import time

import torch

from bertkit.runtime import Runtime
from bertkit.settings import TaskTrainSettings, TrainSettings
from bertkit.train.state import RunState


class Budget:
    """The share of the budget that is spent, and the clock.

    A budget in minutes counts all sittings of a run together. Its schedule is laid over the
    minutes that are left once the model is compiled: else compiling would swallow the warm-up.

    Args:
        train: exactly one of steps, tokens, epochs, minutes is set.
        epoch_tokens: tokens of one epoch; only for a budget in epochs.
        state: where the run stands at the start of this sitting.
        machine: for ranks to agree on the time.
        begun: time.monotonic() at the start of this sitting.
    """

    def __init__(
        self,
        train: TrainSettings | TaskTrainSettings,
        epoch_tokens: int,
        state: RunState,
        machine: Runtime,
        begun: float,
    ) -> None:
        self.train, self.epoch_tokens, self.machine = train, epoch_tokens, machine
        self.begun = self.stepping = begun
        self.seconds_before, self.share_before = state.seconds, state.progress
        self.tokens_before = state.tokens
        self.measuring = 0.0  # seconds of evaluations since the first step

    @property
    def seconds(self) -> float:
        """Wall-clock seconds spent, all sittings together."""
        return self.seconds_before + time.monotonic() - self.begun

    def start_stepping(self) -> None:
        """Say that preparations (compiling) are over."""
        self.stepping = time.monotonic()

    def share(self, state: RunState) -> float:
        """The share of the budget that is spent, 0 to 1 (and a little over at the end)."""
        train = self.train
        if train.minutes is not None:
            return self.by_clock(train.minutes)
        if train.steps is not None:
            return state.step / train.steps
        if isinstance(train, TrainSettings) and train.tokens is not None:
            return state.tokens / train.tokens
        assert train.epochs is not None
        return state.tokens / (train.epochs * self.epoch_tokens)

    def by_clock(self, minutes: float) -> float:
        """The share of a budget in minutes that is spent; the same on all ranks."""
        spent = self.seconds_before + self.stepping - self.begun
        left = max(minutes * 60 - spent, 1e-9)
        mine = (time.monotonic() - self.stepping) / left
        if self.machine.world > 1:  # clocks differ; a share must not
            tensor = torch.tensor(mine, dtype=torch.float64, device=self.machine.device)
            mine = float(self.machine.sum(tensor)) / self.machine.world
        return self.share_before + (1 - self.share_before) * mine

    def seconds_left(self, state: RunState) -> float:
        """The seconds to the end of the budget at the pace of this sitting."""
        done = state.progress - self.share_before
        if done <= 0:
            return float("inf")
        return (time.monotonic() - self.stepping) * max(0.0, 1 - state.progress) / done

    def tokens_per_second(self, state: RunState) -> float:
        """Real tokens a second over this sitting, all ranks together, evaluations not counted."""
        seconds = time.monotonic() - self.stepping - self.measuring
        return (state.tokens - self.tokens_before) / max(seconds, 1e-9)
