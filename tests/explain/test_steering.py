"""Pushed vectors: a push by nothing changes no bit, derivatives are those of brute force."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from bertkit.batch import Batch
from bertkit.errors import DataError, MissingHeadError, UsageError
from bertkit.explain import onward as onward_module
from bertkit.explain import steering
from bertkit.explain.directions import Pushes, leading, singular_directions
from bertkit.explain.hooks import state_hash, still
from bertkit.explain.onward import Rest, states_of
from bertkit.explain.opening import Opened
from bertkit.explain.readouts import readout_of
from bertkit.explain.steering import _drawn, perturb_vector, perturb_vector_over
from tests.explain.models import CHINESE, MASKED, TEXT, TEXTS, labelled, opened, theirs
from tests.tasks import tiny

TOKEN, LAYERS = 3, (0, 1, 2)


def rest_of(bert: Opened, layer: int, text: str = MASKED, token: int = TOKEN) -> Rest:
    states = states_of(bert.encoder, bert.read(text).batch(), token)
    return Rest(bert.encoder, readout_of(bert), states[layer], layer, token)


def brute_force(layer: int, state: torch.Tensor | None = None) -> torch.Tensor:
    """[V] logits at TOKEN of transformers' model, its state at a layer replaced by a hook."""
    model = theirs()

    def put(module: Any, inputs: Any, output: Any) -> Any:
        if state is None:
            return output
        whole = output[0] if isinstance(output, tuple) else output
        changed = torch.cat([whole[:, :TOKEN], state[None, None], whole[:, TOKEN + 1 :]], 1)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    module = model.bert.embeddings if layer == 0 else model.bert.encoder.layer[layer - 1]
    handle = module.register_forward_hook(put)
    try:
        logits: torch.Tensor = model(torch.tensor([opened().read(MASKED).ids])).logits[0, TOKEN]
        return logits
    finally:
        handle.remove()


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("layer", LAYERS)
def test_a_push_by_nothing_is_the_models_own_answer_bit_for_bit(layer: int, double: bool) -> None:
    bert = opened(double=double)
    with still(bert.model):
        own = bert.model.ragged(bert.read(MASKED).batch(), torch.tensor([TOKEN]))
        rest = rest_of(bert, layer)
        assert torch.equal(rest.logits(rest.state[None] + 0.0 * torch.ones(32)), own)
    logs = own[0].to(torch.promote_types(own.dtype, torch.float32)).log_softmax(-1)
    at = perturb_vector(bert, MASKED, pushes=Pushes(towards="sat", layers=(layer,))).positions[0]
    target = tiny.VOCAB.index("sat")
    assert (at.logit[:, 0, 3] == float(own[0, target])).all()
    assert (at.probability[:, 0, 3] == float(logs[target].exp())).all()
    assert (at.kl[:, 0, 3] == 0).all()
    assert not (at.kl[:, 0, [0, 6]] == 0).any()
    assert at.control.logit[0, 3] == pytest.approx(float(own[0, target]), rel=1e-6)
    assert at.control.flips[0, 3] == at.control.kl[0, 3] == 0


def test_a_push_by_nothing_in_a_classifier_and_a_tagger_changes_no_bit() -> None:
    for kind, token in (("BertForSequenceClassification", 0), ("BertForTokenClassification", 2)):
        bert = labelled(kind)
        batch = bert.read(TEXT).batch()
        with still(bert.model):
            asked = (torch.tensor([token]),) if token else ()
            own = bert.model.ragged(batch, *asked)
            for layer in LAYERS:
                rest = rest_of(bert, layer, TEXT, token)
                assert torch.equal(rest.logits(rest.state[None]), own)


