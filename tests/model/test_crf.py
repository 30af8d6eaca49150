"""The CRF against enumeration of every tagging: sums, gradients, best taggings, spans."""

from __future__ import annotations

import logging
import math
from typing import NamedTuple
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import functional_call

from bertkit.errors import ConfigError, DataError
from bertkit.model import lattice
from bertkit.model.crf import Crf
from bertkit.model.paths import best_tags
from tests.model import enumeration

BIO = ["O", "B-X", "I-X", "B-Y", "I-Y"]
BIOES = ["O", "B-X", "I-X", "E-X", "S-X"]
LABELS = [["a"], ["a", "b"], ["a", "b", "c"], BIO[:3], BIO, BIOES, ["B", "M", "E", "S"]]


class Case(NamedTuple):
    crf: Crf
    emissions: Tensor
    tags: Tensor
    counts: Tensor


@st.composite
def cases(draw: st.DrawFn, largest: float = 30.0) -> Case:
    labels = draw(st.sampled_from(LABELS))
    longest = 5 if len(labels) < 4 else 4
    counts = draw(st.lists(st.integers(0, longest), min_size=1, max_size=5))
    scale = draw(st.sampled_from([0.0, 1.0, largest]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    return case(labels, counts, scale, generator)


def case(labels: list[str], counts: list[int], scale: float, generator: torch.Generator) -> Case:
    crf = Crf.of_labels(labels).double()
    with torch.no_grad():
        for parameter in crf.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale / 3)
    emissions = torch.randn(sum(counts), len(labels), generator=generator, dtype=torch.float64)
    tags: list[int] = []
    for count in counts:
        legal = enumeration.taggings(crf, count)
        tags += legal[int(torch.randint(len(legal), (), generator=generator))]
    return Case(crf, emissions * scale, torch.tensor(tags, dtype=torch.int64), torch.tensor(counts))


def gradients(crf: Crf, emissions: Tensor, values: Tensor) -> list[Tensor]:
    weights = torch.linspace(0.5, -1.0, len(values), dtype=values.dtype)
    wanted = [emissions, *crf.parameters()]
    if not values.requires_grad:  # enumerated, sequences without words depend on nothing
        return [torch.zeros_like(x) for x in wanted]
    found = torch.autograd.grad((values * weights).sum(), wanted, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(wanted, found, strict=True)]


def check_sums(one: Case) -> None:
    crf, emissions, tags, counts = one
    emissions = emissions.requires_grad_()
    ours = crf.log_likelihood(emissions, tags, counts)
    plain = enumeration.log_likelihood(crf, emissions, tags, counts)
    torch.testing.assert_close(ours, plain, atol=1e-9, rtol=1e-10)
    for a, b in zip(gradients(crf, emissions, ours), gradients(crf, emissions, plain), strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)
    emissions = emissions.detach()
    torch.testing.assert_close(
        crf.log_partition(emissions, counts), enumeration.log_partition(crf, emissions, counts)
    )
    torch.testing.assert_close(
        crf.marginals(emissions, counts), enumeration.marginals(crf, emissions, counts)
    )


@settings(deadline=None, max_examples=40)
@given(cases())
def test_sums_and_gradients_equal_enumeration(one: Case) -> None:
    check_sums(one)


@settings(deadline=None, max_examples=20)
@given(cases(largest=2000.0))
def test_scores_beyond_all_scaling_equal_enumeration(one: Case) -> None:
    check_sums(one)


@settings(deadline=None, max_examples=25)
@given(cases())
def test_sums_of_logarithms_equal_scaled_sums(one: Case) -> None:
    crf, emissions, _, counts = one
    if not len(emissions):
        return
    scaled = lattice.sum_taggings(emissions, counts, crf.scores())
    plain = lattice.sum_taggings(emissions, counts, crf.scores()._replace(mixing=0))
    assert plain.logs
    torch.testing.assert_close(scaled.log_z, plain.log_z)
    torch.testing.assert_close(scaled.marginals(), plain.marginals())
    weights = torch.linspace(-1, 2, len(emissions), dtype=torch.float64)
    torch.testing.assert_close(scaled.transitions(weights), plain.transitions(weights))


@settings(deadline=None, max_examples=40)
@given(cases(), st.integers(1, 7))
def test_best_and_n_best_equal_enumeration(one: Case, n: int) -> None:
    crf, emissions, _, counts = one
    crf.requires_grad_(False)
    best = crf.decode(emissions, counts).split(counts.tolist())
    found = crf.n_best(emissions, counts, n)
    assert found.tags.shape == (n, len(emissions))
    for b, rows in enumerate(enumeration.sequences(emissions, counts)):
        legal, scores = enumeration.scored(crf, rows)
        highest = scores.sort(descending=True).values[:n]
        torch.testing.assert_close(
            enumeration.score(crf, rows, tuple(best[b].tolist())), highest[0]
        )
        assert tuple(best[b].tolist()) in legal
        chances = found.log_probabilities[b]
        torch.testing.assert_close(
            chances[: len(highest)], highest - scores.logsumexp(0), atol=1e-8, rtol=1e-8
        )
        assert (chances[len(highest) :] == -math.inf).all()
        paths = [tuple(t.split(counts.tolist())[b].tolist()) for t in found.tags]
        assert len(set(paths[: len(highest)])) == len(highest)
        for path, chance in zip(paths, chances.tolist(), strict=True):
            if chance == -math.inf:
                assert set(path) <= {-1}
            else:
                at = legal.index(path)
                torch.testing.assert_close(
                    float(scores[at] - scores.logsumexp(0)), chance, atol=1e-8, rtol=1e-8
                )


@settings(deadline=None, max_examples=40)
@given(cases(), st.data())
def test_the_probability_of_a_span_equals_enumeration(one: Case, data: st.DataObject) -> None:
    crf, emissions, tags, counts = one
    crf.requires_grad_(False)
    spans, wanted, start = [], [], 0
    for rows in enumeration.sequences(emissions, counts):
        if len(rows):
            a = data.draw(st.integers(0, len(rows) - 1))
            b = data.draw(st.integers(a + 1, len(rows)))
            spans.append((start + a, start + b))
            wanted.append(span_by_enumeration(crf, rows, tags[start : start + len(rows)], a, b))
        start += len(rows)
    found = crf.span_probability(emissions, tags, counts, torch.tensor(spans))
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64))


