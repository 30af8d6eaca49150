"""The commands one after another, as a user types them, on a little text."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bertkit import runtime
from bertkit.cli import main

SUBJECTS = ["the cat", "a dog", "her friend", "the old man", "my brother", "this bird"]
VERBS = ["sat on", "ran over", "looked at", "slept under", "jumped from", "walked to"]
OBJECTS = ["the mat", "a hill", "the table", "some grass", "the river", "a house"]
SMALL = ["model.hidden_size=32", "model.num_attention_heads=2", "model.intermediate_size=64"]
SMALL += ["train.compile=off", "data.max_length=32", "train.batch_tokens=512", "log.evals=1"]
Answer = Callable[..., dict[str, Any]]


def write_text(path: Path, documents: int = 60) -> Path:
    """Documents of six sentences, no two alike."""
    texts = []
    for n in range(documents):
        lines = [
            f"{SUBJECTS[(n + i) % 6]} {VERBS[(n // 6 + i) % 6]} {OBJECTS[(n // 36 + i) % 6]}. "
            f"It was day {n * 6 + i}."
            for i in range(6)
        ]
        texts.append("\n".join(line[0].upper() + line[1:] for line in lines))
    path.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("story")


@pytest.fixture(scope="module")
def prepared(folder: Path) -> Path:
    text = write_text(folder / "text.txt")
    tokenizer, data = folder / "tokenizer", folder / "data"
    assert main(["vocab", str(text), "--out", str(tokenizer), "--size", "200", "--quiet"]) == 0
    arguments = ["prepare", str(text), "--tokenizer", str(tokenizer), "--out", str(data)]
    assert main([*arguments, "--held-out", "0.1", "--quiet"]) == 0
    return data


@pytest.fixture(scope="module")
def run(folder: Path, prepared: Path) -> Path:
    out = folder / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "matrix_peak", lambda device, dtype: 1e11)
        sets = [word for setting in SMALL for word in ("--set", setting)]
        arguments = ["pretrain", str(prepared), "--out", str(out), "--size", "tiny", *sets]
        assert main([*arguments, "--steps", "3", "--quiet"]) == 0
    return out


@pytest.fixture
def answer(capsys: pytest.CaptureFixture[str]) -> Answer:
    """Run a command with --json and read its last line."""

    def ask(*arguments: object) -> dict[str, Any]:
        capsys.readouterr()
        assert main([*map(str, arguments), "--json", "--quiet"]) == 0, capsys.readouterr().err
        out, err = capsys.readouterr()
        assert err == ""
        result: dict[str, Any] = json.loads(out.splitlines()[-1])
        return result

    return ask


def test_vocab_reports_size_and_coverage(folder: Path, answer: Answer) -> None:
    text = write_text(folder / "more.txt", 200)
    report = answer("vocab", text, "--out", folder / "other", "--size", 150)
    assert report["size"] == 150 == len((folder / "other/vocab.txt").read_text().splitlines())
    assert {row["script"] for row in report["coverage"]} >= {"Latin", "all"}
    assert report["skipped"] == {}


def test_a_corpus_can_come_through_standard_input(folder: Path, prepared: Path) -> None:
    text = (folder / "text.txt").read_text(encoding="utf-8")
    for arguments in (
        ["vocab", "-", "--out", str(folder / "piped"), "--size", "200"],
        ["prepare", "-", "--tokenizer", str(folder / "piped"), "--out", str(folder / "piped-data")],
    ):
        command = [sys.executable, "-m", "bertkit", *arguments, "--quiet"]
        done = subprocess.run(command, input=text, text=True, capture_output=True)
        assert (done.returncode, done.stderr) == (0, "")
    for name in ("vocab.txt", "tokenizer.json"):
        assert (folder / "piped" / name).read_bytes() == (folder / "tokenizer" / name).read_bytes()
    assert (folder / "piped-data/manifest.json").is_file()


def test_one_rank_speaks_for_all(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from bertkit.train import pretrain
    from bertkit.train.setup import PretrainResult

    result = PretrainResult(Path("run"), Path("run/model"), 7, 700, 60.0, 0, {}, interrupted=False)
    monkeypatch.setattr(pretrain, "pretrain", lambda *_, **__: result)
    for rank, lines in (("0", 2), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        assert main(["pretrain", str(prepared), "--out", "run"]) == 0
        assert capsys.readouterr().out.count("\n") == lines


def test_vocab_writes_over_nothing_unless_told(
    folder: Path, prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["vocab", str(folder / "text.txt"), "--out", str(folder / "tokenizer")]
    arguments += ["--size", "200", "--quiet"]
    before = (folder / "tokenizer/vocab.txt").read_bytes()
    assert main(arguments) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main([*arguments, "--overwrite"]) == 0
    assert (folder / "tokenizer/vocab.txt").read_bytes() == before


def test_bad_rows_stop_or_are_counted(
    tmp_path: Path, answer: Answer, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "rows.jsonl"
    text.write_text('{"text": "a good row of words"}\n{broken\n' * 20, encoding="utf-8")
    arguments = ["vocab", str(text), "--out", str(tmp_path / "tokenizer"), "--size", "60"]
    assert main([*arguments, "--quiet"]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"bertkit: error: {text}:2: ")
    assert err.count("\n") == 1
    assert sum(answer(*arguments, "--skip-bad-rows")["skipped"].values()) == 20


def test_prepare_can_be_repeated_and_shows_examples(
    folder: Path, prepared: Path, answer: Answer
) -> None:
    tokenizer = folder / "tokenizer"
    arguments = ["prepare", folder / "text.txt", "--tokenizer", tokenizer, "--out", prepared]
    report = answer(*arguments, "--held_out", 0.1, "--show", 3)
    assert report["train"]["documents"] + report["dev"]["documents"] == 60
    balance, examples = report["samples"]["balance"], report["samples"]["examples"]
    assert 0.3 <= balance["random"] / (balance["random"] + balance["next"]) <= 0.7
    assert len(examples) == 3
    assert {example["label"] for example in examples} <= {"is_next", "random"}
    assert any("-> [MASK]}" in example["a"] + example["b"] for example in examples)


def test_other_options_are_refused(
    folder: Path, prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["prepare", str(folder / "text.txt"), "--tokenizer", str(folder / "tokenizer")]
    arguments += ["--out", str(prepared), "--held_out", "0.2", "--quiet"]
    assert main(arguments) == 1
    err = capsys.readouterr().err
    assert "held_out" in err
    assert err.count("\n") == 1


def test_pretrain_leaves_a_model_that_answers(run: Path, answer: Answer) -> None:
    assert (run / "model/model.safetensors").is_file()
    result = answer("fill", run, "The cat sat on the [MASK].", "[MASK] [MASK]", "--top", 2)
    first, second = result["results"]
    assert first["text"] == "The cat sat on the [MASK]."
    assert [len(words) for words in first["masks"]] == [2]
    assert [len(words) for words in second["masks"]] == [2, 2]
    chosen = answer("fill", run, "The [MASK] sat.", "--targets", "cat,dog")
    assert {w["token_str"] for w in chosen["results"][0]["masks"][0]} == {"cat", "dog"}
    follows = answer("next", run, "The cat sat.", "It was day 3.")
    assert follows["is_next"] + follows["random"] == pytest.approx(1)


def test_fill_reads_lines_of_standard_input(
    run: Path, answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("The [MASK].\n\nA [MASK].\n"))
    assert [r["text"] for r in answer("fill", run)["results"]] == ["The [MASK].", "A [MASK]."]


def test_people_get_a_table(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fill", str(run), "A [MASK] and a [MASK].", "--top", "1", "--quiet"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [lines[0], lines[1], lines[3]] == ["A [MASK] and a [MASK].", "  mask 1", "  mask 2"]
    assert main(["next", str(run), "a", "b", "--quiet"]) == 0
    assert capsys.readouterr().out.split()[1] in ("is_next", "random")


def test_a_run_that_is_there_is_not_written_over(
    run: Path, prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["pretrain", str(prepared), "--out", str(run), "--steps", "1", "--quiet"]
    assert main(arguments) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_an_interrupted_run_exits_130_after_saying_what_is_there(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from bertkit.train import pretrain
    from bertkit.train.setup import PretrainResult

    result = PretrainResult(Path("run"), None, 7, 700, 60.0, 0, {}, interrupted=True)
    monkeypatch.setattr(pretrain, "pretrain", lambda *_, **__: result)
    assert main(["pretrain", str(prepared), "--out", "run", "--json"]) == 130
    out, err = capsys.readouterr()
    assert json.loads(out)["interrupted"] is True
    assert err == "bertkit: interrupted\n"