def test_every_push_is_the_brute_force_one() -> None:
    pushes = Pushes(steps=(0.3, 0.9), towards="sat", against="ran")
    at = perturb_vector(opened(), MASKED, pushes=pushes, top_k=3).positions[0]
    words = theirs().cls.predictions.decoder.weight.detach()
    target = tiny.VOCAB.index("sat")
    straight = words[target] - words[tiny.VOCAB.index("ran")]
    with torch.no_grad():
        ids = torch.tensor([opened().read(MASKED).ids])
        states = theirs().bert(ids, output_hidden_states=True).hidden_states
        own = brute_force(0).log_softmax(-1)
        for layer in LAYERS:
            state = states[layer][0, TOKEN]
            assert at.norm[layer] == pytest.approx(float(state.norm()))
            for k, step in enumerate((-0.9, -0.3, 0, 0.3, 0.9)):
                push = step * state.norm() * straight / straight.norm()
                logits = brute_force(layer, state + push)
                logs = logits.log_softmax(-1)
                assert at.logit[0, layer, k] == pytest.approx(float(logits[target]), rel=1e-9)
                kl = float((own.exp() * (own - logs)).sum())
                assert at.kl[0, layer, k] == pytest.approx(kl, rel=1e-8, abs=1e-12)
                best = logs.topk(3)
                assert at.names[0][layer][k] == [tiny.VOCAB[i] for i in best.indices]
                np.testing.assert_allclose(at.likeliest[0, layer, k], best.values.exp(), rtol=1e-9)


@pytest.mark.parametrize("layer", LAYERS)
def test_forward_derivatives_are_finite_differences(layer: int) -> None:
    with still(opened().model):
        rest = rest_of(opened(), layer)
        ways = torch.randn(3, 32, generator=torch.Generator().manual_seed(1)).double()
        for way, change in zip(ways, rest.slope().along(ways), strict=True):
            tiny_step = 1e-5
            ahead, behind = (
                rest.logits((rest.state + s * way)[None])[0] for s in (tiny_step, -tiny_step)
            )
            difference = (ahead - behind) / (2 * tiny_step)
            torch.testing.assert_close(change, difference, rtol=1e-7, atol=1e-8)
    at = perturb_vector(opened(), MASKED, pushes=Pushes(steps=(1e-5,), layers=(layer,)))
    one = at.positions[0]
    found = (one.logit[:, 0, 2] - one.logit[:, 0, 0]) / 2e-5
    np.testing.assert_allclose(one.slope[:, 0], found, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("centred", [True, False])
def test_singular_directions_are_those_of_the_brute_force_jacobian(
    layer: int, centred: bool
) -> None:
    with torch.no_grad():
        ids = torch.tensor([opened().read(MASKED).ids])
        states = theirs().bert(ids, output_hidden_states=True).hidden_states
    jacobian = torch.autograd.functional.jacobian(
        lambda state: brute_force(layer, state), states[layer][0, TOKEN]
    )
    if centred:
        jacobian = jacobian - jacobian.mean(0)
    _, sizes, right = torch.linalg.svd(jacobian)
    with still(opened().model):
        rest = rest_of(opened(), layer)
        values, vectors = singular_directions(rest, 5, centred=centred)
        weights = torch.randn(2, len(tiny.VOCAB)).double()
        torch.testing.assert_close(
            rest.slope().back(weights),
            weights @ (jacobian if not centred else brute_jacobian(rest)),
            rtol=1e-9,
            atol=1e-9,
        )
    torch.testing.assert_close(values, sizes[:5], rtol=1e-9, atol=0)
    cosines = (vectors * right[:5]).sum(1).abs()
    torch.testing.assert_close(cosines, torch.ones(5).double(), rtol=0, atol=1e-8)


def brute_jacobian(rest: Rest) -> torch.Tensor:
    return rest.slope().along(torch.eye(32).double()).T


def test_the_search_stops_early_and_is_right_where_it_stops() -> None:
    drawn = np.random.default_rng(0)
    turn = np.linalg.qr(drawn.standard_normal((200, 200)))[0]
    sizes = 100 * 0.8 ** np.arange(200)
    matrix = torch.from_numpy(turn * sizes @ turn.T)
    asked = []

    def apply(rows: torch.Tensor) -> torch.Tensor:
        asked.append(len(rows))
        return rows @ matrix

    values, vectors = leading(apply, 3, matrix[0], 1e-8, seed=4)
    assert sum(asked) < 100
    np.testing.assert_allclose(values, sizes[:3], rtol=1e-12)
    np.testing.assert_allclose(np.abs((vectors.numpy() * turn.T[:3]).sum(1)), 1, rtol=1e-12)
    whole, _ = leading(apply, 300, matrix[0], 0.0, seed=4)
    np.testing.assert_allclose(whole, sizes, atol=1e-10)


def test_copies_end_to_end_are_the_copies_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    pushes = Pushes(random=3)
    together = perturb_vector(opened(), MASKED, pushes=pushes).positions[0]
    monkeypatch.setattr(onward_module, "PASS_COPIES", 1)
    single = perturb_vector(opened(), MASKED, pushes=pushes).positions[0]
    for name in ("logit", "probability", "likeliest", "slope", "singular_values"):
        one, other = getattr(together, name), getattr(single, name)
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-10, err_msg=name)
    np.testing.assert_allclose(together.control.kl, single.control.kl, rtol=1e-8, atol=1e-12)


