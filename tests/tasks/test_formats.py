"""Texts and pairs with labels out of every table; what is bad, and how it is told."""

import csv
import gzip
import io
import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from bertkit.errors import DataError, UsageError
from bertkit.tasks.formats import BadRows, Columns, Summary, open_rows, summarize
from bertkit.tasks.records import TextRow

Told = tuple[str, str | None, Any]


def file(folder: Path, name: str, content: str | bytes) -> str:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def read(path: str, task: str = "classify", **columns: Any) -> list[Told]:
    rows = list(open_rows(path, task, Columns(**columns)).rows())
    assert all(isinstance(row, TextRow) for row in rows)
    return [(row.text, row.pair, row.label) for row in rows if isinstance(row, TextRow)]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("label\ttext_a\n1\tgood\n0\tbad\n", [("good", None, "1"), ("bad", None, "0")]),
        ("label\ttext_a\ttext_b\n1\ta b\tc\n", [("a b", "c", "1")]),
        ("sentence\tlabel\nit 's fun \t1\n", [("it 's fun ", None, "1")]),
        ("\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\t\" a\tb\n",
         [('" a', "b", "1")]),
        ("index\tsentence1\tsentence2\tlabel\n9\ta\tb\tentailment\n", [("a", "b", "entailment")]),
        ("index\tquestion\tsentence\tlabel\n9\ta\tb\tentailment\n", [("a", "b", "entailment")]),
        ("id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t2\t3\ta\tb\t0\n",
         [("a", "b", "0")]),
        ("gj04\t1\t\tThe ball fell.\ngj04\t0\t*\tThe fell.\n",
         [("The ball fell.", None, "1"), ("The fell.", None, "0")]),
        ("index\tsentence\n0\tHe left.\n", [("He left.", None, None)]),
        ("开初婚未育证明\t初婚未育证明\t1\n谁知道她\t爱情\t0\n",
         [("开初婚未育证明", "初婚未育证明", "1"), ("谁知道她", "爱情", "0")]),
        ("pos\ta rather good film\nneg\tnot a good film at all\nneu\tit is a film, I think\n",
         [("a rather good film", None, "pos"), ("not a good film at all", None, "neg"),
          ("it is a film, I think", None, "neu")]),
    ],
)  # fmt: skip
def test_tab_separated(tmp_path: Path, content: str, expected: list[Told]) -> None:
    assert read(file(tmp_path, "a.tsv", content)) == expected
    assert read(file(tmp_path, "a.txt", content)) == expected


def test_csv_has_quotes_line_ends_in_them_and_a_header(tmp_path: Path) -> None:
    path = file(tmp_path, "a.csv", 'label,review\n1,"很快，""好吃"", 量大"\n0,"慢\n冷"\n')
    assert read(path) == [('很快，"好吃", 量大', None, "1"), ("慢\n冷", None, "0")]
    rows = list(open_rows(path, "classify").rows())
    assert [row.place.line for row in rows] == [2, 3]
    assert [row.id for row in rows] == ["0", "1"]


def test_json_lines_by_key(tmp_path: Path) -> None:
    lines = [
        {"id": "x7", "sentence1": "a", "sentence2": "b", "label": 1, "genre": "g"},
        {"id": 8, "sentence1": "c", "sentence2": "d", "label": True},
    ]
    path = file(tmp_path, "a.jsonl", "\n".join(map(json.dumps, lines)))
    assert read(path) == [("a", "b", "1"), ("c", "d", "true")]
    assert [row.id for row in open_rows(path, "classify").rows()] == ["x7", "8"]


def test_a_list_of_labels_is_multi_label(tmp_path: Path) -> None:
    path = file(
        tmp_path, "a.jsonl", '{"text":"a","labels":["x","y","x"]}\n{"text":"b","labels":[]}'
    )
    assert read(path) == [("a", None, ("x", "y")), ("b", None, ())]


def test_a_json_list_is_a_table_too(tmp_path: Path) -> None:
    content = json.dumps([{"text": "a", "label": "x"}, {"text": "b", "label": "y"}], indent=1)
    assert read(file(tmp_path, "a.json", content)) == [("a", None, "x"), ("b", None, "y")]
    wrapped = '{"version": 1, "data": ' + content + "}"
    assert read(file(tmp_path, "b.json", wrapped)) == [("a", None, "x"), ("b", None, "y")]


