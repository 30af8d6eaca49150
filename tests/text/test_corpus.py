import bz2
import gzip
import io
import json
import lzma
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from bertkit.errors import DataError, UsageError
from bertkit.text import corpus
from bertkit.text.corpus import (
    CorpusOptions,
    CorpusReport,
    read_documents,
)
from bertkit.text.sources import expand_sources

SKIP = CorpusOptions(skip_bad_rows=True)


def paragraphs(*sources: object, **options: object) -> list[list[str]]:
    chosen = CorpusOptions(**options)  # type: ignore[arg-type]
    return [list(d.paragraphs) for d in read_documents([str(s) for s in sources], chosen)]


def file(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_blank_lines_bound_documents(tmp_path: Path) -> None:
    path = file(tmp_path, "a.txt", "\n\none\n two \n \t\nthree\n\n\n\nfour")
    documents = list(read_documents([str(path)]))
    assert [d.paragraphs for d in documents] == [("one", "two"), ("three",), ("four",)]
    assert [d.line for d in documents] == [3, 6, 10]
    assert {d.source for d in documents} == {str(path)}


def test_what_a_document_is_can_be_told(tmp_path: Path) -> None:
    plain = file(tmp_path, "a.txt", "one\ntwo\nthree\n")
    blank = file(tmp_path, "b.txt", "one\n\ntwo\nthree\n")
    assert paragraphs(plain) == [["one", "two", "three"]]
    assert paragraphs(plain, documents="line") == [["one"], ["two"], ["three"]]
    assert paragraphs(blank, documents="line") == [["one"], ["two"], ["three"]]
    assert paragraphs(blank, documents="file") == [["one", "two", "three"]]
    assert paragraphs(blank) == [["one"], ["two", "three"]]


def test_a_byte_order_mark_and_windows_line_ends_leave_no_trace(tmp_path: Path) -> None:
    path = file(tmp_path, "a.txt", b"\xef\xbb\xbfone\r\ntwo\r\n\r\nthree\r\n")
    assert paragraphs(path) == [["one", "two"], ["three"]]
    rows = file(tmp_path, "a.csv", b"\xef\xbb\xbftext,n\r\none,1\r\n")
    assert paragraphs(rows) == [["one"]]


ROWS = ["one", "two\n\nthree", 'quote " and , comma', "中文。"]
WANTED = [["one"], ["two", "three"], ['quote " and , comma'], ["中文。"]]


def as_csv(rows: list[str]) -> str:
    quoted = ('"' + r.replace('"', '""') + '"' for r in rows)
    return "id,body\n" + "".join(f"{i},{q}\n" for i, q in enumerate(quoted))


def as_parquet(rows: list[str]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"id": range(len(rows)), "body": rows}), sink, row_group_size=2)
    return sink.getvalue()


def as_arrow(rows: list[str]) -> bytes:
    table = pa.table({"body": rows})
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return sink.getvalue()


def as_arrow_file(rows: list[str]) -> bytes:
    table = pa.table({"body": rows})
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return sink.getvalue()


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.jsonl", lambda rows: "".join(json.dumps({"body": r}) + "\n\n" for r in rows)),
        (
            "a.ndjson",
            lambda rows: "".join(json.dumps({"body": r.split("\n")}) + "\n" for r in rows),
        ),
        ("a.csv", as_csv),
        ("a.parquet", as_parquet),
        ("a.arrow", as_arrow),
        ("b.arrow", as_arrow_file),
    ],
)
def test_rows(tmp_path: Path, name: str, write: Callable[[list[str]], str | bytes]) -> None:
    path = file(tmp_path, name, write(ROWS))
    assert paragraphs(path, field="body") == WANTED
    with pytest.raises(DataError, match=rf"{name}:?\d*: .*no (field|column) 'text'.*'body'"):
        paragraphs(path)


def test_quotes_in_tsv_are_plain(tmp_path: Path) -> None:
    path = file(tmp_path, "a.tsv", 'n\ttext\n1\t"open\n2\tsay "x"\n')
    assert paragraphs(path) == [['"open'], ['say "x"']]


def zstd(data: bytes) -> bytes:
    half = len(data) // 2
    pack = zstandard.ZstdCompressor().compress
    return pack(data[:half]) + pack(data[half:])


