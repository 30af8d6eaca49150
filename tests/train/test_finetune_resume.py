"""An interrupted fine-tuning ends in the same bits as one that was never interrupted."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bertkit.settings import FinetuneRecipe
from bertkit.train import finetune as finetune_module
from bertkit.train import finetune_card
from bertkit.train.finetune import finetune
from bertkit.train.log import read_log
from tests.train.interrupting import Killed, at_step, end_of, kill, terminate
from tests.train.small_tasks import quick, write_files, write_model

ROOT = Path(__file__).parents[2]
module: Any = finetune_module


@pytest.fixture(autouse=True)
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetune_card, "draw_curves", lambda lines, path, metric: None)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "tiny")


def run(
    task: str, places: tuple[Path, Path, Path], out: Path, recipe: FinetuneRecipe, resume: bool
) -> bool:
    """Whether the run came to its end."""
    model, train, dev = places
    result = finetune(
        task, model, train, dev, None, out, recipe, resume=resume, device="cpu", quiet=True
    )
    return not result.interrupted


RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("classify", {}),
    "evaluated often": ("classify", {"train__evals": 9}),
    "fgm, micro-batches": ("classify", {"train__adversarial": "fgm", "train__micro_tokens": 80}),
    "lora, r-drop": ("classify", {"train__lora_rank": 4, "train__r_drop": 1.0}),
    "oversampled, held out": ("classify", {"data__oversample": 1.0, "data__dev": 0.2}),
    "crf, augmented": (
        "tag",
        {"data__crf": True, "data__augment": "both", "data__max_length": 32},
    ),
    "answers": ("qa", {"data__max_length": 24, "data__doc_stride": 6, "train__layer_decay": 0.9}),
    "choices": ("choose", {"train__freeze_layers": 1}),
}


# The others take their turn with -m slow.
QUICK = ("evaluated often", "fgm, micro-batches", "lora, r-drop", "crf, augmented")


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in RECIPES],
)
def test_interrupted_equals_uninterrupted(
    name: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, settings = RECIPES[name]
    held_out = "data__dev" in settings
    train, dev = write_files(task, tmp_path, 90 if held_out else 60, 20)
    places: Any = (model, train, None if held_out else dev)
    recipe = quick(train__epochs=3, checkpoint__every_steps=3, **settings)
    assert run(task, places, tmp_path / "straight", recipe, False)
    out = tmp_path / "broken"
    with monkeypatch.context() as patch:
        at_step(module, patch, 4, terminate)  # told to stop: saves at step 6
        assert not run(task, places, out, recipe, False)
    with monkeypatch.context() as patch:
        at_step(module, patch, 10, kill)  # killed: goes on from step 9
        with pytest.raises(Killed):
            run(task, places, out, recipe, True)
    assert run(task, places, out, recipe, True)
    assert end_of(out) == end_of(tmp_path / "straight")


def test_killed_between_the_model_and_its_results(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = (model, *write_files("classify", tmp_path, 90, 20))
    recipe = quick(train__epochs=2)
    assert run("classify", places, tmp_path / "straight", recipe, False)
    out = tmp_path / "broken"
    with monkeypatch.context() as patch:
        end: Any = sys.modules["bertkit.train.finetune_end"]
        patch.setattr(end, "write_results", lambda result: kill())
        with pytest.raises(Killed):
            run("classify", places, out, recipe, False)
    assert (out / "model").is_dir()
    assert run("classify", places, out, recipe, True)
    assert end_of(out) == end_of(tmp_path / "straight")
    cards = [
        (folder / "model" / "README.md").read_text().split("## Figures")[1].split("## Use")[0]
        for folder in (out, tmp_path / "straight")
    ]
    assert cards[0] == cards[1]


def sitting(arguments: list[str], out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.train.task_runner", *arguments]
    # Waiting threads that spin would take the processors from whoever else is at work.
    threads = {"RUNNER_THREADS": "2", "OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": "1000"}
    with out.with_suffix(".err").open("ab") as said:
        return subprocess.Popen(
            command, cwd=ROOT, env=os.environ | threads, stdout=subprocess.DEVNULL, stderr=said
        )


def kill_at_random(arguments: list[str], out: Path, kills: int, steps: int) -> int:
    """Kill -9 the run so many times, at random instants, then let it end. Returns the kills."""
    dice = random.Random(time.time_ns())
    killed = 0
    while True:
        with sitting([*arguments, "--resume"], out) as process:
            if killed < kills:
                # So many more lines in the log, then a bit of a step or of a save.
                ahead = len(read_log(out / "log.jsonl")) + dice.randrange(1, steps // (kills + 1))
                deadline = time.monotonic() + 240
                while process.poll() is None and time.monotonic() < deadline:
                    if len(read_log(out / "log.jsonl")) >= ahead:
                        time.sleep(dice.random() * 0.03)
                        break
                    time.sleep(0.002)
                if process.poll() is None:
                    process.kill()
                    killed += 1
            code = process.wait()
        if code == 0:
            return killed
        assert code == -signal.SIGKILL, out.with_suffix(".err").read_text()


def assert_killed_equals_straight(
    model: Path, folder: Path, kills: int, epochs: int, replicas: int = 1
) -> None:
    train, dev = write_files("classify", folder, 160, 30)
    settings = [f"train.epochs={epochs}", "checkpoint.every_steps=4", "train.adversarial=fgm"]
    settings.append(f"train.replicas={replicas}")

    def arguments(out: str) -> list[str]:
        return ["classify", *map(str, (model, train, dev, folder / out)), *settings]

    with sitting(arguments("straight"), folder / "straight") as process:
        assert process.wait() == 0, (folder / "straight.err").read_text()
    assert kill_at_random(arguments("broken"), folder / "broken", kills, 10 * epochs) == kills
    assert end_of(folder / "broken") == end_of(folder / "straight")


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [1, 2])
def test_killed_many_times(replicas: int, model: Path, tmp_path: Path) -> None:
    assert_killed_equals_straight(model, tmp_path, kills=15, epochs=32, replicas=replicas)
