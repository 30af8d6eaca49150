"""Answers: worked examples, and the definitions written down a second time, plainly."""

from __future__ import annotations

import json
import pickle
import re
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nltk.tokenize import NLTKWordTokenizer

from bertkit.errors import DataError, UsageError
from bertkit.tasks.answer_metrics import (
    AnswerMeter,
    best_threshold,
    cmrc_scores,
    longest_common_run,
    mixed_segments,
    normalize_answer,
    squad_scores,
)
from bertkit.tasks.records import Answer, Place, QuestionRow
from bertkit.tasks.treebank import words

SHARED = Path(__file__).parents[3] / "shared" / "data"
PLACE = Place("dev.json", 2)
MARKS = list("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")

# Text full of what the definitions treat in their own way.
pieces = st.sampled_from(
    [*"aAnN01 .,;'\"?!()[]<>{}$%&@#…—–«»‘„-:*/`", *"模型语言。，《》（）、", " the ", " an ", "A ",
     "can't", " cannot", "'s", "n't", "'ll", " 'tis", "gimme", "more'n", "wanna ", "..", "''",
     "d'ye", "U.S."]
)  # fmt: skip
texts = st.lists(pieces, max_size=12).map("".join)


def question(*answers: str) -> QuestionRow:
    return QuestionRow("q", "?", "", tuple(Answer(a, 0) for a in answers), not answers, PLACE)


def said(answer: str, **more: Any) -> dict[str, Any]:
    return {"answer": answer, "score": 0.5, "start": 0, "end": len(answer), "id": "q", **more}


# --- the definitions once more, as their papers and scripts say them


def plain_words(text: str) -> list[str]:
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", kept).split()


def plain_f1(said: list[str], right: list[str]) -> float:
    rest, same = list(right), 0
    for word in said:
        if word in rest:
            rest.remove(word)
            same += 1
    if same == 0:
        return 0.0
    precision, recall = same / len(said), same / len(right)
    return 2 * precision * recall / (precision + recall)


def plain_squad(said: str, answers: list[str], version_2: bool) -> tuple[float, float]:
    if version_2:
        answers = [a for a in answers if plain_words(a)] or [""]
    scores = []
    for answer in answers:
        one, other = plain_words(said), plain_words(answer)
        empty = version_2 and (not one or not other)
        scores.append((float(one == other), float(one == other) if empty else plain_f1(one, other)))
    return max(e for e, _ in scores), max(f for _, f in scores)


def plain_cmrc(said: str, answers: list[str]) -> tuple[float, float]:
    def unmarked(text: str) -> str:
        return "".join(c for c in text.lower().strip() if c not in MARKS)

    def segments(text: str) -> list[str]:
        found: list[str] = []
        latin = ""
        for character in unmarked(text):
            if "\u4e00" <= character <= "\u9fa5":
                found += [*NLTKWordTokenizer().tokenize(latin), character]
                latin = ""
            else:
                latin += character
        return [*found, *NLTKWordTokenizer().tokenize(latin)]

    best, one = 0.0, segments(said)
    for answer in answers:
        other = segments(answer)
        runs = {tuple(one[i:j]) for i in range(len(one)) for j in range(i + 1, len(one) + 1)}
        both = [
            j - i
            for i in range(len(other))
            for j in range(i + 1, len(other) + 1)
            if tuple(other[i:j]) in runs
        ]
        if both:
            precision, recall = max(both) / len(one), max(both) / len(other)
            best = max(best, 2 * precision * recall / (precision + recall))
    return float(unmarked(said) in map(unmarked, answers)), best


@given(texts, st.lists(texts, min_size=1, max_size=3), st.booleans())
def test_squad_scores_are_their_definition(text: str, answers: list[str], version_2: bool) -> None:
    assert squad_scores(text, answers, version_2) == plain_squad(text, answers, version_2)


@given(texts, st.lists(texts, min_size=1, max_size=3))
def test_cmrc_scores_are_their_definition(text: str, answers: list[str]) -> None:
    assert cmrc_scores(text, answers) == plain_cmrc(text, answers)


# Python's `re`, in which NLTK read when CMRC was published, and the engine of newer NLTKs differ in
# what is a space or a part of a word: in control characters, combining marks and odd numbers.
agreed = st.characters(categories=("L", "Nd", "Po", "Ps", "Pe", "Pi", "Pf", "Pd", "Sm", "Sc", "Zs"))


@given(texts, st.text(agreed, max_size=20))
def test_words_are_nltks(text: str, other: str) -> None:
    for one in (text, other, text + other):
        kept = "".join(c for c in one.lower() if c not in MARKS)
        assert words(kept) == NLTKWordTokenizer().tokenize(kept)


