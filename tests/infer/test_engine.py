"""Streams of rows: order, equality with one row at a time, memory that stays flat."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from bertkit.infer import engine
from bertkit.infer.engine import predict_rows
from bertkit.tasks.build import saved_task
from bertkit.tasks.forward import by_length, predict
from bertkit.tasks.records import Place, TextRow
from tests.tasks.test_task import built, rows_of
from tests.tasks.tiny import WORDS, labels, ours, tokenizer


def texts(count: int) -> Iterator[TextRow]:
    for i in range(count):
        text = " ".join(WORDS[(i * k) % len(WORDS)] for k in range(i * 7 % 40))
        yield TextRow(str(i), text, None, None, Place("f", i + 1))


def opened() -> tuple[Any, Any]:
    model = ours("BertForSequenceClassification", **labels("x", "y", "z"))
    return saved_task(model.config, tokenizer()), model


def test_a_stream_keeps_its_order_and_equals_one_row_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine, "WINDOW_ROWS", 7)
    task, model = opened()
    found = list(predict_rows(task, model, texts(40), "cpu", batch_tokens=100))
    assert [row.id for row, _ in found] == [str(i) for i in range(40)]
    for row, prediction in found:
        single = predict(task, model, [row])[0]
        assert [one["label"] for one in prediction] == [one["label"] for one in single]
        assert [one["score"] for one in prediction] == pytest.approx(
            [one["score"] for one in single], abs=1e-5
        )


@pytest.mark.parametrize("limit", ["rows", "characters"])
def test_no_more_is_read_ahead_than_a_stretch(monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setattr(engine, "WINDOW_ROWS", 8 if limit == "rows" else 1000)
    monkeypatch.setattr(engine, "WINDOW_CHARACTERS", 500 if limit == "characters" else 10**9)
    read: list[int] = []

    def counted() -> Iterator[TextRow]:
        for row in texts(100):
            read.append(len(row.text))
            yield row

    task, model = opened()
    stream = predict_rows(task, model, counted())
    most = 0
    for given, _ in enumerate(stream):
        most = max(most, len(read) - given)
    assert len(read) == 100
    assert 1 < most <= (8 if limit == "rows" else 40)


def test_the_models_mode_is_put_back_and_nothing_keeps_gradients() -> None:
    task, model = opened()
    model.train()
    assert next(predict_rows(task, model, texts(3)))[1]
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_autocast_of_the_caller_and_of_the_call() -> None:
    task, model = opened()
    exact = [p for _, p in predict_rows(task, model, texts(9))]
    asked = [p for _, p in predict_rows(task, model, texts(9), dtype=torch.bfloat16)]
    with torch.autocast("cpu", torch.bfloat16):
        outer = [p for _, p in predict_rows(task, model, texts(9))]
        off = [p for _, p in predict_rows(task, model, texts(9), dtype=torch.float32)]
    assert asked == outer
    assert exact == off != asked
    for one, other in zip(exact, asked, strict=True):
        scores = {p["label"]: p["score"] for p in one}
        assert {p["label"]: p["score"] for p in other} == pytest.approx(scores, abs=0.05)


def test_batches_hold_like_lengths_within_the_budget() -> None:
    task, _ = opened()
    features = [f for row in task.features_of(list(texts(50))) for f in row]
    batches = list(by_length(features, 60))
    assert sorted(i for batch in batches for i in batch) == list(range(50))
    sizes = [[len(features[i].ids) for i in batch] for batch in batches]
    flat = [size for batch in sizes for size in batch]
    assert flat == sorted(flat)
    assert all(sum(batch) <= 60 or len(batch) == 1 for batch in sizes)
    assert list(by_length([], 60)) == []


def scores_apart(prediction: Any) -> tuple[Any, list[float]]:
    """A prediction without its numbers, and the numbers."""
    numbers: list[float] = []

    def walk(value: Any) -> Any:
        if isinstance(value, float):
            numbers.append(value)
            return None
        if isinstance(value, dict):
            return {key: walk(part) for key, part in value.items()}
        return [walk(part) for part in value] if isinstance(value, list) else value

    return walk(prediction), numbers


@pytest.mark.parametrize("name", ["classify", "regress", "tag", "qa", "choose"])
def test_every_task_says_the_same_of_many_rows_and_of_one(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "WINDOW_ROWS", 11)
    task = built(name)
    model = ours(task.model_class.__name__, **task.label_settings())
    rows = rows_of(name, 30)
    for row, prediction in predict_rows(task, model, rows, batch_tokens=500):
        said, numbers = scores_apart(prediction)
        alone, lonely = scores_apart(predict(task, model, [row])[0])
        assert said == alone
        assert numbers == pytest.approx(lonely, abs=1e-5)
