"""Ends of runs, brought about in the middle of a step, and what must be equal after them."""

from __future__ import annotations

import hashlib
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from bertkit.checkpoint.store import newest_step
from bertkit.train.log import read_log
from bertkit.train.state import OPTIMIZER_NAME

# What the clock says differs from run to run.
CLOCKS = {"seconds", "tokens_per_second", "examples_per_second", "matrix_peak_flops"}


class Killed(BaseException):
    """Stands in for SIGKILL inside this process: nothing is caught, nothing is saved."""


def end_of(out: Path) -> dict[str, Any]:
    """All that has to be equal at the end of a run."""
    newest = newest_step(out / "checkpoints")
    assert newest is not None

    def digest(path: Path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()

    log = [
        {key: value for key, value in line.items() if key not in CLOCKS}
        for line in read_log(out / "log.jsonl")
    ]
    assert [line["step"] for line in log if line["event"] == "train"][-1] > 1
    return {
        "step": newest.name,
        "weights": digest(newest / "model.safetensors"),
        "optimizer": digest(newest / OPTIMIZER_NAME),
        "model": digest(out / "model" / "model.safetensors"),
        "log": log,
    }


def at_step(module: Any, monkeypatch: pytest.MonkeyPatch, step: int, action: Any) -> None:
    """Do something in the middle of a step, once."""
    sound = module.forward_backward
    done: list[int] = []

    def wrapped(network: Any, parts: Any, machine: Any, seeds: Any, stop: Any) -> Any:
        if seeds[1] == step and not done:
            done.append(step)
            action()
        return sound(network, parts, machine, seeds, stop)

    monkeypatch.setattr(module, "forward_backward", wrapped)


def kill() -> None:
    raise Killed


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