@pytest.mark.parametrize(
    ("text", "answers", "exact", "f1"),
    [
        ("the Denver Broncos!", ["Denver Broncos"], 1, 1),
        ("Denver", ["Carolina", "Denver Broncos"], 0, 2 / 3),
        ("in the year 1867", ["1867"], 0, 0.5),
        ("", ["1867"], 0, 0),
    ],
)
def test_worked_examples_in_english(text: str, answers: list[str], exact: int, f1: float) -> None:
    for version_2 in (False, True):
        assert squad_scores(text, answers, version_2) == pytest.approx((exact, f1))


def test_where_the_two_versions_differ() -> None:
    # "The" is nothing once normalised: 1.1 compares it still, 2.0 leaves it out.
    assert squad_scores("a", ["The"], version_2=False) == (1, 0)
    assert squad_scores("a", ["The"], version_2=True) == (1, 1)
    assert squad_scores("", [], version_2=True) == (1, 1)
    assert squad_scores("x", [], version_2=True) == (0, 0)
    assert normalize_answer(" The  U.S.  army ") == "us army"


@pytest.mark.parametrize(
    ("text", "answers", "exact", "f1"),
    [
        ("《战国无双3》", ["战国无双3"], 1, 1),  # marks do not count
        ("光荣和ω-force", ["光荣", "ω-force"], 0, 2 / 3),
        ("北京大学", ["大学北京"], 0, 0.5),  # the longest run, not all common characters
        ("iPhone 7 plus", ["iphone 7"], 0, 4 / 5),  # words, not letters
        ("三日", ["四月"], 0, 0),
        ("……", ["……"], 1, 1),
        ("……", [""], 0, 0),  # the double ellipsis of the list is never one character
    ],
)
def test_worked_examples_in_chinese(text: str, answers: list[str], exact: int, f1: float) -> None:
    assert cmrc_scores(text, answers) == pytest.approx((exact, f1))


def test_segments_of_mixed_text() -> None:
    found = mixed_segments("使用PyTorch 2.0, 不用C++。")
    assert found == ["使", "用", "pytorch", "2.0", ",", "不", "用", "c"]
    assert longest_common_run("abcab", "cabx") == 3
    assert longest_common_run([], ["a"]) == longest_common_run(["a"], []) == 0


@given(
    st.lists(
        st.tuples(
            st.integers(-5, 5).map(float) | st.floats(-9, 9),
            st.floats(0, 1),
            st.booleans(),
            st.booleans(),
        ),
        max_size=20,
    )
)
def test_thresholds_are_found_as_in_a_plain_loop(rows: list[Any]) -> None:
    columns: Any = [list(column) for column in zip(*rows, strict=True)] or [[], [], [], []]
    reached = best = float(sum(not has for _, _, has, _ in rows))
    threshold = 0.0
    for odds, score, has, answered in sorted(rows, key=lambda r: r[0]):
        reached += score if has else -int(answered)
        if reached > best:
            best, threshold = reached, odds
    expected = (100.0 * best / len(rows) if rows else 0.0, threshold)
    assert best_threshold(*columns) == expected


def test_a_tuned_threshold_does_what_it_promises() -> None:
    draw = np.random.default_rng(0)
    odds, f1 = draw.normal(size=200), draw.random(200)
    has, answered = draw.random((2, 200)) < 0.6
    best, threshold = best_threshold(odds, f1, has, answered, nothing=odds.min() - 1)
    scores = np.where(odds > threshold, ~has, np.where(has, f1, ~answered))
    assert 100 * scores.mean() == pytest.approx(best)
    every = [np.where(odds > t, ~has, np.where(has, f1, ~answered)).mean() for t in odds]
    assert best == pytest.approx(100 * max(every))
    # Nothing but wrong answers: best is to give none.
    assert best_threshold([1.0, 2.0], [0.0, 0.0], [False, False], [True, True], -1.0) == (100, -1)


def test_squad2_figures() -> None:
    meter = AnswerMeter("squad2")
    meter.add(question("Denver Broncos"), said("Denver", null_odds=-3.0))
    meter.add(question(), said("", null_odds=2.0, n_best=[said(""), said("1867")]))
    meter.add(question(), said("Paris", null_odds=-1.0))
    meter.add(question("Rome"), said("", null_odds=1.0, n_best=[said(""), said("Rome")]))
    figures = meter.figures()
    assert figures == {
        "exact": 25.0,
        "f1": pytest.approx(100 * (2 / 3 + 1) / 4),
        "total": 4,
        "HasAns_exact": 0.0,
        "HasAns_f1": pytest.approx(100 / 3),
        "HasAns_total": 2,
        "NoAns_exact": 50.0,
        "NoAns_f1": 50.0,
        "NoAns_total": 2,
        # With nothing answered two are right; up to odds of 1.0: 2 + 0 - 1 + 1 (exact).
        "best_exact": 50.0,
        "best_exact_thresh": 0.0,
        "best_f1": pytest.approx(100 * (2 + 2 / 3) / 4),
        "best_f1_thresh": -3.0,
        "tuned_null_threshold": -3.0,
    }


