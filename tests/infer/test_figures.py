"""Pictures, calibration, breakdowns, wrong cases and the report over a stream of rows."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import font_manager
from matplotlib.image import imread

from bertkit.errors import DataError
from bertkit.infer import figures
from bertkit.infer.breakdown import Breakdown, groups, labels, size_class
from bertkit.infer.calibration import Calibration
from bertkit.infer.report import Report
from bertkit.infer.wrong import WrongCases
from bertkit.tasks.answer_metrics import AnswerMeter
from bertkit.tasks.metrics import ChooseMeter, ClassifyMeter, RegressMeter
from bertkit.tasks.outcomes import records_table
from bertkit.tasks.records import Answer, ChoiceRow, Place, QuestionRow, Span, TagRow, TextRow
from bertkit.tasks.span_metrics import TagMeter
from bertkit.tasks.tag import Entities

PLACE = Place("dev.tsv", 3)


def text_row(label: Any, text: str = "text", number: int = 0) -> TextRow:
    return TextRow(str(number), text, None, label, Place("dev.tsv", number + 1))


def said(label: str, score: float) -> list[dict[str, Any]]:
    return [{"label": label, "score": score}]


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60))
def test_calibration_error_is_that_of_a_plain_loop(judgements: list[tuple[float, bool]]) -> None:
    calibration = Calibration()
    calibration.add(judgements)
    error = 0.0
    for number in range(15):
        inside = [(c, r) for c, r in judgements if max(int(np.ceil(c * 15)), 1) == number + 1]
        if inside:
            accuracy = sum(right for _, right in inside) / len(inside)
            confidence = sum(c for c, _ in inside) / len(inside)
            error += abs(accuracy - confidence) * len(inside) / len(judgements)
    assert calibration.error() == pytest.approx(error, abs=1e-12)
    assert calibration.counts.sum() == len(judgements)


def test_calibration_bins_and_ranks() -> None:
    first, second = Calibration(), Calibration()
    first.add([(0.0, False), (1.0, True), (0.2, True)])
    second.add([(0.2, False), (0.21, True)])
    first.merge(second)
    # 0.2 = 3 / 15 closes the third bin.
    assert first.counts.tolist() == [1, 0, 2, 1, *[0] * 10, 1]
    assert first.accuracy()[2] == 0.5
    assert first.table().rows[1] == ("0.13-0.20", "2", "0.2000", "0.5000")
    assert Calibration().error() == 0.0
    half = Calibration()
    half.add([(0.8, True), (0.8, False)])
    assert half.error() == pytest.approx(0.3)


def test_a_confusion_matrix_is_drawn(tmp_path: Path) -> None:
    matrix = np.array([[90, 10, 0], [30, 70, 0], [0, 0, 0]])
    notes = figures.draw_confusion(matrix, ["neg", "pos $x", "never"], tmp_path / "a.png")
    assert notes == []
    picture = imread(tmp_path / "a.png")
    assert picture.shape[0] > 200
    assert picture[..., :3].std() > 0.05
    many = np.diag(np.arange(1, 101))
    notes = figures.draw_confusion(many, [f"label {i}" for i in range(100)], tmp_path / "b.png")
    assert notes == ["the picture has the 80 most frequent labels; 20 are left out"]
    nothing = figures.draw_confusion(np.zeros((2, 2), int), ["a", "b"], tmp_path / "c.png")
    assert nothing == ["there is nothing to draw a confusion matrix of"]
    assert not (tmp_path / "c.png").exists()


@pytest.fixture
def chinese_font(tmp_path: Path) -> Any:
    """A font of two Chinese characters, installed for one test."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    pen = TTGlyphPen(None)
    for i, point in enumerate([(100, 0), (100, 900), (900, 900), (900, 0)]):
        (pen.lineTo if i else pen.moveTo)(point)
    pen.closePath()
    glyph = pen.glyph()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "zheng", "fu"])
    builder.setupCharacterMap({ord("正"): "zheng", ord("负"): "fu"})
    builder.setupGlyf(dict.fromkeys([".notdef", "zheng", "fu"], glyph))
    builder.setupHorizontalMetrics(dict.fromkeys([".notdef", "zheng", "fu"], (1000, 100)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": "Two Characters", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(tmp_path / "two.ttf")
    before = list(font_manager.fontManager.ttflist)
    font_manager.fontManager.addfont(tmp_path / "two.ttf")
    figures.font_families.cache_clear()
    yield
    font_manager.fontManager.ttflist[:] = before
    figures.font_families.cache_clear()


@pytest.mark.usefixtures("chinese_font")
def test_chinese_labels_show_with_an_installed_font(tmp_path: Path) -> None:
    # A missing glyph is a warning of matplotlib's, and warnings are errors here.
    families = figures.font_families(frozenset("正负a"))
    assert families is not None
    assert families[0] == "DejaVu Sans"
    assert len(families) == 2
    assert figures.draw_confusion(np.eye(2, dtype=int), ["正", "负a"], tmp_path / "a.png") == []


def test_labels_that_no_font_shows_are_numbered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "font_families", lambda characters: None)
    (note,) = figures.draw_confusion(np.eye(2, dtype=int), ["正", "负"], tmp_path / "a.png")
    assert note.startswith("no installed font shows these labels")
    assert note.endswith(": 1 正, 2 负")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_the_font_of_last_resort_is_none() -> None:
    # A character that Unicode has not assigned: only boxes could show it.
    assert figures.font_families(frozenset({"\U000e0fff"})) is None


def test_a_calibration_curve_is_drawn(tmp_path: Path) -> None:
    calibration = Calibration()
    calibration.add([(i / 100, i % 3 == 0) for i in range(101)])
    figures.draw_calibration(calibration, tmp_path / "a.png")
    picture = imread(tmp_path / "a.png")
    assert picture[..., :3].std() > 0.05


def test_classes_of_sizes() -> None:
    ends = (0, 1, 2, 4, 8)
    assert [size_class(n, ends) for n in (0, 1, 2, 3, 4, 5, 8, 9)] == [
        "0", "1", "2", "3-4", "3-4", "5-8", "5-8", ">8",
    ]  # fmt: skip


def test_groups_of_all_kinds_of_rows() -> None:
    pair = TextRow("0", "x" * 20, "y" * 20, "a", PLACE)
    assert groups(pair) == {"characters": "33-64"}
    assert labels(pair) == ("a",)
    assert groups(text_row(("a", "b")))["labels"] == "2"
    assert labels(text_row(("a", "b"))) == ("a", "b")
    assert groups(text_row(2.5))["label"] == "2 to 3"
    tag = TagRow("0", "去北京", (Span(1, 3, "LOC"),), None, PLACE)
    assert groups(tag) == {"characters": "0-16", "entities": "1"}
    assert labels(tag) == ("LOC",)
    none = QuestionRow("q", "?", "x" * 2000, (), True, PLACE)
    assert groups(none) == {"characters of passage": ">1024", "characters of answer": "no answer"}
    some = QuestionRow("q", "?", "", (Answer("abc", 0),), False, PLACE)
    assert groups(some)["characters of answer"] == "0-16"
    assert groups(ChoiceRow("0", "", "?", ("a", "b", "c"), 1, PLACE))["choices"] == "3-4"


def test_breakdowns_hold_every_row_once_and_add_up() -> None:
    parts = (
        Breakdown(lambda: ClassifyMeter(["a", "b"])),
        Breakdown(lambda: ClassifyMeter(["a", "b"])),
    )
    for i in range(200):
        row = text_row("ab"[i % 2], "x" * (i * 7 % 1500), i)
        parts[i % 3 == 0].add(row, said("ab"[i % 5 == 0], 0.5))
    parts[0].merge(parts[1])
    (table,) = map(records_table, parts[0].records().values())
    assert [line[0] for line in table.rows] == [
        "0-16", "17-32", "33-64", "65-128", "129-256", "257-512", "513-1024", ">1024",
    ]  # fmt: skip
    assert sum(int(line[1]) for line in table.rows) == 200
    assert table.header == ("characters", "rows", "accuracy", "f1", "macro_f1")


def test_wrong_cases_are_the_surest_in_order(tmp_path: Path) -> None:
    meter = ClassifyMeter(["a", "b"])
    cases = WrongCases(tmp_path / "new" / "bad_cases.jsonl", limit=5)
    sure = np.random.default_rng(0).permutation(100)
    for i, score in enumerate(sure):
        row = text_row("a", f"文 {i}", i)
        cases.add(row, meter.outcome(row, said("ab"[i % 2], score / 100)))
    assert not cases.path.exists()
    assert cases.close() == 5
    assert cases.seen == 50
    lines = [json.loads(line) for line in cases.path.read_text(encoding="utf-8").splitlines()]
    expected = sorted(((s / 100, i) for i, s in enumerate(sure) if i % 2), reverse=True)[:5]
    assert [(line["confidence"], int(line["id"])) for line in lines] == expected
    first = lines[0]
    assert first["text"] == f"文 {first['id']}"
    assert (first["gold"], first["predicted"], first["file"]) == ("a", "b", "dev.tsv")
    assert first["line"] == int(first["id"]) + 1
    assert [path.name for path in cases.path.parent.iterdir()] == ["bad_cases.jsonl"]


def test_a_wrong_case_of_tags_is_as_sure_as_its_least_sure_tag(tmp_path: Path) -> None:
    meter = TagMeter(["LOC"])
    cases = WrongCases(tmp_path / "bad_cases.jsonl")
    for number, sure in enumerate((0.6, 0.9, 0.7)):
        place = Place("dev.json", f"row {number}")
        row = TagRow(str(number), "Bonn", (Span(0, 4, "LOC"),), None, place)
        cases.add(row, meter.outcome(row, Entities([], sure)))
    cases.close()
    lines = [json.loads(line) for line in cases.path.read_text().splitlines()]
    assert [(line["place"], line["confidence"]) for line in lines] == [
        ("row 1", 0.9), ("row 2", 0.7), ("row 0", 0.6)]  # fmt: skip
    assert "line" not in lines[0]


def test_of_equals_the_first_are_kept(tmp_path: Path) -> None:
    cases = WrongCases(tmp_path / "bad_cases.jsonl", limit=3)
    for i in range(9):
        row = text_row("a", number=i)
        cases.add(row, ClassifyMeter(["a", "b"]).outcome(row, said("b", 0.5)))
    cases.close()
    lines = cases.path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["0", "1", "2"]


def test_a_report_of_labels(tmp_path: Path) -> None:
    report = Report(lambda: ClassifyMeter(["a", "b", "c"]), tmp_path)
    for i in range(60):
        report.add(text_row("abc"[i % 3], "x" * i, i), said("abc"[i % 4 % 3], 0.3 + i / 100))
    assert report.close() == []
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"figures.md", "confusion.png", "calibration.png", "bad_cases.jsonl"}
    text = (tmp_path / "figures.md").read_text(encoding="utf-8")
    assert "| expected_calibration_error |" in text
    assert "| weighted avg |" in text
    assert "| 17-32 | 16 |" in text
    assert report.figures()["accuracy"] == report.meter.figures()["accuracy"]