PACKERS = [
    (".gz", lambda d: gzip.compress(d[:5]) + gzip.compress(d[5:])),
    (".zst", zstd),
    (".bz2", bz2.compress),
    (".xz", lzma.compress),
]


@pytest.mark.parametrize(("ending", "pack"), PACKERS)
def test_compressed(tmp_path: Path, ending: str, pack: Callable[[bytes], bytes]) -> None:
    text = "one\n\ntwo\n" * 20_000
    path = file(tmp_path, "a.txt" + ending, pack(text.encode()))
    assert len(paragraphs(path)) == 20_001
    row = json.dumps({"text": "one"}).encode()
    assert paragraphs(file(tmp_path, "a.jsonl" + ending, pack(row))) == [["one"]]
    cut = file(tmp_path, "b.txt" + ending, pack(text.encode())[:-20])
    with pytest.raises(DataError, match=rf"b\.txt{ending}:\d+: broken file"):
        paragraphs(cut)
    report = CorpusReport()
    list(read_documents([str(cut)], SKIP, report))
    assert report.skipped == {"broken file": 1}
    junk = file(tmp_path, "c.txt" + ending, b"this was never compressed")
    with pytest.raises(DataError, match=r"c\.txt"):
        paragraphs(junk)


BAD = [
    ("a.txt", b"good\n\nb\xffd\n\nfine\n", 3, "bad encoding"),
    ("a.txt", b"good\n\nb\0d\n\nfine\n", 3, "NUL"),
    ("a.txt", b"good\n\n" + b"x" * 1001 + b"\n\nfine\n", 3, "line too long"),
    ("a.txt", b"good\n\n" + b"x" * 9999 + b"\n\nfine\n", 3, "line too long"),
    ("a.txt", b"good\n\n" + b"x" * 9999 + b"\0\n\nfine\n", 3, "line too long"),
    ("a.jsonl", b'{"text": "good"}\n{"text": "bro\n{"text": "fine"}\n', 2, "broken JSON"),
    ("a.jsonl", b'{"text": "good"}\n' + b"[" * 999 + b'\n{"text": "fine"}', 2, "broken JSON"),
    ("a.jsonl", b'{"text": "good"}\n["text"]\n{"text": "fine"}\n', 2, "broken JSON"),
    ("a.jsonl", b'{"text": "good"}\n{"txt": 1}\n{"text": "fine"}\n', 2, "missing field"),
    ("a.jsonl", b'{"text": "good"}\n{"text": 1}\n{"text": "fine"}\n', 2, "not text"),
    ("a.jsonl", b'{"text": "good"}\n{"text": null}\n{"text": "fine"}\n', 2, "not text"),
    ("a.jsonl", b'{"text": "good"}\n{"text": ["a", 1]}\n{"text": "fine"}\n', 2, "not text"),
    ("a.jsonl", b'{"text": "good"}\n{"text": "\\u0000"}\n{"text": "fine"}\n', 2, "NUL"),
    ("a.jsonl", b'{"text": "good"}\n{"text": "\\ud800"}\n{"text": "fine"}\n', 2, "bad encoding"),
    ("a.csv", b"n,text\n1,good\n2\n3,fine\n", 3, "missing field"),
    ("a.csv", b"n,text\n1,good\n2,b\xffd\n3,fine\n", 3, "bad encoding"),
    ("a.tsv", b"n\ttext\n1\tgood\n2\n3\tfine\n", 3, "missing field"),
]


@pytest.mark.parametrize(("name", "content", "line", "reason"), BAD)
def test_what_is_bad_is_named_or_counted(
    tmp_path: Path, name: str, content: bytes, line: int, reason: str
) -> None:
    path = file(tmp_path, name, content)
    with pytest.raises(DataError) as caught:
        paragraphs(path, max_line_chars=1000)
    assert str(caught.value).startswith(f"{path}:{line}: {reason}: ")
    assert "\n" not in str(caught.value)
    report = CorpusReport()
    options = CorpusOptions(max_line_chars=1000, skip_bad_rows=True)
    documents = list(read_documents([str(path)], options, report))
    assert [d.paragraphs for d in documents] == [("good",), ("fine",)]
    assert report.skipped == {reason: 1}
    assert report.first_bad[0].startswith(f"{path}:{line}: {reason}")
    assert (report.files, report.documents, report.characters) == (1, 2, 8)