def test_the_gradient_is_the_steepest_way_and_singular_ways_are_signed() -> None:
    at = perturb_vector(opened(), MASKED, pushes=Pushes(towards="sat", singular=3)).positions[0]
    assert at.directions[0] == "towards sat, embedding"
    assert at.directions[2:] == ["singular 1", "singular 2", "singular 3"]
    assert (at.slope[2:] >= 0).all()
    assert (np.diff(at.singular_values, axis=1) <= 0).all()
    with still(opened().model):
        for layer in LAYERS:
            rest = rest_of(opened(), layer)
            weights = torch.zeros(1, len(tiny.VOCAB)).double()
            weights[0, tiny.VOCAB.index(at.target)] = 1
            weights[0, tiny.VOCAB.index(at.against)] = -1
            steepest = rest.slope().back(weights)[0].norm() * rest.state.norm()
            gain = perturb_vector(
                opened(), MASKED, pushes=Pushes((1e-5,), "sat", layers=(layer,))
            ).positions[0]
            both = [gain.logit[1, 0, k] for k in (0, 2)]
            away = perturb_vector(
                opened(), MASKED, pushes=Pushes((1e-5,), at.against, "sat", (layer,))
            ).positions[0]
            other = [away.logit[1, 0, k] for k in (2, 0)]
            rise = ((both[1] - both[0]) - (other[1] - other[0])) / 2e-5
            assert rise == pytest.approx(float(steepest), rel=1e-5)


def test_targets_are_the_asked_the_named_or_the_second() -> None:
    at = perturb_vector(opened(), MASKED).positions[0]
    assert at.against == at.names[0][0][3][0]
    assert at.target == at.names[0][0][3][1]
    found = perturb_vector(opened(), TEXT, word="cat", pushes=Pushes(layers=(2,)))
    assert found.positions[0].target == "cat"
    assert found.tokens[found.positions[0].token] == "[cat]"
    first = perturb_vector(opened(), MASKED, pushes=Pushes(towards=at.against)).positions[0]
    assert (first.target, first.against) == (at.against, at.target)
    two = perturb_vector(opened(), "我爱 [MASK] [MASK]", pushes=Pushes(towards="京", layers=(1,)))
    assert [one.target for one in two.positions] == ["京", "京"]


def test_labels_are_pushed_too() -> None:
    texts = labelled("BertForSequenceClassification")
    at = perturb_vector(texts, CHINESE, "a dog", pushes=Pushes(towards="y")).positions[0]
    assert (at.token, at.target) == (0, "y")
    assert at.singular_values.shape == (3, 2)
    np.testing.assert_allclose(at.likeliest.sum(-1), 1, rtol=1e-5)
    words = labelled("BertForTokenClassification")
    found = perturb_vector(words, "the zoo sat", pushes=Pushes(layers=(1,), singular=0))
    assert [at.label for at in found.positions] == ["the", "z", "sat"]
    assert len(found.positions[0].directions) == 2
    with pytest.raises(UsageError, match="no label"):
        perturb_vector(texts, CHINESE, pushes=Pushes(towards="w"))


