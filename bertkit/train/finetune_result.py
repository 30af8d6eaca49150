"""What became of a fine-tuning run: its figures, as tables and in all_results.json."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from bertkit.checkpoint.files import write_atomically
from bertkit.infer.evaluate import AVERAGES
from bertkit.tasks.outcomes import Table, led_by, written

RESULTS_NAME = "all_results.json"


@dataclass(frozen=True, slots=True)
class FinetuneResult:
    """What became of a run.

    Attributes:
        run: the run folder.
        model: the finished model folder; None when interrupted, and of k-fold runs.
        task: classify, regress, tag, qa or choose.
        metric: the figure that the best model was chosen by.
        figures: of the saved model on dev; empty without dev. Of several runs, the means.
        test: of the saved model on test.
        best_step: the step of the saved model.
        steps: optimiser steps done.
        examples: examples learned from, each as often as it was.
        tokens: real tokens of these.
        seconds: wall-clock seconds, all sittings together.
        skipped: steps skipped for a bad loss.
        stopped_early: the figures did not get better any more.
        interrupted: stopped before the end; everything is saved.
        runs: of several runs (seeds, folds) the folder and the figures of each; "kept" is true of
            the one whose model is the result.
        deviations: of several runs, the standard deviations of `figures` and `test` (n - 1).
    """

    run: Path
    model: Path | None
    task: str
    metric: str
    figures: dict[str, Any] = field(default_factory=dict)
    test: dict[str, Any] = field(default_factory=dict)
    best_step: int = 0
    steps: int = 0
    examples: int = 0
    tokens: int = 0
    seconds: float = 0.0
    skipped: int = 0
    stopped_early: bool = False
    interrupted: bool = False
    runs: list[dict[str, Any]] = field(default_factory=list)
    deviations: dict[str, dict[str, float]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = asdict(self)
        return values | {"run": str(self.run), "model": self.model and str(self.model)}

    def table(self) -> Table | None:
        """Each figure on dev and test, of several runs as mean ± deviation; None: no figures.

        Averages over labels, of which there are nine, stand in all_results.json alone.
        """
        columns = {
            name: (figures, self.deviations.get(kind, {}))
            for name, kind, figures in self._measured()
        }
        if not columns:
            return None
        names = led_by(self.metric, self.figures | self.test)
        rows = tuple(
            (name, *(_cell(figures, spread, name) for figures, spread in columns.values()))
            for name, value in names.items()
            if _is_number(value) and (name == self.metric or not name.startswith(AVERAGES))
        )
        return Table(("figure", *columns), rows)

    def runs_table(self) -> Table | None:
        """The figure that models are chosen by, of each of several runs; None: of one run."""
        kinds = {f"{self.metric} on {name}": kind for name, kind, _ in self._measured()}
        if not self.runs or not kinds:
            return None
        rows = []
        for run in self.runs:
            name = Path(run["run"]).name + (" (kept)" if run.get("kept") else "")
            rows.append((name, *(_cell(run[kind], {}, self.metric) for kind in kinds.values())))
        return Table(("run", *kinds), tuple(rows))

    def _measured(self) -> list[tuple[str, str, dict[str, Any]]]:
        both = (("dev", "figures", self.figures), ("test", "test", self.test))
        return [one for one in both if one[2]]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(figures: dict[str, Any], spread: dict[str, float], name: str) -> str:
    if not _is_number(figures.get(name)):
        return ""
    return written(figures[name]) + (f" ± {spread[name]:.4f}" if name in spread else "")


def read_result(out: Path) -> FinetuneResult | None:
    """What a finished run left in all_results.json; None where there is nothing of the kind."""
    try:
        values = json.loads((out / RESULTS_NAME).read_bytes())
        known = {f.name for f in fields(FinetuneResult)}
        mine = {name: value for name, value in values.items() if name in known}
        model = out / "model" if mine["model"] else None
        return FinetuneResult(**(mine | {"run": out, "model": model}))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_results(result: FinetuneResult) -> None:
    """all_results.json: the result, and its figures by the names that scripts elsewhere use."""
    values = result.to_dict()
    for prefix, figures in (("eval", result.figures), ("test", result.test)):
        values |= {f"{prefix}_{name}": value for name, value in figures.items()}
    values |= {"train_runtime": result.seconds}
    if result.seconds > 0:
        values["train_samples_per_second"] = result.examples / result.seconds
    text = json.dumps(values, ensure_ascii=False, indent=1, default=str)
    write_atomically(result.run / RESULTS_NAME, (text + "\n").encode())
