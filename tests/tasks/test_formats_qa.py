"""Questions out of SQuAD's JSON and its kin, and choices out of SWAG, RACE, C3, ARC."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertkit.errors import DataError
from bertkit.tasks.formats import BadRows, Columns, RowFile, open_rows, summarize
from bertkit.tasks.records import Answer, ChoiceRow, QuestionRow
from bertkit.tasks.squad import nearest
from tests.tasks.test_formats import file

CONTEXT = "Bonn lies on the Rhine. Bonn was the capital; 波恩曾是首都。"


def dump(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def squad(*questions: dict[str, Any], context: str = CONTEXT) -> str:
    paragraph = {"context": context, "qas": list(questions)}
    return dump({"version": "v2.0", "data": [{"title": "Bonn", "paragraphs": [paragraph]}]})


def question(identity: Any, *answers: tuple[str, int], **more: Any) -> dict[str, Any]:
    given = [{"text": text, "answer_start": start} for text, start in answers]
    return {"id": identity, "question": "Where?", "answers": given, **more}


def questions(opened: RowFile, bad: BadRows | None = None) -> list[QuestionRow]:
    return [row for row in opened.rows(bad) if isinstance(row, QuestionRow)]


def choices(path: str, **columns: Any) -> list[ChoiceRow]:
    rows = open_rows(path, "choose", Columns(**columns)).rows()
    return [row for row in rows if isinstance(row, ChoiceRow)]


def test_squad(tmp_path: Path) -> None:
    content = squad(
        question("a", ("the Rhine", 13), ("Rhine", 17)),
        question(7, is_impossible=True),
        {"id": "c", "question": "Who?"},
    )
    opened = open_rows(file(tmp_path, "a.json", content), "qa")
    assert opened.describe() == ["SQuAD 2.0 JSON"]
    a, b, c = questions(opened)
    assert (a.answers, a.is_impossible) == ((Answer("the Rhine", 13), Answer("Rhine", 17)), False)
    assert (b.id, b.answers, b.is_impossible) == ("7", (), True)
    assert (c.answers, c.is_impossible) == (None, False)
    lines = [row.place.line for row in (a, b, c)]
    assert lines == [f"question {n} ({row.id})" for n, row in enumerate((a, b, c), 1)]
    assert all(row.context == CONTEXT for row in (a, b, c))
    unlabelled = open_rows(str(tmp_path / "a.json"), "qa", labels=False)
    assert [row.answers for row in questions(unlabelled)] == [None, None, None]


def test_answers_are_looked_for_near_the_place_given(tmp_path: Path) -> None:
    content = squad(
        question("a", ("Bonn", 23)),
        question("b", ("Bonn", 3), ("首都", -1), (" Rhine ", 0)),
        question("c", ("Berlin", -1), ("Rhine", 17)),
    )
    opened = open_rows(file(tmp_path, "a.json", content), "qa")
    a, b, c = questions(opened)
    assert a.answers == (Answer("Bonn", 24),)
    assert b.answers == (Answer("Bonn", 0), Answer("首都", 50), Answer("Rhine", 17))
    assert c.answers == (Answer("Berlin", -1), Answer("Rhine", 17))
    assert opened.findings.counts == {
        "answers found near the place given": 3,
        "questions with an answer that is not in the passage": 1,
    }


@given(context=st.text("ab", max_size=12), text=st.text("ab", min_size=1, max_size=3),
       start=st.integers(-1, 14))  # fmt: skip
def test_nearest_is_nearest(context: str, text: str, start: int) -> None:
    places = [i for i in range(len(context)) if context.startswith(text, i)]
    found = nearest(context, text, start)
    if places:
        assert found in places
        assert abs(found - max(start, 0)) == min(abs(i - max(start, 0)) for i in places)
    else:
        assert found == -1


def test_the_own_layout_of_cmrc(tmp_path: Path) -> None:
    qas = [{"query_id": "T_0_Q_0", "query_text": "在哪？", "answers": ["首都", "没有"]}]
    content = [{"context_id": "T_0", "context_text": CONTEXT, "title": "波恩", "qas": qas}]
    opened = open_rows(file(tmp_path, "a.json", dump(content, 2)), "qa")
    assert opened.describe() == ["CMRC 2018 JSON"]
    [row] = questions(opened)
    assert (row.id, row.question, row.context) == ("T_0_Q_0", "在哪？", CONTEXT)
    assert row.answers == (Answer("首都", 50), Answer("没有", -1))


def test_flat_tables(tmp_path: Path) -> None:
    record = {"id": "x", "title": "Bonn", "context": CONTEXT, "question": "Where?",
              "answers": {"text": ["Rhine"], "answer_start": [17]}}  # fmt: skip
    nothing = {**record, "id": "y", "answers": {"text": [], "answer_start": []}}
    pq.write_table(pa.Table.from_pylist([record, nothing]), tmp_path / "a.parquet")
    lines = file(tmp_path, "a.jsonl", dump(record) + "\n" + dump(nothing))
    for path in (lines, str(tmp_path / "a.parquet")):
        x, y = questions(open_rows(path, "qa"))
        assert (x.id, x.answers, x.is_impossible) == ("x", (Answer("Rhine", 17),), False)
        assert (y.answers, y.is_impossible) == ((), True)
    plain = {"question": "Where?", "context": CONTEXT, "answer": "Rhine"}
    [row] = questions(open_rows(file(tmp_path, "b.jsonl", dump(plain)), "qa"))
    assert (row.id, row.answers) == ("0", (Answer("Rhine", 17),))
    for name, content in (
        ("c.jsonl", dump({"question": "Where?", "context": CONTEXT})),
        ("c.csv", f'question,context\nWhere?,"{CONTEXT}"\n'),
        ("c.txt", f"Where?\t{CONTEXT}\n"),
    ):
        [row] = questions(open_rows(file(tmp_path, name, content), "qa"))
        assert (row.question, row.context, row.answers) == ("Where?", CONTEXT, None)
    path = file(tmp_path, "d.jsonl", dump({"frage": "Wo?", "stelle": CONTEXT}))
    with pytest.raises(DataError, match=r"for the question, .*'frage', 'stelle'"):
        open_rows(path, "qa")
    [row] = questions(open_rows(path, "qa", Columns(text="frage", pair="stelle")))
    assert row.question == "Wo?"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (squad(question("a"), question("a")), r"a\.json, question 2 \(a\): duplicate id: 'a'"),
        (squad(question("a"), context=" "), r"a\.json, question 1 \(a\): empty text"),
        (squad({"id": "a"}), r"a\.json, question 1 \(a\): no text: question is missing"),
        (squad(question("a")) + "]", r"a\.json:1: broken JSON"),
        (dump({"data": [{"paragraphs": [{"context": CONTEXT}]}]}), "no list 'qas'"),
        (dump({"data": [{"paragraphs": 5}]}), "a list of paragraphs is expected"),
        (squad({"id": "a", "question": "b", "answers": [3]}), "bad answer"),
    ],
)
def test_bad_questions(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        questions(open_rows(file(tmp_path, "a.json", content), "qa"))


def test_bad_questions_are_skipped_and_counted_when_asked(tmp_path: Path) -> None:
    content = squad(question("a"), question("a"), {"id": "b"}, question("c"))
    bad = BadRows()
    rows = questions(open_rows(file(tmp_path, "a.json", content), "qa"), bad)
    assert [row.id for row in rows] == ["a", "c"]
    assert [place.line for place, _ in bad] == ["question 2 (a)", "question 3 (b)"]
    summary = summarize(rows)
    assert summary.labels == {"without an answer": 2}


@given(data=st.data(), context=st.text(min_size=1, max_size=40).filter(str.strip))
def test_squad_gives_back_what_was_written(
    data: st.DataObject, context: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if "\0" in context:
        return
    start = data.draw(st.integers(0, len(context) - 1))
    text = context[start : data.draw(st.integers(start + 1, len(context)))]
    if not text.strip():
        return
    for indent in (None, 1):
        value = json.loads(squad(question("a", (text, start)), context=context))
        content = json.dumps(value, indent=indent)
        [row] = questions(open_rows(file(tmp_path_factory.getbasetemp(), "r.json", content), "qa"))
        assert (row.context, row.answers) == (context, (Answer(text, start),))


SWAG = (
    ",video-id,fold-ind,startphrase,sent1,sent2,gold-source,ending0,ending1,ending2,ending3,label\n"
    '0,v,1,"A man sits. He","A man sits.",He,gold,"runs, fast",eats,sings,sleeps,2\n'
)


def test_swag(tmp_path: Path) -> None:
    [row] = choices(file(tmp_path, "a.csv", SWAG))
    assert (row.id, row.context, row.question) == ("0", "A man sits.", "He")
    assert row.choices == ("runs, fast", "eats", "sings", "sleeps")
    assert row.label == 2


@pytest.mark.parametrize(
    "record",
    [
        {"context": "C", "question": "Q", "choices": ["x", "y", "z"], "label": 1},
        {"article": "C", "question": "Q", "options": ["x", "y", "z"], "answer": "B"},
        {"context": "C", "question": "Q", "ending0": "x", "ending1": "y", "ending2": "z",
         "label": "1"},
        {"passage": "C", "question": "Q", "choice1": "x", "choice2": "y", "choice3": "z",
         "label": 1},
        {"context": "C", "question": "Q", "option_a": "x", "option_b": "y", "option_c": "z",
         "answer": "b"},
        {"context": ["C"], "question": "Q", "choice": ["x", "y", "z"], "answer": "y"},
        {"context": "C", "question": "Q", "answerKey": "2",
         "choices": {"text": ["x", "y", "z"], "label": ["1", "2", "3"]}},
        {"context": "C", "question": "Q", "choices": [
            {"text": "x", "label": "A"}, {"text": "y", "label": "B"}, {"text": "z", "label": "C"}],
         "answerKey": "B"},
        {"article": "C", "questions": ["Q"], "options": [["x", "y", "z"]], "answers": ["B"]},
    ],
)  # fmt: skip
def test_choices_by_key(tmp_path: Path, record: dict[str, Any]) -> None:
    for name in ("a.jsonl", "a.json"):
        [row] = choices(file(tmp_path, name, dump(record)))
        assert (row.context, row.question, row.choices, row.label) == ("C", "Q", ("x", "y", "z"), 1)
    [row] = choices(file(tmp_path, "b.json", dump(record, 2)))
    assert row.label == 1


def test_race_has_several_questions_to_an_article(tmp_path: Path) -> None:
    record = {"id": "high1", "article": "C", "questions": ["Q", "R"],
              "options": [["x", "y"], ["v", "w"]], "answers": ["B", "A"]}  # fmt: skip
    first, second = choices(file(tmp_path, "a.txt", dump(record)))
    assert (first.id, first.choices, first.label) == ("high1-0", ("x", "y"), 1)
    assert (second.id, second.question, second.label) == ("high1-1", "R", 0)


def test_c3(tmp_path: Path) -> None:
    one = {"question": "谁？", "choice": ["甲", "乙"], "answer": "乙"}
    content = [[["男：你好。", "女：好。"], [one, {**one, "answer": "甲"}], "3-1"]]
    path = file(tmp_path, "a.json", dump(content, 1))
    first, second = choices(path)
    assert (first.context, first.question, first.label) == ("男：你好。\n女：好。", "谁？", 1)
    assert (second.id, second.label) == ("3-1-1", 0)
    assert open_rows(path, "choose").describe() == ["C3 JSON"]


def test_choices_for_prediction(tmp_path: Path) -> None:
    [row] = choices(file(tmp_path, "a.txt", "He sat\tand ate.\tand the sky.\n"))
    assert (row.context, row.choices, row.label) == ("He sat", ("and ate.", "and the sky."), None)
    [row] = choices(file(tmp_path, "b.jsonl", dump({"context": "C", "choices": ["x", "y"]})))
    assert (row.question, row.label) == ("", None)
    [unlabelled] = open_rows(file(tmp_path, "c.csv", SWAG), "choose", labels=False).rows()
    assert isinstance(unlabelled, ChoiceRow)
    assert unlabelled.label is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": 3}, r"a\.jsonl:2: bad label: 3 names none of 3 choices"),
        ({"label": "D"}, "bad label"),
        ({"label": None}, "bad label"),
        ({"choices": ["x"]}, "choices: 1 of them"),
        ({"choices": ["x", " "]}, "a choice is blank"),
        ({"context": 5}, "not a string"),
        ({"context": "", "question": ""}, "neither a context nor a question"),
    ],
)
def test_bad_choices(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    good = {"context": "C", "question": "Q", "choices": ["x", "y", "z"], "label": 0}
    path = file(tmp_path, "a.jsonl", dump(good) + "\n" + dump({**good, **change}))
    with pytest.raises(DataError, match=message):
        choices(path)
    bad = BadRows()
    assert len(list(open_rows(path, "choose").rows(bad))) == 1
    assert len(bad) == 1


def test_no_choices_at_all(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column for choices; there are 'context'"):
        choices(file(tmp_path, "a.jsonl", dump({"context": "C", "label": 1})))