def test_labels_without_agreement_are_left_out_and_counted(tmp_path: Path) -> None:
    content = '{"text":"a","label":"-"}\n{"text":"b","label":"neutral"}\n'
    path = file(tmp_path, "a.jsonl", content)
    rows = open_rows(path, "classify")
    assert [row.label for row in rows.rows() if isinstance(row, TextRow)] == ["neutral"]
    assert rows.findings.counts.total() == 1
    assert f"{path}:1" in rows.findings.lines()[0]
    # Prediction wants every row, whatever its label.
    unlabelled = open_rows(path, "classify", labels=False)
    assert [r.label for r in unlabelled.rows() if isinstance(r, TextRow)] == [None, None]
    assert not unlabelled.labelled


def test_regression_takes_numbers(tmp_path: Path) -> None:
    path = file(tmp_path, "a.tsv", "sentence1\tsentence2\tscore\na\tb\t3.800\nc\td\t0\n")
    assert read(path, "regress") == [("a", "b", 3.8), ("c", "d", 0.0)]
    bad = file(tmp_path, "b.tsv", "text\tscore\na\t3\nb\tnan\n")
    with pytest.raises(DataError, match=r"b\.tsv:3: no number"):
        read(bad, "regress")
    words = open_rows(file(tmp_path, "c.tsv", "text\tscore\na\tgood\nb\tbad\n"), "regress")
    with pytest.raises(
        DataError, match="must be numbers for regress; the column score begins with 'good'"
    ):
        next(words.rows(BadRows()))


def test_parquet_and_arrow_with_names_of_classes(tmp_path: Path) -> None:
    features = {"label": {"names": ["neg", "pos"], "_type": "ClassLabel"}}
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table({"text": ["a", "b"], "label": [1, 0]}).replace_schema_metadata(about)
    pq.write_table(table, tmp_path / "a.parquet")
    with (
        pa.OSFile(str(tmp_path / "a.arrow"), "wb") as out,
        pa.ipc.new_stream(out, table.schema) as w,
    ):
        w.write_table(table)
    for name in ("a.parquet", "a.arrow"):
        assert read(str(tmp_path / name)) == [("a", None, "pos"), ("b", None, "neg")]
    with pytest.raises(DataError, match="cannot be read as parquet"):
        read(file(tmp_path, "b.parquet", "no"))


def test_compressed_files(tmp_path: Path) -> None:
    content = b"label\ttext\n1\tgood\n"
    for name, packed in (
        ("a.tsv.gz", gzip.compress(content)),
        ("a.tsv.zst", zstandard.compress(content)),
    ):
        assert read(file(tmp_path, name, packed)) == [("good", None, "1")]
    path = file(tmp_path, "b.tsv.gz", gzip.compress(content * 100)[:-12])
    with pytest.raises(DataError, match=r"b\.tsv\.gz"):
        read(path)


def test_standard_input_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def given_in(content: str) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content.encode())))

    given_in("label\ttext\n1\tgood\n0\tbad\n")
    rows = open_rows("-", "classify")
    assert [row.place.line for row in rows.rows()] == [2, 3]
    with pytest.raises(DataError, match="once"):
        list(rows.rows())
    given_in('[{"text": "a"}, {"text": "b"}]')
    assert read("-") == [("a", None, None), ("b", None, None)]


def test_standard_input_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(io.RawIOBase):
        sent = 0

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            line = f"text {self.sent}\n".encode()
            self.sent += 1
            buffer[: len(line)] = line
            return len(line)

    slow = Slow()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(slow)))
    rows = open_rows("-", "classify").rows()
    for expected in range(3):
        row = next(rows)
        assert isinstance(row, TextRow)
        assert row.text == f"text {expected}"
        assert slow.sent <= expected + 2


def test_plain_lines_are_texts(tmp_path: Path) -> None:
    path = file(tmp_path, "a.txt", "One.\n\nTwo, three.\n")
    assert read(path) == [("One.", None, None), ("Two, three.", None, None)]
    assert read(file(tmp_path, "b.txt", "a\tb\n"), format="lines") == [("a\tb", None, None)]


