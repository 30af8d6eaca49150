"""Two ranks (gloo) fine-tune as one process does; the slow proof starts them by torchrun."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bertkit.model.task_heads import BertForSequenceClassification
from bertkit.train.finetune import finetune
from bertkit.train.log import read_log
from tests.train import task_runner
from tests.train.small_tasks import quick, write_files, write_model
from tests.train.test_ranks import ROOT, free_port

CASES: dict[str, tuple[str, dict[str, str]]] = {
    "classify": ("classify", {"train.micro_tokens": "60", "train.adversarial": "fgm"}),
    "tag": ("tag", {"train.class_weights": "balanced", "data.max_length": "32"}),
}


def as_rank(rank: int, port: int, arguments: list[str], said: Path) -> None:
    """One rank, in a process of its own, with the environment that torchrun would give it."""
    with said.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    sys.exit(task_runner.main(arguments))


def by_fork(arguments: list[str], folder: Path) -> None:
    """Both ranks are forked from one process that has imported everything once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.train.task_runner", "torch._dynamo"])
    port, logs = free_port(), [folder / f"rank{rank}.txt" for rank in range(2)]
    ranks = [
        context.Process(target=as_rank, args=(rank, port, arguments, logs[rank]), daemon=True)
        for rank in range(2)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(240)
    told = "\n".join(log.read_text() for log in logs if log.exists())
    assert [process.exitcode for process in ranks] == [0, 0], told


def by_torchrun(arguments: list[str], folder: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--master_addr", "127.0.0.1", "--master_port", str(free_port())]
    done = subprocess.run(
        [*command, "-m", "tests.train.task_runner", *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout


def figures(out: Path, event: str) -> list[dict[str, Any]]:
    return [line for line in read_log(out / "log.jsonl") if line["event"] == event]


@pytest.mark.parametrize("name", ["classify", pytest.param("tag", marks=pytest.mark.slow)])
def test_two_ranks_have_the_loss_of_one(name: str, tmp_path: Path) -> None:
    task, settings = CASES[name]
    model = write_model(tmp_path / "model")
    # 17 examples a step and 5 in the last: ranks get unlike shares.
    train, dev = write_files(task, tmp_path, 73, 20)
    settings = settings | {
        "train.dropout": "0",
        "train.epochs": "2",
        "train.learning_rate": "1e-3",
        "train.batch_size": "17",
    }
    arguments = [task, str(model), str(train), str(dev), str(tmp_path / "two")]
    start = by_torchrun if task == "tag" else by_fork
    start([*arguments, *(f"{k}={v}" for k, v in settings.items())], tmp_path)
    alone = {key.replace(".", "__"): value for key, value in settings.items()}
    alone.pop("train__micro_tokens", None)
    one_rank = finetune(
        task, model, train, dev, None, tmp_path / "one", quick(**alone), device="cpu", quiet=True
    )
    one, two = (figures(tmp_path / out, "train") for out in ("one", "two"))
    assert len(one) == len(two) == one_rank.steps
    for a, b in zip(one, two, strict=True):
        for exact in ("step", "examples", "tokens", "learning_rate"):
            assert a[exact] == b[exact]
        assert b["loss"] == pytest.approx(a["loss"], abs=1e-6, rel=2e-6)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-3)
    evals = [figures(tmp_path / out, "eval") for out in ("one", "two")]
    assert len(evals[0]) == len(evals[1]) == 2
    for a, b in zip(*evals, strict=True):
        assert b["accuracy"] == pytest.approx(a["accuracy"], abs=0.02)
    if task == "classify":
        BertForSequenceClassification.from_pretrained(tmp_path / "two")