def test_where_it_is_best_to_answer_nothing_the_tuned_threshold_does_so() -> None:
    meter = AnswerMeter("squad2")
    for odds in (-2.0, -1.0):
        meter.add(question(), said("Paris", null_odds=odds))
    figures = meter.figures()
    assert (figures["best_f1"], figures["best_f1_thresh"]) == (100.0, 0.0)  # as the script has it
    assert figures["tuned_null_threshold"] < -2.0


def test_figures_without_null_odds_and_without_rows() -> None:
    meter = AnswerMeter("cmrc")
    assert meter.figures() == {"exact": 0.0, "f1": 0.0, "total": 0, "average": 0.0}
    meter.add(question("光荣", "光荣和ω-force"), said("光荣"))
    meter.add(question("北京"), said("北京大学"))
    assert meter.figures()["exact"] == 50.0
    assert meter.figures()["average"] == pytest.approx((50 + 100 * (1 + 2 / 3) / 2) / 2)
    assert meter.tuned_threshold() is None
    assert "best_f1" not in AnswerMeter("squad2").figures()


def test_bad_rows_and_metrics_are_named() -> None:
    with pytest.raises(DataError, match=r"dev\.json:2: the row has no label"):
        AnswerMeter().add(QuestionRow("q", "?", "", None, False, PLACE), said("x"))
    with pytest.raises(UsageError, match="no answer metric 'bleu'; there are squad, squad2, cmrc"):
        AnswerMeter("bleu")


@pytest.mark.parametrize("metric", ["squad", "squad2", "cmrc"])
def test_sums_and_ranks(metric: str) -> None:
    draw = np.random.default_rng(2)
    vocabulary = ["the", "cat", "sat", "北", "京", "1867"]

    def text() -> str:
        return " ".join(draw.choice(vocabulary, draw.integers(0, 4)))

    rows = []
    for _ in range(80):
        answers = [text() for _ in range(draw.integers(1, 3))]
        rows.append((question(*answers), said(text(), null_odds=draw.normal())))
    whole, first, second = (AnswerMeter(metric) for _ in range(3))
    for i, (row, prediction) in enumerate(rows):
        whole.add(row, prediction)
        (first if i % 3 else second).add(row, prediction)
    first.merge(pickle.loads(pickle.dumps(second)))
    assert first.figures() == pytest.approx(whole.figures(), rel=1e-14)
    outcomes = [whole.outcome(*pair) for pair in rows]
    sums = np.sum([one.counts for one in outcomes], axis=0)
    for name, value in whole.resampled(sums[None]).items():
        assert value[0] == pytest.approx(whole.figures()[name])
    assert outcomes[0].wrong == (outcomes[0].counts[0] == 0)


@pytest.mark.parametrize(
    ("name", "metric"), [("cmrc2018/dev.json", "cmrc"), ("drcd/dev.json", "cmrc"),
                         ("squad_v1/dev.json", "squad"), ("squad_v2/dev.json", "squad2")]
)  # fmt: skip
def test_real_answers_against_each_other(name: str, metric: str) -> None:
    """One right answer, cut short, as the prediction for a question with all of them."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{path} is not on this machine")
    data = json.loads(path.read_text(encoding="utf-8"))["data"]
    questions = [q for article in data for p in article["paragraphs"] for q in p["qas"]]
    meter = AnswerMeter(metric)
    scores = []
    for number, one in enumerate(questions[::7]):
        answers = [answer["text"] for answer in one["answers"]]
        guess = answers[-1][number % 3 :] if answers else ["", "x"][number % 2]
        meter.add(question(*answers), said(guess))
        again = plain_cmrc(guess, answers) if metric == "cmrc" else plain_squad(
            guess, answers, metric == "squad2"
        )  # fmt: skip
        scores.append(again)
    figures, total = meter.figures(), len(questions[::7])
    exact, f1 = (sum(column) for column in zip(*scores, strict=True))
    assert 0 < figures["exact"] < figures["f1"] < 100
    assert figures["exact"] == 100.0 * exact / total
    assert figures["f1"] == 100.0 * f1 / total
