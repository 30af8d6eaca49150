"""Every form of attention equals softmax(Q K^T / sqrt(H)) V, sequence by sequence."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bertkit.model import attention
from bertkit.model.attention import attend, attention_maps, mix
from bertkit.model.attention_dropout import dropped_attention
from bertkit.model.buckets import Bucket, Spans, buckets_of

HEADS, SIZE = 3, 8
CPU = torch.device("cpu")
Inputs = tuple[Tensor, Tensor, Tensor]


def inputs(q_lengths: Sequence[int], k_lengths: Sequence[int], dtype: torch.dtype) -> Inputs:
    generator = torch.Generator().manual_seed(sum(k_lengths) * 1000 + sum(q_lengths))

    def draw(tokens: int) -> Tensor:
        x = torch.randn(tokens, HEADS, SIZE, generator=generator, dtype=torch.float64)
        return x.to(dtype).requires_grad_()

    return draw(sum(q_lengths)), draw(sum(k_lengths)), draw(sum(k_lengths))


def spans(lengths: Sequence[int]) -> Spans:
    return Spans.of(torch.tensor(lengths), CPU)


def brute_force(inputs: Inputs, q_lengths: Sequence[int], k_lengths: Sequence[int]) -> Tensor:
    """One sequence and one head at a time."""
    query, key, value = (x.double() for x in inputs)
    rows = []
    q_start = k_start = 0
    for q_length, k_length in zip(q_lengths, k_lengths, strict=True):
        q, k, v = query[q_start:][:q_length], key[k_start:][:k_length], value[k_start:][:k_length]
        heads = []
        for n in range(HEADS):
            weights = (q[:, n] @ k[:, n].T / math.sqrt(SIZE)).exp()
            heads.append(weights / weights.sum(1, keepdim=True) @ v[:, n])
        rows.append(torch.stack(heads, dim=1))
        q_start, k_start = q_start + q_length, k_start + k_length
    return torch.cat(rows)


def by_maps(inputs: Inputs, q_lengths: Sequence[int], k_lengths: Sequence[int]) -> Tensor:
    assert list(q_lengths) == list(k_lengths)
    lengths = torch.tensor(k_lengths)
    return mix(attention_maps(inputs[0], inputs[1], lengths), inputs[2], lengths)


def by_bucketed(inputs: Inputs, q_lengths: Sequence[int], k_lengths: Sequence[int]) -> Tensor:
    return attend(*inputs, spans(q_lengths), spans(k_lengths), 0.0)


def by_padded(inputs: Inputs, q_lengths: Sequence[int], k_lengths: Sequence[int]) -> Tensor:
    return attention._padded(*inputs, spans(q_lengths), spans(k_lengths), 0.0)


def by_dropped(inputs: Inputs, q_lengths: Sequence[int], k_lengths: Sequence[int]) -> Tensor:
    lengths = (torch.tensor(q_lengths), torch.tensor(k_lengths))
    return dropped_attention(*inputs, lengths, 0.0)


Form = Callable[[Inputs, Sequence[int], Sequence[int]], Tensor]


def assert_equal_to_brute_force(
    form: Form, q_lengths: Sequence[int], k_lengths: Sequence[int], tolerance: float
) -> None:
    """Outputs, and the gradients of a weighted sum of them."""
    mine = inputs(q_lengths, k_lengths, torch.float32)
    theirs = inputs(q_lengths, k_lengths, torch.float64)
    out = form(mine, q_lengths, k_lengths)
    wanted = brute_force(theirs, q_lengths, k_lengths)
    torch.testing.assert_close(out.double(), wanted, atol=tolerance, rtol=tolerance)
    slope = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    (out * slope).sum().backward()
    (wanted * slope).sum().backward()
    for a, b in zip(mine, theirs, strict=True):
        assert a.grad is not None
        assert b.grad is not None
        torch.testing.assert_close(a.grad.double(), b.grad, atol=tolerance, rtol=tolerance)


WHOLE = [
    [1],
    [5],
    [7, 7, 7],
    [1, 1, 1],
    [33, 17, 16, 15, 1],
    [1, 40, 2, 39, 3, 38],
    [16, 17, 32, 33, 48, 49],
]


@pytest.mark.parametrize("form", [by_maps, by_bucketed, by_padded, by_dropped])
@pytest.mark.parametrize("lengths", WHOLE, ids=str)
def test_every_form_equals_brute_force(form: Form, lengths: list[int]) -> None:
    assert_equal_to_brute_force(form, lengths, lengths, 1e-5)


FEWER = [
    ([1], [9]),
    ([1, 1, 1], [9, 9, 9]),
    ([2, 0, 3], [9, 12, 8]),
    ([0, 0, 4], [20, 1, 5]),
    ([5, 1, 0, 2], [40, 33, 35, 2]),
    ([0, 1, 0, 1], [17, 17, 17, 17]),
    ([1, 0, 1, 1], [16, 30, 16, 16]),
]


@pytest.mark.parametrize("form", [by_bucketed, by_padded, by_dropped])
@pytest.mark.parametrize(("queries", "keys"), FEWER, ids=str)
def test_fewer_queries_than_keys(form: Form, queries: list[int], keys: list[int]) -> None:
    assert_equal_to_brute_force(form, queries, keys, 1e-5)


@st.composite
def lengths_of_both(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    keys = draw(st.lists(st.integers(1, 36), min_size=1, max_size=6))
    queries = [draw(st.integers(0, k)) for k in keys]
    if not any(queries):
        queries[0] = 1
    return queries, keys


@settings(max_examples=25, deadline=None)
@given(lengths_of_both())
def test_any_lengths(both: tuple[list[int], list[int]]) -> None:
    queries, keys = both
    mine = inputs(queries, keys, torch.float64)
    wanted = brute_force(mine, queries, keys)
    for form in (by_bucketed, by_padded, by_dropped):
        torch.testing.assert_close(form(mine, queries, keys), wanted, atol=1e-12, rtol=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=8))
def test_forms_and_their_gradients_agree_at_any_lengths(lengths: list[int]) -> None:
    slope = torch.randn(sum(lengths), HEADS, SIZE)
    results = []
    for form in (by_maps, by_bucketed, by_padded, by_dropped):
        mine = inputs(lengths, lengths, torch.float32)
        out = form(mine, lengths, lengths)
        (out * slope).sum().backward()
        results.append((out, *(x.grad for x in mine)))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], atol=1e-5, rtol=1e-5)


def test_a_sequence_without_queries_leaves_no_gradient_on_its_keys() -> None:
    mine = inputs([0, 3], [5, 4], torch.float32)
    by_bucketed(mine, [0, 3], [5, 4]).sum().backward()
    assert mine[1].grad is not None
    assert mine[2].grad is not None
    assert not mine[1].grad[:5].any()
    assert not mine[2].grad[:5].any()
    assert mine[2].grad[5:].any()


def test_neighbours_do_not_see_each_other() -> None:
    lengths = [6, 9, 4]
    query, key, value = inputs(lengths, lengths, torch.float32)
    before = by_bucketed((query, key, value), lengths, lengths)
    other = value.detach().clone()
    other[6:15] = 1e6
    after = by_bucketed((query, key, other), lengths, lengths)
    assert torch.equal(before[:6], after[:6])
    assert torch.equal(before[15:], after[15:])


def test_maps_are_distributions_over_the_own_sequence() -> None:
    lengths = [3, 7, 1]
    query, key, _ = inputs(lengths, lengths, torch.float64)
    maps = attention_maps(query, key, torch.tensor(lengths))
    assert maps.shape == (3, HEADS, 7, 7)
    for row, length in enumerate(lengths):
        sums = maps[row, :, :length].sum(-1)
        torch.testing.assert_close(sums, torch.ones_like(sums))
        assert not maps[row, :, length:].any()
        assert not maps[row, :, :, length:].any()


def test_the_plain_form_has_the_gradient_that_finite_differences_have() -> None:
    lengths = torch.tensor([3, 1, 4])
    mine = inputs([3, 1, 4], [3, 1, 4], torch.float64)

    def plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return mix(attention_maps(query, key, lengths), value, lengths)

    assert torch.autograd.gradcheck(plain, mine, fast_mode=True)


@pytest.mark.parametrize("queries", [[3, 1, 4], [1, 0, 2]], ids=str)
def test_the_padded_form_has_the_gradient_that_finite_differences_have(
    queries: list[int],
) -> None:
    keys = [3, 1, 4]
    mine = inputs(queries, keys, torch.float64)
    q, k = spans(queries), spans(keys)

    def padded(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return attention._padded(query, key, value, q, k, 0.0)

    assert torch.autograd.gradcheck(padded, mine, fast_mode=True)


def test_dropout_of_nothing_changes_nothing() -> None:
    lengths = [12, 5, 5]
    mine = inputs(lengths, lengths, torch.float32)
    plain = by_bucketed(mine, lengths, lengths)
    torch.testing.assert_close(by_padded(mine, lengths, lengths), plain, atol=1e-6, rtol=1e-5)
    maps = attention_maps(mine[0], mine[1], torch.tensor(lengths))
    mixed = mix(maps, mine[2], torch.tensor(lengths), 0.0)
    torch.testing.assert_close(mixed, plain, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("form", ["attend", "mix"])
def test_dropout_keeps_the_expectation(form: str) -> None:
    torch.manual_seed(0)
    lengths, copies = [4, 6], 3000
    query, key, value = (x.detach() for x in inputs(lengths, lengths, torch.float32))
    wanted = by_bucketed((query, key, value), lengths, lengths)
    many = lengths * copies
    wide = [x.repeat(copies, 1, 1) for x in (query, key, value)]
    if form == "attend":
        out = attend(wide[0], wide[1], wide[2], spans(many), spans(many), 0.25)
    else:
        maps = attention_maps(wide[0], wide[1], torch.tensor(many))
        out = mix(maps, wide[2], torch.tensor(many), 0.25)
    out = out.view(copies, sum(lengths), HEADS, SIZE)
    assert out.std(0).max() > 0.05  # something was dropped
    error = out.std(0) / math.sqrt(copies)
    assert ((out.mean(0) - wanted).abs() < 5 * error + 1e-6).all()


def test_dropout_is_repeated_by_its_seed() -> None:
    lengths = [12, 5, 5]
    mine = inputs(lengths, lengths, torch.float32)
    drawn = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        drawn.append(attend(*mine, spans(lengths), spans(lengths), 0.5))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("queries", [[12, 5, 5, 30], [1, 0, 5, 2]], ids=str)
def test_dropped_weights_are_those_of_its_masks(queries: list[int]) -> None:
    keys = [12, 5, 5, 30]
    both = torch.tensor(queries), torch.tensor(keys)
    mine = inputs(queries, keys, torch.float64)
    out, _, masks, *_ = torch.ops.bertkit.dropped_attention(*mine, *both, 0.3)
    slope = torch.randn(out.shape, dtype=torch.float64)
    (out * slope).sum().backward()
    theirs = inputs(queries, keys, torch.float64)
    wanted = torch.zeros_like(out)
    starts = [[sum(lengths[:i]) for i in range(len(lengths))] for lengths in (queries, keys)]
    place = 0
    for bucket in buckets_of(*both):
        shape = (bucket.rows, HEADS, bucket.query_length, bucket.key_length)
        mask = masks.detach()[place : place + math.prod(shape)].view(shape)
        place += math.prod(shape)
        for row, i in enumerate(members_of(bucket, starts[1])):
            q = theirs[0][starts[0][i] :][: queries[i]].transpose(0, 1)
            k, v = (x[starts[1][i] :][: keys[i]].transpose(0, 1) for x in theirs[1:])
            weights = (q @ k.mT / math.sqrt(SIZE)).softmax(-1)
            mixed = (weights * mask[row, :, : queries[i], : keys[i]]) @ v
            wanted = wanted.index_add(
                0, starts[0][i] + torch.arange(queries[i]), mixed.transpose(0, 1)
            )
    (wanted * slope).sum().backward()
    torch.testing.assert_close(out, wanted)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def members_of(bucket: Bucket, starts: list[int]) -> list[int]:
    """The sequences of a bucket, in its order."""
    keys = torch.arange(*bucket.keys) if isinstance(bucket.keys, tuple) else bucket.keys
    return [starts.index(int(start)) for start in keys[:: bucket.key_length]]


def test_half_precision_stays_within_its_rounding() -> None:
    lengths = [20, 3, 18]
    mine = inputs(lengths, lengths, torch.float32)
    half = tuple(x.detach().bfloat16() for x in mine)
    out = by_bucketed((half[0], half[1], half[2]), lengths, lengths)
    assert out.dtype == torch.bfloat16
    wanted = by_bucketed(mine, lengths, lengths)
    torch.testing.assert_close(out.float(), wanted, atol=0.03, rtol=0.03)


CHECKS = ("test_schema", "test_faketensor", "test_autograd_registration")


def test_the_custom_operator_is_sound_for_the_compiler() -> None:
    lengths = torch.tensor([5, 3])
    found = torch.library.opcheck(
        torch.ops.bertkit.ragged_attention.default,
        (*inputs([5, 3], [5, 3], torch.float32), lengths, lengths),
        test_utils=CHECKS,
    )
    assert found == dict.fromkeys(CHECKS, "SUCCESS")


def test_the_dropping_operator_is_sound_for_the_compiler() -> None:
    lengths = torch.tensor([5, 3])
    found = torch.library.opcheck(
        torch.ops.bertkit.dropped_attention.default,
        (*inputs([5, 3], [5, 3], torch.float32), lengths, lengths, 0.1),
        test_utils=CHECKS,
    )
    assert found == dict.fromkeys(CHECKS, "SUCCESS")


def test_spans_know_their_bounds() -> None:
    found = Spans.of(torch.tensor([3, 1, 4]), CPU)
    assert found.bounds.tolist() == [0, 3, 4, 8]
    assert found.bounds.dtype == torch.int32
    assert found.longest == 4


def test_buckets_hold_every_sequence_that_asks_once() -> None:
    queries = torch.tensor([2, 0, 5, 1, 7])
    keys = torch.tensor([30, 31, 5, 29, 7])
    rows = sum(bucket.rows for bucket in buckets_of(queries, keys))
    assert rows == 4
