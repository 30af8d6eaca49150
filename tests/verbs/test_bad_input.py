"""Bad input through the command line: one line that says where, or a counted skip; never numbers.

What each verb makes of the same bad file: `finetune` and `evaluate` look at labels, `predict` does
not.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bertkit import runtime
from bertkit.cli import main
from bertkit.tasks.records import Place
from bertkit.train import finetune_card
from tests.tasks.tiny import folder, labels
from tests.train.small_tasks import write_model

CLASSIFIER = "BertForSequenceClassification"
MODELS: dict[str, Callable[[], Path]] = {
    "classify": lambda: folder(CLASSIFIER, **labels("x", "y")),
    "regress": lambda: folder(CLASSIFIER, problem_type="regression", **labels("LABEL_0")),
    "tag": lambda: folder(
        "BertForTokenClassification", **labels("O", "B-LOC", "I-LOC", "B-PER", "I-PER")
    ),
    "qa": lambda: folder("BertForQuestionAnswering"),
    "choose": lambda: folder("BertForMultipleChoice"),
}
QUICK = ["--set", "train.precision=fp32", "--set", "train.compile=off", "--steps"]


@pytest.fixture(autouse=True)
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetune_card, "draw_curves", lambda lines, path, metric: None)
    monkeypatch.setattr(runtime, "matrix_peak", lambda device, dtype: 1e11)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("base") / "tiny")


def command(verb: str, task: str, base: Path, path: Path) -> list[str]:
    if verb == "finetune":
        out = path.parent / f"run-{len(list(path.parent.iterdir()))}"
        return [verb, task, str(base), "--train", str(path), "--out", str(out), *QUICK, "1"]
    made = [verb, str(MODELS[task]()), str(path)]
    out = path.parent / f"out-{len(list(path.parent.iterdir()))}.jsonl"
    return made if verb == "evaluate" else [*made, "--out", str(out)]


def rows(*found: dict[str, Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found)


def squad(*asked: tuple[str, str, int], context: str = "w1 w2 w3 good1 w4") -> str:
    questions = [
        {"id": name, "question": "w5", "answers": [{"text": text, "answer_start": start}]}
        for name, text, start in asked
    ]
    return json.dumps({"data": [{"paragraphs": [{"context": context, "qas": questions}]}]})


def choice(**changed: Any) -> dict[str, Any]:
    return {"context": "w1 w2", "question": "", "choices": ["w3", "w4"], "label": 0} | changed


def spans(text: str, *found: tuple[int, int]) -> dict[str, Any]:
    entities = [{"start": a, "end": b, "label": "LOC"} for a, b in found]
    return {"text": text, "entities": entities}


class Case(NamedTuple):
    """One bad row among good ones: the file, where, what is said, and who has to mind."""

    task: str
    name: str
    text: str
    line: int | str
    said: str
    labels_only: bool = False


GOOD = "label\ttext\n" + "x\tw1 w2\ny\tw3\n" * 3
TAGS = "w1 B-LOC\nw2 O\n\nw3 B-PER\nw4 I-PER\n\n"
CASES = {
    "empty text": Case("classify", "a.tsv", GOOD + "x\t\n", 8, "empty text: text is blank"),
    "empty label": Case(
        "classify", "a.tsv", GOOD + "\tw1\n", 8, "no label: label is empty", labels_only=True
    ),
    "two columns missing": Case(
        "classify",
        "a.tsv",
        "label\ttext_a\ttext_b\nx\tw1\tw2\ny\tw1\tw3\nx\n",
        4,
        "columns: 1 of them here, 3 in the first line",
    ),
    "two keys missing": Case(
        "classify",
        "a.jsonl",
        rows({"label": "x", "text": "w1"}, {"label": "y", "text": "w2"}, {"other": 1}),
        3,
        "no text: text is missing",
    ),
    "a word for a number": Case(
        "regress",
        "a.tsv",
        "score\ttext_a\ttext_b\n1\tw1\tw2\n2\tw1\tw3\nbad\tw1\tw2\n",
        4,
        "no number: the label is 'bad'",
        labels_only=True,
    ),
    "empty text of tags": Case(
        "tag", "a.jsonl", rows(spans("w1 w2", (0, 2)), spans("")), 2, "empty text: text is blank"
    ),
    "offsets outside of the text": Case(
        "tag",
        "a.jsonl",
        rows(spans("w1 w2", (0, 2)), spans("w1 w2", (3, 99))),
        2,
        "bad entity: [3, 99] lies outside of the text, which has 5 characters",
        labels_only=True,
    ),
    "mixed schemes": Case(
        "tag",
        "a.conll",
        TAGS + "w1 O\n" * 20_000 + "\nw1 M-LOC\nw2 E-LOC\n\n",
        20_008,
        "mixed schemes: the tag 'M-LOC' in a BIO file",
        labels_only=True,
    ),
    "a column too many": Case(
        "tag",
        "a.conll",
        TAGS + "w1 x y B-LOC\nw2 O\n\n",
        7,
        "columns: 4 of them here, 2 in other lines",
    ),
    "duplicate ids": Case(
        "qa",
        "a.json",
        squad(("1", "good1", 9), ("1", "good1", 9)),
        "question 2 (1)",
        "duplicate id: '1' was given to two questions",
    ),
    "keys of a question missing": Case(
        "qa",
        "a.jsonl",
        rows({"question": "w1", "context": "w2 w3", "answers": ["w3"]}, {"other": "w1"}),
        2,
        "no text: context is missing",
    ),
    "no such choice": Case(
        "choose",
        "a.jsonl",
        rows(choice(), choice(label=5), choice(label=1)),
        2,
        "bad label: 5 names none of 2 choices",
        labels_only=True,
    ),
    "an empty choice": Case(
        "choose",
        "a.jsonl",
        rows(choice(), choice(choices=["w1", ""])),
        2,
        "empty text: a choice is blank",
    ),
}
# The long file takes a while; what training makes of it is what evaluation makes of it.
VERBS = {"mixed schemes": ("evaluate",)}


@pytest.mark.parametrize("name", CASES)
def test_a_bad_row_is_told_by_line_or_counted(
    name: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task, file, text, line, said, labels_only = CASES[name]
    path = tmp_path / file
    place = Place(str(path), line)
    path.write_text(text, encoding="utf-8")
    for verb in VERBS.get(name, ("finetune", "evaluate", "predict")):
        capsys.readouterr()
        minds = not (labels_only and verb == "predict")
        assert main(command(verb, task, base, path)) == int(minds), verb
        errors = [x for x in capsys.readouterr().err.splitlines() if "error" in x]
        if not minds:
            assert errors == []
            continue
        (error,) = errors
        assert error.startswith(f"bertkit: error: {place}: {said}")
        if verb != "finetune" or name in ("empty text", "duplicate ids"):
            assert main([*command(verb, task, base, path), "--skip-bad-rows"]) == 0, verb
            kind, _, detail = said.partition(": ")
            assert f"left out: 1 x {kind} ({place} {detail}" in capsys.readouterr().err


LONG = "w1 " * 33_334
ENDLESS = {
    "classify": ("a.tsv", GOOD + f"x\t{LONG}\ny\t{'w' * 100_000}\n", 8, "cut off at the end"),
    "tag": ("a.conll", TAGS + "w1 O\n" * 33_000 + "w2 B-LOC\n\n", 3, "in overlapping windows"),
    "qa": ("a.json", squad(("1", "w2", 0), context=LONG + "w2"), 1, "in overlapping windows"),
    "choose": ("a.jsonl", rows(choice(), choice(context=LONG)), 2, "cut off at the end"),
}


@pytest.mark.parametrize("task", ENDLESS)
def test_a_text_of_100_000_characters(
    task: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, text, count, said = ENDLESS[task]
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    assert main(command("finetune", task, base, path)) == 0
    assert said in capsys.readouterr().err
    asked = command("predict", task, base, path)
    assert main(asked) == 0
    assert len(Path(asked[-1]).read_text(encoding="utf-8").splitlines()) == count
    if task != "tag":  # the slowest
        capsys.readouterr()
        assert main(command("evaluate", task, base, path)) == 0
        measured = capsys.readouterr()
        assert measured.out.startswith(f"{task}, {count} rows\n")
        assert ("tokens that the model reads: cut off" in measured.err) == (task != "qa")


def test_an_answer_that_is_not_in_its_passage_counts_and_teaches_nothing(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, alone = tmp_path / "a.json", tmp_path / "alone.json"
    path.write_text(squad(("1", "good1", 9), ("2", "nowhere", 3)), encoding="utf-8")
    alone.write_text(squad(("2", "nowhere", 3)), encoding="utf-8")
    kind = "questions with an answer that is not in the passage"
    found = f"1 x {kind} ({path}, question 2 (2) 'nowhere')"
    assert main(command("finetune", "qa", base, path)) == 0
    said = capsys.readouterr()
    assert found in said.err
    assert "nothing to learn from 1 row: the answer is not in the passage" in said.err
    assert said.out.startswith("1 step, 1 example,")
    assert main(command("evaluate", "qa", base, path)) == 0
    said = capsys.readouterr()
    assert found in said.err
    assert said.out.startswith("qa, 2 rows\n")
    assert main(command("finetune", "qa", base, alone)) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.endswith("no rows to learn from: the answers are not in their passages")


MISSING = {
    "classify": ("a.csv", "one,two,three\nq,1,2\nr,3,4\n", "cannot tell which column is the text"),
    "tag": ("a.jsonl", rows({"one": 1, "two": 2}), "there is no column 'text'"),
    "qa": ("a.jsonl", rows({"one": "w1", "two": "w2"}), "there is no column for the question"),
    "choose": ("a.jsonl", rows({"one": 1, "two": 2}), "there is no column for the context"),
}


@pytest.mark.parametrize("task", MISSING)
def test_a_file_without_the_columns_is_one_line(
    task: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, text, said = MISSING[task]
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    for verb in ("finetune", "evaluate", "predict"):
        assert main(command(verb, task, base, path)) == 1
        (error,) = (x for x in capsys.readouterr().err.splitlines() if "error" in x)
        assert error.startswith(f"bertkit: error: {path}: {said}"), error
        assert "'one', 'two'" in error


# Labels: the model's own against those of the file.

NAMELESS = "label\ttext\n" + "0\tw1 w2\n1\tw3 w4\n" * 3
HINT = "LABEL_0, LABEL_1; give those their names, id2label in its config.json"


def test_labels_that_the_model_does_not_know_are_never_measured(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nameless, unknown, tags = tmp_path / "a.tsv", tmp_path / "b.tsv", tmp_path / "c.conll"
    nameless.write_text(NAMELESS)
    unknown.write_text(GOOD + "new\tw1\n")
    tags.write_text(TAGS + "w1 B-ORG\n\n")
    plain, tagger = folder(CLASSIFIER), folder("BertForTokenClassification")
    for model, path, line, said in (
        (plain, nameless, 2, f"the label '0' is none of the model's: {HINT}"),
        (MODELS["classify"](), unknown, 8, "the label 'new' is none of the model's: x, y ("),
        (MODELS["tag"](), tags, 7, "the label 'ORG' of 'w1' is none of the model's: LOC, PER ("),
        (tagger, tags, 1, f"the label 'LOC' of 'w1' is none of the model's: {HINT}"),
    ):
        asked = ["evaluate", str(model), str(path)]
        assert main(asked) == 1
        (error,) = (x for x in capsys.readouterr().err.splitlines() if "error" in x)
        assert error.startswith(f"bertkit: error: {path}:{line}: {said}"), error
        everything = "LABEL_0" in said
        assert main([*asked, "--skip-bad-rows"]) == int(everything)
        told = capsys.readouterr().err
        if everything:
            assert "no row of it could be measured: " in told
        assert f" x label ({path}:{line} the label" in told
        # A prediction looks at no label.
        assert main(["predict", str(model), str(path), "--quiet"]) == 0
        capsys.readouterr()


def test_a_head_for_other_labels_begins_anew_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.tsv"
    path.write_text(NAMELESS)
    # As many labels, so that the head would fit.
    for number, (names, said) in enumerate(
        (({}, "LABEL_0, LABEL_1"), (labels("x", "y"), "x, y"), (labels("1", "0"), "1, 0"))
    ):
        model, out = folder(CLASSIFIER, **names), tmp_path / str(number)
        asked = ["finetune", "classify", str(model), "--train", str(path), "--out", str(out)]
        assert main([*asked, *QUICK, "2"]) == 0
        assert f"is for other labels ({said}): anew" in capsys.readouterr().err
        assert main(["evaluate", str(out), str(path), "--quiet", "--json"]) == 0
        figures = json.loads(capsys.readouterr().out)
        assert {line["label"] for line in figures["per_label"]} >= {"0", "1"}
