"""`bertkit predict` as a user types it: files, standard input line by line, refusals."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bertkit.cli import main
from tests.infer.every_task import CASES, sentence, write_rows
from tests.tasks.tiny import folder, labels


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(CASES["classify"].model(tmp_path / "model"))


def test_a_file_to_a_file(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = write_rows(CASES["classify"], tmp_path, 9), tmp_path / "out.csv"
    assert main(["predict", model, str(path), "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert said.out == f"9 rows in {out}\n"
    assert "label: label" in said.err
    assert "text: text" in said.err
    assert len(out.read_text().splitlines()) == 10
    assert main(["predict", model, str(path), "--out", str(out)]) == 2
    assert capsys.readouterr().err == (
        f"bertkit: error: {out} is there already; say --overwrite to replace it\n"
    )
    arguments = ["predict", model, str(path), "--out", str(out), "--overwrite", "--quiet", "--json"]
    assert main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    expected = {"rows": 9, "continued": 0, "files": [str(out)], "skipped": {}, "findings": {}}
    assert report == expected | {"cut": 0}


def test_a_file_to_standard_output(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = write_rows(CASES["classify"], tmp_path, 9), tmp_path / "out.jsonl"
    assert main(["predict", model, str(path)]) == 0
    printed = capsys.readouterr().out
    assert main(["predict", model, str(path), "--out", str(out), "--quiet"]) == 0
    assert printed == out.read_text(encoding="utf-8")
    capsys.readouterr()
    assert main(["predict", model, str(path), "--format", "tsv", "--with-text"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "id\ttext\tlabel\tscore"
    assert lines[1].startswith(f"0\t{sentence(0)}\t")


def test_bad_rows_are_one_line_or_counted(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "the cat"}\n{"text": ""}\n{"text": "a dog"}\n')
    command = ["predict", model, str(path), "--out", str(tmp_path / "out.jsonl")]
    assert main(command) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"bertkit: error: {path}:2: empty text")
    assert main([*command, "--skip-bad-rows"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("2 rows in ")
    assert f"left out: 1 x empty text ({path}:2" in said.err
    # To standard output good rows before the bad one are there, and those behind it with the flag.
    assert main(["predict", model, str(path)]) == 1
    assert [json.loads(x)["id"] for x in capsys.readouterr().out.splitlines()] == ["0"]


def test_what_cannot_work_is_one_line(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write_rows(CASES["classify"], tmp_path, 3))
    bare = str(folder("BertForMaskedLM"))
    capsys.readouterr()
    for arguments, status, line in (
        ([bare, path], 1, "has no sentence classifier (classifier)"),
        ([model, str(tmp_path / "none.tsv")], 1, "none.tsv: no such file"),
        ([model, str(tmp_path / "none.tsv"), "--out", "x.csv"], 1, "none.tsv: no such file"),
        ([model, path, "--out", str(tmp_path / "x.docx")], 2, "say --format"),
        ([model, path, "--format", "conll"], 2, "conll is for tag"),
        ([model, path, "--text", "nothing"], 1, "there is no column 'nothing'"),
        ([model, path, "--threshold", "2"], 2, "threshold is 2.0"),
        ([str(tmp_path / "no"), path], 1, "no such folder"),
    ):
        assert main(["predict", *arguments]) == status, arguments
        error = capsys.readouterr().err
        assert error.startswith("bertkit: error: ")
        assert (error.count("\n"), line in error) == (1, True), error


def test_standard_input_is_answered_line_by_line(model: str) -> None:
    command = [sys.executable, "-m", "bertkit", "predict", model, "-", "--quiet"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        assert run.stdin is not None
        assert run.stdout is not None
        # Each answer is awaited before the next line is written; it would hang if one were kept.
        for number in range(4):
            run.stdin.write(sentence(number) + "\n")
            run.stdin.flush()
            answer = json.loads(run.stdout.readline())
            assert answer["id"] == str(number)
            assert answer["label"] in ("x", "y", "z")
        # Many lines at once, and an end without a newline.
        run.stdin.write("\n".join(sentence(number) for number in range(4, 600)))
        run.stdin.close()
        ids = [json.loads(line)["id"] for line in run.stdout]
        assert run.wait() == 0
        assert run.stderr is not None
        assert run.stderr.read() == ""
    assert ids == [str(number) for number in range(4, 600)]


def test_what_standard_input_was_taken_for_is_said(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb in ("predict", "evaluate"):
        given = io.TextIOWrapper(io.BytesIO(b"label\ttext\nx\tthe cat\n"))
        monkeypatch.setattr(sys, "stdin", given)
        assert main([verb, model, "-"]) == 0
        said = capsys.readouterr().err
        assert said == "standard input:\n  tab-separated\n  text: text; label: label\n"


def test_predictions_given_back_are_told_from_texts(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_rows(CASES["classify"], tmp_path, 3)
    for name in ("bare.jsonl", "bare.csv"):
        out = tmp_path / name
        assert main(["predict", model, str(path), "--out", str(out), "--quiet"]) == 0
        assert main(["predict", model, str(out)]) == 1
        assert f"{out}: these are predictions without their texts" in capsys.readouterr().err
        assert main(["predict", model, str(path), "--with_text", "--format", out.suffix[1:]]) == 0
        out.write_text(capsys.readouterr().out)
        assert main(["predict", model, str(out), "--quiet"]) == 0
        assert len(capsys.readouterr().out.splitlines()) == 3


def test_an_interrupt_while_waiting_for_input(model: str) -> None:
    command = [sys.executable, "-m", "bertkit", "predict", model, "-", "--quiet"]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Whoever runs the tests in the background has had Ctrl-C ignored, here too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as run:
        assert run.stdin is not None
        assert run.stdout is not None
        assert run.stderr is not None
        run.stdin.write("the cat\n")
        run.stdin.flush()
        assert json.loads(run.stdout.readline())["id"] == "0"
        time.sleep(0.1)
        run.send_signal(2)
        assert run.wait(30) == 130
        assert run.stderr.read() == "bertkit: interrupted\n"
        run.stdin.close()


def test_sentences_of_columns_through_standard_input(tmp_path: Path) -> None:
    model = str(folder("BertForTokenClassification", **labels("O", "B-LOC", "I-LOC")))
    command = [sys.executable, "-m", "bertkit", "predict", model, "-", "--quiet"]
    command += ["--format", "conll", "--file_format", "conll"]
    text = "the O\ncat O\n\nparis B-LOC\n"
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    words = [line.split("\t")[0] for line in done.stdout.splitlines()]
    assert words == ["the", "cat", "", "paris", ""]


def test_a_reader_that_stops_early_is_no_error(model: str, tmp_path: Path) -> None:
    path = write_rows(CASES["classify"], tmp_path, 600)
    command = f"{sys.executable} -m bertkit predict {model} - --quiet < {path} | head -n 2"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == ["0", "1"]
    assert done.stderr == ""
