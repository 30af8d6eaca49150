"""classify and regress: features, losses and answers against transformers and plain arithmetic."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from bertkit.errors import DataError
from bertkit.tasks.build import TaskOptions, new_task, saved_task
from bertkit.tasks.classify import Classify, MultiLabel, Regress
from bertkit.tasks.encode import cut_pair
from bertkit.tasks.forward import predict
from bertkit.tasks.records import Place, TextRow
from tests.tasks.tiny import folder, labels, ours, pipeline, tokenizer

TEXTS = [
    "The cat sat on the mat.",
    "我爱北京天安门",
    "who?",
    "Mary likes Paris; John likes 上海!",
    "a",
]


def row(text: str, pair: str | None = None, label: Any = None, line: int = 1) -> TextRow:
    return TextRow(str(line - 1), text, pair, label, Place("train.tsv", line))


def rows(*of: tuple[Any, ...]) -> list[TextRow]:
    return [row(text, pair, label, i) for i, (text, pair, label) in enumerate(of, 1)]


def test_labels_are_learned_in_one_order_numbers_as_numbers() -> None:
    def order(*names: str) -> list[str]:
        task = new_task("classify", tokenizer(), rows(*(("a", None, n) for n in names)))
        assert isinstance(task, Classify)
        return task.labels

    assert order("10", "9", "1", "10", "-1") == ["-1", "1", "9", "10"]
    assert order("positive", "negative", "positive") == ["negative", "positive"]
    assert order("b", "2", "1", "nan") == ["1", "2", "b", "nan"]
    assert order("好评", "差评") == sorted(["好评", "差评"])


@pytest.mark.parametrize("given_label", ["x", None])
def test_one_label_is_none(given_label: str | None) -> None:
    with pytest.raises(DataError, match=r"train\.tsv: .*(only the label 'x'|no label)"):
        new_task("classify", tokenizer(), rows(("a", None, given_label), ("b", None, given_label)))


def test_unknown_labels_and_labels_of_another_kind_name_the_line() -> None:
    task = new_task("classify", tokenizer(), rows(("a", None, "no"), ("b", None, "yes")))
    with pytest.raises(DataError, match=r"^train\.tsv:7: the label 'maybe' .*: no, yes$"):
        task.features(row("a", None, "maybe", 7))
    with pytest.raises(DataError, match=r"^train\.tsv:7: the label 'maybe'"):
        task.check(row("a", None, "maybe", 7))
    with pytest.raises(DataError, match=r"^train\.tsv:2: .*one name"):
        task.check(row("a", None, ("no", "yes"), 2))
    with pytest.raises(DataError, match=r"^train\.tsv:2: .*names are wanted"):
        new_task("classify", tokenizer(), rows(("a", None, "x"), ("a", None, 2.5)))
    regress = new_task("regress", tokenizer(), [])
    for bad in ("high", math.nan, math.inf, True):
        with pytest.raises(DataError, match=r"^train\.tsv:3: .*a number is wanted"):
            regress.features(row("a", "b", bad, 3))
    task.check(row("a"))
    regress.check(row("a", None, 3))


@pytest.mark.parametrize("length", [8, 9, 10, 16, 512])
def test_features_are_what_transformers_cuts(length: int) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(folder("BertForSequenceClassification"))
    firsts = [*TEXTS, "the cat " * 9, "cat", "a b c d e f"]
    seconds = [
        None,
        "the dog ran in the park",
        "",
        "中国",
        "dog " * 30,
        "cat",
        "dog " * 12,
        "g h i j",
    ]
    task = Classify(tokenizer(), ["a", "b"], TaskOptions(max_length=length))
    read = task.features_of([row(a, b) for a, b in zip(firsts, seconds, strict=True)])
    for a, b, (feature,) in zip(firsts, seconds, read, strict=True):
        # (A list of one: for a single text transformers takes an empty second for none.)
        pair = None if b is None else [b]
        full = theirs([a], pair, truncation="longest_first", max_length=length)
        assert feature.ids == full["input_ids"][0]
        assert [int(i >= feature.second) for i in range(len(feature.ids))] == (
            full["token_type_ids"][0]
        )
        whole = len(theirs([a], pair, truncation=False)["input_ids"][0])
        assert feature.cut == max(whole - length, 0)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(5, 30))
@settings(deadline=None)
def test_pairs_are_cut_as_the_first_bert_cut_them_save_one_token_of_even_pairs(
    first: int, second: int, room: int
) -> None:
    a, b = first, second
    while a + b > room:  # _truncate_seq_pair
        a, b = (a - 1, b) if a > b else (a, b - 1)
    kept = cut_pair(first, second, room)
    assert sum(kept) == a + b
    assert abs(kept[0] - a) <= (1 if abs(a - b) <= 1 else 0)


@pytest.mark.parametrize("pair", [False, True])
@pytest.mark.parametrize("kind", ["single", "multi", "two"])
def test_answers_equal_transformers_pipeline(kind: str, pair: bool) -> None:
    names = labels("负", "neutral", "pos") if kind != "two" else {}
    more = {"problem_type": "multi_label_classification"} if kind == "multi" else {}
    path = folder("BertForSequenceClassification", **names, **more)
    ask = pipeline("text-classification", path)
    model = ours("BertForSequenceClassification", **names, **more)
    task = saved_task(model.config, tokenizer())
    assert type(task) is (MultiLabel if kind == "multi" else Classify)
    pairs = [(a, b) for a in TEXTS for b in TEXTS[::-1]] if pair else [(a, None) for a in TEXTS]
    found = predict(task, model, [row(a, b) for a, b in pairs])
    for (a, b), answer in zip(pairs, found, strict=True):
        question = a if b is None else {"text": a, "text_pair": b}
        expected = ask(question, top_k=None)
        assert [one["label"] for one in answer] == [one["label"] for one in expected]
        assert [one["score"] for one in answer] == pytest.approx(
            [one["score"] for one in expected], abs=1e-5
        )


def test_numbers_equal_transformers_pipeline() -> None:
    settings = {"num_labels": 1, "problem_type": "regression"}
    ask = pipeline("text-classification", folder("BertForSequenceClassification", **settings))
    model = ours("BertForSequenceClassification", **settings)
    task = saved_task(model.config, tokenizer())
    assert isinstance(task, Regress)
    found = predict(task, model, [row(text) for text in TEXTS])
    expected = [ask(text, top_k=None)[0]["score"] for text in TEXTS]
    assert [one["score"] for one in found] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kind", ["classify", "multi", "regress"])
def test_the_mean_of_the_losses_is_the_models_own(kind: str) -> None:
    training: dict[str, list[tuple[str, str | None, Any]]] = {
        "classify": [("the cat", None, "x"), ("a dog ran", "in", "y"), ("我爱", None, "z")],
        "multi": [("the cat", None, ("x", "z")), ("a dog ran", "in", ()), ("我爱", None, "y")],
        "regress": [("the cat", None, 2.5), ("a dog ran", "in", -1.0), ("我爱", None, 3)],
    }
    task = new_task(
        "regress" if kind == "regress" else "classify", tokenizer(), rows(*training[kind])
    )
    model = ours("BertForSequenceClassification", **task.label_settings())
    batch = task.collate(task.features_of(rows(*training[kind])))
    logits = task.logits(model, batch)
    losses = task.losses(model, logits, batch)
    assert losses.shape == (task.items(batch),) == (3,)
    assert batch.groups.tolist() == [1, 1, 1]
    torch.testing.assert_close(losses.mean(), model.loss(logits, batch.targets))
    competing = task.log_probabilities(logits, batch)
    for part in competing:
        torch.testing.assert_close(part.exp().sum(-1), torch.ones(len(part)))
    if kind == "classify":
        torch.testing.assert_close(F.nll_loss(competing[0], torch.tensor([0, 1, 2])), losses.mean())
    assert len(competing) == (kind != "regress")
    losses.mean().backward()
    assert model.classifier.weight.grad.abs().sum() > 0


def test_rows_without_labels_make_no_targets() -> None:
    task = new_task("classify", tokenizer(), rows(("a", None, "x"), ("b", None, "y")))
    assert task.collate([task.features(row("a", None, "x"))]).targets is not None
    assert task.collate([task.features(row("a", None, "x"), labelled=False)]).targets is None
    some = task.features_of([row("a", None, "x"), row("b")])
    assert task.collate(some).targets is None


def test_the_configuration_says_all_there_is_to_know() -> None:
    options = TaskOptions(max_length=64)
    task = new_task(
        "classify", tokenizer(), rows(("a", None, ("x", "y")), ("b", None, "z")), options
    )
    changes = task.config_changes()
    assert changes["id2label"] == {0: "x", 1: "y", 2: "z"}
    assert changes["problem_type"] == "multi_label_classification"
    config = ours("BertForSequenceClassification").config
    again = saved_task(type(config).from_dict(config.to_dict(), **changes), tokenizer())
    assert (type(again), again.options) == (type(task), task.options)
    assert again.options.max_length == 64
    assert again.config_changes() == changes


def test_empty_and_endless_texts_are_answered() -> None:
    model = ours("BertForSequenceClassification", **labels("a", "b"))
    task = saved_task(model.config, tokenizer())
    long = "the cat " * 12_500
    found = predict(
        task, model, [row(""), row(long), row("\u3000\u200b"), row("", ""), row(long, long)]
    )
    assert [len(one) for one in found] == [2] * 5
    shorter = predict(task, model, [row("the cat " * 300)])[0]
    assert [one["label"] for one in found[1]] == [one["label"] for one in shorter]
    assert found[1][0]["score"] == pytest.approx(shorter[0]["score"], abs=1e-5)
    assert task.features(row(long))[0].cut == 25_000 - 510


def test_text_that_is_no_unicode_names_its_line() -> None:
    task = saved_task(ours("BertForSequenceClassification").config, tokenizer())
    bad = [row("fine"), row("fine", "broken \ud800", None, 9)]
    with pytest.raises(DataError, match=r"^train\.tsv:9: .*surrogate"):
        task.features_of(bad)
