"""Attribution adds up, and is what a plain loop over transformers' model gives."""

from __future__ import annotations

import copy
import math
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import bertkit
from bertkit.errors import DataError, MissingHeadError, UsageError
from bertkit.explain.attribution import AttributionResult, attribute
from bertkit.explain.attribution_totals import Totals, attribute_over
from bertkit.explain.contributions import AttributionOptions, Method
from bertkit.explain.hooks import state_hash
from bertkit.explain.opening import Opened
from bertkit.explain.readouts import CRF_NOTE
from bertkit.tasks.answers import TaskAnswers
from tests.explain.models import MASKED, TEXT, opened, theirs
from tests.tasks import tiny

QUESTION, PASSAGE = "who lives in london?", "john lives in london. the cat sat in the park."
TAGS = ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")


def double(model: Any) -> Opened:
    return Opened(model.double(), tiny.tokenizer(), "tiny")


def classifier(*names: str, **settings: Any) -> Opened:
    labels = tiny.labels(*(names or ("x", "y", "z")))
    return double(tiny.ours("BertForSequenceClassification", **labels, **settings))


def tagger(*names: str) -> Opened:
    return double(tiny.ours("BertForTokenClassification", **tiny.labels(*(names or TAGS))))


def crf_tagger() -> Opened:
    torch.manual_seed(1)
    plain = tagger().model
    config = copy.deepcopy(plain.config)
    config.architectures = ["BertCrfForTokenClassification"]
    model = bertkit.BertCrfForTokenClassification(config)
    missing, _ = model.load_state_dict(plain.state_dict(), strict=False)
    assert all(name.startswith("crf.") for name in missing)
    with torch.no_grad():
        model.crf.transitions.normal_()
    return double(model.eval())


def their_logits(kind: str, vectors: Tensor, ids: list[int], types: list[int]) -> Tensor:
    model = theirs(kind)
    found = model(inputs_embeds=vectors.unsqueeze(0), token_type_ids=torch.tensor([types]))
    if kind == "BertForQuestionAnswering":
        return torch.stack([found.start_logits[0], found.end_logits[0]], -1)
    return found.logits[0]  # type: ignore[no-any-return]


def masked_ids() -> tuple[list[int], Tensor]:
    sentence = opened().read(MASKED)
    words = theirs().bert.embeddings.word_embeddings
    return list(sentence.ids), words(torch.tensor(sentence.ids)).detach()


def at_mask(vectors: Tensor) -> Tensor:
    """The logit of "sat" at the mask of MASKED, in transformers."""
    ids, _ = masked_ids()
    return their_logits("BertForMaskedLM", vectors, ids, [0] * len(ids))[3, tiny.VOCAB.index("sat")]


def base_of_masked(vector: Tensor) -> Tensor:
    _, vectors = masked_ids()
    base = vectors.clone()
    base[1:3] = vector
    base[4:-1] = vector
    return base


CASES: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]] = {
    "mask": (opened, (MASKED,), {"target": "sat"}),
    "word of pieces": (opened, (TEXT,), {"word": "unbelievable"}),
    "Chinese words": (opened, ("我爱北京天安门",), {"word": "北京", "against": "上海"}),
    "class": (classifier, ("the cat sat", "我爱北京"), {"target": "y", "against": "x"}),
    "value": (lambda: classifier("v"), ("the cat sat",), {}),
    "tag": (tagger, ("john lives in london",), {"word": "london", "target": "LOC"}),
    "CRF": (crf_tagger, ("john lives in london",), {"word": "in london", "target": "LOC"}),
    "answer": (lambda: opened("BertForQuestionAnswering"), (QUESTION, PASSAGE), {}),
}


@pytest.mark.parametrize("quantity", ["logit", "probability"])
@pytest.mark.parametrize("name", CASES)
def test_integrated_gradients_add_up(name: str, quantity: Any) -> None:
    make, texts, asked = CASES[name]
    if (name, quantity) == ("value", "probability"):
        return
    options = AttributionOptions(quantity=quantity, steps=200)
    found = attribute(make(), *texts, **asked, options=options)
    for target in found.targets:
        total = float(target.token_values.sum())
        assert total == pytest.approx(target.value - target.baseline_value, abs=1e-6)
        assert abs(target.delta) < 1e-6
        assert not target.loose
        words = math.fsum(word.value for word in target.words)
        assert words == pytest.approx(total, abs=1e-12)  # special tokens hold nothing
        # The bound is not met by numbers that are all but zero.
        assert abs(target.delta) < 1e-5 * target.size


