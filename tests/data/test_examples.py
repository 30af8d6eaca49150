from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertkit.data.examples import (
    NO_PAIR,
    ExampleRules,
    Examples,
    balance,
    join_examples,
    make_examples,
    truncate_pairs,
)
from bertkit.data.order import hash_u64, units_of
from bertkit.data.pairs import build_pair, sentence_pairs
from bertkit.data.shards import TokenStore
from bertkit.data.shardwriter import ShardWriter
from bertkit.errors import UsageError
from tests.data.corpora import FIRST, numbered, prose

Sizes = list[list[int]]
rng = np.random.default_rng(5)
CORPORA: dict[str, Sizes] = {
    "prose": prose(1500),
    "two_sentences": [rng.integers(5, 40, 2).tolist() for _ in range(3000)],
    "one_or_more": [rng.integers(5, 40, k).tolist() for k in rng.geometric(0.5, 4000)],
    "mostly_single": [rng.integers(5, 40, 1 + (k % 5 == 0) * 2).tolist() for k in range(4000)],
    "long_sentences": [rng.integers(60, 300, rng.integers(1, 9)).tolist() for _ in range(800)],
    "a_book_or_two": [prose(1, 9, 4000)[0] * 2, prose(1, 8, 4000)[0] * 2],
}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TokenStore]:
    folder = tmp_path_factory.mktemp("corpora")
    made: dict[str, TokenStore] = {}

    def get(name: str) -> TokenStore:
        if name not in made:
            made[name] = numbered(folder / name, CORPORA[name], shard_tokens=40_000)
        return made[name]

    return get


def parts(examples: Examples) -> list[tuple[list[int], list[int], int]]:
    """(sentences of A token by token, of B, label) of each example."""
    sizes = examples.a_lengths + examples.b_lengths
    ends = np.cumsum(sizes).tolist()
    tokens = (examples.tokens.astype(int) - FIRST).tolist()
    return [
        (tokens[end - a - b : end - b], tokens[end - b : end], label)
        for end, a, b, label in zip(
            ends,
            examples.a_lengths.tolist(),
            examples.b_lengths.tolist(),
            examples.nsp.tolist(),
            strict=True,
        )
    ]


def everything(store: TokenStore, rules: ExampleRules, seed: int = 0, epoch: int = 0) -> Examples:
    units = units_of(store, 0, 1 << 20)
    return make_examples(store, units, balance(store, units, rules), seed, epoch)


@pytest.mark.parametrize("segments", ["long", "sentence"])
@pytest.mark.parametrize("name", CORPORA)
def test_next_sentence_pairs(
    stores: Callable[[str], TokenStore], name: str, segments: Literal["long", "sentence"]
) -> None:
    store = stores(name)
    rules = ExampleRules("mlm+nsp", segments, max_length=128)
    examples = everything(store, rules, seed=1)
    owner = np.repeat(np.arange(store.documents), np.diff(store.document_sentences))
    lengths = np.array([n for d in CORPORA[name] for n in d])
    for a, b, label in parts(examples):
        assert a
        assert b
        assert len(a) + len(b) <= rules.room
        assert sorted(a) == a
        assert sorted(b) == b
        assert len({int(owner[s]) for s in a}) == len({int(owner[s]) for s in b}) == 1
        same = owner[a[0]] == owner[b[0]]
        whole = len(a) == sum(lengths[list(set(a))]) and len(b) == sum(lengths[list(set(b))])
        if label == 0:
            assert same
            assert b[0] >= a[-1]
            if whole and len(a) + len(b) < rules.room:
                assert b[0] == a[-1] + 1
        else:
            assert label == 1
            assert not same
        if segments == "sentence":
            assert len(set(a)) == len(set(b)) == 1
    share = (examples.nsp == 1).mean()
    assert 0.45 < share < 0.55, f"{share:.3f} of {len(examples)} pairs are random"


def test_every_sentence_is_used(stores: Callable[[str], TokenStore]) -> None:
    store = stores("prose")
    seen = np.zeros(store.sentences, dtype=bool)
    examples = everything(store, ExampleRules(max_length=512))
    for a, b, label in parts(examples):
        seen[a] = True
        if label == 0:
            seen[b] = True
    # Truncation can drop a short sentence at the rim of a chunk.
    assert seen.mean() > 0.95
    # And over a few epochs nothing is lost.
    for epoch in range(1, 6):
        more = everything(store, ExampleRules(max_length=512), epoch=epoch)
        seen[more.tokens.astype(int) - FIRST] = True
    assert seen.mean() > 0.9995