def span_by_enumeration(crf: Crf, emissions: Tensor, tags: Tensor, a: int, b: int) -> float:
    legal, scores = enumeration.scored(crf, emissions)
    gold, on, total = tuple(tags.tolist()), crf.goes_on.tolist(), 0.0
    for path, chance in zip(legal, scores.softmax(0).tolist(), strict=True):
        goes_on = b < len(path) and on[path[b - 1]][path[b]]
        came_on = a > 0 and on[path[a - 1]][path[a]]
        if path[a:b] == gold[a:b] and not goes_on and not came_on:
            total += chance
    return total


def test_an_entity_that_could_go_on_is_less_probable_than_its_tags() -> None:
    crf = Crf.of_labels(BIO[:3])
    emissions, counts = torch.zeros(3, 3), torch.tensor([3])
    tags = torch.tensor([1, 2, 0])
    whole = crf.span_probability(emissions, tags, counts, torch.tensor([[0, 2]]))
    pairs = crf.n_best(emissions, counts, 27)
    chances = pairs.log_probabilities[0].exp()
    paths = [tuple(path.tolist()) for path in pairs.tags]
    begins = sum(float(c) for p, c in zip(paths, chances, strict=True) if p[:2] == (1, 2))
    exact = sum(
        float(c) for p, c in zip(paths, chances, strict=True) if p[:2] == (1, 2) and p[2] != 2
    )
    assert whole.item() == pytest.approx(exact, abs=1e-6)
    assert exact < begins - 0.01


