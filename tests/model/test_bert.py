"""BERT against transformers and against NumPy; every short cut against the long way."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor

from bertkit.batch import PretrainBatch
from bertkit.checkpoint.config import BertConfig
from bertkit.errors import DataError
from bertkit.model import bert
from bertkit.model.bert import BertModel
from bertkit.model.heads import (
    BertForMaskedLM,
    BertForNextSentencePrediction,
    BertForPreTraining,
)
from tests.model.peers import SETTINGS, assert_close, both, gradients, packed, rows, targets

KW = SETTINGS | {"max_position_embeddings": 64}


@pytest.mark.parametrize("act", ["gelu", "gelu_new", "relu", "silu"])
def test_activations_equal_transformers(act: str) -> None:
    theirs, ours = both("BertForMaskedLM", hidden_act=act, num_hidden_layers=1)
    inputs = rows("none")
    torch.testing.assert_close(ours(**inputs).logits, theirs(**inputs).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("width", [1, 2, 16, 17, 31, 33, 64])
def test_any_width_equals_transformers(width: int) -> None:
    theirs, ours = both("BertModel")
    ids = torch.randint(1, 211, (2, width), generator=torch.Generator().manual_seed(width))
    mine, wanted = ours(ids), theirs(ids)
    for name in ("last_hidden_state", "pooler_output"):
        torch.testing.assert_close(mine[name], wanted[name], atol=1e-5, rtol=1e-5)


def numpy_bert(model: BertModel, ids: list[int], segments: list[int]) -> NDArray[np.float64]:
    """One sequence through BERT, as the paper writes it down."""
    w = {name: p.detach().double().numpy() for name, p in model.named_parameters()}

    def linear(x: NDArray[Any], name: str) -> NDArray[Any]:
        out: NDArray[Any] = x @ w[f"{name}.weight"].T + w[f"{name}.bias"]
        return out

    def norm(x: NDArray[Any], name: str) -> NDArray[Any]:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
        out: NDArray[Any] = scaled * w[f"{name}.weight"] + w[f"{name}.bias"]
        return out

    e = "embeddings"
    x = w[f"{e}.word_embeddings.weight"][ids] + w[f"{e}.token_type_embeddings.weight"][segments]
    x = norm(x + w[f"{e}.position_embeddings.weight"][: len(ids)], f"{e}.LayerNorm")
    heads = model.config.num_attention_heads
    for i in range(model.config.num_hidden_layers):
        p = f"encoder.layer.{i}"
        q, k, v = (linear(x, f"{p}.attention.self.{n}") for n in ("query", "key", "value"))
        context = []
        for one_q, one_k, one_v in zip(*(np.split(y, heads, 1) for y in (q, k, v)), strict=True):
            scores = np.exp(one_q @ one_k.T / math.sqrt(one_q.shape[1]))
            context.append(scores / scores.sum(1, keepdims=True) @ one_v)
        attended = linear(np.concatenate(context, 1), f"{p}.attention.output.dense")
        x = norm(attended + x, f"{p}.attention.output.LayerNorm")
        wide = linear(x, f"{p}.intermediate.dense")
        wide = wide * 0.5 * (1 + np.vectorize(math.erf)(wide / math.sqrt(2)))
        x = norm(linear(wide, f"{p}.output.dense") + x, f"{p}.output.LayerNorm")
    return np.asarray(x)


def test_equals_bert_in_numpy() -> None:
    _, ours = both("BertModel")
    ours.double()
    inputs = rows("right", (9, 4, 1))
    with torch.no_grad():
        out = ours(**inputs)
    for row, length in enumerate((9, 4, 1)):
        ids = inputs["input_ids"][row, :length].tolist()
        segments = inputs["token_type_ids"][row, :length].tolist()
        wanted = numpy_bert(ours, ids, segments)
        np.testing.assert_allclose(
            out.last_hidden_state[row, :length].numpy(), wanted, rtol=1e-9, atol=1e-9
        )


def test_padded_equals_packed_equals_single() -> None:
    _, ours = both("BertModel")
    inputs = rows("right")
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        padded = ours(**inputs).last_hidden_state
        ragged = ours.encode(packed(inputs))
        assert_close(ragged, padded[real], 1e-6)
        for row, length in enumerate(real.sum(1).tolist()):
            one = {name: x[row : row + 1, :length] for name, x in inputs.items()}
            assert_close(ours(**one).last_hidden_state[0], padded[row, :length], 1e-6)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("input_ids", 211, "input_ids holds 211"),
        ("input_ids", -1, "input_ids holds -1"),
        ("token_type_ids", 2, "token_type_ids holds 2"),
        ("position_ids", 64, "position_ids holds 64"),
    ],
)
def test_ids_out_of_range_are_an_error_in_words(name: str, value: int, said: str) -> None:
    _, ours = both("BertModel", max_position_embeddings=64)
    inputs = rows("none")
    inputs["position_ids"] = torch.arange(17).repeat(4, 1)
    inputs[name][2, 3] = value
    with pytest.raises(DataError, match=said):
        ours(**inputs)


def test_too_long_an_input_and_other_shapes_are_an_error_in_words() -> None:
    _, ours = both("BertModel", max_position_embeddings=64)
    with pytest.raises(DataError, match="position_ids holds 64; this model has room for 0 to 63"):
        ours(torch.ones(1, 65, dtype=torch.long))
    with pytest.raises(DataError, match="attention_mask"):
        ours(torch.ones(2, 5, dtype=torch.long), torch.ones(2, 6))
    with pytest.raises(DataError, match="either input_ids or inputs_embeds"):
        ours()


def test_without_a_pooler() -> None:
    model = BertModel(BertConfig(**KW), add_pooling_layer=False)
    out = model(torch.ones(1, 3, dtype=torch.long))
    assert out.pooler_output is None
    assert out.keys() == ["last_hidden_state"]


def pretrain_batch(inputs: dict[str, Tensor], pad: int = 0) -> tuple[PretrainBatch, Tensor]:
    """The rows packed, with labels and `pad` tokens of padding; and the labels padded."""
    labels = targets("BertForMaskedLM", inputs)["labels"]
    batch = packed(inputs)
    flat = labels[inputs["attention_mask"].bool()]
    positions = (flat != -100).nonzero().squeeze(1)
    nsp = torch.tensor([0, 1, 1, 0])
    ids, segments, order, lengths = (
        batch.input_ids, batch.token_type_ids, batch.position_ids, batch.lengths
    )  # fmt: skip
    if pad:
        ids = torch.cat([ids, torch.zeros(pad, dtype=torch.long)])
        segments = torch.cat([segments, torch.zeros(pad, dtype=torch.long)])
        order = torch.cat([order, torch.arange(pad)])
        lengths = torch.cat([lengths, torch.tensor([pad])])
        nsp = torch.cat([nsp, torch.tensor([-100])])
    real = len(batch.input_ids)
    done = PretrainBatch(ids, segments, order, lengths, positions, flat[positions], nsp, real)
    return done, labels


@pytest.mark.parametrize("pad", [0, 6])
@pytest.mark.parametrize("kind", ["BertForPreTraining", "BertForMaskedLM"])
def test_logits_at_masked_positions_only_equal_the_full_computation(kind: str, pad: int) -> None:
    _, ours = both(kind)
    inputs = rows("right")
    batch, labels = pretrain_batch(inputs, pad)
    short = ours.pretraining_loss(batch)
    mine = gradients(ours, short)
    targets: dict[str, Tensor] = {"labels": labels}
    if kind == "BertForPreTraining":
        targets["next_sentence_label"] = batch.nsp_labels[:4]
    full = ours(**inputs, **targets).loss
    wanted = gradients(ours, full)
    assert_close(short, full, 1e-6)
    assert mine.keys() == wanted.keys()
    for name, grad in mine.items():
        assert_close(grad, wanted[name], 1e-6)


def test_masked_only_counts_and_sums() -> None:
    _, ours = both()
    inputs = rows("right")
    batch, labels = pretrain_batch(inputs)
    with torch.no_grad():
        out = ours(**inputs)
        sums = ours.pretraining_sums(batch, batch.readers(first=True))
    chosen = labels != -100
    right = out.prediction_logits.argmax(-1)[chosen] == labels[chosen]
    assert int(sums.mlm_correct) == int(right.sum())
    right = out.seq_relationship_logits.argmax(-1) == batch.nsp_labels
    assert int(sums.nsp_correct) == int(right.sum())


def test_a_batch_with_nothing_masked_adds_nothing() -> None:
    _, ours = both("BertForMaskedLM")
    batch, _ = pretrain_batch(rows("right"))
    none = torch.zeros(0, dtype=torch.long)
    empty = PretrainBatch(
        batch.input_ids, batch.token_type_ids, batch.position_ids, batch.lengths,
        none, none, torch.full((4,), -100), batch.real_tokens,
    )  # fmt: skip
    loss = ours.pretraining_loss(empty)
    assert float(loss.detach()) == 0.0
    for grad in gradients(ours, loss).values():
        assert not grad.any()


@pytest.mark.parametrize("first", [True, False])
def test_the_last_layer_for_readers_equals_the_whole_last_layer(first: bool) -> None:
    _, ours = both("BertModel")
    batch, _ = pretrain_batch(rows("right"))
    readers = batch.readers(first=first)
    with torch.no_grad():
        assert_close(ours.encode(batch, readers), ours.encode(batch)[readers.rows], 1e-6)


@pytest.mark.parametrize("at_once", [1, 5, 16, 34])
def test_a_layer_in_pieces_equals_a_layer_in_one(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, ours = both()
    ours.train()  # with dropout at 0
    batch, _ = pretrain_batch(rows("right"))
    wanted = gradients(ours, ours.pretraining_loss(batch))
    monkeypatch.setattr(bert, "WIDE_BYTES", at_once * 80 * 4)
    for name, grad in gradients(ours, ours.pretraining_loss(batch)).items():
        assert_close(grad, wanted[name], 1e-6)


def test_a_hook_sees_all_tokens_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    _, ours = both("BertModel")
    seen: list[int] = []
    monkeypatch.setattr(bert, "WIDE_BYTES", 4 * 80 * 4)
    batch = packed(rows("right"))
    first, second = ours.encoder.layer
    with first.intermediate.register_forward_hook(lambda module, given, out: seen.append(len(out))):
        ours.encode(batch)
    assert seen == [len(batch.input_ids)]
    assert bert.pieces_of(torch.zeros(35, 48), first) == 9
    with second.intermediate.register_full_backward_hook(
        lambda module, given, out: seen.append(len(out[0]))
    ):
        ours.encode(batch).sum().backward()
    assert seen == [len(batch.input_ids)] * 2


def test_logits_at_positions_and_of_pairs_equal_the_padded_call() -> None:
    _, ours = both()
    inputs = rows("right")
    batch = packed(inputs)
    positions = torch.tensor([0, 5, 16, 17, 29, 30])
    with torch.no_grad():
        out = ours(**inputs)
        real = inputs["attention_mask"].bool()
        assert_close(ours.mlm_logits_at(batch, positions), out.prediction_logits[real][positions])
        assert_close(ours.nsp_logits(batch), out.seq_relationship_logits)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient_checkpointing_changes_no_bit(dropout: float) -> None:
    _, ours = both()
    ours.train()
    for module in ours.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    batch, labels = pretrain_batch(rows("right"))
    inputs = {**rows("right"), "labels": labels, "next_sentence_label": batch.nsp_labels}
    found = []
    for on in (False, True):
        ours.bert.encoder.gradient_checkpointing = on
        torch.manual_seed(5)
        packed_loss = gradients(ours, ours.pretraining_loss(batch))
        torch.manual_seed(6)
        found.append((packed_loss, gradients(ours, ours(**inputs).loss)))
    for mine, wanted in zip(found[1], found[0], strict=True):
        for name, grad in mine.items():
            assert torch.equal(grad, wanted[name]), name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_equals_eager() -> None:
    _, ours = both()
    batches = [
        pretrain_batch(rows("right"))[0],
        pretrain_batch(rows("right", (30, 30, 8, 2)))[0],
        pretrain_batch(rows("right", (9, 9, 9, 9)), 5)[0],
    ]
    wanted = []
    for batch in batches:
        loss = ours.pretraining_loss(batch)
        wanted.append((loss.detach(), gradients(ours, loss)))
    for layer in ours.bert.encoder.layer:
        layer.compile(dynamic=True)
    for batch, (loss, eager) in zip(batches, wanted, strict=True):
        mine = ours.pretraining_loss(batch)
        assert_close(mine, loss)
        for name, grad in gradients(ours, mine).items():
            assert_close(grad, eager[name])


def test_the_decoder_is_the_word_embeddings() -> None:
    model = BertForPreTraining(BertConfig(**KW))
    decoder = model.get_output_embeddings()
    assert decoder is not None
    assert decoder.weight is model.get_input_embeddings().weight
    assert model.cls.predictions.bias is decoder.bias
    names = [name for name, _ in model.named_parameters()]
    assert "cls.predictions.decoder.weight" not in names
    assert BertForNextSentencePrediction(BertConfig(**KW)).get_output_embeddings() is None
    untied = BertForMaskedLM(BertConfig(**KW, tie_word_embeddings=False))
    loose = untied.get_output_embeddings()
    assert loose is not None
    assert loose.weight is not untied.get_input_embeddings().weight


@pytest.mark.parametrize("size", ["tiny", "mini", "small", "medium", "base", "large"])
def test_sizes_by_name_have_the_parameters_of_transformers(size: str) -> None:
    config = BertConfig.of_size(size, vocab_size=30522)
    with torch.device("meta"):
        ours = BertForPreTraining(config)
        theirs = transformers.BertForPreTraining(transformers.BertConfig(**config.to_dict()))
    assert ours.num_parameters() == theirs.num_parameters()
    if size == "base":
        assert ours.num_parameters() == 110_106_428
    assert ours.num_parameters(exclude_embeddings=True) == theirs.num_parameters(
        exclude_embeddings=True
    )


def test_dropout_is_off_in_evaluation() -> None:
    model = BertForPreTraining(BertConfig(**KW | {"hidden_dropout_prob": 0.5}))
    ids = rows("none")["input_ids"]
    model.eval()
    assert torch.equal(model(ids).prediction_logits, model(ids).prediction_logits)
    model.train()
    assert not torch.equal(model(ids).prediction_logits, model(ids).prediction_logits)
