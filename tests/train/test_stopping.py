"""A stop before the first step: what is said, by both training verbs."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bertkit.cli import main
from bertkit.train.stopping import stops_told
from tests.train.small_tasks import write_model, write_texts


def stop(number: int = signal.SIGTERM) -> Any:
    os.kill(os.getpid(), number)
    time.sleep(0.01)
    raise AssertionError("not reached")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_says_what_to_do(number: int, tmp_path: Path) -> None:
    outer = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt, match=r"^nothing was trained: .* again$"):
        with stops_told(tmp_path, again=True):
            stop(number)
    (tmp_path / "seed-0" / "checkpoints" / "step-00000004").mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt, match="is saved: continue it with --resume"):
        with stops_told(tmp_path, again=False):
            stop(number)
    assert signal.getsignal(number) is outer


@pytest.mark.parametrize("verb", ["finetune", "pretrain"])
def test_told_to_stop_while_starting_up(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    __import__(f"bertkit.train.{verb}")
    monkeypatch.setattr(sys.modules[f"bertkit.train.{verb}"], verb, lambda *_, **__: stop())
    (tmp_path / "manifest.json").write_text("{}")
    model, train = write_model(tmp_path / "model"), write_texts(tmp_path / "train.tsv", 9)
    given = {
        "finetune": ["classify", str(model), "--train", str(train)],
        "pretrain": [str(tmp_path)],
    }
    assert main([verb, *given[verb], "--out", str(tmp_path / "run")]) == 130
    said = capsys.readouterr().err.splitlines()[-1]
    wanted = "bertkit: interrupted; nothing was trained: give the same command again, with --resume"
    assert said == wanted
