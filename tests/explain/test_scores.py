"""Scores and pairs as results: sums of what tasks/score.py gives, the right ones named."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest

from bertkit.errors import DataError, MissingHeadError
from bertkit.explain.scores import SHOWN, pairs, score, score_over
from bertkit.infer.minimal_pairs import MinimalPair
from bertkit.tasks.records import Place
from bertkit.tasks.score import ScoredText, Scorer
from tests.explain.models import CHINESE, TEXT, TEXTS, labelled, opened
from tests.tasks import tiny


def scorer() -> Scorer:
    return Scorer(opened().model, tiny.tokenizer())


@pytest.mark.parametrize("text", [TEXT, CHINESE])
def test_one_text_word_by_word(text: str) -> None:
    found, expected = score(opened(), text), scorer().score([text])[0]
    assert found.score == expected.score
    assert found.words == expected.words
    assert [word.word for word in found.words] == [w.text for w in opened().read(text).words]
    assert found.pseudo_perplexity == pytest.approx(math.exp(-found.score / found.tokens))


def test_many_texts_are_single_ones_and_the_least_expected_are_named() -> None:
    texts = [f"{text} {'cat ' * i}" for i, text in enumerate(TEXTS)]
    taken: list[ScoredText] = []
    found = score_over(opened(), texts, take=taken.append)
    assert [one.text for one in taken] == texts
    expected = [score(opened(), text) for text in texts]
    np.testing.assert_allclose(found.scores, [one.score for one in expected], rtol=1e-12)
    assert found.tokens.tolist() == [one.tokens for one in expected]
    means = found.scores / found.tokens
    assert [one.text for one in found.least] == [texts[i] for i in np.argsort(means)[:SHOWN]]
    drawn = re.findall(r'data-value="([^"]*)"', found.sections()[0].body)
    np.testing.assert_allclose(np.array(drawn, dtype=float), np.sort(means)[:SHOWN])
    assert found.pseudo_perplexity == pytest.approx(
        math.exp(-found.scores.sum() / found.tokens.sum())
    )
    with pytest.raises(DataError, match="no text"):
        score_over(opened(), [])


def test_minimal_pairs_by_brute_force() -> None:
    rows = [
        MinimalPair(good, bad, kind, Place("f", 1))
        for good, bad, kind in [
            ("the cat ran", "cat the ran", "order"),
            ("a dog", "dog a", "order"),
            ("我爱北京", "爱我京北", "词序"),
            ("a", "a", "tie"),
        ]
    ]
    found = pairs(opened(), rows)
    margins = [
        math.fsum(scorer().score([row.good])[0].log_probabilities)
        - math.fsum(scorer().score([row.bad])[0].log_probabilities)
        for row in rows
    ]
    np.testing.assert_allclose(found.margins, margins, atol=1e-10)
    assert found.accuracy == sum(margin > 1e-9 for margin in margins) / 4
    assert [(kind.kind, kind.pairs) for kind in found.kinds] == [
        ("order", 2),
        ("词序", 1),
        ("tie", 1),
    ]
    assert found.kinds[2].accuracy == 0  # a tie is not ahead
    lost = [pair.bad_score - pair.good_score for pair in found.wrong]
    assert lost == sorted(lost, reverse=True)
    assert len(lost) == sum(margin <= 1e-9 for margin in margins)
    with pytest.raises(DataError, match="no pair"):
        pairs(opened(), [])


def test_models_without_the_head_and_empty_texts_are_refused() -> None:
    calls: list[Any] = [
        lambda: score(labelled("BertForSequenceClassification"), TEXT),
        lambda: pairs(labelled("BertModel"), []),
    ]
    for call in calls:
        with pytest.raises(MissingHeadError):
            call()
    with pytest.raises(DataError, match="empty"):
        score(opened(), " ")