@pytest.mark.parametrize("labels", [["a", "b", "c"], BIO], ids=["free", "BIO"])
def test_gradients_equal_finite_differences(labels: list[str]) -> None:
    crf, emissions, tags, counts = case(labels, [3, 0, 1, 4], 1.0, torch.Generator().manual_seed(3))
    parameters = [p.detach().clone().requires_grad_() for p in crf.parameters()]
    names = [name for name, _ in crf.named_parameters()]

    def call(emissions: Tensor, *values: Tensor) -> Tensor:
        given = {f"crf.{name}": value for name, value in zip(names, values, strict=True)}
        found: Tensor = functional_call(Likelihood(crf), given, (emissions, tags, counts))
        return found

    assert torch.autograd.gradcheck(call, (emissions.requires_grad_(), *parameters))


class Likelihood(torch.nn.Module):
    def __init__(self, crf: Crf) -> None:
        super().__init__()
        self.crf = crf

    def forward(self, emissions: Tensor, tags: Tensor, counts: Tensor) -> Tensor:
        return self.crf.log_likelihood(emissions, tags, counts)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_and_autocast_sum_in_full(dtype: torch.dtype) -> None:
    crf, emissions, tags, counts = case(BIO, [4, 2], 2.0, torch.Generator().manual_seed(5))
    crf, low = crf.float(), emissions.to(dtype)
    wanted = crf.double().log_likelihood(low.double(), tags, counts)
    crf = crf.float()
    low.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = crf.log_likelihood(low, tags, counts)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted.float(), atol=1e-6, rtol=1e-6)
    found.sum().backward()
    assert low.grad is not None
    assert low.grad.dtype == dtype
    assert crf.transitions.grad is not None
    assert crf.transitions.grad.dtype == torch.float32


def test_illegal_transitions_have_no_gradient_and_no_chance() -> None:
    crf, emissions, tags, counts = case(BIO, [4, 3, 1], 1.0, torch.Generator().manual_seed(7))
    with torch.no_grad():
        crf.transitions[0, 2] = 1e6  # whatever the parameter holds
        crf.start_transitions[2] = math.nan
    crf.log_likelihood(emissions, tags, counts).sum().backward()
    for parameter, rule in (
        (crf.transitions, crf.may_follow),
        (crf.start_transitions, crf.may_start),
        (crf.end_transitions, crf.may_end),
    ):
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
        assert (parameter.grad[~rule] == 0).all()
    assert not crf.illegal(crf.decode(emissions, counts), counts).any()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_emissions_that_are_no_numbers_never_lead_to_the_illegal(bad: float) -> None:
    crf = Crf.of_labels(BIO)
    emissions = torch.zeros(6, 5)
    emissions[:, 2] = bad
    emissions[3] = bad
    counts = torch.tensor([4, 2])
    assert not crf.illegal(crf.decode(emissions, counts), counts).any()
    best = crf.n_best(emissions, counts, 2).tags
    assert not crf.illegal(best[0], counts).any()


def test_illegal_gold_is_repaired_and_told(caplog: pytest.LogCaptureFixture) -> None:
    crf = Crf.of_labels(BIO)
    emissions, counts = torch.randn(5, 5), torch.tensor([3, 2])
    bad, good = torch.tensor([0, 2, 2, 2, 4]), torch.tensor([0, 1, 2, 1, 3])
    with caplog.at_level(logging.WARNING, "bertkit"):
        found = crf.log_likelihood(emissions, bad, counts)
        crf.log_likelihood(emissions, bad, counts)
    assert torch.equal(found, crf.log_likelihood(emissions, good, counts))
    assert [r.getMessage()[:13] for r in caplog.records] == ["3 gold tags m"]
    assert crf.repaired == 6


REPAIRS = [
    (BIO, "I-X I-X O", "B-X I-X O"),
    (BIO, "B-X I-Y O", "B-X B-Y O"),
    (BIOES, "B-X O", "S-X O"),
    (BIOES, "B-X I-X O", "B-X E-X O"),
    (BIOES, "I-X", "S-X"),
    (BIOES, "O E-X", "O S-X"),
    (BIOES, "B-X E-X O", "B-X E-X O"),
]


@pytest.mark.parametrize(("labels", "before", "after"), REPAIRS)
def test_repairs(labels: list[str], before: str, after: str) -> None:
    crf = Crf.of_labels(labels)
    tags = torch.tensor([labels.index(tag) for tag in before.split()])
    repaired = crf.repair(tags, torch.tensor([len(tags)]))
    assert [labels[i] for i in repaired] == after.split()


