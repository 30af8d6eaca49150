"""The benchmark of the CRF runs on toy sizes, its peer beside it."""

from __future__ import annotations

import pytest

pytest.importorskip("torchcrf", reason="pytorch-crf, the peer of the benchmark, is not installed")

from benchmarks import bench_crf


@pytest.mark.parametrize("ragged", [False, True])
def test_both_sides_are_measured_and_compared(
    ragged: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(bench_crf.CASES, "toy", (3, 6, 5, ragged))
    rows, figures = bench_crf.measure("toy", bench_crf.Options(rounds=2, seconds=0.001))
    assert [row[:2] for row in rows] == [["toy", "loss + gradient"], ["toy", "Viterbi"]]
    for found in figures.values():
        assert {len(values) for values in found.values()} == {2}
        assert min(min(values) for values in found.values()) > 0
    ratio = float(rows[0][-1].split()[0])
    times = figures["toy, loss + gradient"]
    peers = [times["pytorch-crf"], times["pytorch-crf, one thread"]]
    ratios = [[a / b for a, b in zip(peer, times["bertkit"], strict=True)] for peer in peers]
    assert any(ratio == pytest.approx(sum(both) / 2, abs=0.06) for both in ratios)
    capsys.readouterr()