ENTITY = {"entity_group": "LOC", "score": 0.9, "word": "北京", "start": 1, "end": 3}
OTHERS = [
    (RegressMeter, text_row(1.5), {"score": 2.0}, {"figures.md", "bad_cases.jsonl"}),
    (
        lambda: TagMeter(["LOC"]),
        TagRow("0", "去北京了", (Span(1, 4, "LOC"),), None, PLACE),
        [ENTITY],
        {"figures.md", "bad_cases.jsonl", "confusion.png", "calibration.png"},
    ),
    (
        lambda: AnswerMeter("squad2"),
        QuestionRow("q", "?", "Rome", (Answer("Rome", 0),), False, PLACE),
        {"answer": "Ro", "score": 0.5, "start": 0, "end": 2, "id": "q", "null_odds": -1.0},
        {"figures.md", "bad_cases.jsonl", "calibration.png"},
    ),
    (
        ChooseMeter,
        ChoiceRow("0", "", "?", ("a", "b"), 1, PLACE),
        [{"label": 0, "score": 0.6, "choice": "a"}],
        {"figures.md", "bad_cases.jsonl", "calibration.png"},
    ),
]


@pytest.mark.parametrize(("meter", "row", "prediction", "files"), OTHERS)
def test_a_report_of_every_task(
    tmp_path: Path, meter: Any, row: Any, prediction: Any, files: set[str]
) -> None:
    report = Report(meter, tmp_path)
    report.add(row, prediction)
    assert report.close() == []
    assert {path.name for path in tmp_path.iterdir()} == files
    assert (tmp_path / "figures.md").read_text(encoding="utf-8").startswith("1 rows\n")
    if isinstance(row, TagRow):
        assert "| boundary | 1 |" in (tmp_path / "figures.md").read_text(encoding="utf-8")
    (case,) = (tmp_path / "bad_cases.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(case)["file"] == row.place.path


def test_the_main_figure_leads_every_table(tmp_path: Path) -> None:
    report = Report(lambda: TagMeter(["LOC"]), tmp_path, "f1")
    report.add(TagRow("0", "去北京了", (Span(1, 4, "LOC"),), None, PLACE), [ENTITY])
    report.close()
    assert next(iter(report.figures())) == "f1"
    text = (tmp_path / "figures.md").read_text(encoding="utf-8")
    assert text.startswith("1 rows\n\n| figure | value |\n| --- | ---: |\n| f1 | 0.0000 |\n")
    assert "| characters | rows | f1 |" in text


def test_a_report_without_a_folder_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    report = Report(lambda: ClassifyMeter(["a", "b"]), None)
    report.add(text_row("a"), said("b", 0.9))
    assert report.close() == []
    assert report.figures()["accuracy"] == 0.0
    assert list(tmp_path.iterdir()) == []


def test_a_report_without_rows_and_with_a_bad_one(tmp_path: Path) -> None:
    report = Report(lambda: ClassifyMeter(["a", "b"]), tmp_path, most_wrong=1)
    with pytest.raises(DataError, match=r"dev\.tsv:1: label 'z' is none that the model knows"):
        report.add(text_row("z"), said("a", 1.0))
    assert report.close() == ["there is nothing to draw a confusion matrix of"]
    assert (tmp_path / "bad_cases.jsonl").read_bytes() == b""
    fewer = Report(lambda: ClassifyMeter(["a", "b"]), tmp_path, most_wrong=1)
    for number in range(2):
        fewer.add(text_row("a", number=number), said("b", 1.0))
    assert fewer.close() == ["2 rows are wrong; bad_cases.jsonl has the 1 surest"]


def test_memory_is_flat_in_rows(tmp_path: Path) -> None:
    """Ten times the rows, each of 20,000 characters and wrong: the same memory."""
    peaks = []
    for rows in (100, 1000):
        report = Report(lambda: ClassifyMeter(["a", "b"]), tmp_path, most_wrong=50)
        tracemalloc.start()
        for number in range(rows):
            report.add(text_row("a", "x" * 20_000, number), said("b", number / rows))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        report.close()
    assert peaks[1] < peaks[0] + 50_000
