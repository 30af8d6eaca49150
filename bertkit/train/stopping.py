"""When a run saves its state, and how it is asked to stop."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from bertkit.settings import CheckpointSettings
from bertkit.train.log import Progress


class Stoppable(Protocol):
    """A run that looks at `asked` after each step."""

    asked: bool
    progress: Progress


def save_due(every: CheckpointSettings, step: int, last_save: float) -> bool:
    """Whether to save after this step; `last_save` is of time.monotonic()."""
    by_steps = every.every_steps > 0 and step % every.every_steps == 0
    minutes = (time.monotonic() - last_save) / 60
    by_time = every.every_minutes > 0 and minutes >= every.every_minutes
    return by_steps or by_time


@contextmanager
def stop_signals(run: Stoppable) -> Iterator[None]:
    """Ctrl-C, SIGTERM and a closed terminal ask the loop to stop soon, and to save.

    A second Ctrl-C ends at once.
    """

    def ask(number: int, _: Any) -> None:
        if run.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        run.asked = True
        run.progress.warn("stopping; every finished step will be saved ...")

    with _handled(ask):
        yield


@contextmanager
def stops_told(out: Path, again: bool) -> Iterator[None]:
    """The same signals end a run that is still starting up, and say how to begin once more.

    Args:
        out: the run folder.
        again: the command may be given as it is: it says --resume or --overwrite.

    Raises:
        KeyboardInterrupt: with what to say.
    """

    def end(number: int, _: Any) -> None:
        if any(out.rglob("step-*")):
            raise KeyboardInterrupt("what was trained is saved: continue it with --resume")
        how = "" if again else ", with --resume"
        raise KeyboardInterrupt(f"nothing was trained: give the same command again{how}")

    with _handled(end):
        yield


@contextmanager
def _handled(handler: Callable[[int, Any], None]) -> Iterator[None]:
    before = {}
    try:
        for number in _asking():
            before[number] = signal.signal(number, handler)
    except ValueError:
        pass  # not in the main thread: signals are somebody else's
    try:
        yield
    finally:
        for number, outer in before.items():
            signal.signal(number, outer)


def _asking() -> list[signal.Signals]:
    """The signals that ask a run to stop; a hang-up only where nohup has not set it aside."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)  # Windows has none
    return numbers
