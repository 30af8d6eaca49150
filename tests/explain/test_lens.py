"""The lens ends in the model's own answer, a tuned one is nearer to it; vectors are states."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bertkit.errors import CheckpointError, DataError, MissingHeadError, UsageError
from bertkit.explain.hooks import state_hash, still, trace
from bertkit.explain.lenses import lens, lens_over
from bertkit.explain.opening import Opened
from bertkit.explain.tuned import TunedLens, _kept, train_lens
from bertkit.explain.vectors import vector, vector_over
from bertkit.tasks.mlm import FillMask
from tests.explain.models import MASKED, TEXT, TEXTS, labelled, opened, theirs
from tests.tasks import tiny


def test_the_vector_is_the_hook_value_bit_for_bit() -> None:
    found = vector(opened(), MASKED).positions
    assert [at.label for at in found] == ["[MASK]"]
    seen: list[Any] = []
    model = opened().model
    handles = [
        layer.register_forward_hook(lambda module, inputs, output: seen.append(output[0][3]))
        for layer in model.bert.encoder.layer
    ]
    with torch.no_grad():
        model.ragged(opened().read(MASKED).batch())
    for handle in handles:
        handle.remove()
    assert np.array_equal(found[0].hidden[1:], torch.stack(seen).numpy())


def test_norms_changes_and_neighbours_are_what_they_say() -> None:
    at = vector(opened(), MASKED, top_k=3).positions[0]
    words = opened().encoder.embeddings.word_embeddings.weight.detach().numpy()
    for layer, state in enumerate(at.hidden):
        assert at.norm[layer] == pytest.approx(np.linalg.norm(state))
        cosines = words @ state / np.linalg.norm(words, axis=1) / np.linalg.norm(state)
        best = np.argsort(-cosines)[:3]
        assert [near.word for near in at.nearest[layer]] == [tiny.VOCAB[i] for i in best]
        assert [near.cosine for near in at.nearest[layer]] == pytest.approx(cosines[best])
        if layer:
            moved = state - at.hidden[layer - 1]
            assert at.change[layer] == pytest.approx(np.linalg.norm(moved))
    assert np.isnan(at.change[0])
    assert at.to_last[-1] == pytest.approx(1)


def test_means_of_vectors_over_texts_are_means_of_single_ones() -> None:
    texts = ["the cat", "a dog"]
    found = vector_over(opened(), texts, probability=1.0)
    assert (found.texts, found.positions) == (2, 4)
    norms = []
    for ids in ([2, 4, 4, 3],) * 2:
        with torch.no_grad():
            states = theirs().bert(torch.tensor([ids]), output_hidden_states=True).hidden_states
        norms.append(torch.stack([state[0, 1:3].norm(dim=-1) for state in states]))
    assert found.norm == pytest.approx(torch.cat(norms, 1).mean(1).numpy())


def test_the_last_layer_of_the_lens_is_the_models_answer() -> None:
    at = lens(opened(), MASKED, target="sat", top_k=7).positions[0]
    sentence = opened().read(MASKED)
    with torch.no_grad():
        logs = theirs()(torch.tensor([sentence.ids])).logits[0, 3].log_softmax(-1)
    best = logs.topk(7)
    assert at.names[-1] == [tiny.VOCAB[i] for i in best.indices]
    np.testing.assert_allclose(at.probabilities[-1], best.values.exp().numpy(), rtol=1e-10)
    assert at.kl[-1] == 0
    assert at.entropy[-1] == pytest.approx(float(-(logs.exp() * logs).sum()), rel=1e-10)
    target = tiny.VOCAB.index("sat")
    assert at.rank is not None
    assert at.rank[-1] == 1 + int((logs > logs[target]).sum())
    fills = FillMask(opened(double=False).model, tiny.tokenizer()).fill(MASKED, top_k=7)
    assert at.names[-1] == [fill["token_str"] for fill in fills[0]]


def test_each_layer_is_the_head_on_that_layer() -> None:
    at = lens(opened(), TEXT, word="cat", top_k=len(tiny.VOCAB)).positions[0]
    assert at.target == "cat"
    ids = list(opened().read(TEXT).ids)
    place = at.token
    ids[place] = tiny.tokenizer().mask_token_id
    with torch.no_grad():
        states = theirs().bert(torch.tensor([ids]), output_hidden_states=True).hidden_states
        logs = torch.stack([theirs().cls(state[0, place]).log_softmax(-1) for state in states])
    target = tiny.VOCAB.index("cat")
    assert at.target_probability == pytest.approx(logs[:, target].exp().numpy(), rel=1e-9)
    expected = [float((logs[-1].exp() * (logs[-1] - row)).sum()) for row in logs]
    assert at.kl == pytest.approx(expected, abs=1e-12)


def test_the_lens_over_texts_ends_in_the_models_loss() -> None:
    found = lens_over(opened(), TEXTS, seed=3)
    from bertkit.explain.corpus import masked_batches

    total, count = 0.0, 0
    for masked in masked_batches(opened(), TEXTS, seed=3):
        with torch.no_grad():
            total += float(opened().model.pretraining_loss(masked.batch)) * len(
                masked.batch.mlm_labels
            )
        count += len(masked.batch.mlm_labels)
    assert found.positions == count
    assert found.loss[-1] == pytest.approx(total / count, rel=1e-9)
    assert found.kl[-1] == 0
    assert ((found.kl[:-1] > 0) & (found.entropy[:-1] > 0)).all()


@pytest.fixture(scope="module")
def trained() -> tuple[TunedLens, Any]:
    return train_lens(opened(double=False), TEXTS, steps=60, learning_rate=5e-3)


def held_out_kl(tuned: TunedLens | None) -> np.ndarray[Any, Any]:
    texts = ["the dog sat in london", "john likes the park", "我住在上海", "mary ran"] * 3
    return lens_over(opened(double=False), texts, tuned=tuned, seed=9).kl


def test_a_tuned_lens_is_nearer_on_held_out_text(trained: tuple[TunedLens, Any]) -> None:
    tuned, report = trained
    assert report.steps == 60
    assert all(b <= a for a, b in zip(report.raw, report.tuned, strict=True))
    raw, mine = held_out_kl(None), held_out_kl(tuned)
    assert (mine[:-1] < raw[:-1]).all()
    assert mine[-1] == raw[-1] == 0


def test_training_a_lens_leaves_the_model_alone(trained: tuple[TunedLens, Any]) -> None:
    fresh = tiny.ours("BertForMaskedLM")
    before = state_hash(fresh)
    train_lens(Opened(fresh, tiny.tokenizer(), ""), TEXTS, steps=1)
    assert state_hash(fresh) == before
    assert all(parameter.grad is None for parameter in fresh.parameters())
    assert all(parameter.requires_grad for parameter in fresh.parameters())


def test_a_lens_without_steps_is_the_raw_lens() -> None:
    tuned, _ = train_lens(opened(), TEXTS, steps=0)
    one, other = lens(opened(), MASKED), lens(opened(), MASKED, tuned=tuned)
    assert np.array_equal(one.positions[0].probabilities, other.positions[0].probabilities)
    assert other.tuned


def test_a_map_that_does_not_help_is_thrown_away() -> None:
    kept, thrown = 0, 0
    nothing, _ = train_lens(opened(), TEXTS, steps=0)
    for seed in range(4):
        torch.manual_seed(seed)
        weight = torch.randn(2, 32, 32).double() * (0.02 if seed % 2 else 2.0)
        bias = torch.zeros(2, 32).double()
        made, report = _kept(
            opened(), TEXTS, TunedLens(weight, bias, nothing.made_for), steps=0, seed=0
        )
        for layer in range(2):
            if torch.equal(made.weight[layer], weight[layer]):
                kept += 1
                assert report.tuned[layer] < report.raw[layer]
            else:
                thrown += 1
                assert not made.weight[layer].any()
                assert report.tuned[layer] == report.raw[layer]
    assert kept
    assert thrown


def test_a_tuned_lens_comes_back_from_its_file(
    tmp_path: Path, trained: tuple[TunedLens, Any]
) -> None:
    trained[0].save(tmp_path / "lens.safetensors")
    again = TunedLens.load(tmp_path / "lens.safetensors")
    for field in dataclasses.fields(TunedLens):
        one, other = getattr(trained[0], field.name), getattr(again, field.name)
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_a_lens_of_another_model_is_refused(tmp_path: Path, trained: tuple[TunedLens, Any]) -> None:
    with pytest.raises(UsageError, match="2 layers of 32"):
        trained[0].check(opened(num_hidden_layers=3))
    other = tiny.ours("BertForMaskedLM")
    with torch.no_grad():
        other.cls.predictions.bias[0] += 1
    tiny_again = tiny.ours("BertForMaskedLM")
    trained[0].check(Opened(tiny_again, tiny.tokenizer(), ""))
    with pytest.raises(UsageError, match="other weights"):
        trained[0].check(Opened(other, tiny.tokenizer(), ""))
    with pytest.raises(CheckpointError, match="no tuned lens"):
        TunedLens.load(tiny.folder("BertForMaskedLM") / "model.safetensors")
    with pytest.raises(DataError, match="held out"):
        train_lens(opened(), ["the cat"] * 3, steps=1)


def test_the_lens_reads_labels_of_texts_and_of_words() -> None:
    texts = labelled("BertForSequenceClassification")
    at = lens(texts, "the cat sat", target="y").positions[0]
    assert (at.token, at.target) == (0, "y")
    with torch.no_grad():
        row = torch.tensor([texts.read("the cat sat").ids])
        expected = texts.model(row).logits[0].softmax(-1)
    assert at.target_probability is not None
    assert at.target_probability[-1] == pytest.approx(float(expected[1]), rel=1e-5)
    words = labelled("BertForTokenClassification")
    found = lens(words, "the zoo sat")
    assert [at.label for at in found.positions] == ["the", "z", "sat"]
    with torch.no_grad():
        row = torch.tensor([words.read("the zoo sat").ids])
        logits = words.model(row).logits[0]
    assert found.positions[1].names[-1][0] == "xyz"[int(logits[2].argmax())]
    assert [at.label for at in vector(words, "the zoo sat", word="sat").positions] == ["sat"]
    with pytest.raises(UsageError, match="no label"):
        lens(texts, "the cat", target="w")


def test_models_that_the_lens_cannot_read_are_refused() -> None:
    for kind in ("BertForQuestionAnswering", "BertModel"):
        with pytest.raises(MissingHeadError, match="which this verb reads"):
            lens(opened(kind), "the cat")
    with pytest.raises(MissingHeadError, match="masked-word head"):
        lens_over(labelled("BertForSequenceClassification"), TEXTS)
    with pytest.raises(MissingHeadError, match="masked-word head"):
        train_lens(labelled("BertForSequenceClassification"), TEXTS)


def test_looking_changes_nothing() -> None:
    batch = opened().read(TEXT).batch()
    with torch.no_grad():
        before = opened().model.ragged(batch)
    vector(opened(), MASKED)
    lens(opened(), MASKED)
    with still(opened().model):
        trace(opened().encoder, batch, want_maps=True)
    with torch.no_grad():
        assert torch.equal(opened().model.ragged(batch), before)