def test_over_texts_figures_are_means_of_single_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    pushes = Pushes(steps=(0.5,), random=3, singular=1, seed=5)
    texts = ["the cat sat", "a dog"]
    asked: dict[str, Any] = {"pushes": pushes, "probability": 0.4, "positions": 50}
    quick = perturb_vector_over(opened(), texts, **asked)
    monkeypatch.setattr(steering, "TOLERANCE", None)
    found = perturb_vector_over(opened(), texts, **asked)
    np.testing.assert_allclose(quick.singular_value, found.singular_value, rtol=1e-4)
    read, drawn = _drawn(opened(), texts, 50, 0.4, 5)
    assert (found.texts, found.positions) == (read, len(drawn)) == (2, len(drawn))
    assert {number for _, _, number in drawn} == {0, 1}
    kl, flips, size = [], [], []
    for ids, token, _ in drawn:
        assert ids[token] == tiny.tokenizer().mask_token_id
        words = " ".join(tiny.VOCAB[i] for i in ids[1:-1])
        at = next(
            at
            for at in perturb_vector(opened(), words, pushes=pushes, top_k=1).positions
            if at.token == token
        )
        # A direction's sign is free, so both ways are compared as one.
        kl.append(at.kl[2][:, [0, 2]].sum(-1))
        best = np.array(at.names[2])[..., 0]
        flips.append((best[:, [0, 2]] != best[:, [1]]).sum(-1))
        size.append(at.singular_values[:, 0])
    np.testing.assert_allclose(found.singular_kl.sum(-1), np.mean(kl, 0), rtol=1e-7)
    np.testing.assert_allclose(found.singular_flips.sum(-1), np.mean(flips, 0))
    np.testing.assert_allclose(found.singular_value, np.mean(size, 0), rtol=1e-8)
    assert (found.random_kl[:, 1] == 0).all()
    assert (found.random_kl[:, [0, 2]] > 0).all()


def test_positions_of_a_file_are_drawn_evenly_and_reproducibly() -> None:
    read, few = _drawn(opened(), TEXTS, 5, 0.3, 1)
    assert (read, len(few)) == (24, 5)
    assert few == _drawn(opened(), iter(TEXTS), 5, 0.3, 1)[1]
    assert few != _drawn(opened(), TEXTS, 5, 0.3, 2)[1]
    told: list[tuple[int, int]] = []
    perturb_vector_over(
        opened(),
        TEXTS,
        pushes=Pushes((0.5,), layers=(2,), random=2),
        positions=2,
        report=lambda done, total: told.append((done, total)),
    )
    assert told == [(0, 2), (1, 2), (2, 2)]


def test_pushing_leaves_the_model_alone() -> None:
    model = tiny.ours("BertForMaskedLM").train()
    bert = Opened(model, tiny.tokenizer(), "")
    before = state_hash(model)
    batch: Batch = bert.read(TEXT).batch()
    with still(model):
        own = model.ragged(batch)
    perturb_vector(bert, MASKED)
    perturb_vector_over(bert, ["the cat"], positions=1)
    assert model.training
    assert state_hash(model) == before
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    with still(model):
        assert torch.equal(model.ragged(batch), own)


@pytest.mark.parametrize(
    ("pushes", "said"),
    [
        (Pushes(steps=()), "sizes are above 0"),
        (Pushes(steps=(0.1, -0.1)), "sizes are above 0"),
        (Pushes(layers=(3,)), "layer 3"),
        (Pushes(random=1), "at least 2 random"),
        (Pushes(towards="cat", against="cat"), "towards and away"),
    ],
)
def test_pushes_that_make_no_sense_are_refused(pushes: Pushes, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        perturb_vector(opened(), MASKED, pushes=pushes)


def test_models_and_texts_that_cannot_be_pushed_are_refused() -> None:
    with pytest.raises(DataError, match=r"no \[MASK\]"):
        perturb_vector(opened(), "the cat")
    with pytest.raises(UsageError, match="not one token"):
        perturb_vector(opened(), MASKED, pushes=Pushes(towards="zoo"))
    with pytest.raises(MissingHeadError, match="masked-word head"):
        perturb_vector_over(labelled("BertForSequenceClassification"), TEXTS)
    with pytest.raises(UsageError, match="positions 0"):
        perturb_vector_over(opened(), TEXTS, positions=0)
    with pytest.raises(DataError, match="no text"):
        perturb_vector_over(opened(), ["", " "])
