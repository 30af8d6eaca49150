"""Figures of labels, sets, numbers and choices against scikit-learn and SciPy."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

from bertkit.errors import DataError
from bertkit.tasks.metrics import (
    ChooseMeter,
    ClassifyMeter,
    MultiLabelMeter,
    RegressMeter,
    average_ranks,
)
from bertkit.tasks.outcomes import LabelFigures, ScoredMeter, Table
from bertkit.tasks.records import ChoiceRow, Place, TextRow

# scikit-learn says so of rows that all have one label; its figures are right.
pytestmark = pytest.mark.filterwarnings("ignore:A single label was found")

PLACE = Place("dev.tsv", 3)
# In scikit-learn's order: the last digit of a mean hangs on the order of its sum.
LABELS = ["0", "1", "sad", "z", "中性"]


def row(label: Any) -> TextRow:
    return TextRow("0", "text", None, label, PLACE)


def said(label: str, score: float = 0.75) -> list[dict[str, Any]]:
    return [{"label": label, "score": score}]


def classified(gold: list[str], predicted: list[str], labels: list[str]) -> ClassifyMeter:
    meter = ClassifyMeter(labels)
    for right, guess in zip(gold, predicted, strict=True):
        meter.add(row(right), said(guess))
    return meter


@st.composite
def labelled(draw: st.DrawFn, most: int = 5) -> tuple[list[str], list[str], list[str]]:
    labels = LABELS[: draw(st.integers(2, most))]
    pairs = st.tuples(st.sampled_from(labels), st.sampled_from(labels))
    rows = draw(st.lists(pairs, min_size=1, max_size=40))
    return [a for a, _ in rows], [b for _, b in rows], labels


@settings(max_examples=40)
@given(labelled())
def test_classification_is_scikit_learns(case: tuple[list[str], list[str], list[str]]) -> None:
    gold, predicted, labels = case
    figures = classified(gold, predicted, labels).figures()
    assert figures["accuracy"] == sk.accuracy_score(gold, predicted)
    assert figures["matthews_correlation"] == sk.matthews_corrcoef(gold, predicted)
    for average in ("macro", "micro", "weighted"):
        p, r, f, _ = sk.precision_recall_fscore_support(
            gold, predicted, average=average, zero_division=0
        )
        found = [figures[f"{average}_{name}"] for name in ("precision", "recall", "f1")]
        assert found == [p, r, f]
    if len(labels) > 2:
        assert figures["f1"] == figures["macro_f1"]


@given(labelled(most=2))
def test_two_labels_have_a_positive_one(case: tuple[list[str], list[str], list[str]]) -> None:
    gold, predicted, labels = case
    found = classified(gold, predicted, labels).figures()
    ours = [found[name] for name in ("precision", "recall", "f1")]
    numbers = [[int(label) for label in side] for side in (gold, predicted)]
    *theirs, _ = sk.precision_recall_fscore_support(*numbers, average="binary", zero_division=0)
    assert ours == theirs
    other = ClassifyMeter(labels, positive="0")
    other.confusion = classified(gold, predicted, labels).confusion
    theirs = sk.f1_score(*numbers, pos_label=0, zero_division=0)
    assert other.figures()["f1"] == theirs


@settings(max_examples=40)
@given(labelled())
def test_the_table_is_the_classification_report(
    case: tuple[list[str], list[str], list[str]],
) -> None:
    gold, predicted, labels = case
    report = sk.classification_report(gold, predicted, output_dict=True, zero_division=0)
    lines = {line.label: line for line in classified(gold, predicted, labels).per_label()}
    # scikit-learn leaves the accuracy out of the report where it is a micro average of some labels.
    assert set(lines) - {"accuracy"} == set(report) - {"accuracy", "micro avg"}
    assert lines["accuracy"].f1 == report.get("accuracy", lines["accuracy"].f1)
    for name in set(lines) - {"accuracy"}:
        line = lines[name]
        theirs = [report[name][key] for key in ("precision", "recall", "f1-score", "support")]
        assert [line.precision, line.recall, line.f1, line.support] == theirs


def test_many_rows_and_labels_to_the_last_digit() -> None:
    draw = np.random.default_rng(0)
    labels = [f"label {i}" for i in range(60)]
    gold = draw.integers(0, 50, 20_000)
    predicted = np.where(draw.random(20_000) < 0.6, gold, draw.integers(0, 55, 20_000))
    meter = ClassifyMeter(labels)
    np.add.at(meter.confusion, (gold, predicted), 1)
    figures = meter.figures()
    assert figures["matthews_correlation"] == sk.matthews_corrcoef(gold, predicted)
    for average in ("macro", "weighted"):
        theirs = sk.f1_score(gold, predicted, average=average, zero_division=0)
        assert figures[f"{average}_f1"] == theirs


def test_no_rows_are_zeros_without_a_warning() -> None:
    meters: list[ScoredMeter[Any]] = [ClassifyMeter(LABELS), MultiLabelMeter(LABELS)]
    meters += [RegressMeter(), ChooseMeter()]
    for meter in meters:
        assert set(meter.figures().values()) == {0.0}
        assert meter.table().rows


@st.composite
def label_sets(draw: st.DrawFn) -> list[tuple[set[int], set[int]]]:
    one = st.sets(st.integers(0, 3))
    return draw(st.lists(st.tuples(one, one), min_size=1, max_size=30))


@settings(max_examples=40)
@given(label_sets())
def test_label_sets_are_scikit_learns_indicators(rows: list[tuple[set[int], set[int]]]) -> None:
    labels = LABELS[:4]
    meter = MultiLabelMeter(labels)
    gold, predicted = np.zeros((2, len(rows), 4), int)
    for i, (right, guess) in enumerate(rows):
        gold[i, list(right)] = 1
        predicted[i, list(guess)] = 1
        scores = [{"label": x, "score": 0.5 if j in guess else 0.49} for j, x in enumerate(labels)]
        meter.add(row(tuple(labels[j] for j in right)), scores)
    figures = meter.figures()
    assert figures["accuracy"] == sk.accuracy_score(gold, predicted)
    assert figures["hamming_loss"] == pytest.approx(sk.hamming_loss(gold, predicted), abs=1e-15)
    for average in ("macro", "micro", "weighted"):
        *theirs, _ = sk.precision_recall_fscore_support(
            gold, predicted, average=average, zero_division=0
        )
        ours = [figures[f"{average}_{name}"] for name in ("precision", "recall", "f1")]
        assert ours == theirs
    assert figures["f1"] == figures["micro_f1"]
    report = sk.classification_report(gold, predicted, output_dict=True, zero_division=0)
    for number, line in enumerate(meter.per_label()):
        theirs = report[str(number) if number < 4 else line.label]
        assert [line.precision, line.recall, line.f1] == [
            theirs[key] for key in ("precision", "recall", "f1-score")
        ]
        assert line.support == theirs["support"]


numbers = st.one_of(
    st.integers(0, 5).map(float), st.floats(-1e3, 1e3).map(lambda x: round(x, 6) + 0.0)
)


@given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=40))
def test_numbers_are_scipys(pairs: list[tuple[float, float]]) -> None:
    gold, predicted = np.array(pairs).T
    figures = regressed(gold, predicted).figures()
    if np.ptp(gold) == 0 or np.ptp(predicted) == 0:
        assert figures["pearson"] == figures["spearman"] == 0.0
    else:
        assert figures["pearson"] == float(stats.pearsonr(gold, predicted).statistic)
        theirs = float(stats.spearmanr(gold, predicted).statistic)
        assert figures["spearman"] == pytest.approx(theirs, abs=2e-15)
    assert figures["mse"] == sk.mean_squared_error(gold, predicted)
    assert figures["mae"] == sk.mean_absolute_error(gold, predicted)
    assert average_ranks(gold).tolist() == stats.rankdata(gold).tolist()


def regressed(gold: Any, predicted: Any) -> RegressMeter:
    meter = RegressMeter()
    for right, guess in zip(gold, predicted, strict=True):
        meter.add(row(float(right)), {"score": float(guess)})
    return meter


def choice(label: int | None) -> ChoiceRow:
    return ChoiceRow("0", "", "Which?", ("red", "green", "blue"), label, PLACE)


def test_choices_are_counted() -> None:
    meter = ChooseMeter()
    for right, guess in ((0, 0), (1, 2), (2, 2)):
        meter.add(choice(right), [{"label": guess, "score": 0.5, "choice": "?"}])
    assert meter.figures() == {"accuracy": 2 / 3}
    outcome = meter.outcome(choice(1), [{"label": 2, "score": 0.5, "choice": "blue"}])
    assert (outcome.gold, outcome.predicted, outcome.wrong) == ("green", "blue", True)


def cases() -> list[tuple[Any, list[tuple[Any, Any]]]]:
    """Each meter with rows and predictions of all kinds."""
    draw = np.random.default_rng(1)
    guesses = draw.integers(0, 5, (60, 2))
    floats = draw.normal(size=(60, 2)) @ np.array([[1, 0.5], [0, 1]])
    sets = [
        (
            row(tuple(x for x in LABELS if draw.random() < 0.4)),
            [{"label": x, "score": float(draw.random())} for x in LABELS],
        )
        for _ in range(60)
    ]
    return [
        (ClassifyMeter(LABELS), [(row(LABELS[a]), said(LABELS[b])) for a, b in guesses]),
        (ClassifyMeter(LABELS[:2]), [(row(str(a % 2)), said(str(b % 2))) for a, b in guesses]),
        (MultiLabelMeter(LABELS), sets),
        (RegressMeter(), [(row(float(a)), {"score": float(b)}) for a, b in floats]),
        (ChooseMeter(), [(choice(a % 3), [{"label": b % 3, "score": 0.9}]) for a, b in guesses]),
    ]


@pytest.mark.parametrize("case", cases(), ids=lambda case: type(case[0]).__name__)
def test_sums_of_counts_give_the_same_figures(case: Any) -> None:
    meter, rows = case
    for one, prediction in rows:
        meter.add(one, prediction)
    sums = np.sum([meter.outcome(*pair).counts for pair in rows], axis=0)
    figures = meter.figures()
    resampled = meter.resampled(np.stack([sums, 2 * sums]))
    assert set(figures) - set(resampled) <= {"spearman"}
    for name, values in resampled.items():
        assert values == pytest.approx([figures[name]] * 2, abs=1e-12), name


@pytest.mark.parametrize("case", cases(), ids=lambda case: type(case[0]).__name__)
def test_meters_of_two_ranks_add_up(case: Any) -> None:
    empty, rows = case
    whole, first, second = (pickle.loads(pickle.dumps(empty)) for _ in range(3))
    for i, (one, prediction) in enumerate(rows):
        whole.add(one, prediction)
        (first if i < 23 else second).add(one, prediction)
    first.merge(pickle.loads(pickle.dumps(second)))
    assert first.figures() == whole.figures()
    assert first.per_label() == whole.per_label()


def test_what_a_row_did() -> None:
    outcome = ClassifyMeter(LABELS).outcome(row("1"), said("sad", 0.9))
    assert (outcome.wrong, outcome.score, outcome.confidence) == (True, 0.0, 0.9)
    assert (outcome.gold, outcome.predicted) == ("1", "sad")
    assert outcome.judgements == ((0.9, False),)
    sets = MultiLabelMeter(["a", "b"]).outcome(
        row(("a",)), [{"label": "b", "score": 0.8}, {"label": "a", "score": 0.7}]
    )
    assert (sets.score, sets.confidence) == (2 / 3, 0.7)
    assert sets.judgements == ((0.8, False), (0.7, True))
    number = RegressMeter().outcome(row(3.0), {"score": 2.5})
    assert (number.score, number.wrong, number.judgements) == (-0.5, True, ())


@pytest.mark.parametrize(
    ("meter", "bad"),
    [
        (ClassifyMeter(LABELS), row(None)),
        (MultiLabelMeter(LABELS), row(None)),
        (RegressMeter(), row("five")),
        (ChooseMeter(), choice(None)),
    ],
)
def test_rows_without_labels_are_named(meter: Any, bad: Any) -> None:
    with pytest.raises(DataError, match=r"dev\.tsv:3: the row has no label"):
        meter.add(bad, [{"label": "0", "score": 1.0}])


def test_labels_that_the_model_does_not_know_are_named() -> None:
    with pytest.raises(DataError, match=r"dev\.tsv:3: label 'x' is none .* 0, 1, sad, z, 中性$"):
        ClassifyMeter(LABELS).add(row("x"), said("0"))


def test_tables_for_people() -> None:
    table = classified(["0", "中性", "1"], ["0", "1", "1"], ["0", "1", "中性"]).table()
    lines = table.lines()
    assert lines[0].split() == ["label", "precision", "recall", "f1", "support"]
    assert lines[2].split() == ["1", "0.5000", "1.0000", "0.6667", "1"]
    # A Chinese character takes two columns, so its line has fewer characters.
    assert len(lines[3]) == len(lines[2]) - 2
    assert table.markdown().splitlines()[1] == "| --- | ---: | ---: | ---: | ---: |"
    assert Table(("a",), (("x|y",),)).markdown().endswith("| x\\|y |")
    assert (
        LabelFigures("1", 0.5, 1.0, 2 / 3, 1)
        in classified(["1", "0"], ["1", "1"], ["0", "1"]).per_label()
    )
