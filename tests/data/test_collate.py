import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bertkit.data.collate import collate, pack, split_evenly
from bertkit.data.examples import Examples
from bertkit.data.masking import MaskRules
from bertkit.data.order import hash_u64
from bertkit.data.pairs import build_pair
from tests.data.corpora import CLS, MASK, PAD, SEP, vocabulary

V = 100
VOCABULARY = vocabulary(V)
RULES = MaskRules(MASK, VOCABULARY.special_table, probability=0.3)


def examples(n: int, seed: int = 0) -> Examples:
    rng = np.random.default_rng(seed)
    a, b = rng.integers(1, 20, n), rng.integers(0, 20, n)
    tokens = rng.integers(5, V, (a + b).sum()).astype(np.uint16)
    nsp = np.where(b > 0, rng.integers(0, 2, n), -100)
    return Examples(tokens, a, b, nsp, hash_u64(seed, np.arange(n)), None)


def test_a_batch_equals_its_examples_one_by_one() -> None:
    made = examples(40)
    batch = collate(made, VOCABULARY, RULES)
    assert (batch.lengths.diff() <= 0).all()
    assert batch.real_tokens == len(batch.input_ids) == int(made.lengths.sum())
    original = batch.input_ids.clone()
    original[batch.mlm_positions] = batch.mlm_labels
    assert (batch.mlm_positions.diff() > 0).all()
    assert 0.2 < len(batch.mlm_positions) / len(made.tokens) < 0.4
    order = np.argsort(-made.lengths, kind="stable")
    ids, types, masked = [], [], []
    positions: list[int] = []
    for k in order:
        one = made.take(np.array([k]))
        a = int(one.a_lengths[0])
        tokens = one.tokens.tolist()
        pair = build_pair(tokens[:a], tokens[a:], 64, CLS, SEP)
        ids += pair[0]
        types += pair[1]
        positions += range(len(pair[0]))
        masked += collate(one, VOCABULARY, RULES).input_ids.tolist()
    assert original.tolist() == ids
    assert batch.token_type_ids.tolist() == types
    assert batch.position_ids.tolist() == positions
    assert batch.input_ids.tolist() == masked
    assert batch.nsp_labels.tolist() == made.nsp[order].tolist()
    assert {t.dtype for t in (batch.input_ids, batch.lengths, batch.mlm_labels)} == {torch.int64}


def test_padding_to_a_fixed_size() -> None:
    made = examples(10)
    plain = collate(made, VOCABULARY, RULES)
    real = plain.real_tokens
    padded = collate(made, VOCABULARY, RULES, pad_to=real + 70, max_length=32)
    assert padded.lengths.tolist() == [*plain.lengths.tolist(), 32, 32, 6]
    assert padded.real_tokens == real
    assert len(padded.input_ids) == real + 70
    assert (padded.input_ids[real:] == PAD).all()
    assert padded.position_ids[real:].tolist() == [*range(32), *range(32), *range(6)]
    assert padded.nsp_labels[10:].tolist() == [-100] * 3
    assert torch.equal(padded.input_ids[:real], plain.input_ids)
    assert torch.equal(padded.mlm_positions, plain.mlm_positions)
    exact = collate(made, VOCABULARY, RULES, pad_to=real)
    assert torch.equal(exact.lengths, plain.lengths)
    with pytest.raises(AssertionError, match="do not fit"):
        collate(made, VOCABULARY, RULES, pad_to=real - 1)


def test_no_example_gives_one_token_of_padding() -> None:
    batch = collate(examples(0), VOCABULARY, RULES)
    assert batch.lengths.tolist() == [1]
    assert batch.real_tokens == 0
    assert batch.input_ids.tolist() == [PAD]
    assert len(batch.mlm_positions) == 0


@settings(deadline=None)
@example([2, 2, 61], 64, 0)
@given(st.lists(st.integers(2, 64), max_size=200), st.integers(64, 300), st.integers(0, 500))
def test_packing_places_each_example_once(lengths: list[int], budget: int, reserve: int) -> None:
    sizes = np.array(lengths, dtype=np.int64)
    bins, left = pack(sizes, budget, reserve)
    placed = np.concatenate([*bins, left]).astype(int).tolist()
    assert sorted(placed) == list(range(len(lengths)))
    unused = np.ones(len(sizes), dtype=np.bool_)
    for chosen in bins:
        unused[chosen] = False
        rest = budget - sizes[chosen].sum()
        # A bin stays half empty only if nothing left at that time fits.
        assert 0 <= rest
        assert rest < budget - budget // 2 or (sizes[unused] > rest).all()
    assert sizes[left].sum() < max(budget, reserve)
    assert (np.diff(left) > 0).all()


@pytest.mark.parametrize("shape", ["full", "uniform", "late"])
@pytest.mark.parametrize(
    ("budget", "longest"), [(1024, 128), (1500, 128), (4096, 128), (8192, 512)]
)
def test_fill(shape: str, budget: int, longest: int) -> None:
    rng = np.random.default_rng(0)
    n = 6000
    sizes = {
        "full": np.where(rng.random(n) < 0.85, longest, rng.integers(5, longest, n)),
        "uniform": rng.integers(5, longest + 1, n),
        "late": rng.integers(int(longest * 0.76), longest + 1, n),
    }[shape]
    bins, _ = pack(sizes, budget, 3 * budget)
    fill = np.array([sizes[b].sum() for b in bins]) / budget
    assert fill.mean() > 0.98
    # In order, but for the examples that close a bin.
    middle = np.array([np.median(b) for b in bins])
    assert np.corrcoef(middle, np.arange(len(bins)))[0, 1] > 0.9


@given(st.lists(st.integers(1, 128), max_size=60), st.integers(1, 9))
def test_dealing_is_balanced(lengths: list[int], parts: int) -> None:
    sizes = np.array(lengths, dtype=np.int64)
    dealt = split_evenly(sizes, parts)
    assert sorted(np.concatenate(dealt).astype(int).tolist()) == list(range(len(lengths)))
    loads = [int(sizes[d].sum()) for d in dealt]
    assert max(loads) - min(loads) <= 128
    assert max(loads) <= sum(lengths) // parts + 128
