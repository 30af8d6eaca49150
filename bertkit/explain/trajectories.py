"""`trajectory`: how the figures of a verb came about along the checkpoints of a run.

A step folder of a run is a whole model folder; they are opened one after the other, so that memory
holds one (and the last one, where `compare` compares with it). What is followed of each verb stands
in one table (followed.py).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from bertkit.checkpoint.store import list_steps, step_number, verify_step
from bertkit.errors import CheckpointError, UsageError
from bertkit.explain.curves import MOST_LINES, lines
from bertkit.explain.followed import FOLLOWED, Followed, Named
from bertkit.explain.opening import Model, Opened, open_model
from bertkit.explain.page import Section
from bertkit.explain.pictures import Look, heat
from bertkit.explain.result import Floats, Result, counted, headed
from bertkit.explain.tables import digits, grid
from bertkit.explain.wording import named, say, spoken
from bertkit.tasks.load import Pipeline

if TYPE_CHECKING:
    from rich.console import RenderableType

CAUTION = (
    "A trajectory shows when a figure changed in training, not why, and nothing of what happened "
    "between two checkpoints; what the figure can and cannot tell holds at every step."
)
CAUTION_ZH = (
    "轨迹显示某个数值在训练中何时变化，但不说明为什么变化，也看不到两个检查点之间发生了什么；"
    "该数值本身能说明什么、不能说明什么，在每一步都同样适用。"
)
# Columns of a table in the terminal.
SHOWN = 40

# The figures of one checkpoint: by the name of a series the rows' names and numbers.
Figures = Mapping[str, Mapping[str, float]]
_log = logging.getLogger("bertkit")


@dataclass(frozen=True)
class Series:
    """One figure along the checkpoints.

    Attributes:
        name: of the figure.
        rows: R names, such as layers.
        values: [R, C] of C checkpoints; NaN where a checkpoint has no such row.
    """

    name: str
    rows: list[str]
    values: Floats


@dataclass(frozen=True)
class TrajectoryResult(Result):
    """The figures of a verb along checkpoints.

    Attributes:
        of: the verb that was followed.
        text: the text it was asked about; None: many.
        checkpoints: C names.
        steps: C numbers of steps; None where one is not known.
        series: the figures.
    """

    verb: ClassVar[str] = "trajectory"
    caution: ClassVar[str] = CAUTION
    caution_zh: ClassVar[str] = CAUTION_ZH

    of: str
    text: str | None
    checkpoints: list[str]
    steps: list[int | None]
    series: list[Series]

    def title(self) -> str:
        """What was asked."""
        along = counted(len(self.checkpoints), "checkpoints")
        told = say("{verb} along {checkpoints}", verb=self.of, checkpoints=along)
        return told if self.text is None else headed(told, self.text)

    def table(self) -> RenderableType:
        """A table a figure, a row a checkpoint."""
        from rich.console import Group

        return Group(*(self._table(one) for one in self.series))

    def _table(self, one: Series) -> RenderableType:
        count = len(one.rows)
        shown = sorted({round(i) for i in np.linspace(0, count - 1, min(count, SHOWN))})
        rows = [
            [named(name), *map(digits, one.values[shown, j])]
            for j, name in enumerate(self.checkpoints)
        ]
        names = [one.rows[i] for i in shown]
        note = f"{SHOWN} of {count:,} columns; --json has all" if count > SHOWN else ""
        return grid(headed(self.of, named(one.name)), ("checkpoint", *names), rows, note=note)

    def sections(self) -> list[Section]:
        """Lines where there are few rows, else a row a layer and a column a checkpoint."""
        told = FOLLOWED[self.of].kind
        note = told.caution_zh if spoken() == "zh" else told.caution
        found = []
        for number, one in enumerate(self.series):
            of = f"series.{number}.values"
            # Rows of these verbs are the user's own words and kinds.
            own = self.of in ("attribute", "pairs")
            rows = [row if own and row != "all pairs" else named(row) for row in one.rows]
            steps = [named(name) for name in self.checkpoints]
            if len(rows) <= MOST_LINES:
                picture = lines(of, one.values, rows, self._places(), steps)
            else:
                picture = heat(of, one.values, rows, steps, Look(named(one.name)))
            found.append(Section(headed(self.of, named(one.name)), picture, "" if number else note))
        return found

    def _places(self) -> list[float]:
        """Of the checkpoints on a line: their steps where these ascend."""
        steps = [step for step in self.steps if step is not None]
        if len(steps) == len(self.steps) and all(a < b for a, b in pairwise(steps)):
            return [float(step) for step in steps]
        return [float(i) for i in range(len(self.steps))]


class Point(NamedTuple):
    """A checkpoint: what `open_model` takes, its name, its step where it is known."""

    model: Model
    name: str
    step: int | None


def points(run: Model | Sequence[Model]) -> list[Point]:
    """The checkpoints of a run, oldest first, or models in the order in which they are listed.

    Damaged checkpoints are passed over, with a warning.

    Args:
        run: a run folder, a model, or a list of such.

    Raises:
        CheckpointError: no checkpoint of a run is whole.
        UsageError: the list is empty.
    """
    if not isinstance(run, str | os.PathLike | Opened | Pipeline):
        if not run:
            raise UsageError("there is no checkpoint: the list of models is empty")
        found = [(one, point) for one in run for point in points(one)]
        # Steps of several runs have the runs' names with them.
        return [
            point._replace(name=f"{one} {point.name}")
            if len(run) > 1 and point.name != str(one) and isinstance(one, str | os.PathLike)
            else point
            for one, point in found
        ]
    if isinstance(run, Opened | Pipeline):
        return [Point(run, open_model(run).name, None)]
    folder = Path(run).expanduser()
    steps = folder / "checkpoints"
    if not steps.is_dir():
        known = folder.is_dir() and folder in list_steps(folder.parent)
        return [Point(run, os.fspath(run), step_number(folder) if known else None)]
    # Of a step that was being replaced there are two folders; the newer one counts, if it is whole.
    whole: dict[int, Path] = {}
    for one in list_steps(steps):
        if problems := verify_step(one):
            _log.warning("%s: damaged, passed over: %s", one, problems[0])
        else:
            whole[step_number(one)] = one
    if not whole:
        raise CheckpointError(f"{folder}: no whole checkpoint is in {steps.name}/")
    return [Point(one, f"step {step:,}", step) for step, one in whole.items()]


def trajectory(
    run: Model | Sequence[Model],
    verb: str,
    text: str,
    *,
    device: str | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
    **settings: Any,
) -> TrajectoryResult:
    """Follow a verb on one text.

    Args:
        run: a run folder, or models in order; they are opened one at a time.
        verb: one of FOLLOWED.
        text: what the verb is asked about.
        device: as `open_model`'s.
        report: takes progress, as checkpoints done and in all.
        settings: as the verb's function takes them, such as `target` of `lens`.

    Raises:
        UsageError: there is no such verb, or it takes no single text.
        CheckpointError: the run has no whole checkpoint, or a model cannot be opened.
        DataError: as the verb's.
    """
    way = followed(verb)
    if way.one is None:
        raise UsageError(f"{verb} reads files, not one text")
    figures = _walk(run, verb, (way.one, way.pick), (text, settings), (device, report))
    return _result(verb, text, *figures)


def trajectory_over(
    run: Model | Sequence[Model],
    verb: str,
    texts: Iterable[Any],
    *,
    device: str | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
    **settings: Any,
) -> TrajectoryResult:
    """Follow a verb over many texts, which are read once for each checkpoint.

    Arguments and errors are those of `trajectory`, but for `texts`: what the verb's function takes
    (of `pairs`, rows of `read_pairs`; of `probe`, labelled rows, with `dev` and `task` beside).
    An iterator, which cannot be read twice, is kept in memory; `Texts` are read anew.
    """
    way = followed(verb)
    if way.over is None:
        raise UsageError(f"{verb} is followed on one text")
    again = list(texts) if isinstance(texts, Iterator) else texts
    figures = _walk(run, verb, (way.over, way.pick_over), (again, settings), (device, report))
    return _result(verb, None, *figures)


def followed(verb: str) -> Followed:
    """How a verb is followed.

    Raises:
        UsageError: trajectory cannot follow it.
    """
    if verb not in FOLLOWED:
        raise UsageError(f"trajectory cannot follow {verb!r}; it follows {', '.join(FOLLOWED)}")
    return FOLLOWED[verb]


def _walk(
    run: Model | Sequence[Model],
    verb: str,
    how: tuple[Callable[..., Any], Callable[[Any], Named]],
    asked: tuple[Any, Mapping[str, Any]],
    work: tuple[str | None, Callable[[int, int], None]],
) -> tuple[list[Point], list[Figures]]:
    """The figures at each checkpoint; of each model nothing is kept beyond them."""
    (function, pick), (about, settings), (device, report) = how, asked, work
    all_points = points(run)
    if verb == "compare":
        settings = {**settings, "other": open_model(all_points[-1].model, device)}
    if len(all_points) == 1:
        _log.warning(
            "one checkpoint shows no course; pretrain keeps more with --set checkpoint.keep=9, "
            "and --also names further runs or models"
        )
    found: list[Figures] = []
    report(0, len(all_points))
    for point in all_points:
        found.append(dict(pick(function(open_model(point.model, device), about, **settings))))
        report(len(found), len(all_points))
    return all_points, found


def _result(
    verb: str, text: str | None, where: Sequence[Point], found: Sequence[Figures]
) -> TrajectoryResult:
    series = []
    for name in dict.fromkeys(name for figures in found for name in figures):
        rows = list(dict.fromkeys(row for figures in found for row in figures.get(name, {})))
        values = [[figures.get(name, {}).get(row, np.nan) for figures in found] for row in rows]
        series.append(Series(name, rows, np.array(values, dtype=np.float64)))
    names, steps = [point.name for point in where], [point.step for point in where]
    return TrajectoryResult(verb, text, names, steps, series)
