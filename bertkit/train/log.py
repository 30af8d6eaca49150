"""What a run tells: log.jsonl always, TensorBoard when asked, a live line for whoever watches."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bertkit.checkpoint.files import write_atomically
from bertkit.errors import CheckpointError, UsageError


class RunLog:
    """log.jsonl of a run: one JSON object a line, in the order of the steps.

    A resumed run first cuts off what was logged after the checkpoint it continues from, so that
    the log reads as if the run had never been interrupted.

    Args:
        path: the file.
        resume_at: the step of the checkpoint; 0 starts the file anew.
        tensorboard: a folder for TensorBoard's files; None: none are written.
        silent: write nothing at all (ranks other than the first).
    """

    def __init__(
        self, path: Path, resume_at: int, tensorboard: Path | None = None, silent: bool = False
    ) -> None:
        self._file = None
        self._board: Any = None
        if silent:
            return
        if tensorboard is not None:
            self._board = _summary_writer(tensorboard, resume_at)
        kept = [line for line in _lines(path) if line[0] <= resume_at] if resume_at else []
        write_atomically(path, "".join(text for _, text in kept).encode())
        self._file = path.open("a", encoding="utf-8")

    def write(self, event: str, step: int, **values: Any) -> None:
        """Add a line {"event", "step", ...}; numbers go to TensorBoard too."""
        if self._file is None:
            return
        line = {"event": event, "step": step} | values
        try:
            self._file.write(json.dumps(_finite(line), ensure_ascii=False) + "\n")
            self._file.flush()
        except OSError as error:
            what = f"{self._file.name}: cannot be written: {error.strerror or error}"
            raise CheckpointError(f"{what}; the last checkpoint is whole, --resume") from error
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(f"{event}/{name}", value, step)

    def sync(self) -> None:
        """Have what was written so far on the disk: a checkpoint must not outlive its log."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log.jsonl; a last line cut short by a kill is left out."""
    return [json.loads(text) for _, text in _lines(path)]


def _lines(path: Path) -> list[tuple[int, str]]:
    found = []
    if path.exists():
        for text in path.read_text(encoding="utf-8").splitlines(keepends=True):
            try:
                found.append((int(json.loads(text)["step"]), text))
            except (ValueError, KeyError, TypeError):
                continue  # a line that a kill cut short
    return found


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """NaN and infinity are no JSON: write them as strings."""
    return {
        k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()
    }


def _summary_writer(folder: Path, resume_at: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        message = "log.tensorboard needs the extra: pip install 'bertkit[tensorboard]'"
        raise UsageError(message) from error
    purge = resume_at + 1 if resume_at else None
    return SummaryWriter(str(folder), purge_step=purge)


class Progress:
    """A live bar on a terminal; elsewhere a plain line now and then; when quiet, only warnings.

    Args:
        quiet: show no progress.
        every: seconds between plain lines.
        rank: of this process; the first speaks for all.
    """

    def __init__(self, quiet: bool, every: float = 15.0, rank: int = 0) -> None:
        self.quiet, self.every, self.rank = quiet or rank > 0, every, rank
        self._last = float("-inf")
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        if not self.quiet and sys.stderr.isatty():
            from rich import progress
            from rich.console import Console

            self._bar = progress.Progress(
                progress.BarColumn(),
                progress.TaskProgressColumn(),
                progress.TextColumn("{task.description}"),
                progress.TimeElapsedColumn(),
                progress.TextColumn("{task.fields[left]}"),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task("", total=1.0, left="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, share: float, text: str, seconds_left: float) -> None:
        """Show `share` (0 to 1) of the work done, a line of figures and the time left."""
        if self.quiet:
            return
        left = f"{clock(seconds_left)} left"
        if self._bar is not None:
            self._bar.update(self._task, completed=share, description=text, left=left)
        elif time.monotonic() - self._last >= self.every or share >= 1:
            self._last = time.monotonic()
            print(f"{share:6.1%}  {text}  {left}", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """A line that stays."""
        if not self.quiet:
            self.warn(text)

    def warn(self, text: str) -> None:
        """A line that is shown even when quiet."""
        if self.rank:
            return
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=sys.stderr, flush=True)


def counted(count: float, names: str) -> str:
    """A number with what it counts: "3 steps", "1 step"."""
    return f"{count:,.15g} {names.removesuffix('s') if count == 1 else names}"


def clock(seconds: float) -> str:
    """1:02:03 or 02:03."""
    if not math.isfinite(seconds):
        return "?"
    whole = max(0, round(seconds))
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes:02}:{whole % 60:02}"
