"""The heads for fine-tuning: every kind of label, the ragged call, and refusals in words."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import bertkit
from bertkit.batch import Batch
from bertkit.errors import ConfigError, DataError
from tests.model.peers import (
    BY_TOKEN,
    POOLED,
    SETTINGS,
    assert_close,
    both,
    folder_of,
    gradients,
    packed,
    rows,
    targets,
)

SEQUENCE = "BertForSequenceClassification"


def floats(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(2))


CASES: dict[str, tuple[dict[str, Any], Tensor, str]] = {
    "ints": ({"num_labels": 3}, torch.tensor([0, 2, -100, 1]), "single_label_classification"),
    "a column of ints": ({}, torch.tensor([[0], [1], [1], [0]]), "single_label_classification"),
    "floats": ({"num_labels": 3}, (floats(4, 3) > 0.5).float(), "multi_label_classification"),
    "one float": ({"num_labels": 1}, floats(4), "regression"),
    "a column of floats": ({"num_labels": 1}, floats(4, 1), "regression"),
    "many floats": ({"num_labels": 3, "problem_type": "regression"}, floats(4, 3), "regression"),
}


@pytest.mark.parametrize("case", CASES)
def test_every_kind_of_label_equals_transformers(case: str) -> None:
    settings, labels, kind = CASES[case]
    theirs, ours = both(SEQUENCE, **settings)
    inputs = rows("right")
    a, b = ours(**inputs, labels=labels), theirs(**inputs, labels=labels)
    assert ours.config.problem_type == theirs.config.problem_type == kind
    assert_close(a.loss, b.loss)
    assert_close(a.logits, b.logits)
    wanted = gradients(theirs, b.loss)
    for name, grad in gradients(ours, a.loss).items():
        assert_close(grad, wanted[name])


def test_whole_numbers_are_good_targets_of_regression_and_many_labels() -> None:
    _, ours = both(SEQUENCE, num_labels=1)
    inputs = rows("right")
    whole = ours(**inputs, labels=torch.tensor([3, 0, 2, 5])).loss
    assert_close(whole, ours(**inputs, labels=torch.tensor([3.0, 0.0, 2.0, 5.0])).loss)
    _, many = both(SEQUENCE, num_labels=3, problem_type="multi_label_classification")
    marks = (floats(4, 3) > 0.5).long()
    assert_close(many(**inputs, labels=marks).loss, many(**inputs, labels=marks.float()).loss)


BAD: dict[str, tuple[str, dict[str, Any], dict[str, Tensor], str]] = {
    "a label beyond the last": (
        SEQUENCE, {"num_labels": 3}, {"labels": torch.tensor([0, 3, 1, 1])},
        "labels holds 3; this model has room for 0 to 2",
    ),
    "a label below the first": (
        SEQUENCE, {}, {"labels": torch.tensor([0, -1, 1, 1])}, "labels holds -1",
    ),
    "too few labels": (
        SEQUENCE, {}, {"labels": torch.tensor([0, 1])}, r"labels is \[2\]; the input has 4 rows",
    ),
    "one mark where there are three": (
        SEQUENCE, {"num_labels": 3}, {"labels": floats(4)}, r"takes \[4, 3\]",
    ),
    "tags of other rows": (
        "BertForTokenClassification", {}, {"labels": torch.zeros(4, 16, dtype=torch.long)},
        r"labels is \[4, 16\]; the input is \[4, 17\]",
    ),
    "a tag beyond the last": (
        "BertForTokenClassification", {}, {"labels": torch.full((4, 17), 5)}, "labels holds 5",
    ),
    "a word beyond the vocabulary": (
        "BertForMaskedLM", {}, {"labels": torch.full((4, 17), 211)}, "labels holds 211",
    ),
    "answers of other rows": (
        "BertForQuestionAnswering", {},
        {"start_positions": torch.tensor([1]), "end_positions": torch.tensor([1])},
        r"start_positions is \[1\]; the input has 4 rows",
    ),
    "a choice that is not there": (
        "BertForMultipleChoice", {}, {"labels": torch.tensor([0, 2])}, "labels holds 2",
    ),
    "too many questions": (
        "BertForMultipleChoice", {}, {"labels": torch.tensor([0, 1, 1])}, "there are 2 questions",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_labels_are_an_error_in_words(case: str) -> None:
    kind, settings, labels, said = BAD[case]
    _, ours = both(kind, **settings)
    with pytest.raises(DataError, match=said) as error:
        ours(**rows("none", kind=kind), **labels)
    assert "\n" not in str(error.value)


def test_settings_that_make_no_sense_are_refused() -> None:
    _, ours = both(SEQUENCE, num_labels=2)
    ours.config.problem_type = "guessing"
    with pytest.raises(ConfigError, match="problem_type is 'guessing'; it may be single_label"):
        ours(**rows("none"), labels=torch.tensor([0, 1, 1, 0]))
    with pytest.raises(ConfigError, match="num_labels is 3; an answer has 2"):
        bertkit.BertForQuestionAnswering(bertkit.BertConfig(**SETTINGS, num_labels=3))


@pytest.mark.parametrize("kind", [*POOLED, *BY_TOKEN])
@pytest.mark.parametrize("side", ["right", "left"])
def test_the_ragged_call_equals_the_padded_one(kind: str, side: str) -> None:
    _, ours = both(kind)
    inputs = rows(side, kind=kind)
    batch, real = packed(inputs), inputs["attention_mask"].bool()
    ragged = ours.ragged(batch)
    out = ours(**inputs)
    if kind == "BertForQuestionAnswering":
        wanted = torch.stack([out.start_logits[real], out.end_logits[real]], -1)
    elif kind in BY_TOKEN:
        wanted = out.logits[real]
    else:
        wanted = out.logits.view(ragged.shape)
    assert_close(ragged, wanted, 1e-6)
    slope = torch.linspace(-1, 1, wanted.numel()).view_as(wanted)
    expected = gradients(ours, (wanted * slope).sum())
    for name, grad in gradients(ours, (ragged * slope).sum()).items():
        assert_close(grad, expected[name], 1e-6)
    if kind in BY_TOKEN:
        positions = torch.tensor([0, 3, 4, 16, 17, 29, 34])
        assert_close(ours.ragged(batch, positions), wanted[positions], 1e-6)
        assert ours.ragged(batch, positions[:0]).shape == (0, wanted.shape[1])


@pytest.mark.parametrize("kind", POOLED[1:])
def test_losses_of_ragged_logits_are_those_of_the_padded_call(kind: str) -> None:
    _, ours = both(kind)
    inputs = rows("right", kind=kind)
    labels = targets(kind, inputs)["labels"]
    logits = ours.ragged(packed(inputs))
    if kind == "BertForMultipleChoice":
        logits = logits.view(-1, 2)
    assert_close(ours.loss(logits, labels), ours(**inputs, labels=labels).loss)


def test_questions_with_fewer_choices_stand_beside_others() -> None:
    _, ours = both("BertForMultipleChoice")
    flat = rows("right", (9, 8, 7, 6, 5, 4))
    three = {name: x.view(2, 3, 9) for name, x in flat.items()}
    three["attention_mask"][1, 2] = 0
    both_questions = ours(**three, labels=torch.tensor([2, 1]))
    assert both_questions.logits[1, 2] == 0
    one = ours(**{name: x[:1] for name, x in three.items()}, labels=torch.tensor([2]))
    other = ours(**{name: x[1:, :2] for name, x in three.items()}, labels=torch.tensor([1]))
    assert_close(both_questions.loss, (one.loss + other.loss) / 2)
    assert_close(both_questions.logits[1, :2], other.logits[0])
    with pytest.raises(DataError, match="labels names a choice that is wholly padded"):
        ours(**three, labels=torch.tensor([0, 2]))
    ignored = ours(**three, labels=torch.tensor([2, -100]))
    assert_close(ignored.loss, one.loss)
    with pytest.raises(DataError, match=r"must be \[B, choices, S\]"):
        ours(**flat)


def test_an_answers_loss_runs_over_real_tokens_only() -> None:
    _, ours = both("BertForQuestionAnswering")
    inputs = rows("right")
    start, end = torch.tensor([3, 0, 0, 2]), torch.tensor([9, 11, 0, 4])
    loss = ours(**inputs, start_positions=start, end_positions=end).loss
    sums = []
    for row, length in enumerate((17, 12, 1, 5)):
        one = ours(**{name: x[row : row + 1, :length] for name, x in inputs.items()})
        sums.append(F.cross_entropy(one.start_logits, start[row : row + 1]))
        sums.append(F.cross_entropy(one.end_logits, end[row : row + 1]))
    assert_close(loss, torch.stack(sums).mean())
    logits = ours(**inputs).start_logits
    assert (logits.argmax(1) < torch.tensor([17, 12, 1, 5])).all()


def test_answers_outside_the_input_count_nowhere() -> None:
    theirs, ours = both("BertForQuestionAnswering")
    inputs = rows("none")
    start, end = torch.tensor([3, 17, 99, 0]), torch.tensor([5, 6, 99, -1])
    answers = {"start_positions": start, "end_positions": end}
    found = ours(**inputs, **answers).loss
    assert_close(found, theirs(**inputs, **answers).loss)
    columns = {name: x.unsqueeze(1) for name, x in answers.items()}
    assert_close(ours(**inputs, **columns).loss, found)
    # No start is inside: what is left is half the loss of the ends, where transformers has NaN.
    answers["start_positions"] = torch.tensor([17, 30, 99, 21])
    out = ours(**inputs, **answers)
    assert_close(out.loss * 2, F.cross_entropy(out.end_logits[[0, 1, 3]], torch.tensor([5, 6, 0])))


def test_answers_at_padding_count_nowhere() -> None:
    _, ours = both("BertForQuestionAnswering")
    inputs = rows("right")
    at_padding = torch.tensor([3, 12, 5, 5])
    inputs |= {"start_positions": at_padding, "end_positions": at_padding + 1}
    first = {name: x[:1] for name, x in inputs.items()}
    assert_close(ours(**inputs).loss, ours(**first).loss)


def test_the_classifiers_dropout_is_its_own() -> None:
    config = bertkit.BertConfig(**SETTINGS, classifier_dropout=0.4)
    for kind in (*POOLED[1:], "BertForTokenClassification"):
        assert getattr(bertkit, kind)(config).dropout.p == 0.4
    config = bertkit.BertConfig(**SETTINGS | {"hidden_dropout_prob": 0.2})
    assert bertkit.BertForSequenceClassification(config).dropout.p == 0.2
    model = bertkit.BertForTokenClassification(config)
    inputs = rows("right")
    assert not torch.equal(model(**inputs).logits, model(**inputs).logits)
    model.eval()
    assert torch.equal(model(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize("kind", [*POOLED[1:], *BY_TOKEN[1:]])
def test_a_head_on_a_bare_encoder_is_new_and_said_to_be(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        ours = getattr(bertkit, kind).from_pretrained(folder_of("BertModel"))
    head = "qa_outputs" if kind == "BertForQuestionAnswering" else "classifier"
    assert set(ours.load_report.missing) == {f"{head}.weight", f"{head}.bias"}
    assert head in caplog.text
    layer = getattr(ours, head)
    assert not layer.bias.any()
    assert 0 < float(layer.weight.detach().abs().max()) <= 0.04
    assert torch.isfinite(ours(**rows("right", kind=kind))[0]).all()


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_examples_of_the_manual_run(
    language: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Path(__file__).parents[2] / "docs" / language / "models.md"
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "cat", ".", "好", "天"]
    bertkit.BertTokenizer(words).save_pretrained(tmp_path / "run/model")
    bertkit.BertModel(bertkit.BertConfig(**SETTINGS)).save_pretrained(tmp_path / "run/model")
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        names: dict[str, Any] = {}
        exec(block, names)
        if "output" in names:
            assert names["output"].logits.shape == (2, 3)
        else:
            assert torch.isfinite(names["loss"])
    assert len(blocks) == 2


def test_models_that_pool_take_no_positions() -> None:
    _, ours = both(SEQUENCE)
    batch: Batch = packed(rows("right"))
    with pytest.raises(AssertionError, match="reads the first tokens"):
        ours.ragged(batch, torch.tensor([1]))
