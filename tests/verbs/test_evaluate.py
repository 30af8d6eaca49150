"""`bertkit evaluate` as a user types it: tables, pictures, wrong cases, two models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score

from bertkit.checkpoint.layout import read_tensors, write_tensors
from bertkit.cli import main
from bertkit.infer import predict as infer_predict
from tests.infer.every_task import CASES, write_rows
from tests.tasks.tiny import folder, labels

# What metric_for_best_model is by default.
MAIN = dict.fromkeys(CASES, "f1") | dict.fromkeys(("classify", "pairs", "choose"), "accuracy")
MAIN["regress"] = "pearson"
PNG = b"\x89PNG\r\n\x1a\n"


def ask(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["evaluate", *map(str, arguments), "--json", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    found: dict[str, Any] = json.loads(out)
    return found


@pytest.mark.parametrize("name", list(CASES))
def test_every_task_has_tables_and_wrong_cases(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case, out = CASES[name], tmp_path / "report"
    model, path = case.model(tmp_path / "model"), write_rows(case, tmp_path, 30)
    report = ask(capsys, model, path, "--out", out)
    assert (report["task"], report["rows"]) == (case.task, 30)
    assert report["metric"] == next(iter(report["figures"])) == MAIN[name]
    wrong = [json.loads(line) for line in (out / "bad_cases.jsonl").read_text().splitlines()]
    assert wrong
    sure = [one["confidence"] for one in wrong]
    assert sure == sorted(sure, reverse=True)
    assert all(one["file"] == str(path) for one in wrong)
    pictures = {path.name for path in out.glob("*.png")}
    expected = {"calibration.png"} if case.task != "regress" else set()
    if name in ("classify", "pairs", "tag", "crf"):
        expected.add("confusion.png")
    assert pictures == expected
    assert all((out / picture).read_bytes().startswith(PNG) for picture in pictures)
    for kind, lines in report["breakdown"].items():
        assert sum(line["rows"] for line in lines) == 30
        assert all(
            isinstance(x, float | int) or k in ("pearson", "spearman")
            for line in lines
            for k, x in line.items()
            if k != kind
        )
    if name == "regress":  # each class here holds one number: there is no correlation
        figures = [(x["pearson"], x["spearman"]) for x in report["breakdown"]["label"]]
        assert set(figures) == {(None, None)}
        assert all(line["mae"] > 0 for line in report["breakdown"]["label"])
        assert "| 0 to 1 | 5 | - | - | " in (out / "figures.md").read_text()
        assert isinstance(report["figures"]["pearson"], float)
    assert {str(file) for file in out.iterdir()} == set(report["files"])


def test_figures_are_those_of_the_predictions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = CASES["classify"]
    model, path = case.model(tmp_path / "model"), write_rows(case, tmp_path, 60)
    assert main(["predict", str(model), str(path), "--out", str(tmp_path / "p.jsonl")]) == 0
    said = [json.loads(line)["label"] for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    gold = [line.split("\t")[0] for line in path.read_text().splitlines()[1:]]
    figures = ask(capsys, model, path)["figures"]
    assert figures["accuracy"] == accuracy_score(gold, said)
    assert figures["macro_f1"] == f1_score(gold, said, average="macro")


def test_without_a_folder_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES["tag"]
    model, path = case.model(tmp_path / "model"), write_rows(case, tmp_path, 12)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert main(["evaluate", str(model), str(path)]) == 0
    out, err = capsys.readouterr()
    assert sorted(tmp_path.rglob("*")) == before
    assert out.startswith("tag, 12 rows\n\nfigure ")
    assert out.splitlines()[3].startswith("f1 ")
    assert all(len(line) <= 80 for line in out.splitlines())
    assert "label " in out
    assert "micro avg" in out
    assert "micro_f1" not in out  # the same, once
    assert "  12 rows\n" in err
    assert "labels: LOC" in err


def test_two_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = CASES["classify"]
    path = write_rows(case, tmp_path, 40)
    model = case.model(tmp_path / "model")
    other = folder("BertForSequenceClassification", **labels("z", "x", "y"))
    report = ask(capsys, model, path, "--other", other)
    difference = report["difference"]
    assert difference["first"] == report["figures"]["accuracy"]
    assert difference["second"] == report["other"]["accuracy"]
    assert 0 < difference["p_value"] <= 1
    (everything,) = (line for line in report["wins"] if line["rows"] == "all rows")
    assert sum(everything[k] for k in ("first better", "second better", "equal")) == 40
    same = ask(capsys, model, path, "--other", model, "--metric", "macro_f1")["difference"]
    assert (same["metric"], same["first"], same["p_value"]) == ("macro_f1", same["second"], 1.0)
    assert main(["evaluate", str(model), str(path), "--other", str(other)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("accuracy: 0.") for line in lines[-3:])
    assert all(len(line) <= 80 for line in lines)
    first = next(number for number, line in enumerate(lines) if "first better" in line)
    assert lines[first - 3 : first - 1] == [f"first: {model}", f"second: {other}"]
    ask(capsys, model, path, "--other", other, "--out", tmp_path / "both")
    text = (tmp_path / "both" / "figures.md").read_text()
    assert text.startswith(f"{model} on {path}, 40 rows\n")
    assert f"\n\nfirst: {model}; second: {other}\n\n| rows | first better |" in text
    assert "p = " in text


def test_no_entity_at_all_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    silent = folder("BertForTokenClassification", **labels("O", "B-LOC"))
    weights = read_tensors(silent)
    weights["classifier.bias"] = torch.tensor([1e4, -1e4])
    shutil.copytree(silent, tmp_path / "silent")
    write_tensors(tmp_path / "silent" / "model.safetensors", weights)
    path = write_rows(CASES["tag"], tmp_path, 5)
    report = ask(capsys, tmp_path / "silent", path, "--out", tmp_path / "out")
    assert (report["figures"]["f1"], report["notes"]) == (0.0, ["no entity was predicted"])
    assert "\n\nno entity was predicted\n" in (tmp_path / "out" / "figures.md").read_text()


def test_a_figure_that_there_is_not_is_refused_before_weights_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(infer_predict, "open_answers", lambda *_, **__: 1 / 0)
    for name, said in (
        ("regress", "pearson, spearman, mse, mae\n"),
        ("tag", "precision, recall, f1, conlleval_precision"),
        ("qa", "exact, f1, total, expected_calibration_error\n"),
    ):
        model = str(CASES[name].model(tmp_path / name))
        assert main(["evaluate", model, "no.tsv", "--metric", "beauty"]) == 2
        error = capsys.readouterr().err  # after what saving the model may have shown
        assert f"bertkit: error: there is no figure 'beauty'; choose of {said}" in error


def test_what_cannot_work_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = CASES["classify"]
    model, path = case.model(tmp_path / "model"), write_rows(case, tmp_path, 6)
    text = path.read_text(encoding="utf-8")
    odd, bare = tmp_path / "odd.tsv", tmp_path / "bare.txt"
    odd.write_text(text + "new\tthe cat\n", encoding="utf-8")
    bare.write_text("the cat\na dog\n", encoding="utf-8")
    narrow = folder("BertForSequenceClassification", **labels("x", "y"))
    tagger = folder("BertForTokenClassification", **labels("O", "B-LOC", "I-LOC"))
    guessed = tmp_path / "guessed.csv"
    body = "".join(f"a cat {i} sat,a dog {i} ran,{'xy'[i % 2]}\n" for i in range(8))
    guessed.write_text("foo,bar,baz\n" + body)
    number = folder("BertForSequenceClassification", problem_type="regression", **labels("LABEL_0"))
    full = tmp_path / "full"
    full.mkdir()
    encoder = folder("BertModel")
    (full / "figures.md").write_text("mine")
    for arguments, status, line in (
        ([model, odd], 1, f"{odd}:8: the label 'new' is none of the model's: x, y, z"),
        (
            [model, bare],
            1,
            "there are no labels in it (plain text, a row a line, no labels); to have it ",
        ),
        ([model, path, "--other", narrow], 2, "--other knows other labels"),
        ([model, path, "--other", tagger], 2, "--other is for tag, the model for classify"),
        (
            [model, path, "--other", model, "--metric", "expected_calibration_error"],
            2,
            "'expected_calibration_error' cannot be compared",
        ),
        (
            [model, path, "--metric", "beauty"],
            2,
            "there is no figure 'beauty'; choose of accuracy,",
        ),
        ([model, path, "--out", full], 2, "say --overwrite to replace it"),
        ([encoder, path], 1, "classifier"),
        ([tagger, path], 1, "no entities in it, but texts with a label (label): for classify"),
        ([model, guessed], 1, "if the first line names the columns: --text NAME --label NAME"),
        ([number, path], 1, "labels must be numbers for regress; the column label begins with 'x'"),
    ):
        assert main(["evaluate", *map(str, arguments)]) == status, arguments
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("bertkit: error: ")
        assert line in error
    assert (full / "figures.md").read_text() == "mine"
    assert main(["evaluate", str(model), str(odd), "--skip-bad-rows"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("classify, 6 rows\n")
    assert "left out: 1 x label" in said.err
