"""Pseudo-log-likelihoods equal transformers' model on one masked copy at a time, and minicons."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from bertkit.errors import MissingHeadError, UsageError
from bertkit.tasks import score as score_module
from bertkit.tasks.load import load
from bertkit.tasks.score import Method, Scorer, pseudo_perplexity
from tests.tasks import tiny

ENGLISH, CHINESE = "The unbelievable cat sat in London!", "我爱北京天安门。"
TEXTS = [ENGLISH, CHINESE, "mary's qcat", "a", "The cat ran. 张三 lives in 上海 zebra", "dog " * 9]


@lru_cache
def theirs() -> Any:
    return transformers.BertForMaskedLM.from_pretrained(tiny.folder("BertForMaskedLM")).double()


@lru_cache
def scorer(method: Method = "within-word", batch_tokens: int = 4096) -> Scorer:
    return Scorer(tiny.ours("BertForMaskedLM").double(), tiny.tokenizer(), method, batch_tokens)


@lru_cache
def their_tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(tiny.folder("BertForMaskedLM"))


def brute_force(text: str, method: str) -> list[float]:
    """One masked copy at a time through transformers' model."""
    encoded = their_tokenizer()(text, return_tensors="pt")
    ids, words = encoded["input_ids"][0], encoded.word_ids(0)
    found = []
    for i in range(1, len(ids) - 1):
        copy = ids.clone()
        copy[i] = their_tokenizer().mask_token_id
        if method == "within-word":
            for j in range(i + 1, len(ids) - 1):
                if words[j] == words[i]:
                    copy[j] = their_tokenizer().mask_token_id
        with torch.no_grad():
            logits = theirs()(copy[None]).logits[0, i]
        found.append(float(logits.log_softmax(-1)[ids[i]]))
    return found


@pytest.mark.parametrize("method", ["within-word", "original"])
@pytest.mark.parametrize("batch_tokens", [4096, 20])
def test_scores_equal_one_copy_at_a_time(method: Method, batch_tokens: int) -> None:
    for text, scored in zip(TEXTS, scorer(method, batch_tokens).score(TEXTS), strict=True):
        expected = brute_force(text, method)
        assert scored.log_probabilities == pytest.approx(expected, abs=1e-10)
        assert scored.score == pytest.approx(math.fsum(expected), abs=1e-9)


def test_the_methods_differ_where_a_word_has_pieces_and_only_there() -> None:
    for text in TEXTS:
        one, other = scorer("within-word").score([text])[0], scorer("original").score([text])[0]
        counts = [one.owners.count(owner) for owner in one.owners]
        for i, count in enumerate(counts):
            last = i + 1 == len(counts) or one.owners[i + 1] != one.owners[i]
            same = abs(one.log_probabilities[i] - other.log_probabilities[i]) < 1e-12
            assert same == (count == 1 or last)


def test_a_segmenter_hides_the_rest_of_a_chinese_word() -> None:
    (jieba,) = Scorer(scorer().model, tiny.tokenizer(), segmenter="jieba").score([CHINESE])
    assert [word.word for word in jieba.words] == ["我", "爱", "北京", "天安门", "。"]
    plain = scorer().score([CHINESE])[0].log_probabilities
    other = [abs(a - b) > 1e-9 for a, b in zip(jieba.log_probabilities, plain, strict=True)]
    assert other == [False, False, True, False, True, True, False, False]
    masked = CHINESE.replace("北京", "北[MASK]")  # what 北 is scored in
    alone = scorer("original").score([masked])[0].log_probabilities
    assert jieba.log_probabilities[2] == pytest.approx(alone[2], abs=1e-9)


def test_scores_equal_minicons(monkeypatch: pytest.MonkeyPatch) -> None:
    minicons = pytest.importorskip("minicons.scorer", reason="minicons is not installed")
    # minicons calls what transformers 5 has dropped.
    kind = type(their_tokenizer())
    monkeypatch.setattr(kind, "batch_encode_plus", kind.__call__, raising=False)
    model = transformers.BertForMaskedLM.from_pretrained(tiny.folder("BertForMaskedLM"))
    peer = minicons.MaskedLMScorer(model, "cpu", tokenizer=their_tokenizer())
    names: dict[Method, str] = {"within-word": "within_word_l2r", "original": "original"}
    for method, name in names.items():
        mine = Scorer(tiny.ours("BertForMaskedLM"), tiny.tokenizer(), method).score(TEXTS)
        expected = peer.sequence_score(TEXTS, reduction=lambda x: x.sum(0).item(), PLL_metric=name)
        assert [one.score for one in mine] == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_the_published_score_of_hello_world() -> None:
    """mlm-scoring's README: -12.4107 for "Hello world!" with bert-base-cased."""
    import bertkit

    try:
        opened = bertkit.load("bert-base-cased", "cpu", offline=True)
    except ValueError:
        pytest.skip("bert-base-cased is not in the local cache of the hub")
    scored = Scorer(opened.model, opened.tokenizer, "original").score(["Hello world!"])[0]
    assert scored.score == pytest.approx(-12.4107, abs=2e-3)