def test_where_in_its_line_json_is_broken(tmp_path: Path) -> None:
    path = file(tmp_path, "a.jsonl", '{"text": "good"}\n{"text": "x" "n": 1}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:2: .*\(Expecting ',' delimiter at column 14\)"):
        paragraphs(path)


def test_a_bad_file_among_good_ones_is_named_or_counted(tmp_path: Path) -> None:
    whole = as_parquet(ROWS)
    bad = {
        "cut.parquet": (whole[: len(whole) // 2], "broken file"),
        "junk.txt.gz": (b"never compressed", "broken file"),
        "other.parquet": (whole, "file without the field"),
        "other.csv": (as_csv(ROWS).encode(), "file without the field"),
        "utf-16.txt": ("one\n".encode("utf-16"), "bad encoding"),
    }
    good = file(tmp_path, "good.csv", "text\nfine\n")
    for name, (content, reason) in bad.items():
        path = file(tmp_path, name, content)
        with pytest.raises(DataError, match=rf"{name}:?\d*: {reason}: .*--skip-bad-rows"):
            paragraphs(path, good)
    report = CorpusReport()
    documents = list(read_documents([str(tmp_path)], SKIP, report))
    assert [d.paragraphs for d in documents] == [("fine",)]
    assert report.skipped == {"broken file": 2, "file without the field": 2, "bad encoding": 1}


def test_utf_16_is_told_with_what_converts_it(tmp_path: Path) -> None:
    for encoding in ("utf-16-le", "utf-16-be"):
        path = file(tmp_path, "a.txt", "\ufeff中文 text\n".encode(encoding))
        with pytest.raises(DataError, match=r"this is UTF-16; .*iconv -f UTF-16 -t UTF-8 FILE"):
            paragraphs(path)


def test_an_open_quote_swallows_no_more_than_the_limit(tmp_path: Path) -> None:
    rows = "".join(f"{i},row {i} of many\n" for i in range(1000))
    path = file(tmp_path, "a.csv", 'n,text\n0,"open\n' + rows)
    with pytest.raises(DataError, match=r"broken CSV: .*is a quote left open"):
        paragraphs(path, max_line_chars=1000)
    report = CorpusReport()
    options = CorpusOptions(max_line_chars=1000, skip_bad_rows=True)
    assert len(list(read_documents([str(path)], options, report))) > 900
    assert report.skipped == {"broken CSV": 1}


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.txt.gz"])
def test_an_empty_file(tmp_path: Path, name: str) -> None:
    content = b" \n\n" if not name.endswith("gz") else gzip.compress(b"")
    content = b"text\n" if name.endswith("csv") else content
    path = file(tmp_path, name, content)
    with pytest.raises(DataError, match="empty file"):
        paragraphs(path)
    report = CorpusReport()
    assert list(read_documents([str(path)], SKIP, report)) == []
    assert report.skipped == {"empty file": 1}


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_table_that_is_none(tmp_path: Path, name: str) -> None:
    whole = as_parquet(ROWS) if name == "a.parquet" else as_arrow(ROWS)
    for content in (b"", b"junk" * 100, whole[: len(whole) // 2]):
        with pytest.raises(DataError, match=name):
            paragraphs(file(tmp_path, name, content), field="body")


def test_null_cells_are_bad_rows(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["one", None, "two"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet:2: not text: field 'text' is null"):
        paragraphs(tmp_path / "a.parquet")
    assert paragraphs(tmp_path / "a.parquet", skip_bad_rows=True) == [["one"], ["two"]]


def test_folders_and_globs(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "sub/c.jsonl", "sub/d.csv.gz", "sub/.hidden.txt", ".git/e.txt"):
        file(tmp_path, name, "x")
    file(tmp_path, "sub/picture.png", "x")
    names = ["a.txt", "b.txt", "sub/c.jsonl", "sub/d.csv.gz"]
    assert expand_sources([str(tmp_path)]) == [str(tmp_path / n) for n in names]
    assert expand_sources([f"{tmp_path}/*.txt"]) == [str(tmp_path / n) for n in names[:2]]
    assert expand_sources([f"{tmp_path}/**/*.jsonl"]) == [str(tmp_path / names[2])]
    assert expand_sources([f"{tmp_path}/s*"]) == [str(tmp_path / n) for n in names[2:]]
    both = [str(tmp_path / "b.txt"), str(tmp_path)]
    assert expand_sources(both) == [str(tmp_path / n) for n in ["b.txt", "a.txt", *names[2:]]]
    assert expand_sources(["-"]) == ["-"]
    (tmp_path / "none").mkdir()
    for source, what in [
        ("nothing.txt", "no such file"),
        ("*.nothing", "no such file"),
        ("none", "holds no text files"),
    ]:
        with pytest.raises(DataError, match=what):
            expand_sources([str(tmp_path / source)])
    with pytest.raises(DataError, match="no text was given"):
        expand_sources([])


def test_saved_hugging_face_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="what writes these folders is not installed")
    datasets.disable_progress_bars()
    train = datasets.Dataset.from_dict({"text": ["one", "two"], "n": [1, 2]})
    test = datasets.Dataset.from_dict({"text": ["three"], "n": [3]})
    train.save_to_disk(tmp_path / "plain", num_shards=2)
    datasets.DatasetDict(train=train, test=test).save_to_disk(tmp_path / "splits")
    datasets.DatasetDict(a=train, b=test).save_to_disk(tmp_path / "others")
    assert paragraphs(tmp_path / "plain") == [["one"], ["two"]]
    assert paragraphs(tmp_path / "splits") == [["one"], ["two"]]
    assert paragraphs(tmp_path / "splits" / "test") == [["three"]]
    assert paragraphs(tmp_path / "others") == [["one"], ["two"], ["three"]]


@pytest.mark.parametrize("name", ["../secret.txt", "/etc/passwd", "..", "", 1])
def test_a_dataset_folder_cannot_lead_elsewhere(tmp_path: Path, name: object) -> None:
    file(tmp_path, "d/state.json", json.dumps({"_data_files": [{"filename": name}]}))
    file(tmp_path, "d/dataset_info.json", "{}")
    with pytest.raises(DataError, match="not the record of a saved"):
        expand_sources([str(tmp_path / "d")])
    file(tmp_path, "e/dataset_dict.json", json.dumps({"splits": [name]}))
    with pytest.raises(DataError, match="not the record of a saved"):
        expand_sources([str(tmp_path / "e")])


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO("one\n\nzwölf\n".encode()), encoding="ascii")
    monkeypatch.setattr("sys.stdin", stream)
    assert paragraphs("-") == [["one"], ["zwölf"]]


def test_other_encodings(tmp_path: Path) -> None:
    path = file(tmp_path, "a.txt", "你好。\n再见。\n".encode("gb18030"))
    assert paragraphs(path, encoding="gb18030") == [["你好。", "再见。"]]
    with pytest.raises(DataError, match="bad encoding: not utf-8 at byte 1"):
        paragraphs(path)
    with pytest.raises(UsageError, match="convert it to UTF-8: iconv -f utf-16 -t UTF-8"):
        CorpusOptions(encoding="utf-16")
    with pytest.raises(UsageError, match="max_line_chars is 0"):
        CorpusOptions(max_line_chars=0)
    with pytest.raises(UsageError, match="no text encoding"):
        CorpusOptions(encoding="klingon")


def test_memory_stays_flat(tmp_path: Path) -> None:
    line = "All work and no play makes Jack a dull boy. " * 20
    small = file(tmp_path, "small.txt.gz", gzip.compress((line + "\n").encode() * 3_000))
    large = file(tmp_path, "large.txt.gz", gzip.compress((line + "\n").encode() * 30_000))
    bomb = file(tmp_path, "bomb.txt.gz", gzip.compress(bytes(30_000_000)))
    peaks = []
    for path in (small, large, bomb):
        tracemalloc.start()
        report = CorpusReport()
        for document in read_documents([str(path)], SKIP, report):
            assert sum(map(len, document.paragraphs)) <= corpus.MAX_DOCUMENT_CHARS
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert path == bomb or report.cut == report.documents - 1 > 0
    assert peaks[1] < 1.3 * peaks[0]
    assert peaks[2] < 20_000_000


LINE = st.text(st.characters(codec="utf-8", exclude_characters="\0\n"), max_size=8)


@settings(deadline=None)
@given(st.lists(LINE, max_size=12))
def test_every_line_comes_back_once(lines: list[str]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = file(Path(folder), "a.txt", "\n".join(["x", *lines]))
        read = [p for d in read_documents([str(path)]) for p in d.paragraphs]
        assert read == [t for line in ["x", *lines] if (t := line.strip())]