def test_padding_and_neighbours_change_nothing() -> None:
    """A sequence by itself, among others, and in another order: the same to the last bits."""
    crf, emissions, tags, counts = case(BIO, [4, 1, 3, 0, 2], 1.0, torch.Generator().manual_seed(9))
    together = crf.log_likelihood(emissions, tags, counts)
    rows, gold = emissions.split(counts.tolist()), tags.split(counts.tolist())
    alone = [
        crf.log_likelihood(e, t, torch.tensor([len(e)])) for e, t in zip(rows, gold, strict=True)
    ]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-12, rtol=1e-12)
    again = crf.log_likelihood(emissions, tags, counts)
    assert torch.equal(together, again)


def test_long_sequences_neither_overflow_nor_vanish() -> None:
    crf, emissions, tags, counts = case(BIO, [], 1.0, torch.Generator().manual_seed(1))
    counts = torch.tensor([20_000, 3])
    emissions = 10 * torch.randn(20_003, 5, generator=torch.Generator().manual_seed(2))
    tags = crf.decode(emissions, counts)
    emissions.requires_grad_()
    found = crf.log_likelihood(emissions, tags, counts)
    assert (found < 0).all()
    assert found.isfinite().all()
    found.sum().backward()
    assert emissions.grad is not None
    assert emissions.grad.isfinite().all()
    # The gradients of each word add up to nothing: its chances add up to 1.
    assert emissions.grad.sum(1).abs().max() < 1e-5


def test_32_bits_find_the_best_of_long_sequences() -> None:
    crf = Crf.of_labels(BIO)
    counts = torch.tensor([30_001, 29_998, 5])
    generator = torch.Generator().manual_seed(6)
    emissions = 5 * torch.randn(int(counts.sum()), 5, generator=generator)
    found, exact = crf.decode(emissions, counts), crf.decode(emissions.double(), counts)
    assert not crf.illegal(found, counts).any()
    assert (found != exact).sum() <= 2


def test_constraints_that_never_mix_take_the_way_of_logarithms() -> None:
    """From left to right only: a tag once left never returns, so its chance sinks for ever."""
    onwards = [[j >= i for j in range(3)] for i in range(3)]
    crf = Crf(3, transitions=onwards, starts=[True, False, False])
    emissions = torch.zeros(4000, 3)
    emissions[:, 0] = 5.0
    emissions[3000:, 2] = 9.0
    tags = crf.decode(emissions, torch.tensor([4000]))
    assert tags.tolist() == [0] * 3000 + [2] * 1000
    marginals = crf.marginals(emissions, torch.tensor([4000]))
    torch.testing.assert_close(marginals.sum(1), torch.ones(4000))
    assert marginals[0, 0] == 1
    assert marginals[-1, 2] == 1


def test_many_sequences_are_decoded_in_parts() -> None:
    generator = torch.Generator().manual_seed(11)
    crf = Crf.of_labels(BIO)
    counts = torch.randint(0, 4, (6000,), generator=generator)
    emissions = torch.randn(int(counts.sum()), 5, generator=generator)
    found = crf.decode(emissions, counts)
    half = [part.sum() for part in counts.split(2000)]
    parts = zip(emissions.split([int(n) for n in half]), counts.split(2000), strict=True)
    again = torch.cat([best_tags(e, n, crf.scores()) for e, n in parts])
    assert torch.equal(found, again)
    assert not crf.illegal(found, counts).any()


def test_nothing_at_all() -> None:
    crf = Crf.of_labels(BIO)
    nothing = torch.zeros(0, 5, requires_grad=True)
    none, counts = torch.zeros(0, dtype=torch.int64), torch.tensor([0, 0])
    found = crf.log_likelihood(nothing, none, counts)
    assert found.tolist() == [0, 0]
    found.sum().backward()
    assert crf.transitions.grad is not None
    assert not crf.transitions.grad.any()
    assert crf.decode(nothing, counts).shape == (0,)
    assert crf.marginals(nothing, counts).shape == (0, 5)
    assert crf.n_best(nothing, counts, 2).log_probabilities.tolist() == [[0, -math.inf]] * 2
    assert crf.span_probability(nothing, none, counts, torch.zeros(0, 2)).shape == (0,)
    assert crf.log_partition(nothing, counts).tolist() == [0, 0]