@given(st.lists(st.text(alphabet="the cat我爱é!x 3\u0301", max_size=12), max_size=5))
@settings(max_examples=25, deadline=None)
def test_words_stand_at_their_offsets_and_sum_to_the_score(texts: list[str]) -> None:
    for text, scored in zip(texts, scorer().score(texts), strict=True):
        assert len(scored.log_probabilities) == len(scored.ids) == len(scored.owners)
        for word in scored.words:
            assert text[word.start : word.end] == word.word
            assert word.score <= 0
        assert math.fsum(w.score for w in scored.words) == pytest.approx(scored.score, abs=1e-9)


def test_a_long_text_is_scored_in_windows() -> None:
    model = tiny.ours("BertForMaskedLM", max_position_embeddings=12).double()
    text = "the cat sat on the mat in london where john lives who likes mary"
    scored = Scorer(model, tiny.tokenizer(), "original").score([text])[0]
    ids, mask = list(scored.ids), tiny.tokenizer().mask_token_id
    peer = transformers.BertForMaskedLM.from_pretrained(
        tiny.folder("BertForMaskedLM", max_position_embeddings=12)
    ).double()
    for i, log in enumerate(scored.log_probabilities):
        start = min(max(i - 5, 0), len(ids) - 10)
        row = [*ids[start:i], mask, *ids[i + 1 : start + 10]]
        framed = torch.tensor(
            [[tiny.tokenizer().cls_token_id, *row, tiny.tokenizer().sep_token_id]]
        )
        with torch.no_grad():
            logits = peer(framed).logits[0, 1 + i - start]
        assert log == pytest.approx(float(logits.log_softmax(-1)[ids[i]]), abs=1e-10)


def test_a_stream_is_the_texts_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score_module, "STRETCH_TEXTS", 3)
    texts = TEXTS * 3
    for text, scored in zip(texts, scorer().stream(iter(texts)), strict=True):
        assert scored.text == text
        single = scorer().score([text])[0]
        assert scored.log_probabilities == pytest.approx(single.log_probabilities, abs=1e-12)
    assert scorer().score([]) == []


def test_the_model_is_left_as_it_was_and_dropout_is_off() -> None:
    mine = Scorer(tiny.ours("BertForMaskedLM").train(), tiny.tokenizer())
    first, second = mine.score(TEXTS), mine.score(TEXTS)
    assert first == second
    assert mine.model.training


def test_pseudo_perplexity_is_of_tokens() -> None:
    scored = scorer().score(TEXTS)
    logs = [log for text in TEXTS for log in brute_force(text, "within-word")]
    assert pseudo_perplexity(scored) == pytest.approx(math.exp(-sum(logs) / len(logs)))
    assert math.isnan(pseudo_perplexity([]))


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(UsageError, match="within-word, original"):
        Scorer(tiny.ours("BertForMaskedLM"), tiny.tokenizer(), "other")  # type: ignore[arg-type]
    with pytest.raises(MissingHeadError, match="masked-word head"):
        Scorer(tiny.ours("BertForSequenceClassification"), tiny.tokenizer())


@pytest.mark.parametrize("kind", ["BertForMaskedLM", "BertForPreTraining"])
def test_load_scores(kind: str) -> None:
    bert = load(tiny.folder(kind), "cpu")
    found = bert.score(TEXTS)
    ours = Scorer(tiny.ours(kind), tiny.tokenizer()).score(TEXTS)
    assert found == [one.to_dict() for one in ours]
    assert bert.score(CHINESE)["score"] == pytest.approx(found[1]["score"], abs=1e-5)
    assert found[0]["words"][1].keys() == {"word", "start", "end", "score"}
    word = "unbelievable"
    there = next(one for one in found[0]["words"] if one["word"] == word)
    assert ENGLISH[there["start"] : there["end"]] == word
    original = bert.score(ENGLISH, method="original")["score"]
    assert original != pytest.approx(found[0]["score"], abs=1e-3)
    assert bert.score([]) == []
    assert bert.score("") == {"text": "", "score": 0.0, "tokens": 0, "words": []}
    with pytest.raises(UsageError, match="within-word, original"):
        bert.score(TEXTS, method="other")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["BertForSequenceClassification", "BertForNextSentencePrediction"])
def test_load_refuses_to_score_without_the_head(kind: str) -> None:
    with pytest.raises(MissingHeadError, match="masked-word head"):
        load(tiny.folder(kind), "cpu").score(TEXTS)
