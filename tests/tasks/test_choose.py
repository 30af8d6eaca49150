"""choose: features, losses and answers against transformers, with ragged numbers of choices."""

from __future__ import annotations

import pytest
import torch
import transformers

from bertkit.errors import DataError
from bertkit.tasks.build import TaskOptions, new_task, saved_task
from bertkit.tasks.forward import predict
from bertkit.tasks.records import ChoiceRow, Place
from tests.tasks.tiny import folder, ours, tokenizer


def row(context: str, question: str, *choices: str, label: int | None = None) -> ChoiceRow:
    return ChoiceRow("0", context, question, choices, label, Place("copa.jsonl", 4))


ROWS = [
    row("The cat sat on the mat.", "who sat?", "the cat", "the dog", label=0),
    row("我爱北京", "", "中国", "天安门", "上海的大学", "a", label=2),
    row("", "where is it", "in the park", "on the mat", "", label=1),
    row("the dog ran " * 300, "likes", "paris " * 40, "london", label=1),
]


def test_probabilities_equal_transformers() -> None:
    theirs = transformers.BertForMultipleChoice.from_pretrained(folder("BertForMultipleChoice"))
    encode = transformers.AutoTokenizer.from_pretrained(folder("BertForMultipleChoice"))
    model = ours("BertForMultipleChoice")
    task = saved_task(model.config, tokenizer())
    assert task.name == "choose"
    for one, found in zip(ROWS, predict(task, model, ROWS), strict=True):
        endings = [f"{one.question} {c}" if one.question else c for c in one.choices]
        inputs = encode(
            [one.context] * len(endings),
            endings,
            padding=True,
            truncation=True,
            max_length=512,
            return_tensors="pt",
        )
        with torch.no_grad():
            logits = theirs.eval()(**{k: v[None] for k, v in inputs.items()}).logits[0]
        sure = logits.softmax(-1)
        assert [f["label"] for f in found] == sure.argsort(descending=True).tolist()
        assert [f["score"] for f in found] == pytest.approx(
            sure.sort(descending=True)[0].tolist(), abs=1e-5
        )
        assert [f["choice"] for f in found] == [one.choices[f["label"]] for f in found]


def test_the_loss_is_a_cross_entropy_over_each_rows_own_choices() -> None:
    task = new_task("choose", tokenizer(), ROWS)
    model = ours("BertForMultipleChoice")
    features = task.features_of(ROWS)
    assert [len(f) for f in features] == [2, 4, 3, 2]
    batch = task.collate(features)
    assert batch.groups.tolist() == [2, 4, 3, 2]
    logits = task.logits(model, batch)
    losses = task.losses(model, logits, batch)
    assert losses.shape == (task.items(batch),) == (4,)
    parts = logits.split(batch.groups.tolist())
    competing = task.log_probabilities(logits, batch)
    for part, one, loss, logs in zip(parts, ROWS, losses, competing, strict=True):
        torch.testing.assert_close(
            loss, torch.nn.functional.cross_entropy(part, torch.tensor(one.label))
        )
        torch.testing.assert_close(logs[0], part.log_softmax(-1))
    losses.mean().backward()
    assert torch.isfinite(model.classifier.weight.grad).all()


def test_what_is_too_long_is_cut_and_counted() -> None:
    task = new_task("choose", tokenizer(), ROWS, TaskOptions(max_length=16))
    assert [[f.cut > 0 for f in row] for row in task.features_of(ROWS)][3] == [True, True]
    assert all(len(f.ids) <= 16 for row in task.features_of(ROWS) for f in row)


def test_bad_labels_name_their_line() -> None:
    task = new_task("choose", tokenizer(), ROWS)
    bad = row("a", "b", "c", "d", label=2)
    with pytest.raises(DataError, match=r"^copa\.jsonl:4: the label is 2; the choices are 0 to 1"):
        task.features(bad)
    assert task.features(bad, labelled=False)[0].target is None
    with pytest.raises(DataError, match=r"^copa\.jsonl:4: there are no choices"):
        task.features(row("a", "b"))