def test_a_tenth_are_short(stores: Callable[[str], TokenStore]) -> None:
    store = stores("a_book_or_two")
    full = everything(store, ExampleRules(max_length=128, short_probability=0))
    some = everything(store, ExampleRules(max_length=128, short_probability=0.1))
    assert (full.lengths < 128).mean() < 0.01
    assert 0.05 < (some.lengths < 128).mean() < 0.10


@pytest.mark.parametrize("segments", ["long", "sentence"])
def test_one_document(tmp_path: Path, segments: Literal["long", "sentence"]) -> None:
    sizes = rng.integers(5, 30, 900)
    store = numbered(tmp_path / "s", [sizes.tolist()])
    examples = everything(store, ExampleRules("mlm+nsp", segments, max_length=128))
    for a, b, label in parts(examples):
        if label == 1:
            assert not set(a) & set(b)
            if len(a) + len(b) < 125:
                assert b[0] != a[-1] + 1
    assert 0.45 < (examples.nsp == 1).mean() < 0.55


@pytest.mark.parametrize("sizes", [[[9]], [[9, 9]], [[300]], [[1]], [[3], [4]], [[1, 1, 1]]])
@pytest.mark.parametrize("objective", ["mlm+nsp", "mlm", "mlm+sop"])
def test_tiny_corpora(
    tmp_path: Path, sizes: Sizes, objective: Literal["mlm+nsp", "mlm", "mlm+sop"]
) -> None:
    store = numbered(tmp_path / "s", sizes)
    rules = ExampleRules(objective, max_length=32)
    units = units_of(store, 0, 1 << 20)
    for epoch in range(20):
        examples = make_examples(store, units, rules, 0, epoch)
        assert len(examples) > 0
        assert (examples.lengths <= 32).all()
        for a, b, label in parts(examples):
            assert a
            assert (label == NO_PAIR) == (not b)
            if label == 1 and objective == "mlm+nsp":
                assert len(sizes) > 1 or not set(a) & set(b)


def test_documents_of_one_sentence_are_refused_for_nsp(tmp_path: Path) -> None:
    store = numbered(tmp_path / "s", [[5]] * 50)
    with pytest.raises(UsageError, match="two sentences"):
        everything(store, ExampleRules())
    assert len(everything(store, ExampleRules("mlm"))) == 50


@pytest.mark.parametrize("name", ["prose", "long_sentences", "mostly_single"])
def test_mlm_keeps_every_token_once(stores: Callable[[str], TokenStore], name: str) -> None:
    store = stores(name)
    examples = everything(store, ExampleRules("mlm", max_length=64))
    wanted = np.concatenate([store.document_tokens(i) for i in range(len(store))])
    assert examples.tokens.tolist() == wanted.tolist()
    assert (examples.lengths <= 64).all()
    assert (examples.nsp == NO_PAIR).all()
    lengths = np.array([n for d in CORPORA[name] for n in d])
    if lengths.max() <= 62:
        # Full sentences, and as many as fit.
        owner = np.repeat(np.arange(store.documents), np.diff(store.document_sentences))
        rows = parts(examples)
        for (a, _, _), (after, _, _) in pairwise(rows):
            assert len(a) == lengths[sorted(set(a))].sum()
            if owner[a[0]] == owner[after[0]]:
                assert len(a) + lengths[after[0]] > 62


def test_sentence_order(stores: Callable[[str], TokenStore]) -> None:
    store = stores("prose")
    examples = everything(store, ExampleRules("mlm+sop", max_length=128))
    for a, b, label in parts(examples):
        if label == 0:
            assert b[0] >= a[-1]
        elif label == 1:
            assert a[0] >= b[-1]
    paired = examples.nsp[examples.nsp != NO_PAIR]
    assert 0.45 < paired.mean() < 0.55
    assert len(paired) > 0.75 * len(examples)


@pytest.mark.parametrize("objective", ["mlm+nsp", "mlm", "mlm+sop"])
def test_examples_are_a_function_of_seed_epoch_and_document(
    stores: Callable[[str], TokenStore], objective: Literal["mlm+nsp", "mlm", "mlm+sop"]
) -> None:
    store = stores("prose")
    rules = ExampleRules(objective)
    units = units_of(store, 0, 1 << 20)
    whole = make_examples(store, units, rules, 3, 1)
    shuffled = np.random.default_rng(0).permutation(len(units))
    pieces = [make_examples(store, units.take(k), rules, 3, 1) for k in np.array_split(shuffled, 7)]
    joined = join_examples(pieces)
    assert len(set(whole.keys.tolist())) == len(whole)
    joined, again = (e.take(np.argsort(e.keys)) for e in (joined, whole))
    assert (joined.keys == again.keys).all()
    assert parts(joined) == parts(again)
    other = make_examples(store, units, rules, 3, 2)
    assert not set(other.keys.tolist()) & set(whole.keys.tolist())
    if objective == "mlm+nsp":
        assert other.nsp[:500].tolist() != whole.nsp[:500].tolist()