def test_what_makes_no_sense_is_refused_in_words() -> None:
    crf = Crf.of_labels(BIO)
    emissions, tags, counts = (
        torch.zeros(4, 5),
        torch.zeros(4, dtype=torch.int64),
        torch.tensor([4]),
    )
    for call, said in (
        (lambda: crf.log_likelihood(emissions, tags[:3], counts), r"tags is \[3\]"),
        (lambda: crf.log_likelihood(emissions, tags + 5, counts), "tags holds 5"),
        (lambda: crf.decode(emissions, torch.tensor([3])), "adds up to 3 words; there are 4"),
        (lambda: crf.decode(emissions, torch.tensor([5, -1])), "counts"),
        (lambda: crf.decode(emissions[:, :4], counts), r"\[4, 4\]; give \[words, 5\]"),
        (lambda: crf.n_best(emissions, counts, 0), "n is 0"),
        (lambda: crf.span_probability(emissions, tags, counts, torch.tensor([[2, 2]])), "empty"),
        (lambda: crf.span_probability(emissions, tags, counts, torch.tensor([[3, 5]])), "no"),
        (lambda: crf.span_probability(emissions, tags, torch.tensor([2, 2]),
                                      torch.tensor([[1, 3]])), "no single"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=said):
            call()
    with pytest.raises(ConfigError, match="no legal tagging of 2 words"):
        Crf(2, transitions=[[False, False], [False, False]])
    with pytest.raises(ConfigError, match="may_start"):
        Crf(2, starts=[True])
    with pytest.raises(ConfigError, match="at least 1"):
        Crf(0)


def test_parameters_are_those_of_pytorch_crf() -> None:
    crf = Crf.of_labels(BIO)
    assert {name: list(p.shape) for name, p in crf.state_dict().items()} == {
        "start_transitions": [5],
        "end_transitions": [5],
        "transitions": [5, 5],
    }
    assert all(p.abs().max() <= 0.1 for p in crf.parameters())


@settings(deadline=None, max_examples=25)
@given(cases())
def test_the_steps_of_gpus_equal_those_of_cpus(one: Case) -> None:
    crf, emissions, tags, counts = one
    emissions.requires_grad_()

    def answers() -> list[Tensor]:
        found = crf.log_likelihood(emissions, tags, counts)
        best = crf.decode(emissions, counts)
        return [found.detach(), *gradients(crf, emissions, found), best]

    wanted = answers()
    with mock.patch.object(lattice, "in_numpy", return_value=False):
        found = answers()
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_a_gpu_gives_the_same(scale: float) -> None:
    crf, emissions, tags, counts = case(BIO, [4, 1, 0, 3], scale, torch.Generator().manual_seed(4))
    ours = crf.log_likelihood(emissions.requires_grad_(), tags, counts)
    wanted = gradients(crf, emissions, ours)
    best, spans = crf.decode(emissions, counts), torch.tensor([[0, 2], [5, 8]])
    chances = crf.span_probability(emissions, tags, counts, spans)
    n_best = crf.n_best(emissions, counts, 3)
    gpu, there = crf.cuda(), emissions.detach().cuda().requires_grad_()
    theirs = gpu.log_likelihood(there, tags.cuda(), counts)
    torch.testing.assert_close(theirs.cpu(), ours)
    weights = torch.linspace(0.5, -1.0, 4, dtype=torch.float64).cuda()
    for _ in range(2):
        found = torch.autograd.grad(
            (theirs * weights).sum(), [there, *gpu.parameters()], retain_graph=True
        )
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a.cpu(), b)
    assert torch.equal(gpu.decode(there, counts).cpu(), best)
    torch.testing.assert_close(
        gpu.span_probability(there, tags.cuda(), counts, spans).cpu(), chances
    )
    assert torch.equal(gpu.n_best(there, counts, 3).tags.cpu(), n_best.tags)
