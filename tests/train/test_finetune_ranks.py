"""Two ranks under torchrun (gloo) fine-tune as one process does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bertkit.model.task_heads import BertForSequenceClassification
from bertkit.train.finetune import finetune
from bertkit.train.log import read_log
from tests.train.small_tasks import quick, write_files, write_model
from tests.train.test_ranks import ROOT, free_port

CASES: dict[str, tuple[str, dict[str, str]]] = {
    "classify": ("classify", {"train.micro_tokens": "60", "train.adversarial": "fgm"}),
    "tag": ("tag", {"train.class_weights": "balanced", "data.max_length": "32"}),
}


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
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--master_addr", "127.0.0.1", "--master_port", str(free_port())]
    command += ["-m", "tests.train.task_runner", task, str(model), str(train), str(dev)]
    command += [str(tmp_path / "two"), *(f"{k}={v}" for k, v in settings.items())]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout
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
