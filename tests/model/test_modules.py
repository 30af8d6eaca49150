"""Models are plain modules: optimisers, copies, number formats, other embeddings."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import bertkit
from bertkit.errors import DataError
from tests.model.peers import HEADS, KINDS, assert_close, both, rows, targets

DECODERS = ("BertForPreTraining", "BertForMaskedLM")


@pytest.mark.parametrize("kind", HEADS)
def test_trained_by_hand_it_learns_as_transformers_does(kind: str) -> None:
    theirs, ours = both(kind)
    inputs = rows("none", kind=kind)
    labels = targets(kind, inputs)
    losses: list[list[float]] = []
    for model in (ours, theirs):
        model.train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        losses.append([])
        for _ in range(4):
            loss = model(**inputs, **labels).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[-1].append(float(loss.detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[0][-1] < losses[0][0]


def tied(model: Any) -> bool:
    decoder, words = model.get_output_embeddings(), model.get_input_embeddings()
    return decoder.weight is words.weight and decoder.bias is model.cls.predictions.bias


@pytest.mark.parametrize("kind", KINDS)
def test_copies_and_states(kind: str) -> None:
    theirs, ours = both(kind)
    inputs = rows("none", kind=kind)
    wanted = ours(**inputs)[0]
    other = copy.deepcopy(ours)
    assert torch.equal(other(**inputs)[0], wanted)
    assert all(a is not b for a, b in zip(other.parameters(), ours.parameters(), strict=True))
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert ours.num_parameters() == theirs.num_parameters()
    fresh = getattr(bertkit, kind)(ours.config).eval()
    assert not torch.allclose(fresh(**inputs)[0], wanted)
    fresh.load_state_dict(theirs.state_dict())
    assert torch.equal(fresh(**inputs)[0], wanted)
    assert_close(ours.to(torch.float64)(**inputs)[0].float(), wanted)
    assert ours.half().dtype == torch.float16
    assert ours.device == torch.device("cpu")
    if kind in DECODERS:
        assert tied(ours)
        assert tied(other)
        assert tied(fresh)


@pytest.mark.parametrize("kind", KINDS)
def test_the_parts_have_the_names_that_scripts_use(kind: str) -> None:
    theirs, ours = both(kind)
    encoder = ours if kind == "BertModel" else ours.bert
    ids, types = (rows("none")[name] for name in ("input_ids", "token_type_ids"))
    parts = encoder.embeddings
    total = parts.word_embeddings(ids) + parts.token_type_embeddings(types)
    total = parts.dropout(parts.LayerNorm(total + parts.position_embeddings(torch.arange(17))))
    assert_close(total, parts(ids, types))
    assert_close(
        total, encoder(ids, token_type_ids=types, output_hidden_states=True).hidden_states[0]
    )
    names = {name for name, _ in theirs.named_parameters()}
    assert {name for name, _ in ours.named_parameters()} == names
    layer = encoder.encoder.layer[1]
    for part in (layer.attention.self.query, layer.attention.output.dense, layer.output.LayerNorm,
                 layer.intermediate.dense):  # fmt: skip
        assert isinstance(part, nn.Module)


def test_heads_answer_when_called_by_themselves() -> None:
    theirs, ours = both("BertForPreTraining")
    inputs = rows("none")
    state, pooled = ours.bert(**inputs, return_dict=False)
    out = theirs(**inputs)
    words, pairs = ours.cls(state, pooled)
    assert_close(words, out.prediction_logits)
    assert_close(pairs, out.seq_relationship_logits)
    assert_close(ours.bert.pooler(state), pooled)
    _, masked = both("BertForMaskedLM")
    assert_close(masked.cls(masked.bert(**inputs)[0]), masked(**inputs).logits)


@pytest.mark.parametrize("kind", DECODERS)
def test_other_embeddings_keep_the_tie(kind: str) -> None:
    _, ours = both(kind)
    words = nn.Embedding(211, 48, padding_idx=0)
    ours.set_input_embeddings(words)
    assert ours.get_input_embeddings() is words
    assert tied(ours)
    decoder = nn.Linear(48, 211)
    ours.set_output_embeddings(decoder)
    assert ours.get_output_embeddings() is decoder
    assert ours.cls.predictions.bias is decoder.bias
    assert tied(ours)
    assert_close(ours(**rows("none"))[0], ours.cls.predictions(ours.bert(**rows("none"))[0]))
    with pytest.raises(TypeError, match="has a bias"):
        ours.set_output_embeddings(nn.Linear(48, 211, bias=False))
    _, loose = both(kind, tie_word_embeddings=False)
    loose.set_output_embeddings(decoder := nn.Linear(48, 211))
    assert loose.get_output_embeddings() is decoder
    assert loose.get_input_embeddings().weight is not decoder.weight


def test_a_larger_table_of_words_is_read_to_its_end() -> None:
    _, ours = both("BertForTokenClassification")
    ours.set_input_embeddings(nn.Embedding(300, 48))
    assert ours.config.vocab_size == 300
    ours(torch.tensor([[299]]))
    with pytest.raises(DataError, match="input_ids holds 300; this model has room for 0 to 299"):
        ours(torch.tensor([[300]]))
    assert ours.get_output_embeddings() is None
    with pytest.raises(TypeError, match="BertForTokenClassification has no decoder"):
        ours.set_output_embeddings(nn.Linear(48, 300))
    _, pairs = both("BertForNextSentencePrediction")
    with pytest.raises(TypeError, match="no decoder"):
        pairs.set_output_embeddings(nn.Linear(48, 211))


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing_changes_no_bit_of_a_padded_call(kind: str) -> None:
    _, ours = both(kind, hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3)
    ours.train()
    inputs = rows("right", kind=kind)
    encoder = ours if kind == "BertModel" else ours.bert
    found = []
    for on in (False, True):
        encoder.encoder.gradient_checkpointing = on
        ours.zero_grad()
        torch.manual_seed(4)
        out = ours(**inputs, output_hidden_states=kind in DECODERS)
        out[0].clamp(min=-100).sum().backward()
        found.append({name: p.grad for name, p in ours.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, grad in found[0].items():
        assert torch.equal(grad, found[1][name]), name