def test_columns_are_named_by_the_user(tmp_path: Path) -> None:
    path = file(tmp_path, "a.tsv", "wer\twas\twie\nich\tlaufe\tgern\n")
    assert read(path, text="was", label="wie") == [("laufe", None, "gern")]
    assert read(path, text="2", label="1", header=False)[1] == ("laufe", None, "ich")
    with pytest.raises(DataError, match="no column 'wo'; there are"):
        read(path, text="wo")
    with pytest.raises(UsageError, match="no format"):
        Columns(format="xml")


def test_what_cannot_be_told_is_an_error_that_names_the_columns(tmp_path: Path) -> None:
    path = file(
        tmp_path, "a.csv", "wer,was,wie,wo,wann,zahl\na,b,c,d,e,1\nf,g,h,i,j,2\nf,g,h,i,j,2\n"
    )
    with pytest.raises(DataError, match="cannot tell which column is the text: there are 'wer'"):
        read(path)
    said = r"5 columns without names \('a', 'b', 'c', 'd', 'e'\); say --text, --pair, --label"
    with pytest.raises(DataError, match=said):
        read(file(tmp_path, "b.tsv", "a\tb\tc\td\te\nf\tg\th\ti\tj\n"))
    rows = "".join(f"{i} is a long text,{i} is another text,and {i} a third\n" for i in range(9))
    path = file(tmp_path, "c.csv", "foo,bar,baz\n" + rows)
    said = r"column is the label: there are 3 columns without names \('foo', 'bar', 'baz'\); say"
    with pytest.raises(DataError, match=said + ".* or with names if the first line has them"):
        read(path)
    assert read(path, text="foo", label="baz")[0] == ("0 is a long text", None, "and 0 a third")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", b"label\ttext\n1\t \n", "a.tsv:2: empty text"),
        ("a.tsv", b"label\ttext\n1\n", "a.tsv:2: columns: 1 of them here, 2"),
        ("a.tsv", b"label\ttext\n\tx\n", "a.tsv:2: no label: label is empty"),
        ("a.tsv", b"label\ttext\n1\t\xff\n", "a.tsv:2: bad encoding: not UTF-8 at byte 3"),
        ("a.tsv", b"label\ttext\n1\ta\0b\n", "a.tsv:2: NUL"),
        ("a.tsv", b"label\tlabel\n1\t2\n", "stands twice"),
        ("a.csv", b'label,text\n1,"open\n2,b\n', "a.csv:2: broken CSV: the file ends inside"),
        ("a.jsonl", b'{"text":"a","label":1}\n{"text":\n', "a.jsonl:2: broken JSON"),
        ("a.jsonl", b'{"text":"a","label":1}\n[1]\n', "a.jsonl:2: broken JSON: an object"),
        (
            "a.jsonl",
            b'{"text":"a","label":1}\n{"label":1}\n',
            "a.jsonl:2: no text: text is missing",
        ),
        ("a.jsonl", b'{"text":"a","label":1}\n{"text":3,"label":1}\n', "a.jsonl:2: no text"),
        ("a.jsonl", b'{"text":"a","label":1}\n{"text":"b","label":{}}\n', "a.jsonl:2: no label"),
        ("a.json", b'[{"text":"a","label":1},\n {"text"]\n', "a.json:2: broken JSON"),
        ("a.tsv", b"", "empty file"),
        ("a.tsv", b"label\ttext\n", "no rows"),
    ],
)
def test_bad_input_is_one_line_with_its_place(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    with pytest.raises(DataError, match=message.replace(".", r"\.")) as caught:
        read(file(tmp_path, name, content))
    assert "\n" not in str(caught.value)


def test_bad_rows_are_skipped_and_counted_when_asked(tmp_path: Path) -> None:
    content = b"label\ttext\n1\tgood\n1\n0\t\n\xff\xff\n0\tbad\n"
    path = file(tmp_path, "a.tsv", content)
    bad = BadRows()
    rows = list(open_rows(path, "classify").rows(bad))
    assert [row.text for row in rows if isinstance(row, TextRow)] == ["good", "bad"]
    assert [place.line for place, _ in bad] == [3, 4, 5]
    assert len(bad) == 3
    assert len(bad.lines()) == 3


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        open_rows(tmp_path / "no.tsv", "classify")
    with pytest.raises(DataError, match="folder"):
        open_rows(tmp_path, "classify")


def test_long_texts_and_odd_line_ends(tmp_path: Path) -> None:
    long = "字" * 100_000
    path = file(tmp_path, "a.tsv", f"label\ttext\r\n1\t{long}\r\n0\ta\u2028b\x85c\r\n")
    assert read(path) == [(long, None, "1"), ("a\u2028b\x85c", None, "0")]


def test_what_was_understood_is_told(tmp_path: Path) -> None:
    path = file(tmp_path, "a.tsv", "index\tsentence1\tsentence2\tscore\n1\ta\tb\t5\n")
    assert open_rows(path, "regress").describe() == [
        "tab-separated",
        "id: index; text: sentence1; pair: sentence2; label: score",
    ]
    path = file(tmp_path, "b.tsv", "1\tgood\n0\tbad\n")
    told = ["tab-separated, no header", "text: column 2 ('good' ...); label: column 1 ('1' ...)"]
    assert open_rows(path, "classify").describe() == told


def test_summaries_count_labels_and_lengths(tmp_path: Path) -> None:
    path = file(tmp_path, "a.tsv", "label\ttext\n1\tgood\n0\tbad\n1\tvery good\n")
    assert summarize(open_rows(path, "classify").rows()).lines() == [
        "3 rows",
        "labels: 1 2, 0 1",
        "characters: median 4, 95% up to 9, longest 9",
    ]
    numbers = summarize(open_rows(path, "regress").rows())
    assert numbers.lines()[1] == "labels: numbers from 0 to 1"
    assert Summary().lines() == ["0 rows"]


TEXT = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), min_size=1
).filter(str.strip)
NAME = st.text("abcDEF-_ 01中文", min_size=1, max_size=12).map(str.strip).filter(
    lambda name: name not in ("", "-")
)  # fmt: skip
PAIRED = st.lists(st.tuples(TEXT, TEXT, NAME), min_size=1, max_size=6)


