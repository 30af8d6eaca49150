"""Spans against seqeval, strict and as conlleval; plain labels against scikit-learn."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval import metrics as se
from seqeval.scheme import IOB2
from sklearn import metrics as sk

from bertkit.errors import DataError
from bertkit.tasks.records import Place, Span, TagRow
from bertkit.tasks.span_metrics import TagMeter, span_errors, word_tags

PLACE = Place("dev.conll", 7)
TYPES = ["LOC", "ORG", "人"]
TAGS = ["O", *(f"{begin}-{name}" for name in TYPES for begin in "BI")]


def chunks(tags: list[str]) -> list[tuple[Span, bool]]:
    """Spans over words as conlleval sees them, and whether each begins with a B-; by hand."""
    found: list[tuple[Span, bool]] = []
    previous = "O"
    for i, tag in enumerate(tags):
        kind, name = tag[0], tag[2:]
        if tag != "O" and (kind == "B" or previous[2:] != name):
            found.append((Span(i, i + 1, name), kind == "B"))
        elif tag != "O":
            span, strict = found[-1]
            found[-1] = Span(span.start, i + 1, name), strict
        previous = tag
    return found


def rows_of(gold: list[str], predicted: list[str]) -> tuple[TagRow, list[dict[str, Any]]]:
    """Words of one to three letters; gold tags in IOB2, predicted ones as they come."""
    starts = [sum(1 + i % 3 + 1 for i in range(n)) for n in range(len(gold))]
    words = tuple((start, start + 1 + i % 3) for i, start in enumerate(starts))
    text = " ".join("x" * (end - start) for start, end in words)

    def at(span: Span) -> Span:
        return Span(words[span.start][0], words[span.end - 1][1], span.label)

    entities = tuple(at(span) for span, strict in chunks(gold) if strict)
    said = [
        {
            "entity_group": name,
            "score": 0.5,
            "word": text[start:end],
            "start": start,
            "end": end,
            **({} if strict else {"strict": False}),
        }
        for (start, end, name), strict in ((at(span), strict) for span, strict in chunks(predicted))
    ]
    return TagRow("0", text, entities, words, PLACE), said


@st.composite
def tagged(draw: st.DrawFn) -> tuple[list[list[str]], list[list[str]]]:
    gold, predicted = [], []
    for _ in range(draw(st.integers(1, 5))):
        length = draw(st.integers(1, 9))
        one = st.lists(st.sampled_from(TAGS), min_size=length, max_size=length)
        right = draw(one)
        # Gold tags are legal, as every reader leaves them.
        for i, tag in enumerate(right):
            if tag[0] == "I" and (i == 0 or right[i - 1][2:] != tag[2:]):
                right[i] = "B" + tag[1:]
        gold.append(right)
        predicted.append(draw(one))
    return gold, predicted


def counted(gold: list[list[str]], predicted: list[list[str]]) -> TagMeter:
    meter = TagMeter(TYPES)
    for right, guess in zip(gold, predicted, strict=True):
        meter.add(*rows_of(right, guess))
    return meter


@given(tagged())
def test_spans_are_seqevals(case: tuple[list[list[str]], list[list[str]]]) -> None:
    gold, predicted = case
    meter = counted(gold, predicted)
    figures = meter.figures()
    strict = {"mode": "strict", "scheme": IOB2, "zero_division": 0}
    three = ("precision", "recall", "f1")
    assert [figures[n] for n in three] == scores(gold, predicted, "micro", **strict)
    if any(tag != "O" for side in (*gold, *predicted) for tag in side):
        for average in ("macro", "weighted") if meter.strict.types() else ():
            theirs = scores(gold, predicted, average, **strict)
            assert [figures[f"{average}_{n}"] for n in three] == theirs
    theirs = scores(gold, predicted, "micro", zero_division=0)
    assert [figures[f"conlleval_{n}"] for n in three] == theirs
    assert figures["accuracy"] == se.accuracy_score(gold, predicted)


def scores(gold: Any, predicted: Any, average: str, **settings: Any) -> list[float]:
    functions = (se.precision_score, se.recall_score, se.f1_score)
    return [float(f(gold, predicted, average=average, **settings)) for f in functions]


@given(tagged())
def test_the_table_is_seqevals_report(case: tuple[list[list[str]], list[list[str]]]) -> None:
    gold, predicted = case
    meter = counted(gold, predicted)
    if not meter.strict.types():
        assert [line.f1 for line in meter.per_label()] == [0.0] * 3
        return
    report = se.classification_report(
        gold, predicted, mode="strict", scheme=IOB2, output_dict=True, zero_division=0
    )
    lines = {line.label: line for line in meter.per_label()}
    assert set(lines) == set(report)
    for name, line in lines.items():
        theirs = [report[name][key] for key in ("precision", "recall", "f1-score", "support")]
        assert [line.precision, line.recall, line.f1, line.support] == theirs


@given(tagged())
def test_the_confusion_matrix_holds_every_span_once(
    case: tuple[list[list[str]], list[list[str]]],
) -> None:
    meter = counted(*case)
    names, matrix = meter.confusion()
    assert names == ["O", *TYPES]
    for i, name in enumerate(names[1:], 1):
        assert matrix[i].sum() == meter.strict.gold[name]
        assert matrix[:, i].sum() == meter.strict.predicted[name]
        assert matrix[i, i] == meter.strict.tp[name]
    assert matrix[0, 0] == 0
    errors = meter.errors
    missed = errors["type"] + errors["boundary"] + errors["missed"]
    assert missed == meter.strict.gold.total() - meter.strict.tp.total()


def test_errors_by_kind() -> None:
    gold = {Span(0, 4, "LOC"), Span(5, 9, "ORG"), Span(10, 12, "LOC"), Span(20, 22, "LOC")}
    predicted = {Span(0, 4, "LOC"), Span(5, 9, "LOC"), Span(11, 14, "LOC"), Span(30, 31, "ORG")}
    errors, pairs = span_errors(gold, predicted)
    assert errors == {"type": 1, "boundary": 1, "missed": 1, "spurious": 1}
    assert pairs["ORG", "LOC"] == pairs["LOC", "LOC"] == pairs["O", "ORG"] == 1
    assert pairs["LOC", "O"] == 2


def test_rows_without_words_have_spans_but_no_accuracy() -> None:
    row = TagRow("0", "去北京", (Span(1, 3, "LOC"),), None, PLACE)
    meter = TagMeter(["LOC"])
    meter.add(row, [{"entity_group": "LOC", "score": 0.9, "word": "北京", "start": 1, "end": 3}])
    assert meter.figures()["f1"] == 1.0
    assert "accuracy" not in meter.figures()
    with pytest.raises(DataError, match=r"dev\.conll:7: the row has no label"):
        meter.add(TagRow("0", "去北京", None, None, PLACE), [])


def test_words_that_a_span_cuts_have_no_tag() -> None:
    words = [(0, 2), (3, 6), (7, 9)]
    assert word_tags(words, [Span(3, 9, "A")]) == ["O", "B-A", "I-A"]
    assert word_tags(words, [Span(3, 8, "A")]) == ["O", "B-A", "O"]
    # Spans that overlap: each word has one tag.
    assert word_tags(words, [Span(0, 6, "A"), Span(3, 9, "B")]) == ["B-A", "I-A", "B-B"]


@given(st.lists(st.tuples(st.sampled_from("NVX"), st.sampled_from("NVX")), min_size=1))
@pytest.mark.filterwarnings("ignore:A single label was found")
def test_plain_labels_are_scikit_learns(pairs: list[tuple[str, str]]) -> None:
    words = tuple((2 * i, 2 * i + 1) for i in range(len(pairs)))
    text = " ".join("x" * len(pairs))
    gold = tuple(Span(a, b, label) for (a, b), (label, _) in zip(words, pairs, strict=True))
    said = [
        {"entity_group": label, "score": 0.5, "word": "x", "start": a, "end": b}
        for (a, b), (_, label) in zip(words, pairs, strict=True)
    ]
    meter = TagMeter(["N", "V", "X"], scheme="plain")
    row = TagRow("0", text, gold, words, PLACE)
    meter.add(row, said)
    right, guess = ([pair[i] for pair in pairs] for i in (0, 1))
    figures = meter.figures()
    assert figures["accuracy"] == sk.accuracy_score(right, guess)
    assert figures["macro_f1"] == sk.f1_score(right, guess, average="macro", zero_division=0)
    assert figures["f1"] == figures["macro_f1"]
    assert meter.confusion()[0] == ["N", "V", "X"]


@given(tagged())
def test_sums_and_ranks(case: tuple[list[list[str]], list[list[str]]]) -> None:
    import numpy as np

    gold, predicted = case
    whole = counted(gold, predicted)
    parts = [counted(gold[:1], predicted[:1]), counted(gold[1:], predicted[1:])]
    parts[0].merge(pickle.loads(pickle.dumps(parts[1])))
    assert parts[0].figures() == whole.figures()
    assert parts[0].per_label() == whole.per_label()
    pairs = [rows_of(a, b) for a, b in zip(gold, predicted, strict=True)]
    outcomes = [whole.outcome(*pair) for pair in pairs]
    sums = np.sum([one.counts for one in outcomes], axis=0)
    for name, value in whole.resampled(sums[None]).items():
        assert value[0] == whole.figures()[name]
    assert all(one.wrong == (one.score < 1) for one in outcomes)


def test_what_a_row_did() -> None:
    row = TagRow("0", "去北京", (Span(1, 3, "LOC"),), None, PLACE)
    entity = {"entity_group": "ORG", "score": 0.8, "word": "去北", "start": 0, "end": 2}
    outcome = TagMeter(["LOC", "ORG"]).outcome(row, [entity])
    assert (outcome.gold, outcome.predicted) == ("LOC '北京'", "ORG '去北'")
    assert (outcome.score, outcome.confidence, outcome.counts) == (0.0, 0.8, (0.0, 1.0, 1.0))
