"""Several runs of one recipe: a folder each, means and deviations, continued after a stop."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from bertkit.train import finetune as finetune_module
from bertkit.train import finetune_card
from bertkit.train.finetune import finetune
from bertkit.train.finetune_setup import FinetuneResult
from bertkit.train.folds import best_run
from bertkit.train.log import read_log
from tests.train.interrupting import at_step, terminate
from tests.train.small_tasks import quick, write_files, write_model

module: Any = finetune_module


@pytest.fixture(autouse=True)
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetune_card, "draw_curves", lambda lines, path, metric: None)


def test_seeds_have_a_folder_each_and_a_mean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_model(tmp_path / "model")
    train, dev = write_files("classify", tmp_path, 80, 30)
    recipe = quick(train__seeds=3, train__seed=5, train__epochs=2)
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        at_step(module, patch, 7, terminate)  # in the first of the three
        stopped = finetune("classify", model, train, dev, dev, out, recipe, quiet=True)
    assert stopped.interrupted
    assert stopped.model is None
    result = finetune("classify", model, train, dev, dev, out, recipe, resume=True, quiet=True)
    assert [Path(run["run"]).name for run in result.runs] == ["seed-5", "seed-6", "seed-7"]
    values = [run["figures"]["accuracy"] for run in result.runs]
    assert result.figures["accuracy"] == pytest.approx(statistics.mean(values))
    assert result.deviations["figures"]["accuracy"] == pytest.approx(statistics.stdev(values))
    assert result.test == result.figures
    first = [
        [line["loss"] for line in read_log(out / f"seed-{seed}" / "log.jsonl")[1:4]]
        for seed in (5, 6, 7)
    ]
    assert first[0] != first[1] != first[2]
    best = out / f"seed-{5 + values.index(max(values))}" / "model" / "model.safetensors"
    assert result.model == out / "model"
    assert (out / "model" / "model.safetensors").read_bytes() == best.read_bytes()
    kept = json.loads((out / "all_results.json").read_bytes())
    assert kept["eval_accuracy"] == result.figures["accuracy"]
    again = finetune("classify", model, train, dev, dev, out, recipe, resume=True, quiet=True)
    assert again.figures == result.figures


def test_folds_measure_every_row_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_model(tmp_path / "model")
    train, _ = write_files("classify", tmp_path, 90, 3)
    measured: list[list[str]] = []
    sound = module.measure

    def watched(run: Any, network: Any, rows: Any, task: Any = None) -> Any:
        rows = list(rows)
        measured.append([row.id for row in rows])
        return sound(run, network, rows, task)

    monkeypatch.setattr(module, "measure", watched)
    recipe = quick(data__folds=3, train__epochs=1)
    result = finetune("classify", model, train, None, None, tmp_path / "run", recipe, quiet=True)
    assert sorted(int(n) for fold in measured for n in fold) == list(range(90))
    assert [len(fold) for fold in measured] == [30, 30, 30]
    assert [Path(run["run"]).name for run in result.runs] == ["fold-0", "fold-1", "fold-2"]
    assert result.model is None
    assert result.examples == 3 * 60
    assert set(result.deviations["figures"]) == set(result.figures)


def test_the_best_run_is_by_the_metric() -> None:
    def results(metric: str, values: list[float]) -> list[FinetuneResult]:
        return [
            FinetuneResult(Path(), None, "classify", metric, figures={metric: value})
            for value in values
        ]

    assert best_run(results("f1", [0.5, float("nan"), 0.9, 0.9])) == 2
    assert best_run(results("mse", [0.5, 0.2, 0.9])) == 1
    assert best_run([FinetuneResult(Path(), None, "qa", "f1")] * 2) == 0
