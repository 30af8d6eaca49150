"""A tiny model and a small labelled file for each task, and how Python asks what the file asks."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bertkit.model.crf_head import BertCrfForTokenClassification
from bertkit.tasks.options import TaskOptions
from bertkit.tasks.tag import Tag
from tests.tasks.tiny import HAN, WORDS, folder, labels, ours, tokenizer

TAGS = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]


def sentence(seed: int) -> str:
    draw = random.Random(seed)
    words = [draw.choice(WORDS) for _ in range(draw.randint(2, 12))]
    return " ".join(words) + draw.choice(["", "。", " 北京", "!"])


def chinese(seed: int) -> str:
    draw = random.Random(seed)
    return "".join(draw.choice(HAN) for _ in range(draw.randint(2, 12)))


@dataclass(frozen=True)
class Case:
    """One task.

    Attributes:
        task: its name.
        model: makes the model's folder, given a folder that is empty.
        name: of the file.
        lines: of the file, given how many rows.
        ask: what Python is asked for the same rows: (pipeline, number of rows) -> predictions.
    """

    task: str
    model: Callable[[Path], Path]
    name: str
    lines: Callable[[int], str]
    ask: Callable[[Any, int], Any]


def crf_folder(to: Path) -> Path:
    tiny = ours("BertForTokenClassification", **labels(*TAGS))
    task = Tag(tokenizer(), TAGS, TaskOptions(crf=True, scheme="BIO"))
    config = tiny.config
    for name, value in task.config_changes().items():
        setattr(config, name, value)
    torch.manual_seed(1)
    model = BertCrfForTokenClassification(config)
    model.load_state_dict(tiny.state_dict(), strict=False)
    with torch.no_grad():
        for parameter in model.crf.parameters():
            parameter.normal_()
    model.save_pretrained(to)
    tokenizer().save_pretrained(to)
    return to


def tsv(rows: int) -> str:
    names = "xyz"
    return "label\ttext\n" + "".join(f"{names[i % 3]}\t{sentence(i)}\n" for i in range(rows))


def pairs(rows: int) -> str:
    return "label\ttext_a\ttext_b\n" + "".join(
        f"{'xy'[i % 2]}\t{sentence(i)}\t{chinese(i)}\n" for i in range(rows)
    )


def json_lines(make: Callable[[int], Any]) -> Callable[[int], str]:
    return lambda rows: "".join(json.dumps(make(i), ensure_ascii=False) + "\n" for i in range(rows))


def conll(rows: int) -> str:
    lines = []
    for i in range(rows):
        for k, word in enumerate(sentence(i).split()):
            lines.append(f"{word} {'B-LOC' if (i + k) % 4 == 0 else 'O'}")
        lines.append("")
    return "\n".join(lines) + "\n"


def characters(rows: int) -> str:
    lines = []
    for i in range(rows):
        lines += [f"{c}\t{'B-PER' if (i + k) % 5 == 0 else 'O'}" for k, c in enumerate(chinese(i))]
        lines.append("")
    return "\n".join(lines) + "\n"


def squad(rows: int) -> str:
    paragraphs = []
    for i in range(rows):
        context = f"{sentence(i)} {chinese(i)} {sentence(i + 1000)}"
        start = len(context) // 2
        answers = [{"text": context[start : start + 3], "answer_start": start}]
        question = {"id": f"q{i}", "question": sentence(i + 50), "answers": answers}
        paragraphs.append({"context": context, "qas": [question]})
    return json.dumps({"version": "1.1", "data": [{"title": "t", "paragraphs": paragraphs}]})


def asked_of_squad(rows: int) -> tuple[list[str], list[str]]:
    found = json.loads(squad(rows))["data"][0]["paragraphs"]
    return [p["qas"][0]["question"] for p in found], [p["context"] for p in found]


def choice(i: int) -> dict[str, Any]:
    options = [sentence(i + 10 * k) for k in range(2 + i % 3)]
    return {"context": sentence(i), "question": "who?", "choices": options, "label": i % 2}


def several(i: int) -> dict[str, Any]:
    return {"id": f"r{i}", "text": sentence(i), "labels": ["x", "y", "z"][: i % 4]}


def number(i: int) -> dict[str, Any]:
    return {"sentence1": sentence(i), "sentence2": sentence(i + 1), "score": i % 6}


CLASSIFIER = "BertForSequenceClassification"
CASES = {
    "classify": Case(
        "classify",
        lambda to: folder(CLASSIFIER, **labels("x", "y", "z")),
        "rows.tsv",
        tsv,
        lambda bert, rows: bert.classify([sentence(i) for i in range(rows)]),
    ),
    "pairs": Case(
        "classify",
        lambda to: folder(CLASSIFIER, **labels("x", "y")),
        "rows.tsv",
        pairs,
        lambda bert, rows: bert.classify([(sentence(i), chinese(i)) for i in range(rows)]),
    ),
    "several": Case(
        "classify",
        lambda to: folder(
            CLASSIFIER, problem_type="multi_label_classification", **labels("x", "y", "z")
        ),
        "rows.jsonl",
        json_lines(several),
        lambda bert, rows: bert.classify([sentence(i) for i in range(rows)]),
    ),
    "regress": Case(
        "regress",
        lambda to: folder(CLASSIFIER, problem_type="regression", **labels("LABEL_0")),
        "rows.jsonl",
        json_lines(number),
        lambda bert, rows: bert.classify([(sentence(i), sentence(i + 1)) for i in range(rows)]),
    ),
    "tag": Case(
        "tag",
        lambda to: folder("BertForTokenClassification", **labels(*TAGS)),
        "rows.conll",
        conll,
        lambda bert, rows: bert.tag([sentence(i).split() for i in range(rows)]),
    ),
    "crf": Case(
        "tag",
        crf_folder,
        "rows.txt",
        characters,
        lambda bert, rows: bert.tag([chinese(i) for i in range(rows)]),
    ),
    "qa": Case(
        "qa",
        lambda to: folder("BertForQuestionAnswering"),
        "rows.json",
        squad,
        lambda bert, rows: bert.answer(*asked_of_squad(rows)),
    ),
    "choose": Case(
        "choose",
        lambda to: folder("BertForMultipleChoice"),
        "rows.jsonl",
        json_lines(choice),
        lambda bert, rows: bert.choose(
            [choice(i)["context"] for i in range(rows)],
            [choice(i)["choices"] for i in range(rows)],
            "who?",
        ),
    ),
}


def write_rows(case: Case, to: Path, rows: int) -> Path:
    path = to / case.name
    path.write_text(case.lines(rows), encoding="utf-8")
    return path


def decided(task: str, prediction: Any) -> Any:
    """What a prediction says, without how sure it is."""
    if task == "regress":
        return None
    if task == "qa":
        return prediction["answer"], prediction["start"], prediction["end"]
    if task == "tag":
        return [(e["entity_group"], e["start"], e["end"], e["word"]) for e in prediction]
    return [one["label"] for one in prediction]


def scores(task: str, prediction: Any) -> list[float]:
    if task in ("regress", "qa"):
        return [prediction["score"]]
    return [one["score"] for one in prediction]
