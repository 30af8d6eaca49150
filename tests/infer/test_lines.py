"""Texts a line and pairs of texts: what the files of `score` and `pairs` hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from bertkit.errors import DataError, UsageError
from bertkit.infer.lines import count_lines, read_lines
from bertkit.infer.minimal_pairs import read_pairs


def test_lines_of_text_and_rows_of_tables(tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("one\n\n  two \nthree", encoding="utf-8")
    rows = tmp_path / "b.jsonl"
    rows.write_text('{"s": "四"}\n{"s": "five\\nsix"}\n', encoding="utf-8")
    found = [(line.text, line.place.line) for line in read_lines([str(text)])]
    assert found == [("one", 1), ("two", 3), ("three", 4)]
    assert [line.text for line in read_lines([str(rows)], "s")] == ["四", "five six"]
    assert count_lines([str(text)]) == 3
    assert count_lines(["-"]) == 0


@pytest.mark.parametrize(
    ("name", "content", "kinds"),
    [
        ("a.jsonl", '{"sentence_good": "a", "sentence_bad": "b", "UID": "x"}\n' * 2, ["x", "x"]),
        ("a.csv", "good,bad\na,b\na,b\n", ["", ""]),
        ("a.tsv", "good\tbad\tkind\na\tb\tone\na\tb\t二\n", ["one", "二"]),
        ("a.csv", "right,wrong,topic\na,b,one\na,b,二\n", ["one", "二"]),
        ("a.csv", "Ungrammatical,Grammatical,x\nb,a,one\nb,a,二\n", ["", ""]),
        ("a.jsonl", '{"wrong": "b", "n": 1, "right": "a"}\n' * 2, ["", ""]),
        ("a.tsv", "a\tb\na\tb\n", ["", ""]),
    ],
)
def test_minimal_pairs_of_a_file(tmp_path: Path, name: str, content: str, kinds: list[str]) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    pairs = list(read_pairs(path))
    assert [(pair.good, pair.bad) for pair in pairs] == [("a", "b")] * 2
    assert [pair.kind for pair in pairs] == kinds


@pytest.mark.parametrize(
    ("name", "content", "columns"),
    [
        ("a.jsonl", '{"better text": "a", "q": "b"}\n', "'better text', 'q'"),
        ("a.csv", "first,second,topic\na,b,one\n", "'first', 'second', 'topic'"),
        ("a.csv", "first,second\na dog ran,ran dog a\n", "'first', 'second'"),
        ("a.txt", "a dog ran\nthe cat sat\n", r"1 column without names \('a dog ran'\)"),
    ],
)
def test_columns_that_could_be_either_are_refused(
    tmp_path: Path, name: str, content: str, columns: str
) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=f"{columns}; name both columns, --good and --bad"):
        list(read_pairs(path))


def test_columns_of_minimal_pairs_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("w,r,k\nx,y,1\n", encoding="utf-8")
    pair = next(read_pairs(path, good="r", bad="w", kind="k"))
    assert (pair.good, pair.bad, pair.kind) == ("y", "x", "1")
    with pytest.raises(UsageError, match="both"):
        next(read_pairs(path, good="r"))
    with pytest.raises(DataError, match=r"a\.csv"):
        list(read_pairs(path, good="r", bad="nothing"))
