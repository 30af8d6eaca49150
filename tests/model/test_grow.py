"""Models that grow: what is new is what was promised, and nothing else has changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from bertkit import BertConfig, BertForMaskedLM, BertForPreTraining, BertModel
from bertkit.checkpoint.layout import read_tensors
from bertkit.errors import CheckpointError, UsageError
from bertkit.model.grow import (
    append_words,
    check_target,
    extend_folder,
    extend_positions,
    lengthen_folder,
)

PIECES = [[7, 8], [9, 10, 11], [1], [7, 7, 20, 3]]
SHAPE: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 24,
}


def make(kind: Any = BertForPreTraining, seed: int = 0, **settings: Any) -> Any:
    torch.manual_seed(seed)
    model = kind(BertConfig(**{**SHAPE, **settings})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def ids(rows: int = 3, length: int = 11) -> torch.Tensor:
    return torch.randint(5, 50, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("tied", [True, False])
def test_new_words_are_the_mean_of_their_pieces_and_old_ones_keep_their_bits(tied: bool) -> None:
    model = make(tie_word_embeddings=tied)
    old = {name: p.detach().clone() for name, p in model.named_parameters()}
    append_words(model, PIECES)
    head = model.cls.predictions
    tables = {
        "bert.embeddings.word_embeddings.weight": model.get_input_embeddings().weight,
        "cls.predictions.bias": head.bias,
    }
    if not tied:
        tables["cls.predictions.decoder.weight"] = head.decoder.weight
    for name, table in tables.items():
        assert torch.equal(table[:50], old[name]), name
        assert len(table) == 54
        for row, pieces in zip(table[50:], PIECES, strict=True):
            assert torch.equal(row, old[name][pieces].mean(0)), name
    assert head.bias is head.decoder.bias
    assert (head.decoder.weight is model.get_input_embeddings().weight) is tied
    assert model.config.vocab_size == model.get_input_embeddings().num_embeddings == 54
    assert head.decoder.out_features == 54
    for name, parameter in model.named_parameters():
        if name not in tables:
            assert torch.equal(parameter, old[name]), name


def test_texts_without_new_words_are_read_as_before() -> None:
    model, x = make(), ids()
    with torch.no_grad():
        before = model(x, output_hidden_states=True)
        append_words(model, PIECES)
        after = model(x, output_hidden_states=True)
    for a, b in zip(before.hidden_states, after.hidden_states, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(before.seq_relationship_logits, after.seq_relationship_logits)
    # A wider matrix may be multiplied in another order; one rounding is all that may differ.
    old = after.prediction_logits[..., :50]
    torch.testing.assert_close(old, before.prediction_logits, rtol=1e-6, atol=1e-6)


def test_a_new_word_is_as_likely_as_the_mean_of_its_pieces() -> None:
    model = make(tie_word_embeddings=False)
    append_words(model, PIECES)
    with torch.no_grad():
        logits = model(ids()).prediction_logits
    for number, pieces in enumerate(PIECES):
        mean = logits[..., pieces].mean(-1)
        torch.testing.assert_close(logits[..., 50 + number], mean, rtol=1e-5, atol=1e-5)


def test_a_model_that_grew_trains() -> None:
    model = make().train()
    append_words(model, PIECES)
    out = model(torch.full((1, 4), 53), labels=torch.full((1, 4), 52),
                next_sentence_label=torch.tensor([0]))  # fmt: skip
    out.loss.backward()
    gradient = model.get_input_embeddings().weight.grad
    assert gradient.shape == (54, 32)
    assert gradient[53].abs().sum() > 0


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("size", [30, 50, 61])
def test_resizing_is_that_of_transformers(tied: bool, size: int, tmp_path: Path) -> None:
    model = make(BertForMaskedLM, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    theirs = transformers.BertForMaskedLM.from_pretrained(tmp_path)
    theirs.resize_token_embeddings(size)
    made = model.resize_token_embeddings(size)
    assert made is model.get_input_embeddings()
    assert model.config.vocab_size == theirs.config.vocab_size == size
    found = dict(model.named_parameters(remove_duplicate=False))
    for name, wanted in theirs.named_parameters(remove_duplicate=False):
        assert found[name].shape == wanted.shape, name
        if tied and name.endswith(("predictions.bias", "decoder.bias")):
            # Transformers gives new words of a tied model a bias of 0; here it is the mean as well.
            found_bias = found[name].detach()
            assert ((found_bias[50:] - found_bias[:50].mean()).abs() < 1e-7).all()
            assert torch.equal(found_bias[:50], wanted[:50])
            continue
        # New rows: the mean of all; transformers draws them with a tiny deviation.
        torch.testing.assert_close(found[name], wanted, rtol=0, atol=1e-4, msg=name)
    assert (model.cls.predictions.decoder.weight is made.weight) is tied


def test_resizing_as_asked() -> None:
    model = make(BertModel)
    assert model.resize_token_embeddings() is model.get_input_embeddings()
    assert model.config.vocab_size == 50
    assert model.resize_token_embeddings(pad_to_multiple_of=64).num_embeddings == 64
    assert model.resize_token_embeddings(65, pad_to_multiple_of=8).num_embeddings == 72
    assert model(torch.tensor([[71]])).last_hidden_state.isfinite().all()
    other = make(BertForMaskedLM, initializer_range=0.02)
    fresh = other.resize_token_embeddings(2000, mean_resizing=False).weight[50:].detach()
    assert 0.015 < float(fresh.std()) < 0.02  # cut off at two deviations
    assert float(fresh.abs().max()) <= 0.0401
    assert (other.cls.predictions.bias[50:] == 0).all()
    padded = make(BertModel, pad_token_id=49)
    with pytest.raises(UsageError, match="no room for the pad token, 49"):
        padded.resize_token_embeddings(49)
    with pytest.raises(UsageError, match="pad_to_multiple_of is 0"):
        padded.resize_token_embeddings(49, pad_to_multiple_of=0)


def test_every_model_can_be_resized() -> None:
    import bertkit

    names = [n for n in bertkit.__all__ if n == "BertModel" or n.startswith("BertFor")]
    assert len(names) >= 4
    for name in names:
        model = make(getattr(bertkit, name))
        model.resize_token_embeddings(55)
        assert model.config.vocab_size == len(model.get_input_embeddings().weight) == 55


def test_longer_positions_are_tiles() -> None:
    model, x = make(BertModel), ids(2, 24)
    old = model.embeddings.position_embeddings.weight.detach().clone()
    with torch.no_grad():
        before = model(x).last_hidden_state
        extend_positions(model, 60)
        after = model(x).last_hidden_state
        long = model(ids(2, 60)).last_hidden_state
    assert torch.equal(before, after)
    assert long.isfinite().all()
    table = model.embeddings.position_embeddings.weight
    assert torch.equal(table, torch.cat([old, old, old])[:60])
    assert model.config.max_position_embeddings == 60
    assert model.embeddings.position_embeddings.num_embeddings == 60
    with pytest.raises(UsageError, match="60 tokens already; 60 is not longer"):
        extend_positions(model, 60)


@pytest.mark.parametrize("tied", [True, False])
def test_a_folder_grows_as_a_model_does(tied: bool, tmp_path: Path) -> None:
    model = make(tie_word_embeddings=tied)
    model.save_pretrained(tmp_path / "old")
    extend_folder(tmp_path / "old", tmp_path / "new", PIECES, 50)
    append_words(model, PIECES)
    again = BertForPreTraining.from_pretrained(tmp_path / "new")
    assert not again.load_report.missing
    for (name, a), b in zip(again.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b), name
    theirs = transformers.BertForPreTraining.from_pretrained(tmp_path / "new").eval()
    x = torch.tensor([[2, 50, 51, 53, 3]])
    with torch.no_grad():
        torch.testing.assert_close(
            theirs(x).prediction_logits, again(x).prediction_logits, rtol=1e-5, atol=1e-5
        )
    lengthen_folder(tmp_path / "new", tmp_path / "long", 48)
    assert BertForPreTraining.from_pretrained(tmp_path / "long")(ids(1, 48)).prediction_logits.shape
    theirs = transformers.BertForPreTraining.from_pretrained(tmp_path / "long").eval()
    assert theirs(ids(1, 48)).prediction_logits.shape == (1, 48, 54)


def test_heads_of_any_kind_come_along(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.BertConfig(**SHAPE)
    config.id2label = {n: f"kind {n}" for n in range(5)}
    theirs = transformers.BertForTokenClassification(config).eval()
    theirs.save_pretrained(tmp_path / "old")
    extend_folder(tmp_path / "old", tmp_path / "new", PIECES, 50)
    old, new = read_tensors(tmp_path / "old"), read_tensors(tmp_path / "new")
    assert old.keys() == new.keys()
    for name in old:
        assert torch.equal(old[name], new[name][: len(old[name])]), name
    again = transformers.BertForTokenClassification.from_pretrained(tmp_path / "new").eval()
    assert again.config.id2label[3] == "kind 3"
    assert again.config.architectures == ["BertForTokenClassification"]
    with torch.no_grad():
        assert torch.equal(theirs(ids()).logits, again(ids()).logits)


def test_an_encoder_by_itself_in_half_precision(tmp_path: Path) -> None:
    config = transformers.BertConfig(**SHAPE)
    transformers.BertModel(config).half().save_pretrained(tmp_path / "old")
    extend_folder(tmp_path / "old", tmp_path / "new", PIECES, 50)
    words = read_tensors(tmp_path / "new")["embeddings.word_embeddings.weight"]
    assert words.dtype == torch.float16
    assert torch.equal(words[51], words[[9, 10, 11]].float().mean(0).half())
    assert BertModel.from_pretrained(tmp_path / "new").config.vocab_size == 54


def test_rows_that_were_padding_are_taken_first(tmp_path: Path) -> None:
    model = make(BertModel)
    model.save_pretrained(tmp_path / "old")  # say, 48 words and two rows of padding
    extend_folder(tmp_path / "old", tmp_path / "new", PIECES[:3], 48)
    words = read_tensors(tmp_path / "new")["embeddings.word_embeddings.weight"]
    old = model.get_input_embeddings().weight
    assert words.shape == (51, 32)
    assert torch.equal(words[:48], old[:48])
    assert torch.equal(words[48], old[[7, 8]].mean(0))
    extend_folder(tmp_path / "old", tmp_path / "one", PIECES[:1], 48)
    words = read_tensors(tmp_path / "one")["embeddings.word_embeddings.weight"]
    assert words.shape == (50, 32)
    assert torch.equal(words[49], old[49])


def test_what_cannot_grow_is_refused(tmp_path: Path) -> None:
    model = make(BertModel)
    with pytest.raises(UsageError, match="not words below 50"):
        append_words(model, [[50]])
    with pytest.raises(UsageError, match="not words below 50"):
        append_words(model, [[]])
    with pytest.raises(UsageError, match="would be 51"):
        append_words(model, [[3]], start=51)
    append_words(model, [])
    assert model.config.vocab_size == 50
    model.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="is the model itself"):
        check_target(tmp_path, tmp_path, overwrite=True)
    (run := tmp_path / "run").mkdir()
    (run / "recipe.toml").touch()
    with pytest.raises(UsageError, match="holds a training run"):
        check_target(tmp_path, run, overwrite=True)
    other = tmp_path / "other"
    model.save_pretrained(other)
    with pytest.raises(UsageError, match="--overwrite"):
        check_target(tmp_path, other, overwrite=False)
    check_target(tmp_path, other, overwrite=True)
    config = BertConfig(**{**SHAPE, "vocab_size": 51})
    config.save_pretrained(other)
    with pytest.raises(CheckpointError, match="has 50 rows, 51 by the configuration"):
        extend_folder(other, tmp_path / "x", PIECES, 50)
