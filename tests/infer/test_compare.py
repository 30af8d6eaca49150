"""The paired bootstrap against every resample there is, and against plain resampling of rows."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest

from bertkit.errors import UsageError
from bertkit.infer import compare
from bertkit.infer.compare import Comparison, paired_bootstrap
from bertkit.tasks.metrics import ClassifyMeter, RegressMeter
from bertkit.tasks.outcomes import ratio
from bertkit.tasks.records import Place, Span, TagRow, TextRow
from bertkit.tasks.span_metrics import TagMeter

PLACE = Place("dev.tsv", 1)


def f1(sums: Any) -> Any:
    """[R, 3] of right, predicted, gold."""
    return ratio(2 * sums[:, 0], sums[:, 1] + sums[:, 2])


def test_p_value_and_interval_are_those_of_all_resamples() -> None:
    first = [(1, 2, 2), (0, 1, 2), (2, 2, 3), (0, 1, 0), (1, 1, 1)]
    second = [(2, 2, 2), (1, 1, 2), (2, 3, 3), (0, 0, 0), (1, 2, 1)]
    one, other = np.array(first), np.array(second)
    every = np.array(list(itertools.product(range(5), repeat=5)))
    gaps = f1(other[every].sum(1)) - f1(one[every].sum(1))
    gap = float(f1(other.sum(0)[None])[0] - f1(one.sum(0)[None])[0])
    exact = float((np.abs(gaps - gap) >= abs(gap) - 1e-12).mean())
    assert 0.05 < exact < 0.95
    kinds: Any = Counter(zip(first, second, strict=True))
    found = paired_bootstrap(kinds, (f1, f1), "f1", resamples=40_000, seed=1)
    assert found.second - found.first == pytest.approx(gap)
    assert found.p_value == pytest.approx(exact, abs=0.01)
    assert found.low == pytest.approx(np.quantile(gaps, 0.025), abs=0.02)
    assert found.high == pytest.approx(np.quantile(gaps, 0.975), abs=0.02)


def classified(rows: int, better: float, seed: int) -> Comparison:
    draw = np.random.default_rng(seed)
    # The second model knows its labels in another order.
    comparison = Comparison(ClassifyMeter(["a", "b", "c"]), ClassifyMeter(["c", "a", "b"]))
    for i in range(rows):
        gold = "abc"[draw.integers(3)]
        row = TextRow(str(i), "x" * int(draw.integers(1, 90)), None, gold, PLACE)
        guesses = [gold if draw.random() < p else "abc"[draw.integers(3)] for p in (0.6, better)]
        comparison.add(row, *([{"label": guess, "score": 0.5}] for guess in guesses))
    return comparison


def test_grouping_rows_by_kind_is_resampling_rows() -> None:
    """Standard errors of accuracy and macro F1 equal those of drawing rows one by one."""
    comparison = classified(300, 0.65, seed=3)
    kinds = list(comparison.kinds.elements())
    sides = [np.array([kind[side] for kind in kinds]) for side in (0, 1)]
    draw = np.random.default_rng(0)
    for metric in ("accuracy", "macro_f1"):
        gaps = []
        for _ in range(2000):
            rows = draw.integers(0, len(kinds), len(kinds))
            one, other = (
                meter.resampled(side[rows].sum(0)[None])[metric][0]
                for meter, side in zip(comparison.meters, sides, strict=True)
            )
            gaps.append(other - one)
        found = comparison.difference(metric)
        assert found.rows == 300
        low, high = np.quantile(gaps, [0.025, 0.975])
        assert (found.low, found.high) == pytest.approx((low, high), abs=0.012)


def test_a_clear_winner_and_a_tie() -> None:
    clear = classified(400, 0.95, seed=0).difference("accuracy")
    assert clear.p_value < 0.001
    assert clear.low > 0
    assert "the second model is better" in clear.sentence()
    same = Comparison(ClassifyMeter(["a", "b"]), ClassifyMeter(["a", "b"]))
    for gold in "abab":
        row = TextRow("0", "x", None, gold, PLACE)
        same.add(row, *[[{"label": "a", "score": 0.5}]] * 2)
    assert same.difference("f1").p_value == 1.0
    assert "no difference" in same.difference("f1").sentence()


def test_chance_alone_is_rarely_significant() -> None:
    p_values = [
        classified(120, 0.6, seed).difference("accuracy", 500).p_value for seed in range(60)
    ]
    assert sum(p < 0.05 for p in p_values) <= 8
    assert max(p_values) > 0.5


def test_seeded_and_the_same_in_small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    comparison = classified(200, 0.7, seed=5)
    found = comparison.difference("macro_f1", 700, seed=9)
    assert found == comparison.difference("macro_f1", 700, seed=9)
    assert found != comparison.difference("macro_f1", 700, seed=10)
    monkeypatch.setattr(compare, "AT_ONCE", 1000)
    pieces = comparison.difference("macro_f1", 700, seed=9)
    assert pieces.p_value == pytest.approx(found.p_value)
    assert (pieces.low, pieces.high) == pytest.approx((found.low, found.high))


def test_who_wins_where() -> None:
    comparison = classified(100, 0.9, seed=2)
    half = classified(50, 0.3, seed=4)
    lines: dict[Any, Any] = {
        name: counts for name, *counts in map(dict.values, comparison.records())
    }
    assert sum(lines["all rows"]) == 100
    assert lines["all rows"][1] > lines["all rows"][0]
    by_label = [lines[f"label: {label}"] for label in "abc"]
    assert np.sum(by_label, axis=0).tolist() == lines["all rows"]
    by_length = [n for name, n in lines.items() if name.startswith("characters")]
    assert np.sum(by_length, axis=0).tolist() == lines["all rows"]
    comparison.merge(half)
    assert sum(comparison.wins["all", "all rows"]) == comparison.kinds.total() == 150


def test_spans_and_numbers_are_compared() -> None:
    tags = Comparison(TagMeter(["A"]), TagMeter(["A"]))
    numbers = Comparison(RegressMeter(), RegressMeter())
    draw = np.random.default_rng(0)
    for i in range(60):
        row = TagRow(str(i), "0123456789", (Span(0, 2, "A"), Span(4, 6, "A")), None, PLACE)
        entities = [
            {"entity_group": "A", "score": 0.5, "word": "", "start": start, "end": start + 2}
            for start in (0, 4)
        ]
        tags.add(row, entities[: i % 2], entities[: 1 + i % 2])
        gold = float(draw.normal())
        one, other = gold + draw.normal(), gold + 0.2 * draw.normal()
        numbers.add(TextRow(str(i), "x", None, gold, PLACE), {"score": one}, {"score": other})
    found = tags.difference("f1")
    assert (found.first, found.second) == pytest.approx((0.4, 6 / 7))
    assert found.p_value < 0.001
    assert numbers.difference("pearson").p_value < 0.01
    error = numbers.difference("mse")
    assert error.second < error.first
    assert "the second model is better" in error.sentence()
    assert numbers.wins["all", "all rows"][1] > 30
    with pytest.raises(UsageError, match="'spearman' cannot be compared; choose of pearson, mse"):
        numbers.difference("spearman")
    with pytest.raises(UsageError, match="no rows to compare"):
        Comparison(RegressMeter(), RegressMeter()).difference("pearson")
