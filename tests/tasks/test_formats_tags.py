"""Texts with entities out of CoNLL columns and JSON; offsets are the truth."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertkit.errors import DataError
from bertkit.tasks.conll import conll_lines
from bertkit.tasks.formats import BadRows, Columns, open_rows
from bertkit.tasks.options import TaskOptions
from bertkit.tasks.records import Place, Span, TagRow
from bertkit.tasks.tag import Tag
from tests.tasks.test_formats import file
from tests.tasks.tiny import tokenizer

Told = tuple[str, list[tuple[str, str]] | None]


def rows_of(path: str, **columns: Any) -> list[TagRow]:
    return [r for r in open_rows(path, "tag", Columns(**columns)).rows() if isinstance(r, TagRow)]


def read(path: str, **columns: Any) -> list[Told]:
    return [
        (row.text, None if row.entities is None else
         [(row.text[s.start : s.end], s.label) for s in row.entities])
        for row in rows_of(path, **columns)
    ]  # fmt: skip


ENGLISH = (
    "-DOCSTART- -X- O\n\nEU NNP B-ORG\nrejects VBZ O\nNew NNP B-LOC\nYork NNP I-LOC\n\n\n"
    "Peter NNP B-PER\n"
)
CHINESE = "中 B-ORG\n共 I-ORG\n  O\n在 O\n3 O\n京 B-LOC\n\n# O\n！ O\n"


def test_words_are_joined_by_spaces(tmp_path: Path) -> None:
    for content in (ENGLISH, ENGLISH.replace(" ", "\t"), ENGLISH.replace(" ", "  ")):
        path = file(tmp_path, "a.txt", content)
        assert read(path) == [
            ("EU rejects New York", [("EU", "ORG"), ("New York", "LOC")]),
            ("Peter", [("Peter", "PER")]),
        ]
        rows = rows_of(path)
        assert [row.place.line for row in rows] == [3, 9]
        assert rows[0].words == ((0, 2), (3, 10), (11, 14), (15, 19))


def test_characters_are_joined_by_nothing_and_spaces_survive(tmp_path: Path) -> None:
    expected = [("中共 在3京", [("中共", "ORG"), ("京", "LOC")]), ("#！", [])]
    assert read(file(tmp_path, "a.txt", CHINESE)) == expected
    tabs = "\n".join(line if not line else f"{line[0]}\t{line[2:]}" for line in CHINESE.split("\n"))
    assert read(file(tmp_path, "b.txt", tabs)) == expected
    # The space itself may have been lost from its line.
    assert read(file(tmp_path, "c.txt", tabs.replace(" \t", "\t"))) == expected


def test_odd_characters_are_words_like_others(tmp_path: Path) -> None:
    odd = ["\u3000", "\xa0", "\u2028", "\x85", "\u200b", "\ufeff", "👍🏽", "e\u0301", "“"]
    content = "a\tO\n" + "".join(f"{word}\tB-X\n" for word in odd)
    [row] = rows_of(file(tmp_path, "a.txt", content))
    assert row.entities is not None
    assert [row.text[s.start : s.end] for s in row.entities] == odd
    spaced = content.replace("\t", " ")
    [row] = rows_of(file(tmp_path, "b.txt", spaced))
    assert row.entities is not None
    assert [row.text[s.start : s.end] for s in row.entities] == odd


def test_the_joiner_and_the_columns_can_be_told(tmp_path: Path) -> None:
    path = file(tmp_path, "a.txt", ENGLISH)
    assert read(path, joiner="")[0][0] == "EUrejectsNewYork"
    assert read(path, label="2")[1] == ("Peter", [("Peter", "NNP")])
    with pytest.raises(DataError, match="no column '4': the file has 3"):
        read(path, label="4")
    words = file(tmp_path, "b.txt", "我们 B-X\n喜欢 O\n北京 B-Y\n\n你好 O\n")
    assert read(words)[0] == ("我们喜欢北京", [("我们", "X"), ("北京", "Y")])
    assert read(words, joiner=" ")[0][0] == "我们 喜欢 北京"


@pytest.mark.parametrize("scheme", ["BIO", "BIOS", "BIOES", "BMES", "BILOU"])
def test_schemes_are_told(tmp_path: Path, scheme: str) -> None:
    words = tuple((2 * i, 2 * i + 1) for i in range(6))
    entities = (Span(0, 5, "X"), Span(6, 7, "Y"), Span(8, 11, "Y"))
    row = TagRow("0", "a b c d e f", entities, words, Place("", 1))
    path = file(tmp_path, "a.txt", "\n".join(conll_lines(row, scheme)))
    opened = open_rows(path, "tag")
    assert opened.describe()[1].endswith(f"scheme: {scheme}")
    [again] = opened.rows()
    assert isinstance(again, TagRow)
    assert (again.text, again.entities) == ("abcdef", None) or again.words is not None
    assert read(path, joiner=" ")[0] == ("a b c d e f", [("a b c", "X"), ("d", "Y"), ("e f", "Y")])


def test_iob1_is_read_without_complaint(tmp_path: Path) -> None:
    content = "Bonn\tI-LOC\nand\tO\nNew\tI-LOC\nYork\tI-LOC\nOslo\tB-LOC\n"
    opened = open_rows(file(tmp_path, "a.txt", content), "tag")
    [row] = opened.rows()
    assert isinstance(row, TagRow)
    assert row.entities == (Span(0, 4, "LOC"), Span(9, 17, "LOC"), Span(18, 22, "LOC"))
    assert not opened.findings
    assert "IOB1" in opened.describe()[1]


def test_plain_labels_have_one_span_a_word(tmp_path: Path) -> None:
    path = file(tmp_path, "a.txt", "He\tPRP\nran\tVBD\n\nShe\tPRP\nsat\tVBD\n")
    assert read(path)[0] == ("He ran", [("He", "PRP"), ("ran", "VBD")])


def test_illegal_tags_are_read_as_conlleval_does_and_listed(tmp_path: Path) -> None:
    path = file(tmp_path, "a.txt", "a\tB-X\nb\tO\nc\tI-X\nd\tI-Y\n\ne\tB-X\nf\tB-Y\n")
    opened = open_rows(path, "tag")
    [first, _] = opened.rows()
    assert isinstance(first, TagRow)
    assert first.entities == (Span(0, 1, "X"), Span(2, 3, "X"), Span(3, 4, "Y"))
    assert [place.line for place, _ in opened.findings] == [3, 4]


def test_unlabelled_columns_and_lines(tmp_path: Path) -> None:
    assert read(file(tmp_path, "a.txt", "中\n国\n \n人\n\n你\n好\n")) == [
        ("中国 人", None),
        ("你好", None),
    ]
    assert read(file(tmp_path, "b.txt", "He\nran\n.\n\nShe\nsat\n.\n")) == [
        ("He ran .", None),
        ("She sat .", None),
    ]
    assert read(file(tmp_path, "c.txt", "He ran.\nShe sat down.\n")) == [
        ("He ran.", None),
        ("She sat down.", None),
    ]
    assert read(file(tmp_path, "d.txt", "我们走吧。\n\n他来了。\n")) == [
        ("我们走吧。", None),
        ("他来了。", None),
    ]
    assert read(file(tmp_path, "e.conll", "我们\n走\n")) == [("我们走", None)]
    assert rows_of(file(tmp_path, "f.txt", "He ran.\n"))[0].words is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\tO\nb\tB-X\nc\n", r"a\.txt:3: columns: 1 of them here, 2 in other lines"),
        ("a\tO\nb\tB-X\nc\tZ-X\n", "mixed schemes: tags with and without"),
        ("a\tB-X\nb\tM-X\nc\tI-X\nd\tE-X\n", "mixed schemes: the prefixes B, E, I, M"),
    ],
)
def test_bad_columns_and_tags(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(file(tmp_path, "a.txt", content))


def test_a_sentence_with_a_bad_line_is_skipped_whole(tmp_path: Path) -> None:
    good = "a\tO\nb\tB-X\n\n"
    path = file(tmp_path, "a.txt", good + "c\tO\nd\ne\tO\n\n" + good + "f\tQ-X\n\n\xff\tO\n")
    Path(path).write_bytes(Path(path).read_bytes().replace("\xff".encode(), b"\xff"))
    bad = BadRows()
    rows = list(open_rows(path, "tag", Columns(scheme="BIO")).rows(bad))
    assert [row.text for row in rows if isinstance(row, TagRow)] == ["ab", "ab"]
    assert [place.line for place, _ in bad] == [5, 11, 13]


TEXT = "浙商银行叶老桂博士，叶老桂"
CLUENER = {
    "text": TEXT,
    "label": {"name": {"叶老桂": [[4, 6], [10, 12]]}, "company": {"浙商银行": [[0, 3]]}},
}
GOLD = [("浙商银行", "company"), ("叶老桂", "name"), ("叶老桂", "name")]
PLACES = [(0, 4, "company"), (4, 7, "name"), (10, 13, "name")]
BIO = "B-company I-company I-company I-company B-name I-name I-name O O O B-name I-name I-name"
BMES = "B-company M-company M-company E-company B-name M-name E-name O O O B-name M-name E-name"


def objects(**keys: str) -> list[dict[str, Any]]:
    """The entities as objects with these keys; last is the last character, not the one behind."""
    return [
        {
            keys[name]: value
            for name, value in {
                "start": s, "end": e, "last": e - 1, "label": t, "word": TEXT[s:e],
            }.items()
            if name in keys
        }
        for s, e, t in PLACES
    ]  # fmt: skip


@pytest.mark.parametrize(
    "record",
    [
        CLUENER,
        {"id": 1, "text": TEXT, "label": [list(place) for place in PLACES]},
        {"text": TEXT, "labels": [list(place) for place in reversed(PLACES)]},
        {"text": TEXT, "entities": objects(start="start", end="end", label="label")},
        {"text": TEXT, "relations": [],
         "entities": objects(start="start_offset", end="end_offset", label="label")},
        {"text": TEXT, "entities":
         objects(start="start", end="end", label="entity_group", word="word")},
        {"text": TEXT, "entities":
         objects(start="start_idx", last="end_idx", label="type", word="entity")},
        {"tokens": list(TEXT), "ner_tags": BIO.split()},
        {"text": list(TEXT), "label": BMES.split()},
    ],
)  # fmt: skip
def test_json_layouts(tmp_path: Path, record: dict[str, Any]) -> None:
    line = json.dumps(record, ensure_ascii=False)
    expected = (TEXT, GOLD)
    assert read(file(tmp_path, "a.jsonl", line + "\n" + line)) == [expected, expected]
    assert read(file(tmp_path, "a.json", "[" + line + "]")) == [expected]
    if "entities" in record or "tokens" in record:  # the others do not fit into columns
        pq.write_table(pa.Table.from_pylist([record]), tmp_path / "a.parquet")
        assert read(str(tmp_path / "a.parquet")) == [expected]


def test_numbered_tags_take_their_names_from_the_file(tmp_path: Path) -> None:
    names = ["O", "B-PER", "I-PER"]
    feature = {"feature": {"names": names, "_type": "ClassLabel"}, "_type": "List"}
    about = {"huggingface": json.dumps({"info": {"features": {"ner_tags": feature}}})}
    table = pa.table({"tokens": [["I", "am", "Al", "Bo"]], "ner_tags": [[0, 0, 1, 2]]})
    pq.write_table(table.replace_schema_metadata(about), tmp_path / "a.parquet")
    assert read(str(tmp_path / "a.parquet")) == [("I am Al Bo", [("Al Bo", "PER")])]


def test_unlabelled_json(tmp_path: Path) -> None:
    assert read(file(tmp_path, "a.jsonl", '{"id": 5, "text": "a b"}\n')) == [("a b", None)]
    assert read(file(tmp_path, "a.csv", "id,text\n5,a b\n")) == [("a b", None)]


def test_entities_that_words_cannot_say_are_listed(tmp_path: Path) -> None:
    text = "an iPhone6 in Bonn"
    spans = [{"start": a, "end": b, "label": "X"} for a, b in ((3, 9), (14, 18), (10, 13))]
    path = file(tmp_path, "a.jsonl", json.dumps({"text": text, "entities": spans}))
    opened = open_rows(path, "tag")
    [row] = opened.rows()
    assert [(str(place), what) for place, what in opened.findings] == [
        (f"{path}:1", f"entities that do not begin and end with words: X {seen} is read as {read}")
        for seen, read in (("'iPhone'", "'iPhone6'"), ("' in'", "'in'"))
    ]
    task = Tag(tokenizer(), ["O", "B-X", "I-X"], TaskOptions(scheme="BIO"))
    assert isinstance(row, TagRow)
    assert task.unreachable(row) == [Span(3, 9, "X"), Span(10, 13, "X")]


def test_a_table_of_texts_with_labels_is_no_conll(tmp_path: Path) -> None:
    for text, words in (
        (
            "sentence\tlabel\na fine film\t1\nthe worst of all\t0\n",
            ["a fine film", "the worst of all"],
        ),
        (
            "label\ttext_a\n" + "1\t这家酒店的早餐非常丰富，服务员的态度也很好，下次还会来\n" * 3,
            None,
        ),
    ):
        opened = open_rows(file(tmp_path, "a.tsv", text), "tag")
        assert not opened.labelled
        assert words in (None, [row.text for row in opened.rows() if isinstance(row, TagRow)])


@pytest.mark.parametrize("task", ["classify", "regress", "qa", "choose"])
@pytest.mark.parametrize("name", ["a.conll", "a.txt"])
def test_words_with_tags_are_for_tag_alone(task: str, name: str, tmp_path: Path) -> None:
    for content in (ENGLISH, ENGLISH.replace(" ", "\t")):
        with pytest.raises(DataError, match=f"that is for tag, not for {task}"):
            open_rows(file(tmp_path, name, content), task)


def test_of_nested_and_overlapping_entities_the_longest_is_kept(tmp_path: Path) -> None:
    labels = [[4, 6, "B"], [0, 5, "A"], [0, 5, "C"], [1, 3, "D"], [0, 5, "A"], [6, 8, "E"]]
    path = file(tmp_path, "a.jsonl", json.dumps({"text": "abcdefgh", "label": labels}))
    opened = open_rows(path, "tag")
    [row] = opened.rows()
    assert isinstance(row, TagRow)
    assert row.entities == (Span(0, 5, "A"), Span(6, 8, "E"))
    assert opened.findings.counts == {
        "nested entities, the longest kept": 2,
        "overlapping entities, the longest kept": 1,
        "entities given twice": 1,
        "entities that do not begin and end with words": 2,
    }
    assert all(place == (path, 1) for place, _ in opened.findings)


@pytest.mark.parametrize(
    ("entity", "message"),
    [
        ([2, 9, "X"], r"a\.jsonl:2: bad entity: \[2, 9\] lies outside"),
        ([-1, 2, "X"], "lies outside"),
        ([2, 2, "X"], "empty or reversed"),
        ([3, 2, "X"], "empty or reversed"),
        (["1", 2, "X"], "no whole numbers"),
        ([1, 2, ""], "the type of"),
        ([1, 2], "is expected"),
        ({"start": 0, "end": 2, "label": "X", "word": "cd"}, "is not at"),
    ],
)
def test_bad_entities_are_told_by_line(tmp_path: Path, entity: Any, message: str) -> None:
    good = json.dumps({"text": "abcd", "label": [[0, 2, "X"]]})
    path = file(tmp_path, "a.jsonl", good + "\n" + json.dumps({"text": "abcd", "label": [entity]}))
    with pytest.raises(DataError, match=message):
        read(path)
    bad = BadRows()
    assert len(list(open_rows(path, "tag").rows(bad))) == 1
    assert [place.line for place, _ in bad] == [2]
    assert len(list(open_rows(path, "tag", labels=False).rows())) == 2


WORD = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0\r\n\t"), min_size=1, max_size=5
).filter(lambda word: not word.startswith(("#", "-DOCSTART-", "\ufeff")))
TAGGED = st.lists(st.tuples(WORD, st.sampled_from(["O", "X", "Y"])), min_size=1, max_size=8)


@given(sentences=st.lists(TAGGED, min_size=1, max_size=4), joiner=st.sampled_from(["", " "]))
def test_conll_gives_back_what_was_written(
    sentences: list[list[tuple[str, str]]], joiner: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    lines: list[str] = []
    expected = []
    for sentence in sentences:
        text = joiner.join(word for word, _ in sentence)
        if not text.strip():
            continue
        at, words, entities = 0, [], []
        for word, label in sentence:
            words.append((at, at + len(word)))
            if label != "O":
                entities.append(Span(at, at + len(word), label))
            at += len(word) + len(joiner)
        row = TagRow("0", text, tuple(entities), tuple(words), Place("", 1))
        expected.append((row.text, row.entities, row.words))
        lines += [*conll_lines(row, "BIOES"), ""]
    if not expected:
        return
    path = file(tmp_path_factory.getbasetemp(), "r.conll", "\n".join(lines))
    found = rows_of(path, joiner=joiner, scheme="BIOES")
    assert [(row.text, row.entities, row.words) for row in found] == expected


@given(data=st.data(), text=st.text(min_size=1, max_size=30).filter(str.strip))
def test_entities_in_json_give_back_what_was_written(
    data: st.DataObject, text: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if "\0" in text or not text.isprintable():
        return
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=6)))
    spans = [Span(a, b, "X") for a, b in zip(cuts[::2], cuts[1::2], strict=False)]
    inclusive: dict[str, Any] = {}
    for span in spans:
        inclusive.setdefault(text[span.start : span.end], []).append([span.start, span.end - 1])
    for record in (
        {"text": text, "label": [list(span) for span in spans]},
        {"text": text, "entities": [span._asdict() for span in spans]},
        {"text": text, "label": {"X": inclusive}},
    ):
        path = file(tmp_path_factory.getbasetemp(), "r.jsonl", json.dumps(record))
        [row] = rows_of(path)
        assert (row.text, row.entities) == (text, tuple(spans))
