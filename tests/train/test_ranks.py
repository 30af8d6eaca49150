"""Two ranks under torchrun (gloo) do what one process does."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bertkit.checkpoint.store import newest_step, verify_step
from bertkit.model.heads import BertForPreTraining
from bertkit.train.log import read_log
from bertkit.train.pretrain import pretrain
from tests.train.conftest import small_recipe

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def ranks(data: Path, out: Path, settings: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--master_addr", "127.0.0.1", "--master_port", str(free_port())]
    command += ["-m", "tests.train.runner", str(data), str(out), *settings]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def figures(out: Path) -> list[dict[str, Any]]:
    return [line for line in read_log(out / "log.jsonl") if line["event"] == "train"]


def test_two_ranks_have_the_loss_of_one(data: Path, tmp_path: Path) -> None:
    settings = ["train.steps=20", "train.micro_tokens=64"]
    with ranks(data, tmp_path / "two", settings) as process:
        out, _ = process.communicate(timeout=240)
    assert process.returncode == 0, out
    recipe = small_recipe(train__steps=20)
    pretrain([data], tmp_path / "one", recipe, device="cpu", quiet=True)
    one, two = figures(tmp_path / "one"), figures(tmp_path / "two")
    assert len(one) == len(two) == 20
    for a, b in zip(one, two, strict=True):
        for exact in ("step", "masked", "pairs", "tokens", "learning_rate"):
            assert a[exact] == b[exact]
        assert b["loss"] == pytest.approx(a["loss"], abs=1e-6, rel=1e-6)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-4)
    evals = [
        [line for line in read_log(tmp_path / name / "log.jsonl") if line["event"] == "eval"]
        for name in ("one", "two")
    ]
    assert len(evals[0]) == len(evals[1]) == 2
    for a, b in zip(*evals, strict=True):
        assert b["mlm_loss"] == pytest.approx(a["mlm_loss"], rel=1e-5)
        assert b["unigram_loss"] == a["unigram_loss"]
    BertForPreTraining.from_pretrained(tmp_path / "two" / "model")


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the ranks in /proc")
def test_a_signal_to_one_rank_stops_both_and_saves(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with ranks(data, out, ["train.steps=100000", "log.evals=0"]) as process:
        deadline = time.monotonic() + 240
        while len(read_log(out / "log.jsonl")) < 5:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        second = max(children(process.pid))
        os.kill(second, signal.SIGTERM)
        said, _ = process.communicate(timeout=240)
    # torchrun reports that its ranks left with 130, as an interrupted run does.
    assert process.returncode != 0
    assert '"interrupted": true' in said
    assert "bertkit/train" not in said, said  # no traceback of ours
    newest = newest_step(out / "checkpoints")
    assert newest is not None
    assert verify_step(newest) == []
    assert figures(out)[-1]["step"] == int(newest.name.removeprefix("step-"))
