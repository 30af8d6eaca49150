"""Comparing: streamed sums as the formulas on whole matrices, invariances, scipy, known values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from scipy.stats import spearmanr
from torch import Tensor

from bertkit.errors import DataError, UsageError
from bertkit.explain import comparing as comparing_module
from bertkit.explain import units as units_module
from bertkit.explain.comparing import compare, compare_over
from bertkit.explain.hooks import state_hash, still, trace
from bertkit.explain.opening import Opened
from bertkit.explain.similarity import Sample, Sums, ranked, rsa
from bertkit.explain.units import pooled, same_tokenizer, unit_batches
from bertkit.text.tokenizer import BertTokenizer
from tests.explain.models import TEXT, TEXTS, opened
from tests.tasks import tiny


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def added(matrices: Sequence[Tensor], size: int = 17) -> Sums:
    """All pairs of matrices, some rows at a time."""
    sums = Sums([(i, j) for i in range(len(matrices)) for j in range(i, len(matrices))])
    for start in range(0, len(matrices[0]), size):
        sums.add([matrix[start : start + size] for matrix in matrices])
    return sums


def cka(x: Tensor, y: Tensor, debiased: bool) -> float:
    return added([x, y]).cka(0, 1, debiased)


def plain_cka(x: Tensor, y: Tensor) -> float:
    """Kornblith et al., equations 3 and 4: Gram matrices of all rows, centred by H."""
    n = len(x)
    h = torch.eye(n).double() - 1 / n
    k, m = h @ x @ x.T @ h, h @ y @ y.T @ h
    return float((k * m).sum() / (k.norm() * m.norm()))


def song_hsic(x: Tensor, y: Tensor) -> float:
    """Song et al. 2012, equation 5, as written there."""
    n, one = len(x), torch.ones(len(x)).double()
    k, m = x @ x.T, y @ y.T
    k, m = k - k.diag().diag(), m - m.diag().diag()
    trace_of = (k @ m).trace() + one @ k @ one * (one @ m @ one) / ((n - 1) * (n - 2))
    return float((trace_of - 2 / (n - 2) * (one @ k @ m @ one)) / (n * (n - 3)))


@pytest.mark.parametrize("far", [0.0, 1e4])
def test_streamed_sums_are_the_formulas_on_whole_matrices(far: float) -> None:
    x = rows(60, 7)
    y = x @ rows(7, 11, seed=1) + rows(60, 11, seed=2)
    sums = added([x + far, y - far])
    assert sums.cka(0, 1, debiased=False) == pytest.approx(plain_cka(x, y), rel=1e-9)
    own = song_hsic(x, x) * song_hsic(y, y)
    assert sums.hsic(0, 1, True) == pytest.approx(song_hsic(x, y), rel=1e-9)
    assert sums.cka(0, 1, debiased=True) == pytest.approx(
        song_hsic(x, y) / math.sqrt(own), rel=1e-9
    )
    np.testing.assert_allclose(sums.covariance(1), np.cov(y.numpy().T, bias=True) * 60, atol=1e-6)


@pytest.mark.parametrize("debiased", [True, False])
def test_cka_is_one_for_itself_and_blind_to_rotation_scale_and_shift(debiased: bool) -> None:
    x = rows(40, 9)
    y = x @ rows(9, 5, seed=1) + rows(40, 5, seed=2)
    turn = torch.linalg.qr(rows(9, 9, seed=3)).Q
    assert cka(x, x.clone(), debiased) == pytest.approx(1, abs=1e-12)
    assert cka(x, 3.5 * x @ turn + 2, debiased) == pytest.approx(1, abs=1e-12)
    expected = cka(x, y, debiased)
    assert 0.1 < expected < 0.95
    assert cka(0.01 * x @ turn - 7, y, debiased) == pytest.approx(expected, abs=1e-10)
    # Not to just any linear map, though (Kornblith et al., section 2.2).
    assert abs(cka(x @ torch.arange(1, 10).double().diag(), y, debiased) - expected) > 0.02


def test_independent_vectors_are_unlike_only_when_debiased() -> None:
    found = [(rows(50, 200, seed=2 * i), rows(50, 200, seed=2 * i + 1)) for i in range(30)]
    # One value strays by about sqrt(2) / 50; the mean of 30 by 0.005.
    assert abs(np.mean([cka(x, y, True) for x, y in found])) < 0.02
    assert np.mean([cka(x, y, False) for x, y in found]) > 0.7


def test_what_does_not_vary_has_no_cka() -> None:
    x, still_there = rows(20, 4), torch.full((20, 3), 0.1).double()
    sums = added([x, still_there])
    assert math.isnan(sums.cka(0, 1, True))
    assert math.isnan(sums.cka(1, 1, False))
    assert all(map(math.isnan, sums.ranks(1)))
    assert sums.anisotropy(1) == pytest.approx(1, abs=1e-12)


def test_rsa_is_scipys_spearman_of_scipys_distances() -> None:
    x, y = rows(30, 6).numpy(), rows(30, 8, seed=1).numpy()
    y[:, :6] += x
    expected = spearmanr(pdist(x, "correlation"), pdist(y, "correlation")).statistic
    found = rsa([x, y], [x, y])
    assert found[0, 1] == pytest.approx(expected, abs=1e-12)
    np.testing.assert_allclose(np.diag(found), 1, atol=1e-12)
    assert found[0, 1] == pytest.approx(found[1, 0])
    values = np.array([3.0, 1.0, 3.0, 2.0, 1.0, 3.0])
    assert ranked(values).tolist() == [5.0, 1.5, 5.0, 3.0, 1.5, 5.0]


def test_anisotropy_is_the_mean_over_all_pairs() -> None:
    x = rows(25, 4) + 0.5
    unit = x / x.norm(dim=-1, keepdim=True)
    cosines = (unit @ unit.T).numpy()[np.triu_indices(25, 1)]
    assert added([x]).anisotropy(0) == pytest.approx(cosines.mean(), abs=1e-12)
    assert added([x[:1].repeat(9, 1)]).anisotropy(0) == pytest.approx(1, abs=1e-12)
    assert abs(added([rows(2000, 50)]).anisotropy(0)) < 0.002


def test_ranks_of_known_spectra() -> None:
    x = rows(64, 8)
    turn = torch.linalg.qr(x - x.mean(0)).Q  # orthogonal columns of mean 0
    even = turn @ torch.linalg.qr(rows(8, 8, seed=1)).Q
    assert added([even]).ranks(0) == pytest.approx((8, 8), rel=1e-9)
    values = torch.tensor([4.0, 2.0, 1.0, 1.0, 0, 0, 0, 0]).double()
    shares = values[:4] / values.sum()
    expected = (math.exp(-(shares * shares.log()).sum()), 22**2 / (256 + 16 + 1 + 1))
    assert added([turn * values]).ranks(0) == pytest.approx(expected, rel=1e-9)


def test_a_sample_does_not_depend_on_the_order() -> None:
    draws, matrix = np.random.default_rng(0).random(50), rows(50, 3)
    samples = []
    for order in (np.arange(50), np.arange(50)[::-1]):
        sample = Sample(8)
        for part in np.array_split(order, 6):
            sample.add(draws[part], [matrix[part.copy()], matrix[part.copy()] * 2])
        samples.append(sample)
    np.testing.assert_array_equal(samples[0].matrices[0], samples[1].matrices[0])
    np.testing.assert_array_equal(samples[0].matrices[1], 2 * samples[0].matrices[0])
    np.testing.assert_array_equal(samples[0].matrices[0], matrix[np.argsort(draws)[:8].copy()])


def states(model: Opened, texts: Sequence[str]) -> list[Tensor]:
    """Of all tokens but [CLS] and [SEP], one text at a time."""
    with still(model.model):
        each = [trace(model.encoder, model.read(text).batch()).hidden for text in texts]
    return [torch.cat([one[i][1:-1] for one in each]) for i in range(len(each[0]))]


def test_figures_of_a_model_are_those_of_its_states() -> None:
    before = state_hash(opened().model)
    found = compare_over(opened(), [*TEXTS[:6], " "], debiased=False)
    hidden = states(opened(), TEXTS[:6])
    assert (found.unit, found.texts, found.cut) == ("token", 6, 0)
    assert found.vectors == found.sampled == len(hidden[0])
    expected = [[plain_cka(x, y) for y in hidden] for x in hidden]
    np.testing.assert_allclose(found.cka, expected, rtol=1e-8)
    distances = [pdist(x.numpy(), "correlation") for x in hidden]
    assert found.rsa[0, 2] == pytest.approx(
        spearmanr(distances[0], distances[2]).statistic, abs=1e-6
    )
    unit = hidden[1] / hidden[1].norm(dim=-1, keepdim=True)
    cosines = (unit @ unit.T).numpy()[np.triu_indices(len(unit), 1)]
    assert found.spreads[0].anisotropy[1] == pytest.approx(cosines.mean(), abs=1e-10)
    variances = np.linalg.eigvalsh(np.cov(hidden[2].numpy().T))
    expected_ratio = variances.sum() ** 2 / (variances**2).sum()
    assert found.spreads[0].participation_ratio[2] == pytest.approx(expected_ratio, rel=1e-8)
    assert state_hash(opened().model) == before


def test_identical_models_give_identical_rows() -> None:
    alone = compare_over(opened(), TEXTS, sample=20)
    twin = opened()._replace(model=tiny.ours("BertForMaskedLM").double(), name="twin")
    both = compare_over(opened(), TEXTS, twin, sample=20)
    np.testing.assert_allclose(both.cka, alone.cka, atol=1e-12)
    np.testing.assert_allclose(both.rsa, alone.rsa, atol=1e-12)
    np.testing.assert_allclose(np.diag(both.cka), 1, atol=1e-12)
    np.testing.assert_array_equal(both.spreads[0].anisotropy, both.spreads[1].anisotropy)
    assert both.sampled == 20


def other(**settings: Any) -> Opened:
    """A deeper model whose vocabulary lacks most words, so that they fall into pieces."""
    words = [*tiny.SPECIAL, *tiny.WORDS[:4], *tiny.HAN, *tiny.PIECES]
    words += [f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz0123456789"]
    model = tiny.ours("BertModel", vocab_size=len(words), num_hidden_layers=3, **settings)
    return Opened(model.double(), BertTokenizer(words), "other")


def test_models_with_different_tokenizers_are_compared_by_words() -> None:
    texts = ["The Mat sat.", "我爱 unbelievable paris"]
    found = compare_over(opened(), texts, other(), debiased=False)
    assert found.unit == "word"
    assert found.cka.shape == found.rsa.shape == (3, 4)
    assert found.vectors == 4 + 4
    sides = []
    for model in (opened(), other()):
        means = []
        for text in texts:
            sentence = model.read(text)
            with still(model.model):
                hidden = trace(model.encoder, sentence.batch()).hidden
            means.append([[h[w.first : w.last].mean(0) for w in sentence.words] for h in hidden])
        sides.append([torch.stack([*means[0][i], *means[1][i]]) for i in range(len(means[0]))])
    expected = [[plain_cka(x, y) for y in sides[1]] for x in sides[0]]
    np.testing.assert_allclose(found.cka, expected, rtol=1e-8)
    assert not same_tokenizer(opened().tokenizer, other().tokenizer)
    assert same_tokenizer(opened().tokenizer, BertTokenizer(tiny.VOCAB))
    with pytest.raises(UsageError, match="compare words"):
        compare_over(opened(), texts, other(), unit="token")
    # Whole texts work for any tokenizers too; each is one vector.
    assert compare_over(opened(), TEXTS[:5], other(), unit="text").vectors == 5


def test_words_that_one_model_cuts_are_left_out_in_both() -> None:
    models = [opened(), other(max_position_embeddings=8)]
    [units] = unit_batches(models, ["a cat paris john", "the"], "word")
    # "c a t" is whole within six pieces, "paris" begins there and ends beyond.
    assert units.keys.T.tolist() == [[1, 0], [0, 0], [0, 1]]
    assert (units.texts, units.cut) == (2, 1)
    for batch, owners in zip(units.batches, units.owners, strict=True):
        assert len(owners) == int(batch.lengths.sum())
        assert set(owners.tolist()) == {-1, 0, 1, 2}
    hidden = torch.arange(8).double()[:, None]
    owners = torch.tensor([-1, 0, 0, 1, -1, 1, 1, -1])
    assert pooled(hidden, owners, 2).tolist() == [[1.5], [14 / 3]]


def test_batches_and_streams_do_not_change_the_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = compare_over(opened(), TEXTS, sample=15, seed=3)
    monkeypatch.setattr(units_module, "AHEAD", 5)
    monkeypatch.setattr(units_module, "BATCH_TOKENS", 30)
    parts = compare_over(opened(), iter(TEXTS), sample=15, seed=3)
    np.testing.assert_allclose(parts.cka, whole.cka, atol=1e-10)
    np.testing.assert_allclose(parts.rsa, whole.rsa, atol=1e-10)
    assert parts.vectors == whole.vectors
    assert compare_over(opened(), TEXTS, sample=15, seed=4).rsa[0, 1] != whole.rsa[0, 1]


def test_layers_are_left_out_where_the_sums_would_be_too_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert len(compare_over(opened(), TEXTS[:3]).spreads[0].layers) == 3
    monkeypatch.setattr(comparing_module, "MOST_NUMBERS", 3 * 32**2)
    found = compare_over(opened(), TEXTS[:3])
    assert found.spreads[0].layers == [0, 2]
    assert found.spreads[0].names == ["embeddings", "layer 2"]
    assert found.cka.shape == (2, 2)


def test_one_text_and_refusals() -> None:
    found = compare(opened(), TEXT)
    np.testing.assert_array_equal(found.cka, compare_over(opened(), [TEXT]).cka)
    with pytest.raises(DataError, match="hold 1 tokens"):
        compare(opened(), "cat")
    with pytest.raises(DataError, match="hold 0 tokens"):
        compare_over(opened(), ["", " "])
    with pytest.raises(UsageError, match="sample of 3"):
        compare(opened(), TEXT, sample=3)
