"""The arrays of training say what the task says, in the order that (seed, epoch) tells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bertkit.tasks.build import TaskOptions, new_task
from bertkit.tasks.formats import open_rows
from bertkit.tasks.records import ChoiceRow, Place
from bertkit.tasks.task import Task, TaskBatch
from bertkit.text.tokenizer import BertTokenizer
from bertkit.train import features as features_module
from bertkit.train.features import epoch_order, split_step, store_features
from tests.train.small_tasks import (
    write_model,
    write_numbers,
    write_questions,
    write_tags,
    write_texts,
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> BertTokenizer:
    return BertTokenizer.from_pretrained(write_model(tmp_path_factory.mktemp("words") / "model"))


def rows_of(name: str, folder: Path) -> list[Any]:
    if name == "choose":
        return [
            ChoiceRow(str(n), "w1 w2", "", tuple(f"w{i} w3" for i in range(2 + n % 3)), 1,
                      Place("f", n))
            for n in range(30)
        ]  # fmt: skip
    writers: dict[str, tuple[Any, str]] = {
        "classify": (write_texts, "tsv"),
        "regress": (write_numbers, "jsonl"),
        "tag": (write_tags, "conll"),
        "qa": (write_questions, "json"),
    }
    write, ending = writers[name]
    return list(open_rows(write(folder / f"rows.{ending}", 30), name).rows())


def made(name: str, folder: Path, tokenizer: BertTokenizer) -> tuple[Task[Any], list[Any]]:
    rows = rows_of(name, folder)
    options = TaskOptions(max_length=16, doc_stride=4)
    return new_task(name, tokenizer, rows, options, 64), rows


def same(one: TaskBatch, other: TaskBatch) -> None:
    for field in TaskBatch.__dataclass_fields__:
        a, b = getattr(one, field), getattr(other, field)
        assert a.dtype == b.dtype, field
        assert torch.equal(a, b), field


@pytest.mark.parametrize("name", ["classify", "regress", "tag", "qa", "choose"])
def test_a_batch_is_what_the_task_collates(
    name: str, tokenizer: BertTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features_module, "CHUNK", 7)  # several pages
    task, rows = made(name, tmp_path, tokenizer)
    store = store_features(task, rows)
    by_row = task.features_of(rows)
    examples = [[f] for fs in by_row for f in fs] if task.reads_tokens else by_row
    assert len(store) == len(examples)
    assert (len(store) > len(rows)) == (name in ("tag", "qa"))
    assert store.tokens.tolist() == [sum(len(f.ids) for f in fs) for fs in examples]
    chosen = np.random.default_rng(0).permutation(len(store))[:11]
    same(store.batch(chosen), task.collate([examples[i] for i in chosen]))
    wanted = [n for n, fs in enumerate(by_row) for _ in (fs if task.reads_tokens else [0])]
    assert store.rows.tolist() == wanted


def test_cut_texts_are_counted(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    task, rows = made("classify", tmp_path, tokenizer)
    store = store_features(task, rows)
    long = [len(row.text.split()) + 2 > 16 for row in rows]
    assert any(long)
    assert (store.cut > 0).tolist() == long


def test_an_epoch_is_a_permutation_by_seed_and_epoch() -> None:
    one = epoch_order(100, None, 0.0, 1, 0)
    assert sorted(one) == list(range(100))
    assert one.tolist() == epoch_order(100, None, 0.0, 1, 0).tolist()
    assert one.tolist() != epoch_order(100, None, 0.0, 1, 1).tolist()
    assert one.tolist() != epoch_order(100, None, 0.0, 2, 0).tolist()


@pytest.mark.parametrize(
    ("share", "wanted"), [(0.0, [70, 25, 5]), (0.5, [70, 35, 35]), (1.0, [70] * 3)]
)
def test_oversampling_gives_each_class_its_share(share: float, wanted: list[int]) -> None:
    classes = np.repeat([0, 1, 2], [70, 25, 5])
    orders = [epoch_order(100, classes, share, 3, epoch) for epoch in range(2)]
    for order in orders:
        assert np.bincount(classes[order]).tolist() == wanted
        times = np.bincount(order, minlength=100)
        assert times.min() == 1
        for one in range(3):  # nobody is taken much more often than another of the same class
            assert np.ptp(times[classes == one]) <= 1
    if share == 0.5:  # who is taken once more changes with the epoch
        first, second = (np.bincount(o, minlength=100)[70:95].tolist() for o in orders)
        assert first != second


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("micro", [0, 1, 30, 100, 10_000])
def test_a_step_is_cut_without_loss_or_change_of_order(
    world: int, micro: int, tokenizer: BertTokenizer, tmp_path: Path
) -> None:
    task, rows = made("classify", tmp_path, tokenizer)
    store = store_features(task, rows)
    for count in (1, 2, 16, 30):
        examples = np.arange(count)[::-1].copy()
        parts = split_step(store, examples, world, micro)
        assert len(parts) % world == 0
        assert sorted(np.concatenate(parts).tolist()) == sorted(examples.tolist())
        loads = [int(store.tokens[part].sum()) for part in parts]
        assert max(loads) - min(loads) <= store.tokens[examples].max()
        for part in parts:
            assert not micro or len(part) < 2 or store.tokens[part].sum() <= micro