@pytest.mark.parametrize("baseline", ["mask", "pad", "zero"])
def test_integrated_gradients_are_a_sum_over_points_on_the_way(baseline: Any) -> None:
    _, vectors = masked_ids()
    table = theirs().bert.embeddings.word_embeddings.weight.detach()
    base = base_of_masked({"mask": table[4], "pad": table[0], "zero": 0 * table[0]}[baseline])
    points, weights = np.polynomial.legendre.leggauss(7)
    total = torch.zeros_like(vectors)
    for point, weight in zip(points, weights, strict=True):
        here = (base + (1 + point) / 2 * (vectors - base)).requires_grad_()
        (gradient,) = torch.autograd.grad(at_mask(here), here)
        total += weight / 2 * gradient
    wanted = (total * (vectors - base)).sum(-1)
    options = AttributionOptions(baseline=baseline, steps=7)
    found = attribute(opened(), MASKED, target="sat", options=options).targets[0]
    # Captum rounds the points' weights to fp32.
    np.testing.assert_allclose(found.token_values, wanted.numpy(), rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        assert found.value == pytest.approx(float(at_mask(vectors)), rel=1e-10)
        assert found.baseline_value == pytest.approx(float(at_mask(base)), rel=1e-10)


def test_integrated_gradients_are_the_limit_of_a_plain_riemann_sum() -> None:
    _, vectors = masked_ids()
    base = base_of_masked(theirs().bert.embeddings.word_embeddings.weight.detach()[4])
    total, steps = torch.zeros_like(vectors), 150
    for step in range(steps):
        here = (base + (step + 0.5) / steps * (vectors - base)).requires_grad_()
        total += torch.autograd.grad(at_mask(here), here)[0] / steps
    wanted = (total * (vectors - base)).sum(-1).numpy()
    found = attribute(opened(), MASKED, target="sat", options=AttributionOptions(steps=100))
    np.testing.assert_allclose(found.targets[0].token_values, wanted, atol=1e-3)


def test_steps_in_several_passes_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    one = attribute(opened(), MASKED, options=AttributionOptions(steps=11)).targets[0]
    monkeypatch.setattr("bertkit.explain.contributions.GRADIENT_TOKENS", 40)
    two = attribute(opened(), MASKED, options=AttributionOptions(steps=11)).targets[0]
    np.testing.assert_allclose(one.token_values, two.token_values, rtol=1e-9, atol=1e-12)


def test_gradient_times_input_is_the_derivative() -> None:
    _, vectors = masked_ids()
    options = AttributionOptions("gradient-x-input")
    found = attribute(opened(), MASKED, target="sat", options=options).targets[0]
    here = vectors.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(at_mask(here), here)
    wanted = (gradient * vectors).sum(-1).numpy()
    np.testing.assert_allclose(found.token_values, wanted, rtol=1e-9, atol=1e-12)
    step = 1e-5
    with torch.no_grad():
        for token, value in enumerate(found.token_values):
            scale = torch.zeros(len(vectors), 1, dtype=torch.float64)
            scale[token] = step
            slope = (at_mask(vectors * (1 + scale)) - at_mask(vectors * (1 - scale))) / (2 * step)
            assert value == pytest.approx(float(slope), rel=1e-5, abs=1e-8)
    assert math.isnan(found.delta)


def rerun(ids: list[int], token: int, wanted: int) -> float:
    with torch.no_grad():
        return float(theirs()(torch.tensor([ids])).logits[0, token, wanted])


@pytest.mark.parametrize("method", ["occlusion", "deletion"])
def test_hidden_words_are_runs_of_their_own(
    method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bertkit.explain.contributions.BATCH_TOKENS", 50)  # several passes
    text = "the unbelievable [MASK] sat on the mat"
    found = attribute(opened(), text, target="cat", options=AttributionOptions(method)).targets[0]
    sentence = opened().read(text)
    ids, cat = list(sentence.ids), tiny.VOCAB.index("cat")
    mask = ids.index(4)
    whole = rerun(ids, mask, cat)
    assert found.value == pytest.approx(whole, rel=1e-10)
    assert len(found.token_values) == 0
    for word, told in zip(sentence.words, found.words, strict=True):
        if method == "occlusion":
            left = [4 if word.first <= i < word.last else x for i, x in enumerate(ids)]
            place = mask
        else:
            left = ids[: word.first] + ids[word.last :]
            place = mask - (word.last - word.first) * (word.first < mask)
        if word.text == "[MASK]":
            assert told.value == pytest.approx(0, abs=1e-12) or math.isnan(told.value)
            assert math.isnan(told.value) == (method == "deletion")
        else:
            assert told.value == pytest.approx(whole - rerun(left, place, cat), abs=1e-9)


def test_probabilities_and_answers_are_transformers() -> None:
    options = AttributionOptions("occlusion", "probability")
    asked = attribute(opened(), MASKED, target="sat", options=options).targets[0]
    ids, _ = masked_ids()
    with torch.no_grad():
        logits = theirs()(torch.tensor([ids])).logits[0, 3]
        assert asked.value == pytest.approx(float(logits.softmax(-1)[tiny.VOCAB.index("sat")]))
        answers = opened("BertForQuestionAnswering")
        found = attribute(answers, QUESTION, PASSAGE, target="the park", options=options)
        sentence = answers.read(QUESTION, PASSAGE)
        batch = torch.tensor([sentence.ids]), torch.tensor([sentence.types])
        out = theirs("BertForQuestionAnswering")(batch[0], token_type_ids=batch[1])
        park = len(sentence.ids) - 3
        assert sentence.labels[park - 1 : park + 1] == ("the", "park")
        sure = out.start_logits[0].softmax(-1)[park - 1] * out.end_logits[0].softmax(-1)[park]
    assert found.targets[0].value == pytest.approx(float(sure), rel=1e-9)
    assert [w.word for w in found.targets[0].words if math.isnan(w.value)] == []


def test_what_the_model_says_is_explained_when_nothing_is_named() -> None:
    at = attribute(opened(), MASKED, options=AttributionOptions("occlusion")).targets[0]
    with torch.no_grad():
        best = int(theirs()(torch.tensor([masked_ids()[0]])).logits[0, 3].argmax())
    assert at.name == f"{tiny.VOCAB[best]} at [MASK]"
    labels = classifier()
    pipe = TaskAnswers(labels.model, labels.tokenizer, "classify")
    told = attribute(labels, "the cat", options=AttributionOptions("occlusion", "probability"))
    best_label = pipe.classify("the cat")[0]
    assert told.targets[0].label == best_label["label"]
    assert told.targets[0].value == pytest.approx(best_label["score"], rel=1e-5)
    answers = opened("BertForQuestionAnswering")
    pipe = TaskAnswers(answers.model, answers.tokenizer, "qa")
    given = pipe.answer(QUESTION, PASSAGE)
    told = attribute(answers, QUESTION, PASSAGE, options=AttributionOptions("occlusion"))
    assert told.targets[0].name == given["answer"]
    logits = given["n_best"][0]["start_logit"] + given["n_best"][0]["end_logit"]
    assert told.targets[0].value == pytest.approx(logits, rel=1e-5)


@pytest.mark.parametrize("make", [tagger, crf_tagger])
def test_each_entity_that_a_tagger_finds_is_explained(make: Any) -> None:
    bert = make()
    text = "john lives in the park where mary likes london"
    pipe = TaskAnswers(bert.model, bert.tokenizer, "tag")
    wanted = [f"{one['entity_group']} of {one['word']}" for one in pipe.tag(text)]
    assert wanted
    found = attribute(bert, text, options=AttributionOptions("gradient-x-input"))
    assert [target.name for target in found.targets] == wanted
    crf = make is crf_tagger
    assert {target.note for target in found.targets} == ({CRF_NOTE} if crf else {""})
    assert ("CRF" in found.as_text()) == crf


def test_an_entity_is_the_sum_of_its_words_tags() -> None:
    bert = tagger()
    text = "mary lives in the unbelievable park"
    asked = {"word": "the unbelievable park", "target": "LOC"}
    found = attribute(bert, text, **asked, options=AttributionOptions("occlusion")).targets[0]  # type: ignore[arg-type]
    sentence = bert.read(text)
    with torch.no_grad():
        logits = bert.model(torch.tensor([sentence.ids])).logits[0]
    firsts = [word.first for word in sentence.words][3:]
    tags = [TAGS.index(tag) for tag in ("B-LOC", "I-LOC", "I-LOC")]
    assert found.value == pytest.approx(float(logits[firsts, tags].sum()), rel=1e-9)
    assert found.name == "LOC of the unbelievable park"
    said = attribute(bert, text, word=5, options=AttributionOptions("occlusion"))
    tag = TAGS[int(logits[firsts[-1]].argmax())]
    assert said.targets[0].label == tag.split("-")[-1]
    plain = tagger("noun", "verb")
    said = attribute(plain, "the cat ran", word="cat", options=AttributionOptions("occlusion"))
    assert said.targets[0].label in ("noun", "verb")


def test_a_difference_is_the_difference_of_two() -> None:
    options = AttributionOptions(steps=20)
    both = attribute(opened(), MASKED, target="sat", against="ran", options=options).targets[0]
    one, other = (
        attribute(opened(), MASKED, target=word, options=options).targets[0]
        for word in ("sat", "ran")
    )
    assert both.value == pytest.approx(one.value - other.value)
    wanted = one.token_values - other.token_values
    np.testing.assert_allclose(both.token_values, wanted, rtol=1e-9, atol=1e-10)
    assert both.name == "sat at [MASK] rather than ran"


def test_labels_that_do_not_exclude_each_other_have_probabilities_of_their_own() -> None:
    bert = classifier(problem_type="multi_label_classification")
    options = AttributionOptions("occlusion", "probability")
    found = attribute(bert, "the cat", target="y", options=options).targets[0]
    with torch.no_grad():
        logits = bert.model(torch.tensor([bert.read("the cat").ids])).logits[0]
    assert found.value == pytest.approx(float(logits[1].sigmoid()), rel=1e-9)


def test_tokens_are_summed_to_the_users_own_words() -> None:
    options = AttributionOptions("gradient-x-input")
    found = attribute(classifier(), "The UNbelievable cat", options=options).targets[0]
    assert [word.word for word in found.words] == ["The", "UNbelievable", "cat"]
    assert found.words[1].value == pytest.approx(found.token_values[2:-2].sum())
    assert found.words[2].value == pytest.approx(found.token_values[-2])
    chinese = attribute(opened(), "我爱北京天安门", word="天", options=options)
    assert [w.word for w in chinese.targets[0].words] == [*"我爱北京", "[天]", *"安门"]
    jieba = attribute(classifier(), "我爱北京天安门", segmenter="jieba", options=options)
    assert "北京" in [word.word for word in jieba.targets[0].words]


@pytest.mark.parametrize("method", ["integrated-gradients", "gradient-x-input", "deletion"])
def test_explaining_leaves_the_model_as_it_was(method: Method) -> None:
    bert = classifier()
    bert.model.train()
    before = state_hash(bert.model)
    attribute(bert, "the cat sat", options=AttributionOptions(method, steps=3))
    assert state_hash(bert.model) == before
    assert bert.model.training
    assert all(p.grad is None and p.requires_grad for p in bert.model.parameters())


def test_a_sum_that_misses_is_told_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    found = attribute(opened(), MASKED, target="sat", options=AttributionOptions(steps=1))
    target = found.targets[0]
    assert target.loose
    assert target.delta == pytest.approx(
        target.token_values.sum() - target.value + target.baseline_value
    )
    (record,) = caplog.records
    assert "take more steps than 1" in record.getMessage()
    caplog.clear()
    attribute(opened(), "[MASK]", options=AttributionOptions(steps=1))  # nothing to share out
    assert caplog.records == []


def test_totals_are_means_over_texts() -> None:
    texts: list[Any] = ["the cat sat on the mat", "", "我爱北京", ("a dog", "the cat ran")]
    kept: list[AttributionResult] = []
    options = AttributionOptions("occlusion")
    bert = classifier()
    found = attribute_over(bert, texts, options=options, take=kept.append)
    assert (found.texts, found.skipped, found.targets) == (3, 1, 3)
    assert found.reason.startswith("text 2:")
    single = [attribute(bert, "the cat sat on the mat", options=options)]
    single.append(attribute(bert, "我爱北京", options=options))
    single.append(attribute(bert, "a dog", "the cat ran", options=options))
    assert [one.to_json() for one in kept] == [one.to_json() for one in single]
    assert sum(label.said for label in found.labels) == 3
    for label in found.labels:
        mine = [t for one in kept for t in one.targets if t.label == label.label]
        assert label.said == len(mine)
        assert label.mean == pytest.approx(sum(t.value for t in mine) / len(mine))
        for word in label.words:
            values = [w.value for t in mine for w in t.words if w.word == word.word]
            assert word.times == len(values)
            assert word.mean == pytest.approx(sum(values) / len(values))
            assert word.average == pytest.approx(sum(values) / len(mine))


def test_words_are_drawn_where_a_file_names_none() -> None:
    options = AttributionOptions("occlusion")
    texts = ["the cat sat", "我爱 [MASK]", "a dog ran in the park"]
    runs = []
    for seed in (0, 0, 1, 2):
        kept: list[AttributionResult] = []
        attribute_over(opened(), texts, options=options, seed=seed, take=kept.append)
        runs.append([one.targets[0].name for one in kept])
        assert sum("[" in label for label in kept[0].targets[0].tokens[1:-1]) == 1
    assert runs[0] == runs[1]
    assert len({name for run in runs for name in run}) > 3
    plain = attribute_over(tagger("noun", "verb"), texts[:1], options=options)
    assert plain.targets == 1
    both = attribute_over(
        opened("BertForQuestionAnswering"), [(QUESTION, PASSAGE)] * 2, options=options
    )
    assert [label.said for label in both.labels] == [2]


def test_totals_forget_the_rarest_words() -> None:
    totals = Totals(most=4)
    for _ in range(3):
        totals.add("x", 1.0, [("often", 0.5), ("twice", -1.0)])
    totals.add("x", 1.0, [(f"once{i}", 1.0) for i in range(3)] + [("gone", math.nan)])
    (label,) = totals.labels()
    assert [(word.word, word.times) for word in label.words] == [("often", 3), ("twice", 3)]
    assert totals.forgotten == 3
    assert label.words[0].average == pytest.approx(1.5 / 4)


@pytest.mark.parametrize(
    ("make", "texts", "asked", "said"),
    [
        (opened, ("the cat",), {}, "no \\[MASK\\]"),
        (opened, (MASKED,), {"target": "unbelievable"}, "not one token"),
        (opened, (MASKED,), {"target": "sat", "against": "unbelievable"}, "1 known piece"),
        (opened, ("the cat",), {"word": "dog"}, "no word"),
        (opened, ("the cat",), {"word": "cat", "target": "dog"}, "own target"),
        (classifier, ("the cat",), {"target": "w"}, "no label"),
        (classifier, ("the cat",), {"word": "cat"}, "leave the word out"),
        (lambda: classifier("v"), ("the cat",), {"target": "v"}, "not labels"),
        (tagger, ("the cat",), {"word": "cat", "target": "w"}, "no label"),
        (tagger, ("the cat", "a dog"), {}, "leave the pair out"),
        (lambda: tagger("noun", "verb"), ("the cat",), {}, "every word"),
        (lambda: opened("BertForQuestionAnswering"), (QUESTION,), {}, "the pair the passage"),
        (
            lambda: opened("BertForQuestionAnswering"),
            (QUESTION, PASSAGE),
            {"target": "a dog"},
            "does not hold",
        ),
        (lambda: opened("BertModel"), ("the cat",), {}, "does not"),
    ],
)
def test_what_cannot_be_asked_is_refused(make: Any, texts: Any, asked: Any, said: str) -> None:
    with pytest.raises((UsageError, DataError, MissingHeadError), match=said) as raised:
        attribute(make(), *texts, **asked)
    assert "\n" not in str(raised.value)


def test_options_are_checked() -> None:
    for wrong in ({"method": "guess"}, {"steps": 0}, {"baseline": "noise"}, {"quantity": "x"}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            AttributionOptions(**wrong)
    with pytest.raises(UsageError, match="a number"):
        attribute(classifier("v"), "the cat", options=AttributionOptions(quantity="probability"))
    with pytest.raises(DataError, match="text 1"):
        attribute_over(opened(), [" "])
    with pytest.raises(DataError, match="no text"):
        attribute_over(opened(), [])


def test_a_missing_captum_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(UsageError, match=r'pip install "bertkit\[captum\]"'):
        attribute(opened(), MASKED)
    attribute(opened(), MASKED, options=AttributionOptions("gradient-x-input"))
