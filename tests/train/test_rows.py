"""Which rows are learned from and which are measured on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bertkit.errors import DataError
from bertkit.tasks.formats import open_rows
from bertkit.tasks.records import Answer, Place, QuestionRow, Span, TagRow, TextRow
from bertkit.train.rows import Census, Part, assign_folds, hold_out, labels_of

PLACE = Place("file", 7)


def texts(count: int, different: int) -> list[Any]:
    return [TextRow(str(n), f"text {n % different}", None, "a", PLACE) for n in range(count)]


def test_folds_are_of_one_size_and_hold_each_text_once() -> None:
    rows = texts(1000, 400)
    folds = assign_folds(rows, 5, seed=3)
    assert set(folds.tolist()) == set(range(5))
    assert np.ptp(np.bincount(folds)) <= 10
    for text in range(400):
        assert len({folds[n] for n in range(text, 1000, 400)}) == 1
    assert folds.tolist() == assign_folds(rows, 5, seed=3).tolist()
    assert folds.tolist() != assign_folds(rows, 5, seed=4).tolist()


def test_questions_of_one_passage_stay_together() -> None:
    rows: list[Any] = [
        QuestionRow(str(n), f"question {n}?", f"passage {n // 5}", (), True, PLACE)
        for n in range(100)
    ]
    folds = assign_folds(rows, 4, seed=0)
    assert all(len(set(folds[n : n + 5].tolist())) == 1 for n in range(0, 100, 5))
    assert np.bincount(folds).tolist() == [25] * 4


def test_no_fold_is_empty() -> None:
    with pytest.raises(DataError, match=r"90 training rows of 3 texts: too few, .* for 5 folds"):
        assign_folds(texts(90, 3), 5, seed=0)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_about_the_share_is_held_out(share: float) -> None:
    held = hold_out(texts(2000, 2000), share, seed=1)
    assert held.mean() == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize(
    ("sizes", "held"),
    [((37, 33, 10, 10, 10), 20), ((60, 5, 5, 30), 10), ((40, 30, 30), 30), ((80, 12, 8), 20)],
)
def test_a_text_that_fits_is_held_out_before_one_that_is_too_large(
    sizes: tuple[int, ...], held: int
) -> None:
    rows = [
        TextRow("0", f"text {text}", None, "a", PLACE)
        for text, size in enumerate(sizes)
        for _ in range(size)
    ]
    for seed in range(5):
        assert hold_out(rows, 0.2, seed).sum() == held


def test_too_few_rows_to_hold_out_any() -> None:
    with pytest.raises(DataError, match="1 training row of 1 text: too few to hold out"):
        hold_out(texts(1, 1), 0.1, seed=0)
    with pytest.raises(DataError, match="50 training rows of 1 text: too few"):
        hold_out(texts(50, 1), 0.1, seed=0)


def test_a_part_can_be_read_again_and_skips_bad_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [f'{{"text": "text {n}", "label": "{n % 2}"}}' for n in range(6)]
    path.write_text("\n".join([*lines[:3], '{"text": "", "label": "0"}', *lines[3:]]) + "\n")
    with pytest.raises(DataError, match=r"rows\.jsonl:4"):
        list(Part(open_rows(path, "classify")))
    kept = np.array([True, False] * 3)
    part = Part(open_rows(path, "classify"), skip_bad=True, kept=kept)
    for _ in range(2):
        assert [row.text for row in part] == ["text 0", "text 2", "text 4"]
    assert len(part.bad) == 1


def test_a_row_without_a_label_is_refused_with_its_place() -> None:
    bare: list[Any] = [
        TextRow("0", "a", None, None, PLACE),
        TagRow("0", "a", None, None, PLACE),
        QuestionRow("0", "a", "b", None, False, PLACE),
    ]
    for row in bare:
        with pytest.raises(DataError, match="file:7: no label"):
            list(Census().watch([row]))


def test_the_rarest_label_of_a_row_is_its_class() -> None:
    rows = [TextRow("0", "t", None, names, PLACE) for names in [("a",), ("a", "b"), (), ("a",)]]
    census = Census()
    assert list(census.watch(rows)) == rows
    assert census.rarest().tolist() == [1, 2, 0, 1]


def test_what_rows_say() -> None:
    assert labels_of(TextRow("0", "t", None, "x", PLACE)) == ("x",)
    assert labels_of(TextRow("0", "t", None, 1.5, PLACE)) == ()
    tags = TagRow("0", "abc", (Span(0, 1, "A"), Span(1, 2, "A")), None, PLACE)
    assert labels_of(tags) == ("A", "A")
    answered = QuestionRow("0", "q", "c", (Answer("c", 0),), False, PLACE)
    assert labels_of(answered) == ("answer",)
