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
from bertkit.train.finetune_result import FinetuneResult
from bertkit.train.folds import best_run
from bertkit.train.log import Progress, read_log
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
    said: list[str] = []
    monkeypatch.setattr(Progress, "say", lambda self, text: said.append(text))
    result = finetune("classify", model, train, dev, dev, out, recipe, resume=True, quiet=True)
    assert [line for line in said if line.startswith("train: ")] == [f"train: {train}"]  # once
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
    card = (out / "model" / "README.md").read_text(encoding="utf-8")
    assert "\n# run\n" in card
    mean, spread = statistics.mean(values), statistics.stdev(values)
    assert f"| accuracy | {mean:.4f} ± {spread:.4f} | {mean:.4f} ± {spread:.4f} |" in card
    for seed, value in zip((5, 6, 7), values, strict=True):
        kept = " (kept)" if f"seed-{seed}" == best.parents[1].name else ""
        assert f"| seed-{seed}{kept} | {value:.4f} | {value:.4f} |" in card
    assert f'bertkit.load("{out / "model"}")' in card
    assert f"are those of `{best.parents[1].name}`" in card
    saved = json.loads((out / "all_results.json").read_bytes())
    assert saved["eval_accuracy"] == result.figures["accuracy"]
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


def test_a_label_that_is_only_in_one_fold_is_known_to_all(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    train, _ = write_files("classify", tmp_path, 40, 3)
    with train.open("a", encoding="utf-8") as file:
        file.write("rare\tw1 w2 w3\n")
    recipe = quick(data__folds=2, train__steps=2)
    result = finetune("classify", model, train, None, None, tmp_path / "run", recipe, quiet=True)
    for fold in ("fold-0", "fold-1"):
        config = json.loads((tmp_path / "run" / fold / "model" / "config.json").read_bytes())
        assert list(config["label2id"]) == ["bad", "fine", "good", "rare"]
    assert len(result.runs) == 2


def test_the_best_run_is_by_the_metric() -> None:
    def results(metric: str, values: list[float]) -> list[FinetuneResult]:
        return [
            FinetuneResult(Path(), None, "classify", metric, figures={metric: value})
            for value in values
        ]

    assert best_run(results("f1", [0.5, float("nan"), 0.9, 0.9])) == 2
    assert best_run(results("mse", [0.5, 0.2, 0.9])) == 1
    assert best_run([FinetuneResult(Path(), None, "qa", "f1")] * 2) == 0
