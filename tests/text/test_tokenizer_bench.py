"""The benchmark of tokenizers runs, and says what it should."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from benchmarks import bench_tokenize, report
from tests.text.test_tokenizer import SMALL


def test_it_measures_both_sides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    (tmp_path / "vocab").mkdir()
    for file, vocab, _ in bench_tokenize.CORPORA.values():
        path = tmp_path / file
        path.parent.mkdir(exist_ok=True)
        with gzip.open(path, "wt", encoding="utf-8") as lines:
            lines.writelines(f"The quick brown fox {i} jumps. 模型很好！\n\n" for i in range(80))
        text = "".join(f"{token}\n" for token in SMALL)
        (tmp_path / "vocab" / vocab).write_text(text, encoding="utf-8")
    options = bench_tokenize.Options(data=tmp_path, texts=20, rounds=2, name="toy")
    bench_tokenize.main(options)
    page = (tmp_path / "results" / "toy.md").read_text(encoding="utf-8")
    assert page.count("| lists with offsets |") == len(bench_tokenize.CORPORA)
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    for corpus in bench_tokenize.CORPORA:
        for seconds in figures[corpus].values():
            assert len(seconds["bertkit"]) == len(seconds["transformers"]) == 3
            assert min(seconds["bertkit"]) > 0
