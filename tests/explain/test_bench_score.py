"""The benchmark of scores runs on a toy size, and its sides agree."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers", reason="the peer of the benchmark is not installed")

from benchmarks import bench_score


def test_all_sides_score_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    options = bench_score.Options(size="tiny", vocabulary=200, texts=4, words=6, rows=8, rounds=1)
    rates = bench_score.measure(options)
    capsys.readouterr()
    assert len(rates) == 3
    assert all(rate > 0 for values in rates.values() for rate in values)
