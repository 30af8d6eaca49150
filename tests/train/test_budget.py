"""Budgets: the share that is spent, in steps, tokens, epochs and minutes."""

from __future__ import annotations

import math

import pytest
import torch

from bertkit.runtime import Runtime
from bertkit.settings import TrainSettings
from bertkit.train import budget as module
from bertkit.train.budget import Budget
from bertkit.train.state import RunState

MACHINE = Runtime(torch.device("cpu"), torch.float32, 0, 1, 1)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


def budget(clock: Clock, train: TrainSettings, state: RunState | None = None) -> Budget:
    return Budget(train, 5000, state or RunState(), MACHINE, clock.now)


def test_steps_tokens_and_epochs_count_what_the_state_counts(clock: Clock) -> None:
    state = RunState(step=30, tokens=2500)
    assert budget(clock, TrainSettings(steps=120)).share(state) == 0.25
    assert budget(clock, TrainSettings(tokens=10_000)).share(state) == 0.25
    assert budget(clock, TrainSettings(epochs=2.0)).share(state) == 0.25


def test_a_resumed_run_is_as_far_as_an_uninterrupted_one(clock: Clock) -> None:
    for train in (TrainSettings(steps=7), TrainSettings(tokens=999), TrainSettings(epochs=0.3)):
        straight = budget(clock, train)
        middle = RunState(step=3, tokens=333)
        middle.progress = straight.share(middle)
        clock.now += 100
        later = budget(clock, train, middle)
        end = RunState(step=5, tokens=600)
        assert later.share(end) == straight.share(end)


def test_minutes_begin_when_the_model_is_compiled_and_end_in_time(clock: Clock) -> None:
    spent = budget(clock, TrainSettings(minutes=2.0))
    clock.now += 30  # compiling
    spent.start_stepping()
    assert spent.share(RunState()) == 0.0
    clock.now += 45
    assert spent.share(RunState()) == pytest.approx(0.5)
    clock.now += 45
    assert spent.share(RunState()) == pytest.approx(1.0)
    assert spent.seconds == pytest.approx(120)


def test_minutes_of_all_sittings_are_counted_together(clock: Clock) -> None:
    state = RunState(seconds=60.0, progress=0.5)
    again = budget(clock, TrainSettings(minutes=2.0), state)
    clock.now += 20
    again.start_stepping()
    assert again.share(state) == pytest.approx(0.5)
    clock.now += 20
    assert again.share(state) == pytest.approx(0.75)
    clock.now += 20
    assert again.share(state) == pytest.approx(1.0)
    assert again.seconds == pytest.approx(120)


def test_minutes_that_compiling_used_up_are_over_at_once(clock: Clock) -> None:
    spent = budget(clock, TrainSettings(minutes=0.1))
    clock.now += 60
    spent.start_stepping()
    clock.now += 0.001
    assert spent.share(RunState()) >= 1


def test_time_left_and_pace(clock: Clock) -> None:
    state = RunState(step=10, tokens=1000, progress=0.1)
    pace = budget(clock, TrainSettings(steps=100), state)
    assert math.isinf(pace.seconds_left(state))
    clock.now += 5
    pace.start_stepping()
    clock.now += 10
    now = RunState(step=20, tokens=3000, progress=0.2)
    assert pace.seconds_left(now) == pytest.approx(80)
    assert pace.tokens_per_second(now) == pytest.approx(200)
    pace.measuring += 2  # an evaluation
    assert pace.tokens_per_second(now) == pytest.approx(250)