@given(rows=PAIRED)
def test_csv_and_json_lines_give_back_what_was_written(
    rows: list[Told], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp()
    with open(folder / "r.csv", "w", encoding="utf-8", newline="") as out:
        csv.writer(out, lineterminator="\n").writerows([("text_a", "text_b", "label"), *rows])
    assert read(str(folder / "r.csv")) == rows
    keys = ("text_a", "text_b", "label")
    objects = [dict(zip(keys, row, strict=True)) for row in rows]
    for name, ascii_only in (("r.jsonl", True), ("s.jsonl", False)):
        lines = [json.dumps(one, ensure_ascii=ascii_only) for one in objects]
        assert read(file(folder, name, "\n".join(lines))) == rows
    assert read(file(folder, "r.json", json.dumps(objects, indent=2))) == rows


@given(rows=PAIRED)
def test_tsv_gives_back_what_was_written(
    rows: list[Told], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp()
    rows = [tuple(str(c).replace("\t", " ").replace("\n", " ") for c in r) for r in rows]  # type: ignore[misc]
    rows = [row for row in rows if all(str(cell).strip() for cell in row)] or [("a", "b", "c")]
    lines = ["label\ttext_a\ttext_b", *(f"{label}\t{a}\t{b}" for a, b, label in rows)]
    assert read(file(folder, "r.tsv", "\n".join(lines))) == rows


@pytest.mark.parametrize("task", ["classify", "tag"])
def test_every_line_of_a_text_is_accounted_for(task: str, tmp_path: Path) -> None:
    opened = open_rows(file(tmp_path, "a.txt", "one text\n\n \nand a fourth line\n\n"), task)
    rows = list(opened.rows())
    assert [(row.id, row.place.line) for row in rows] == [("0", 1), ("3", 4)]
    assert [place.line for place, _ in opened.findings] == [2, 3, 5]
    assert opened.findings.counts == {"blank lines, passed over": 3}


def test_rows_keep_their_numbers_behind_a_bad_one(tmp_path: Path) -> None:
    for name, content in (
        ("a.jsonl", '{"text": "a"}\n{"text": ""}\n{\n{"text": "d"}\n'),
        ("a.tsv", "text\tlabel\na\tx\n\ty\nb\nd\tx\n"),
        ("a.json", '[{"text": "a"}, {"text": ""}, 3, {"text": "d"}]'),
    ):
        bad = BadRows()
        rows = list(open_rows(file(tmp_path, name, content), "classify", labels=False).rows(bad))
        assert ([row.id for row in rows], len(bad)) == (["0", "3"], 2), name
