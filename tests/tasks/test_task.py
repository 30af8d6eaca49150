"""What all tasks share: batches laid end to end, many rows at once as one at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bertkit.errors import DataError
from bertkit.infer.engine import predict_rows
from bertkit.tasks.build import TaskOptions, new_task
from bertkit.tasks.records import Answer, ChoiceRow, Place, QuestionRow, Span, TagRow, TextRow
from bertkit.tasks.task import Feature, Task
from tests.tasks.tiny import WORDS, ours, tokenizer

AT = Place("f", 1)


def rows_of(name: str, count: int = 40) -> list[Any]:
    """Labelled rows of all lengths, short and far over 48 tokens."""
    rows: list[Any] = []
    for i in range(count):
        text = " ".join(WORDS[(i * k) % len(WORDS)] for k in range(1 + i * i % 90)) + "，上海。é"
        pair = None if i % 3 else text[::2]
        first = text.split()[0].split("，")[0]
        rows.append(
            {
                "classify": TextRow("0", text, pair, f"label {i % 3}", AT),
                "regress": TextRow("0", text, pair, i / 7, AT),
                "tag": TagRow("0", text, (Span(0, len(first), f"T{i % 2}"),), None, AT),
                "qa": QuestionRow("0", text[:20], text, (Answer(first, 0),), False, AT),
                "choose": ChoiceRow(
                    "0", text, "who", tuple(WORDS[i % 5 : i % 5 + 1 + i % 4]), 0, AT
                ),
            }[name]
        )
    return rows


def built(name: str) -> Task[Any]:
    options = TaskOptions(max_length=48, doc_stride=8)
    return new_task(name, tokenizer(), rows_of(name), options)


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("name", ["classify", "regress", "tag", "qa", "choose"])
def test_many_rows_at_once_are_read_as_one_at_a_time(name: str, labelled: bool) -> None:
    task, rows = built(name), rows_of(name)
    together = task.features_of(rows, labelled)
    assert together == [task.features(row, labelled) for row in rows]
    assert all(len(f.ids) <= 48 for row in together for f in row)
    assert all(bool(row) for row in together)
    assert all((f.target is not None) == labelled for row in together for f in row)
    assert task.features_of([], labelled) == []


@pytest.mark.parametrize("name", ["classify", "regress", "tag", "qa", "choose"])
def test_batches_are_features_end_to_end(name: str) -> None:
    task = built(name)
    rows = task.features_of(rows_of(name, 12))
    batch = task.collate(rows)
    features = [f for row in rows for f in row]
    at = 0
    positions: list[int] = []
    for feature in features:
        part = slice(at, at + len(feature.ids))
        assert batch.input_ids[part].tolist() == feature.ids
        types = [int(i >= feature.second) for i in range(len(feature.ids))]
        assert batch.token_type_ids[part].tolist() == types
        assert batch.position_ids[part].tolist() == list(range(len(feature.ids)))
        positions += [at + p for p in feature.positions]
        at += len(feature.ids)
    assert batch.lengths.tolist() == [len(f.ids) for f in features]
    assert batch.positions.tolist() == positions
    assert batch.counts.tolist() == [len(f.positions) for f in features]
    assert batch.groups.tolist() == [len(row) for row in rows]
    assert batch.targets is not None
    assert task.items(batch) == {
        "tag": len(positions), "choose": len(rows)}.get(name, len(features))  # fmt: skip


def test_what_the_cpu_needs_stays_there() -> None:
    batch = built("tag").collate(built("tag").features_of(rows_of("tag", 3)))
    moved = batch.to("meta")
    assert moved.targets is not None
    for tensor in (moved.input_ids, moved.token_type_ids, moved.position_ids, moved.targets):
        assert tensor.device.type == "meta"
    for tensor in (moved.lengths, moved.positions, moved.counts, moved.groups):
        assert tensor.device.type == "cpu"


def test_options_that_decode_change_without_touching_the_task() -> None:
    task = built("qa")
    other = task.with_options(null_threshold=3.0)
    assert (other.options.null_threshold, task.options.null_threshold) == (3.0, 0.0)
    assert other.features(rows_of("qa", 1)[0]) == task.features(rows_of("qa", 1)[0])


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("classify", TextRow("0", "a", None, "label 9", Place("x", 7))),
        ("regress", TextRow("0", "a", None, "much", Place("x", 7))),
        ("tag", TagRow("0", "a", (Span(0, 1, "T9"),), None, Place("x", 7))),
        ("choose", ChoiceRow("0", "a", "", ("b",), 1, Place("x", 7))),
    ],
)
def test_labels_that_the_model_does_not_know_are_named_with_their_line(name: str, row: Any) -> None:
    with pytest.raises(DataError, match=r"^x:7: the label "):
        built(name).check(row)
    with pytest.raises(DataError, match=r"^x:7: the label "):
        built(name).features(row)
    assert isinstance(built(name).features(row, labelled=False)[0], Feature)


def test_a_batch_without_tokens_to_read_still_runs() -> None:
    task = built("tag")
    model = ours("BertForTokenClassification", **task.label_settings())
    empty = TagRow("0", "", (), None, AT)
    batch = task.collate(task.features_of([empty, empty]))
    assert task.logits(model, batch).shape == (0, model.num_labels)
    assert task.items(batch) == 0
    assert task.losses(model, task.logits(model, batch), batch).shape == (0,)
    assert [tuple(s.logits.shape) for s in task.scores(model, batch)] == [(0, model.num_labels)] * 2
    assert torch.equal(batch.counts, torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize("name", ["classify", "regress", "tag", "qa", "choose"])
def test_meters_count_what_the_decoder_says(name: str) -> None:
    """The figures of a few predictions are there, under the name that picks checkpoints."""
    task, rows = built(name), rows_of(name, 12)
    model = ours(task.model_class.__name__, **task.label_settings())
    meter = task.meter()
    for row, prediction in predict_rows(task, model, rows):
        meter.add(row, prediction)
    figures = meter.figures()
    assert task.metric in figures
    assert all(isinstance(value, int | float) for value in figures.values())
