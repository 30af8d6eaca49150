from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertkit.data.order import (
    cut_evenly,
    epoch_units,
    hash_u64,
    permutation,
    uniform,
    units_of,
)
from tests.data.corpora import numbered, prose


def splitmix64(state: int) -> int:
    """Steele, Lea and Flood's generator, in plain integers: the output after this state."""
    mask = (1 << 64) - 1
    z = (state + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ z >> 27) * 0x94D049BB133111EB) & mask
    return z ^ z >> 31


u64 = st.integers(0, (1 << 64) - 1)


@given(st.lists(u64, min_size=1, max_size=4))
def test_the_hash_is_splitmix64_chained(keys: list[int]) -> None:
    wanted = 0
    for key in keys:
        wanted = splitmix64(wanted ^ key)
    assert int(hash_u64(*keys)) == wanted
    for k in range(len(keys)):
        arrays: list[Any] = [*keys[:k], np.array([keys[k]] * 3, dtype=np.uint64), *keys[k + 1 :]]
        assert hash_u64(*arrays).tolist() == [wanted] * 3


def test_splitmix64_reference_value() -> None:
    # The first output of the generator seeded with 0 (as in Java's SplittableRandom).
    assert int(hash_u64(0)) == 0xE220A8397B1DCDAF


def test_uniform_is_uniform_and_its_streams_are_apart() -> None:
    n = 200_000
    draws = np.stack([uniform(7, np.arange(n), stream) for stream in range(3)])
    assert draws.min() >= 0
    assert draws.max() < 1
    counts = np.stack([np.histogram(d, bins=50, range=(0, 1))[0] for d in draws])
    # chi-square with 49 degrees of freedom: 100 is beyond one in 100,000
    assert (((counts - n / 50) ** 2 / (n / 50)).sum(axis=1) < 100).all()
    assert np.abs(np.corrcoef(draws) - np.eye(3)).max() < 0.01


@given(st.integers(0, 300), st.integers(0, 1 << 62), st.integers(0, 50))
def test_permutation_is_one(n: int, seed: int, epoch: int) -> None:
    order = permutation(n, seed, epoch)
    assert sorted(order.tolist()) == list(range(n))
    assert (order == permutation(n, seed, epoch)).all()


def test_epochs_and_seeds_differ() -> None:
    base = permutation(1000, 0, 0)
    for other in (permutation(1000, 0, 1), permutation(1000, 1, 0)):
        assert (base == other).mean() < 0.01


def test_giant_documents_come_in_parts(tmp_path: Path) -> None:
    documents = [[5] * 3, [10] * 57, [7], [400, 3, 3]]
    store = numbered(tmp_path / "s", documents, shard_tokens=100)
    units = units_of(store, 2, limit=100)
    assert units.tokens.sum() == store.tokens
    assert units.first[0] == 0
    assert (units.first[1:] == units.last[:-1]).all()
    assert units.last[-1] == store.sentences
    assert units.document.tolist() == [0] + [1] * 6 + [2] + [3, 3]
    assert (units.tokens <= 400).all()
    assert set(units.corpus.tolist()) == {2}


def test_weights_count_passes(tmp_path: Path) -> None:
    stores = [numbered(tmp_path / name, prose(400, seed)) for seed, name in enumerate("ab")]
    corpora = [units_of(s, n, 1 << 20) for n, s in enumerate(stores)]
    passes = np.zeros((2, 400), dtype=int)
    for epoch in range(40):
        units = epoch_units(corpora, [2.5, 0.25], seed=3, epoch=epoch)
        np.add.at(passes, (units.corpus, units.document), 1)
        assert len(
            set(zip(*(v.tolist() for v in (units.corpus, units.document, units.turn)), strict=True))
        ) == len(units)
    assert passes[0].min() >= 80
    assert passes[0].mean() / 40 == pytest.approx(2.5, abs=0.02)
    assert passes[1].mean() / 40 == pytest.approx(0.25, abs=0.02)
    # Other documents in every epoch: none is left out for ever.
    assert passes[1].min() > 0


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 8))
def test_cut_evenly(sizes: list[int], pieces: int) -> None:
    bounds = cut_evenly(np.array(sizes, dtype=np.int64), pieces)
    assert bounds[0] == 0
    assert bounds[-1] == len(sizes)
    assert len(bounds) == pieces + 1
    assert (np.diff(bounds) >= 0).all()
    for low, high in pairwise(bounds):
        assert sum(sizes[low:high]) <= sum(sizes) / pieces + 50
