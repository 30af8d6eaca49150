"""An interrupted run ends in the same bits as one that was never interrupted."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from bertkit.checkpoint.store import list_steps
from bertkit.settings import Recipe
from bertkit.train import card
from bertkit.train import pretrain as pretrain_module
from bertkit.train.log import Progress, read_log
from bertkit.train.pretrain import pretrain
from bertkit.train.state import OPTIMIZER_NAME
from tests.train.conftest import small_recipe
from tests.train.interrupting import Killed, at_step, end_of, kill, terminate

ROOT = Path(__file__).parents[2]
module: Any = pretrain_module


@pytest.fixture(autouse=True)
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card, "draw_curves", lambda lines, path: None)


def run(data: Path, out: Path, recipe: Recipe, resume: bool = False) -> bool:
    """Whether the run came to its end."""
    result = pretrain([data], out, recipe, resume=resume, device="cpu", quiet=True)
    return not result.interrupted


RECIPES: dict[str, dict[str, Any]] = {
    "dropout": {"train__steps": 14, "train__dropout": 0.1},
    "tokens": {"train__tokens": 3000},
    "epochs": {"train__epochs": 0.3},
    "over an epoch's end": {"train__steps": 60, "log__every_steps": 7},
    "accumulated": {"train__steps": 14, "train__micro_tokens": 100, "train__dropout": 0.1},
    "two phases": {
        "train__steps": 14,
        "data__max_length": 16,
        "data__final_max_length": 32,
        "data__final_share": 0.5,
    },
    "adamw": {"train__steps": 14, "train__optimizer": "adamw"},
    "muon": {"train__steps": 14, "train__optimizer": "muon"},
    "mlm, words": {"train__steps": 14, "data__objective": "mlm", "data__masking": "word"},
    "replicas": {"train__steps": 14, "train__replicas": 2, "train__dropout": 0.1},
    "checkpointed": {
        "train__steps": 14,
        "train__gradient_checkpointing": True,
        "train__dropout": 0.1,
    },
}


@pytest.mark.parametrize("name", RECIPES)
def test_interrupted_equals_uninterrupted(
    name: str,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    if name == "replicas":  # a thread for each
        request.addfinalizer(partial(torch.set_num_threads, torch.get_num_threads()))
        torch.set_num_threads(2)
    recipe = small_recipe(**RECIPES[name], checkpoint__every_steps=3)
    assert run(data, tmp_path / "straight", recipe)
    out = tmp_path / "broken"
    with monkeypatch.context() as patch:
        at_step(module, patch, 4, terminate)  # told to stop: drops the step, saves at step 4
        assert not run(data, out, recipe)
    with monkeypatch.context() as patch:
        at_step(module, patch, 10, kill)  # killed: goes on from step 9
        with pytest.raises(Killed):
            run(data, out, recipe, resume=True)
    assert run(data, out, recipe, resume=True)
    assert end_of(out) == end_of(tmp_path / "straight")


def test_many_short_sittings(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = small_recipe(train__steps=7, train__dropout=0.1)
    assert run(data, tmp_path / "straight", recipe)
    out = tmp_path / "broken"
    sittings = 0
    finished = False
    while not finished:
        with monkeypatch.context() as patch:
            # Two steps a sitting, and none in the first.
            at_step(module, patch, 2 * sittings, terminate)
            finished = run(data, out, recipe, resume=sittings > 0)
            sittings += 1
    assert sittings == 5
    assert end_of(out) == end_of(tmp_path / "straight")


def test_killed_while_saving(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = small_recipe(train__steps=8, checkpoint__every_steps=3)
    assert run(data, tmp_path / "straight", recipe)
    out = tmp_path / "broken"
    with monkeypatch.context() as patch:
        write = module.save_state

        def torn(root: Path, state: Any, *rest: Any) -> None:
            if state.step == 6:
                folder = root / "step-00000006.tmp"
                folder.mkdir()
                (folder / "model.safetensors").write_bytes(b"torn")
                raise Killed
            write(root, state, *rest)

        patch.setattr(module, "save_state", torn)
        with pytest.raises(Killed):
            run(data, out, recipe)
    assert run(data, out, recipe, resume=True)
    assert end_of(out) == end_of(tmp_path / "straight")
    assert not list((out / "checkpoints").glob("*.tmp"))


def test_killed_before_the_model_folder_is_whole(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small_recipe(train__steps=4)
    assert run(data, tmp_path / "straight", recipe)
    out = tmp_path / "broken"
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_result", lambda *_: kill())
        with pytest.raises(Killed):
            run(data, out, recipe)
    assert run(data, out, recipe, resume=True)
    assert end_of(out) == end_of(tmp_path / "straight")
    figures = [
        (folder / "model" / "README.md").read_text().split("## Figures")[1].split("Budget")[0]
        for folder in (out, tmp_path / "straight")
    ]
    assert figures[0] == figures[1]


@pytest.mark.parametrize("file", ["model.safetensors", OPTIMIZER_NAME, "trainer_state.json"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    file: str,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = small_recipe(train__steps=9, checkpoint__every_steps=2, train__dropout=0.1)
    assert run(data, tmp_path / "straight", recipe)
    out = tmp_path / "broken"
    with monkeypatch.context() as patch:
        at_step(module, patch, 7, kill)
        with pytest.raises(Killed):
            run(data, out, recipe)
    newest = list_steps(out / "checkpoints")[-1]
    assert newest.name == "step-00000006"
    content = bytearray((newest / file).read_bytes())
    content[len(content) // 2] ^= 1
    (newest / file).write_bytes(content)
    said: list[str] = []
    monkeypatch.setattr(Progress, "say", lambda self, text: said.append(text))
    assert run(data, out, recipe, resume=True)
    err = capsys.readouterr().err  # though quiet
    assert f"step-00000006: damaged, passed over: {file}" in err
    assert any("continuing from" in line and "step-00000004" in line for line in said)
    assert end_of(out) == end_of(tmp_path / "straight")


def test_other_threads_are_said_to_break_the_bits(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = small_recipe(train__steps=6)
    with monkeypatch.context() as patch:
        at_step(module, patch, 2, terminate)
        assert not run(data, tmp_path, recipe)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert run(data, tmp_path, recipe, resume=True)
    finally:
        torch.set_num_threads(threads)
    assert f"CPU threads were {threads}, now {threads + 1}" in capsys.readouterr().err


def test_a_budget_in_minutes_continues_with_the_minutes_left(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small_recipe(train__minutes=0.05, log__evals=0)
    with monkeypatch.context() as patch:
        at_step(module, patch, 20, terminate)
        assert not run(data, tmp_path, recipe)
    result = pretrain([data], tmp_path, recipe, resume=True, device="cpu", quiet=True)
    assert not result.interrupted
    assert 3 <= result.seconds < 10
    train = [line for line in read_log(tmp_path / "log.jsonl") if line["event"] == "train"]
    assert [line["step"] for line in train] == list(range(1, result.steps + 1))
    seconds = [line["seconds"] for line in train]
    assert seconds == sorted(seconds)


def sitting(data: Path, out: Path, settings: list[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.train.runner", str(data), str(out), "--resume"]
    # Waiting threads that spin would take the processors from whoever else is at work.
    threads = {"RUNNER_THREADS": "2", "OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": "1000"}
    environment = os.environ | threads
    with out.with_suffix(".err").open("ab") as said:
        return subprocess.Popen(
            [*command, *settings],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=said,
        )


def kill_at_random(
    data: Path, out: Path, settings: list[str], kills: int, steps: int, seed: int
) -> int:
    """Kill -9 the run so many times, at random instants, then let it end. Returns the kills."""
    dice = random.Random(seed)
    killed = 0
    while True:
        with sitting(data, out, settings) as process:
            if killed < kills:
                # So many more lines in the log, then a bit of a step or of a save.
                lines = len(read_log(out / "log.jsonl"))
                ahead = lines + dice.randrange(1, steps // (kills + 1))
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


def test_killed_at_random_with_two_threads(data: Path, tmp_path: Path) -> None:
    settings = ["train.steps=45", "train.dropout=0.1", "checkpoint.every_steps=4"]
    with sitting(data, tmp_path / "straight", settings) as process:
        assert process.wait() == 0
    assert kill_at_random(data, tmp_path / "broken", settings, 2, 45, seed=time.time_ns()) == 2
    assert end_of(tmp_path / "broken") == end_of(tmp_path / "straight")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["train.compile=off", "train.compile=on", "train.replicas=2"])
def test_killed_twenty_times_with_two_threads(how: str, data: Path, tmp_path: Path) -> None:
    settings = ["train.steps=400", "train.dropout=0.1", "checkpoint.every_steps=5", how]
    with sitting(data, tmp_path / "straight", settings) as process:
        assert process.wait() == 0
    kills = 20
    seed = time.time_ns()
    assert kill_at_random(data, tmp_path / "broken", settings, kills, 400, seed) == kills
    assert end_of(tmp_path / "broken") == end_of(tmp_path / "straight")
