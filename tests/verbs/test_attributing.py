"""`bertkit explain attribute` from the command line: texts, files of every task, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bertkit.cli import main
from tests.tasks import tiny
from tests.verbs.running import run_explain

TAGS = tiny.labels("O", "B-LOC", "I-LOC", "B-PER", "I-PER")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    return run_explain(capsys, "attribute", *arguments)


def folder(kind: str, **settings: Any) -> str:
    return str(tiny.folder(f"BertFor{kind}", **settings))


def test_one_text_of_every_kind_of_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, page = folder("MaskedLM"), tmp_path / "p.html"
    found = run(capsys, words, "The cat [MASK].", "--target", "sat", "--html", str(page))
    assert found["targets"][0]["name"] == "sat at [MASK]"
    assert (found["method"], found["baseline"], found["steps"]) == (
        "integrated-gradients",
        "mask",
        50,
    )
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    found = run(capsys, words, "the cat the", "--word", "#2", "--method", "occlusion")
    assert [word["word"] for word in found["targets"][0]["words"]] == ["the", "cat", "[the]"]
    labels = folder("SequenceClassification", **tiny.labels("x", "y", "z"))
    asked: tuple[str, ...] = (
        "--target",
        "x",
        "--against",
        "y",
        "--quantity",
        "probability",
        "--steps",
        "5",
    )
    found = run(capsys, labels, "我爱北京", "--pair", "the cat", *asked)
    assert found["targets"][0]["name"] == "x rather than y"
    assert found["quantity"] == "probability"
    tags = folder("TokenClassification", **TAGS)
    asked = ("--word", "in london", "--target", "LOC", "--method", "deletion")
    found = run(capsys, tags, "john lives in london", *asked)
    assert [word["value"] is None for word in found["targets"][0]["words"]] == [0, 0, 1, 1]
    answers = folder("QuestionAnswering")
    asked = ("--pair", "john is in london", "--target", "", "--baseline", "zero")
    found = run(capsys, answers, "where is john?", *asked)
    assert found["targets"][0]["name"] == "no answer"
    assert found["baseline"] == "zero"


def test_files_of_texts_and_of_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "texts.txt", tmp_path / "out.jsonl"
    path.write_text("the cat sat\n\n我爱北京\n" + "the " * 600, encoding="utf-8")
    labels = folder("SequenceClassification", **tiny.labels("x", "y", "z"))
    flags = ("--method", "gradient-x-input", "--out", str(out))
    found = run(capsys, labels, "--file", str(path), *flags)
    assert (found["texts"], found["skipped"]) == (2, 1)
    assert found["reason"].startswith("text 3: the text is 602 tokens")
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [row["texts"] for row in rows] == [["the cat sat"], ["我爱北京"]]
    table = tmp_path / "pairs.csv"
    table.write_text("one,two\nthe cat,a dog\n我爱,北京\n", encoding="utf-8")
    named = ("--field", "one", "--pair-field", "two")
    found = run(capsys, labels, "--file", str(table), *named, *flags, "--overwrite")
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [row["texts"] for row in rows] == [["the cat", "a dog"], ["我爱", "北京"]]


def test_files_of_questions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [{"id": str(i), "question": q, "answers": []} for i, q in enumerate(("who?", "where?"))]
    passages = [{"context": "john lives in london.", "qas": asked}]
    squad, out = tmp_path / "squad.json", tmp_path / "out.jsonl"
    squad.write_text(json.dumps({"data": [{"paragraphs": passages}]}), encoding="utf-8")
    flags = ("--method", "occlusion", "--out", str(out))
    found = run(capsys, folder("QuestionAnswering"), "--file", str(squad), *flags)
    assert (found["texts"], found["labels"][0]["label"]) == (2, "answer")
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [row["texts"][0] for row in rows] == ["who?", "where?"]


def test_people_see_bars(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    asked = ["The Café [MASK]", "--target", "ran", "--steps", "1", "--device", "cpu"]
    assert main(["explain", "attribute", folder("MaskedLM"), *asked]) == 0
    out, _ = capsys.readouterr()
    assert "Café" in out
    assert "++++" in out or "----" in out
    assert [record.getMessage().count("more steps than 1") for record in caplog.records] == [1]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), 2, "one text"),
        (("a [MASK]", "--out", "x.jsonl"), 2, "--out"),
        (("--file", "FILE", "--word", "cat"), 2, "belong to one text"),
        (("a [MASK]", "--steps", "0"), 2, "steps is 0"),
        (("a [MASK]", "--method", "guess"), 2, "guess"),
        (("the cat", "--word", "cat", "--target", "dog"), 2, "own target"),
        (("the cat",), 1, "no [MASK]"),
        (("the cat", "--word", "dog"), 1, "no word"),
        (("--file", "none.txt"), 1, "none.txt"),
    ],
)
def test_what_is_wrong_is_one_line(
    arguments: tuple[str, ...],
    code: int,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "t.txt").write_text("the cat", encoding="utf-8")
    given = [str(tmp_path / "t.txt") if word == "FILE" else word for word in arguments]
    command = ["explain", "attribute", folder("MaskedLM"), *given, "--quiet", "--device", "cpu"]
    assert main(command) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.count("\n") == 1
