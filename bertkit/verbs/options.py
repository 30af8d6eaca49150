"""The options that every verb takes, and how results and progress are shown."""

from __future__ import annotations

import json as json_module
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

from cyclopts import Parameter

# A progress report: (done, total), total 0 when it is not known yet.
Report = Callable[[int, int], None]

Switch = Parameter(show_default=False)


@Parameter(name="*", group="Common options")
@dataclass(kw_only=True)
class Common:
    """What every verb understands."""

    json: Annotated[
        bool, Switch, Parameter(help="Print one JSON object as the last line of standard output.")
    ] = False
    quiet: Annotated[bool, Switch, Parameter(help="Show no progress.")] = False
    seed: Annotated[int | None, Parameter(help="Seed of everything random.")] = None
    device: Annotated[str | None, Parameter(help="cpu, cuda, cuda:1 ...; the best by default.")] = (
        None
    )
    offline: Annotated[
        bool, Switch, Parameter(help="Take models from the local cache of the hub only.")
    ] = False
    debug: Annotated[bool, Switch, Parameter(help="Show the traceback of an error.")] = False

    def __post_init__(self) -> None:
        """Going offline holds for the whole process and for those that it starts."""
        if self.offline:
            os.environ["HF_HUB_OFFLINE"] = "1"

    def show(self, data: dict[str, Any], text: str = "") -> None:
        """Print the result: `text` for people, or with --json `data` on one line."""
        out = json_module.dumps(data, ensure_ascii=False) if self.json else text
        if out:
            print(out)

    def say(self, line: str) -> None:
        """A remark about the work, on standard error."""
        if not self.quiet:
            print(line, file=sys.stderr)

    @contextmanager
    def progress(self, title: str, unit: str = "") -> Iterator[Report]:
        """A bar with rate and time left on a terminal; elsewhere a plain line every ten seconds."""
        if self.quiet:
            yield lambda done, total: None
        elif sys.stderr.isatty():
            with _bar(title, unit) as report:
                yield report
        else:
            yield _plain_lines(title, unit)


@contextmanager
def warnings_unless_refused() -> Iterator[None]:
    """Hold warnings back until the work is done: an error says all that is to be said."""
    held: list[logging.LogRecord] = []

    def hold(record: logging.LogRecord) -> bool:
        held.append(record)
        return False

    log = logging.getLogger("bertkit")
    log.addFilter(hold)
    try:
        yield
    finally:
        log.removeFilter(hold)
    for record in held:
        log.handle(record)


@contextmanager
def _bar(title: str, unit: str) -> Iterator[Report]:
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.TextColumn("{task.completed:,.0f} " + unit),
        progress.TextColumn("{task.fields[rate]}"),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None, rate="")
        start = time.monotonic()

        def report(done: int, total: int) -> None:
            nonlocal start
            if not done:  # what came before the work began does not count
                start = time.monotonic()
            rate = _rate(done / max(time.monotonic() - start, 1e-9)) if done else ""
            bar.update(task, completed=done, total=total or None, rate=rate)

        yield report


def _rate(rate: float) -> str:
    return f"{rate:,.0f}/s" if rate >= 9.5 else f"{rate:.2g}/s"


def _plain_lines(title: str, unit: str, every: float = 10.0) -> Report:
    start = last = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal start, last
        now = time.monotonic()
        if not done:
            start = now
        if not done or (now - last < every and not (total and done >= total)):
            return
        last, passed = now, max(now - start, 1e-9)
        line = f"{title}: {done:,} {unit}, {_rate(done / passed)}"
        if 0 < done < total:
            line += f", {done / total:.0%}, {passed * (total - done) / done:.0f} s left"
        print(line, file=sys.stderr, flush=True)

    return report
