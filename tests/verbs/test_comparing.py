"""`bertkit explain compare` and `trajectory` from the command line."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest

from bertkit.checkpoint.store import save_step
from bertkit.cli import main
from tests.verbs.running import run_explain


def test_compare_reads_files_and_one_text(
    model: str, texts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    found = run_explain(capsys, "compare", model, "--file", texts, "--html", str(page))
    assert (found["verb"], found["texts"], found["debiased"]) == ("compare", 22, True)
    assert len(found["cka"]) == 3
    assert "CKA of layers" in page.read_text(encoding="utf-8")
    found = run_explain(
        capsys,
        "compare",
        model,
        "a dog ran on",
        "--other",
        model,
        "--biased",
        "--unit",
        "word",
    )
    assert (found["unit"], found["debiased"], len(found["spreads"])) == ("word", False, 2)
    assert found["cka"][1][1] == pytest.approx(1)
    assert main(["explain", "compare", model, "a dog ran on", "--device", "cpu"]) == 0
    assert "layer 2" in capsys.readouterr().out


def test_refusals_are_one_line(model: str, texts: str, capsys: pytest.CaptureFixture[str]) -> None:
    for status, arguments, said in (
        (2, ["compare", model], "one text"),
        (2, ["compare", model, "--file", texts, "--sample", "2"], "sample of 2"),
        (2, ["compare", model, "the cat sat on", "--unit", "line"], "line"),
        (1, ["compare", model, "cat"], "at least 4"),
        (2, ["trajectory", model, "guess", "the cat"], "it follows lens"),
        (
            2,
            ["trajectory", model, "score", "the cat", "--target", "a"],
            "--target does not go",
        ),
        (
            2,
            ["trajectory", model, "lens", "--file", texts, "--word", "a"],
            "--word does not go",
        ),
        (2, ["trajectory", model, "pairs", "the cat"], "reads files"),
        (2, ["trajectory", model, "attribute", "--file", texts], "on one text"),
        (2, ["trajectory", model, "probe", "--file", texts], "--dev goes with probe"),
        (1, ["trajectory", f"{model}/none", "score", "the cat"], "no such folder"),
    ):
        assert main(["explain", *arguments, "--quiet", "--device", "cpu"]) == status
        out, err = capsys.readouterr()
        assert out == ""
        assert said in err
        assert err.count("\n") == 1


def test_trajectory_follows_checkpoints_in_order(
    model: str, texts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "run" / "checkpoints"

    def write(folder: Path) -> None:
        shutil.copytree(model, folder, dirs_exist_ok=True)

    for step in (5, 10):
        save_step(root, step, write, 9)
    run_folder = str(root.parent)
    found = run_explain(capsys, "trajectory", run_folder, "lens", "--file", texts, "--also", model)
    assert found["steps"] == [5, 10, None]
    assert found["checkpoints"] == [f"{run_folder} step 5", f"{run_folder} step 10", model]
    assert [one["name"] for one in found["series"]] == ["accuracy", "loss"]
    masked = ("the cat [MASK] on", "--target", "sat")
    found = run_explain(capsys, "trajectory", run_folder, "lens", *masked)
    assert found["series"][0]["name"] == "probability of sat at [MASK]"
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("good,bad\nthe cat ran,cat the ran\na dog,dog a\n", encoding="utf-8")
    found = run_explain(capsys, "trajectory", run_folder, "pairs", "--file", str(pairs))
    assert found["series"][0]["rows"] == ["all pairs"]
    rows = tmp_path / "rows.conll"
    rows.write_text("the O\ncat B\nsat O\n\na O\ndog B\nran O\n\n" * 4, encoding="utf-8")
    files = ("--file", str(rows), "--dev", str(rows))
    found = run_explain(capsys, "trajectory", run_folder, "probe", *files)
    assert [one["name"] for one in found["series"]] == ["accuracy", "selectivity"]
    stream = io.TextIOWrapper(io.BytesIO(b"the cat sat on\na dog\n"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", stream)
        found = run_explain(capsys, "trajectory", run_folder, "compare", "--file=-", "--seed", "3")
    assert found["series"][0]["values"][0] == pytest.approx([1, 1])
    assert main(["explain", "trajectory", run_folder, "score", "--file", texts]) == 0
    out, err = capsys.readouterr()
    assert "step 10" in out
    assert "score: 2 checkpoints" in err
