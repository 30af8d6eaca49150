"""`bertkit explain compare` and `trajectory` from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bertkit.cli import main
from tests.tasks import tiny


@pytest.fixture(scope="module")
def model() -> str:
    return str(tiny.folder("BertForMaskedLM"))


@pytest.fixture
def texts(tmp_path: Path) -> str:
    path = tmp_path / "texts.txt"
    lines = ["the cat sat on the mat", "", "我爱北京", *["a dog ran in the park"] * 20]
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert main(["explain", *arguments, "--json", "--quiet", "--device", "cpu"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_compare_reads_files_and_one_text(
    model: str, texts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    found = run(capsys, "compare", model, "--file", texts, "--html", str(page))
    assert (found["verb"], found["texts"], found["debiased"]) == ("compare", 22, True)
    assert len(found["cka"]) == 3
    assert "CKA of layers" in page.read_text(encoding="utf-8")
    found = run(
        capsys, "compare", model, "a dog ran on", "--other", model, "--biased", "--unit", "word"
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
    ):
        assert main(["explain", *arguments, "--quiet", "--device", "cpu"]) == status
        out, err = capsys.readouterr()
        assert out == ""
        assert said in err
        assert err.count("\n") == 1
