"""A task from config.json, and `load(path)`: transformers' folders answer as its pipelines do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import bertkit
from bertkit.checkpoint.config import BertConfig
from bertkit.checkpoint.layout import read_tensors, write_tensors
from bertkit.errors import ConfigError, DataError, MissingHeadError, UsageError
from bertkit.infer.engine import predict_rows
from bertkit.tasks.build import TASKS, TaskOptions, new_task, saved_task
from bertkit.tasks.load import load
from bertkit.tasks.records import ChoiceRow, Place, QuestionRow, Span, TagRow, TextRow
from tests.tasks.tiny import folder, labels, ours, pipeline, tokenizer

KINDS = {
    "classify": "BertForSequenceClassification",
    "tag": "BertForTokenClassification",
    "qa": "BertForQuestionAnswering",
    "choose": "BertForMultipleChoice",
}
TEXTS = ["The cat sat on the mat.", "我爱北京天安门", "who?", "a"]
AT = Place("texts", 1)
NAMES = {"tag": labels("O", "B-PER", "I-PER"), "classify": labels("a", "b", "c")}


def path_of(task: str) -> Path:
    return folder(KINDS[task], **NAMES.get(task, {}))


def copied(task: str, to: Path, **changes: Any) -> Path:
    shutil.copytree(path_of(task), to / "model")
    config = json.loads((to / "model" / "config.json").read_text())
    (to / "model" / "config.json").write_text(json.dumps(config | changes))
    return to / "model"


# Python's answers are those of the stream that evaluation and prediction use.


def streamed(task: str, *rows: Any) -> list[Any]:
    model = ours(KINDS[task], **NAMES.get(task, {}))
    return [p for _, p in predict_rows(saved_task(model.config, tokenizer()), model, rows)]


def test_classify_answers_as_prediction_and_transformers_do() -> None:
    asked = load(path_of("classify"), "cpu")
    rows = [TextRow(str(i), text, None, None, AT) for i, text in enumerate(TEXTS)]
    assert asked.classify(TEXTS) == streamed("classify", *rows)
    first = asked.classify(TEXTS[0])
    theirs = pipeline("text-classification", path_of("classify"))(TEXTS[0], top_k=None)
    assert [one["label"] for one in first] == [one["label"] for one in theirs]
    assert [one["score"] for one in first] == pytest.approx([o["score"] for o in theirs], abs=1e-5)
    assert asked.classify(TEXTS[0], top_k=1) == first[:1]
    pair = asked.classify((TEXTS[0], TEXTS[1]))
    assert pair == asked.classify([(TEXTS[0], TEXTS[1])])[0]
    assert pair == streamed("classify", TextRow("0", TEXTS[0], TEXTS[1], None, AT))[0]
    assert asked.classify([]) == []
    with pytest.raises(UsageError, match="top_k"):
        asked.classify("a", top_k=0)


def test_a_number_is_asked_for_in_the_same_way() -> None:
    asked = load(
        folder("BertForSequenceClassification", num_labels=1, problem_type="regression"), "cpu"
    )
    (number,) = asked.classify("the cat").values()
    assert asked.classify(["the cat"], top_k=3) == [{"score": pytest.approx(number)}]


def test_tag_answers_as_prediction_does() -> None:
    asked = load(path_of("tag"), "cpu")
    rows = [TagRow(str(i), text, None, None, AT) for i, text in enumerate(TEXTS)]
    assert asked.tag(TEXTS) == streamed("tag", *rows)
    assert asked.tag(TEXTS[0]) == asked.tag(TEXTS[:1])[0]
    words = ["the", "cat-dog", "sat"]
    row = TagRow("0", "the cat-dog sat", None, ((0, 3), (4, 11), (12, 15)), AT)
    assert asked.tag([words, "who"])[0] == streamed("tag", row)[0]


def test_answer_answers_as_prediction_does() -> None:
    asked = load(path_of("qa"), "cpu")
    rows = [QuestionRow(str(i), "who?", text, None, False, AT) for i, text in enumerate(TEXTS)]
    expected = streamed("qa", *rows)
    assert asked.answer("who?", TEXTS) == expected
    assert asked.answer(["who?"] * 4, TEXTS) == expected
    assert asked.answer("who?", TEXTS[0])["answer"] == expected[0]["answer"]
    assert [one["id"] for one in asked.answer(["who?", "where"], TEXTS[0])] == ["0", "1"]
    with pytest.raises(UsageError, match="2 questions and 3 contexts"):
        asked.answer(["a", "b"], ["c", "d", "e"])


def test_choose_answers_as_prediction_does() -> None:
    asked = load(path_of("choose"), "cpu")
    choices = [("a", "the dog"), ("the cat", "我", "mat")]
    rows = [ChoiceRow(str(i), "the mat", "who?", c, None, AT) for i, c in enumerate(choices)]
    expected = streamed("choose", *rows)
    assert asked.choose(["the mat"] * 2, choices, "who?") == expected
    assert asked.choose(["the mat"] * 2, choices, ["who?"] * 2) == expected
    single = asked.choose("the mat", choices[1], "who?")
    assert [one["choice"] for one in single] == [one["choice"] for one in expected[1]]
    with pytest.raises(UsageError, match="2 contexts, 1 lists of choices and 2 questions"):
        asked.choose(["a", "b"], choices[:1])


# What is refused.


@pytest.mark.parametrize(
    ("task", "given", "said"),
    [
        ("classify", [""], "texts is blank: ''"),
        ("classify", [None], "texts is None; a text, a pair (a tuple) or a list is wanted"),
        ("classify", [["a", 5]], "texts[1] is 5; a text (str) is wanted"),
        ("classify", [["a", ("b", " ")]], "texts[1][1] is blank: ' '"),
        ("classify", [("a", "b", "c")], "texts has 3 parts; a pair of texts has two"),
        ("tag", [5], "texts is 5; a text or a list of texts is wanted"),
        ("tag", [["a", ["b", None]]], "texts[1][1] is None; a text (str) is wanted"),
        ("tag", [["a", []]], "texts[1] is blank: ''"),
        ("qa", ["who?", {"a": 1}], "context is {'a': 1}; a text or a list of texts is wanted"),
        ("qa", ["who?", ["a", b"b"]], "context[1] is b'b'; a text (str) is wanted"),
        ("choose", ["a", "bc"], "choices is 'bc'; a list of texts is wanted"),
        ("choose", [["a", "b"], ["x", "y"]], "choices[0] is 'x'; a list of texts is wanted"),
        ("choose", [["a"], [["b", ""]]], "choices[0][1] is blank: ''"),
        ("choose", ["", ["a", "b"]], "context is blank: ''"),
    ],
)
def test_what_is_no_text_is_named(task: str, given: list[Any], said: str) -> None:
    asked = load(path_of(task), "cpu")
    with pytest.raises(DataError) as caught:
        getattr(asked, {"qa": "answer"}.get(task, task))(*given)
    assert str(caught.value) == said


@pytest.mark.parametrize("task", KINDS)
def test_another_question_than_the_models_names_the_head(task: str) -> None:
    asked = load(path_of(task), "cpu")
    for other, head in {"tag": "token classifier", "classify": "sentence classifier",
                        "answer": "qa_outputs", "choose": "multiple-choice"}.items():  # fmt: skip
        if {"answer": "qa"}.get(other, other) != task:
            with pytest.raises(MissingHeadError, match=f"has no .*{head}.*fine-tuned for {task}"):
                getattr(asked, other)("a", "b")
    with pytest.raises(MissingHeadError, match="masked-word head"):
        asked.fill("the [MASK]")


def test_a_pretrained_model_has_no_task_and_says_so() -> None:
    asked = load(folder("BertForMaskedLM"), "cpu")
    with pytest.raises(MissingHeadError, match=r"has no sentence classifier \(classifier\): arch"):
        asked.classify("the cat")
    with pytest.raises(MissingHeadError, match="there is nothing to ask it"):
        load(folder("BertModel"))


@pytest.mark.parametrize("task", ["classify", "tag", "qa"])
def test_a_head_that_was_never_trained_is_refused(task: str, tmp_path: Path) -> None:
    path = copied(task, tmp_path)
    state = {name: tensor.clone() for name, tensor in read_tensors(path).items()}
    head = "qa_outputs" if task == "qa" else "classifier"
    state[f"{head}.bias"].zero_()
    write_tensors(path / "model.safetensors", state)
    asked = load(path, "cpu")
    with pytest.raises(MissingHeadError, match=f"{head}.*was never trained"):
        getattr(asked, "answer" if task == "qa" else task)("who", "the cat")


def test_a_pooler_that_is_missing_is_refused(tmp_path: Path) -> None:
    path = copied("classify", tmp_path)
    state = read_tensors(path)
    kept = {n: t.clone() for n, t in state.items() if "pooler" not in n}
    write_tensors(path / "model.safetensors", kept)
    with pytest.raises(MissingHeadError, match=r"sentence classifier.*lacks bert\.pooler"):
        load(path, "cpu").classify("the cat")


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"architectures": None}, "does not say what the model was fine-tuned for"),
        ({"architectures": ["BertForNothing"]}, "does not say"),
        ({"problem_type": "guessing"}, "problem_type is 'guessing'"),
        ({"problem_type": "regression"}, "gives 3 numbers"),
        ({"bertkit_task": {"name": "dance"}}, "bertkit_task is 'dance'"),
        ({"bertkit_task": {"name": "classify", "doc_stride": "x"}}, "bertkit_task: .*doc_stride"),
        ({"bertkit_task": {"name": "classify", "doc_stride": -1}}, "doc_stride is -1"),
    ],
)
def test_configurations_that_make_no_sense_are_refused(
    changes: dict[str, Any], what: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=what):
        load(copied("classify", tmp_path, **changes), "cpu")


# Settings.


def test_the_length_is_the_models() -> None:
    config = BertConfig(max_position_embeddings=100, architectures=["BertForQuestionAnswering"])
    assert saved_task(config, tokenizer()).max_length == 100
    assert (
        saved_task(BertConfig(architectures=["BertForQuestionAnswering"]), tokenizer()).max_length
        == 384
    )
    assert new_task("regress", tokenizer(), []).max_length == 512
    assert new_task("regress", tokenizer(), [], positions=64).options.max_length == 64
    with pytest.raises(UsageError, match="max_length is 512; the model reads 64"):
        new_task("regress", tokenizer(), [], TaskOptions(max_length=512), positions=64)


@pytest.mark.parametrize("bad", [{"max_length": 5}, {"doc_stride": -1}, {"threshold": 1.0},
                                 {"n_best_size": 0}])  # fmt: skip
def test_settings_out_of_range_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"^{min(bad)} is"):
        TaskOptions(**bad)


@pytest.mark.parametrize("name", ["classify", "regress"])
def test_it_is_kept_whether_rows_were_pairs(name: str) -> None:
    labels: Any = ("a", "b") if name == "classify" else (0.0, 1.0)
    for pairs, kept in ((("x", "y"), True), ((None, None), False), (("x", None), None)):
        rows = [
            TextRow("0", "t", pair, label, AT) for pair, label in zip(pairs, labels, strict=True)
        ]
        assert new_task(name, tokenizer(), rows).options.pairs is kept


def test_there_is_no_other_task() -> None:
    with pytest.raises(UsageError, match=f"no task 'dance'; there are {', '.join(TASKS)}"):
        new_task("dance", tokenizer(), [])


def test_a_model_opened_for_a_task_keeps_it_when_saved(tmp_path: Path) -> None:
    rows = [TagRow("0", "John ran", (Span(0, 4, "PER"),), None, AT)]
    task = new_task("tag", tokenizer(), rows, TaskOptions(max_length=64))
    source = folder("BertForMaskedLM")
    config = BertConfig.from_json_file(source / "config.json", **task.config_changes())
    model = task.model_class.from_pretrained(source, config=config)
    with torch.no_grad():
        model.classifier.bias.add_(0.1)
    model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    again = saved_task(BertConfig.from_pretrained(tmp_path), tokenizer())
    assert (type(again), again.config_changes()) == (type(task), task.config_changes())
    assert isinstance(bertkit.load(tmp_path, "cpu").tag("John ran"), list)
    theirs = pipeline("token-classification", tmp_path)
    assert theirs.model.config.id2label == {0: "O", 1: "B-PER", 2: "I-PER"}