def test_words_travel_with_their_tokens(tmp_path: Path) -> None:
    lengths = np.array([n for d in prose(200) for n in d])
    counts = np.array([len(d) for d in prose(200)])
    ids = rng.integers(5, 1000, lengths.sum())
    # A word starts exactly at even ids.
    with ShardWriter(tmp_path / "s", 1000, with_words=True, shard_tokens=9999) as writer:
        writer.add_many(ids, lengths, counts, ids % 2 == 0)
    examples = everything(TokenStore(tmp_path / "s"), ExampleRules())
    assert examples.words is not None
    assert (examples.words == (examples.tokens % 2 == 0)).all()


@given(st.integers(0, 400), st.integers(0, 400), st.integers(2, 300), st.integers(0, 99))
def test_truncation_takes_from_the_longer_as_bert_does(
    a: int, b: int, room: int, seed: int
) -> None:
    left_a, left_b = a, b
    while left_a + left_b > room:
        if left_a > left_b:
            left_a -= 1
        else:
            left_b -= 1
    keys = hash_u64(seed, np.arange(1))
    front_a, got_a, front_b, got_b = truncate_pairs(np.array([a]), np.array([b]), room, keys)
    assert (int(got_a[0]), int(got_b[0])) == (left_a, left_b)
    assert 0 <= front_a[0] <= a - left_a
    assert 0 <= front_b[0] <= b - left_b


def test_truncation_tosses_fair_coins() -> None:
    n, loss = 20_000, 100
    keys = hash_u64(1, np.arange(n))
    front = truncate_pairs(np.full(n, 200), np.zeros(n, dtype=np.int64), 100, keys)[0]
    assert front.mean() == pytest.approx(loss / 2, abs=0.2)
    assert front.std() == pytest.approx(loss**0.5 / 2, rel=0.05)


def test_sentence_pairs_of_one_list() -> None:
    text = [f"Sentence {i}." for i in range(300)]
    pairs = sentence_pairs(text, seed=4)
    assert [a for a, _, _ in pairs] == text[:-1]
    for a, b, is_next in pairs:
        assert (b == text[text.index(a) + 1]) == is_next
        assert a != b
    assert sum(n for _, _, n in pairs) == 150
    assert pairs == sentence_pairs(text, seed=4)
    assert pairs != sentence_pairs(text, seed=5)


def test_sentence_pairs_of_documents() -> None:
    documents = [[f"{d}.{i}" for i in range(1 + d % 7)] for d in range(100)]
    pairs = sentence_pairs(documents)
    for a, b, is_next in pairs:
        d, i = a.split(".")
        assert (b == f"{d}.{int(i) + 1}") == is_next
        assert (b.split(".")[0] == d) == is_next
    share = np.mean([n for _, _, n in pairs])
    assert 0.49 < share < 0.51


def test_sentence_pairs_never_repeats_the_next() -> None:
    documents = [["hello", "same", "x"], ["same", "same"], ["same", "y"]]
    for seed in range(50):
        for a, b, is_next in sentence_pairs(documents, seed):
            if not is_next:
                follows = [d[i + 1] for d in documents for i, s in enumerate(d[:-1]) if s == a]
                assert len(follows) > 1 or b not in follows


@pytest.mark.parametrize("few", [[], ["one"], [["one"], ["two"]], [[], ["one"]]])
def test_sentence_pairs_needs_two(few: list[str]) -> None:
    assert sentence_pairs(few) == []


def test_sentence_pairs_of_two_are_next() -> None:
    assert sentence_pairs(["a", "b"]) == [("a", "b", True)]


def test_build_pair() -> None:
    ids, types, mask = build_pair([10, 11, 12], [20, 21], 16, 1, 2)
    assert ids == [1, 10, 11, 12, 2, 20, 21, 2]
    assert types == [0, 0, 0, 0, 0, 1, 1, 1]
    assert mask == [1] * 8
    ids, types, _ = build_pair(list(range(10, 30)), [40, 41], 8, 1, 2)
    assert ids == [1, 10, 11, 12, 2, 40, 41, 2]
    assert build_pair([5, 6], [], 4, 1, 2) == ([1, 5, 6, 2], [0] * 4, [1] * 4)
    long = build_pair(list(range(100)), list(range(100, 200)), 32, 1, 2, seed=3)[0]
    assert len(long) == 32
    assert long[1] > 20
    with pytest.raises(UsageError, match="max_length"):
        build_pair([1], [2], 4, 1, 2)
