"""BertCrfForTokenClassification: what its words are, its loss, its files, its place in scripts."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor

import bertkit
from bertkit import AutoModelForTokenClassification, BertConfig, BertCrfForTokenClassification
from bertkit.checkpoint.report import heads_of
from bertkit.errors import DataError
from tests.model import enumeration
from tests.model.peers import SETTINGS, assert_close, folder_of, packed, rows

BIO = ["O", "B-X", "I-X", "B-Y", "I-Y"]
NAMES = dict(enumerate(BIO))


def model(**settings: object) -> BertCrfForTokenClassification:
    torch.manual_seed(0)
    config = BertConfig(**(SETTINGS | {"id2label": NAMES, "classifier_dropout": 0.0} | settings))
    return BertCrfForTokenClassification(config).eval()


def words_and_labels(inputs: dict[str, Tensor]) -> Tensor:
    """Every second real token of each row is a word, none in the last row."""
    mask = inputs["attention_mask"]
    columns = mask.cumsum(1) * mask
    labels = torch.where(columns % 2 == 0, 1, -100).masked_fill(mask == 0, -100)
    labels[-1] = -100
    return labels


def of_words(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    chosen = labels != -100
    return logits[chosen], labels[chosen], chosen.sum(1)


@pytest.mark.parametrize("side", ["right", "left", "none"])
def test_the_loss_is_the_mean_over_rows_with_words(side: str) -> None:
    crf, inputs = model(), rows(side)
    labels = words_and_labels(inputs)
    out = crf(**inputs, labels=labels)
    emissions, tags, counts = of_words(out.logits, labels)
    assert counts[-1] == 0
    found = crf.crf.log_likelihood(emissions, tags, counts)
    assert 0 < (counts > 0).sum() < len(counts)
    assert_close(out.loss, -found.sum() / (counts > 0).sum())
    out.loss.backward()
    assert crf.crf.transitions.grad is not None
    assert crf.crf.transitions.grad.any()
    assert crf.bert.embeddings.word_embeddings.weight.grad is not None
    nothing = crf(**inputs, labels=torch.full_like(labels, -100))
    assert nothing.loss == 0


def test_the_loss_by_enumeration() -> None:
    crf = model().double()
    ids = torch.tensor([[5, 6, 7, 8]])
    labels = torch.tensor([[-100, 1, 2, -100]])
    out = crf(ids, labels=labels)
    counts = torch.tensor([2])
    wanted = enumeration.log_likelihood(crf.crf, out.logits[0, 1:3], labels[0, 1:3], counts)
    assert_close(out.loss, -wanted[0])
    short = crf(ids, labels=labels, return_dict=False)
    assert_close(short[0], out.loss)


def test_decoding_padded_rows() -> None:
    crf, inputs = model(), rows("left")
    labels = words_and_labels(inputs)
    tags = crf.decode(**inputs, words=labels)
    assert torch.equal(tags == -100, labels == -100)
    emissions, _, counts = of_words(crf(**inputs).logits, labels)
    assert torch.equal(tags[labels != -100], crf.crf.decode(emissions, counts))
    assert torch.equal(crf.decode(**inputs, words=labels != -100), tags)
    every = crf.decode(**inputs)
    assert torch.equal(every != -100, inputs["attention_mask"] == 1)
    with pytest.raises(DataError, match="words is"):
        crf.decode(**inputs, words=labels[:, 1:])


def test_decoding_sequences_laid_end_to_end() -> None:
    crf, inputs = model(), rows("right")
    labels = words_and_labels(inputs)
    batch = packed(inputs)
    flat = labels[inputs["attention_mask"] == 1]
    positions, counts = (flat != -100).nonzero().squeeze(1), (labels != -100).sum(1)
    found = crf.decode_ragged(batch, positions, counts)
    assert torch.equal(found, crf.decode(**inputs, words=labels)[labels != -100])
    with pytest.raises(DataError, match="counts"):
        crf.decode_ragged(batch, positions, counts[:2])


def test_tags_are_legal_though_the_classifier_says_otherwise() -> None:
    crf = model()
    with torch.no_grad():
        crf.classifier.bias[2] = 50.0  # I-X everywhere, also after nothing
    tags = crf.decode(torch.tensor([[5, 6, 7]]))
    assert tags.tolist() == [[1, 2, 2]]


def test_saved_and_opened_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    crf = model()
    crf.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["crf"] is True
    assert written["architectures"] == ["BertCrfForTokenClassification"]
    with caplog.at_level(logging.WARNING, "bertkit"):
        for again in (
            BertCrfForTokenClassification.from_pretrained(tmp_path),
            AutoModelForTokenClassification.from_pretrained(tmp_path),
        ):
            assert type(again) is BertCrfForTokenClassification
            assert again.state_dict().keys() == crf.state_dict().keys()
            for name, value in again.state_dict().items():
                assert torch.equal(value, crf.state_dict()[name])
            assert torch.equal(again.crf.may_follow, crf.crf.may_follow)
            assert again.crf.distances.isfinite().all()
    assert not caplog.records
    assert "CRF" in heads_of(list(crf.state_dict()))


def test_transformers_opens_it_as_a_token_classifier(tmp_path: Path) -> None:
    crf, inputs = model(), rows("none")
    crf.save_pretrained(tmp_path)
    theirs, info = transformers.AutoModelForTokenClassification.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert set(info["unexpected_keys"]) == {
        "crf.transitions", "crf.start_transitions", "crf.end_transitions",
    }  # fmt: skip
    assert not info["missing_keys"]
    assert_close(theirs.eval()(**inputs).logits, crf(**inputs).logits)
    assert theirs.config.id2label == NAMES


def test_a_plain_token_classifier_gains_a_fresh_crf(caplog: pytest.LogCaptureFixture) -> None:
    folder = folder_of("BertForTokenClassification")
    with caplog.at_level(logging.WARNING, "bertkit"):
        crf = BertCrfForTokenClassification.from_pretrained(folder)
    assert list(crf.load_report.missing) == [
        "crf.end_transitions", "crf.start_transitions", "crf.transitions",
    ]  # fmt: skip
    assert "crf" in caplog.text
    assert crf.crf.transitions.abs().max() < 1
    assert crf.crf.transitions.any()
    plain = bertkit.BertForTokenClassification.from_pretrained(folder)
    inputs = rows("right")
    assert torch.equal(crf(**inputs).logits, plain(**inputs).logits)


def test_the_plain_class_opens_it_and_what_it_saves_is_plain(tmp_path: Path) -> None:
    model().save_pretrained(tmp_path / "crf")
    plain = bertkit.BertForTokenClassification.from_pretrained(tmp_path / "crf")
    assert len(plain.load_report.unexpected) == 3
    plain.save_pretrained(tmp_path / "plain")
    again = AutoModelForTokenClassification.from_pretrained(tmp_path / "plain")
    assert type(again) is bertkit.BertForTokenClassification


def test_a_new_model_of_a_configuration_that_asks_for_a_crf() -> None:
    config = BertConfig(**SETTINGS, crf=True, id2label=NAMES)
    new = AutoModelForTokenClassification.from_config(config)
    assert type(new) is BertCrfForTokenClassification
    names = [name for name, _ in new.named_parameters() if name.startswith("crf.")]
    assert len(names) == 3
    assert new.crf.transitions.abs().max() <= 0.1
