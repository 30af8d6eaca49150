"""Rows are the user's own words at their offsets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bertkit.errors import DataError, UsageError
from bertkit.explain.asked import masked_questions, one_token
from bertkit.explain.corpus import masked_batches
from bertkit.explain.opening import open_model
from tests.explain.models import MASKED, TEXTS, opened
from tests.tasks import tiny


def test_labels_are_the_users_characters() -> None:
    sentence = opened().read("The ÉCat, 我爱!")
    assert sentence.labels[0] == "[CLS]"
    assert sentence.labels[-1] == "[SEP]"
    assert [word.text for word in sentence.words] == ["The", "ÉCat", ",", "我", "爱", "!"]
    assert sentence.labels[1:6] == ("The", "É", "##C", "##a", "##t")


def test_a_pair_has_words_of_both_texts() -> None:
    sentence = opened().read("the cat", "我 dog")
    assert [(word.text, word.segment) for word in sentence.words] == [
        ("the", 0),
        ("cat", 0),
        ("我", 1),
        ("dog", 1),
    ]
    assert sentence.types == (0, 0, 0, 0, 1, 1, 1)
    assert sentence.labels == ("[CLS]", "the", "cat", "[SEP]", "我", "dog", "[SEP]")


def test_chinese_words_through_jieba() -> None:
    sentence = opened().read("我爱北京天安门 [MASK] a", segmenter="jieba")
    assert [word.text for word in sentence.words] == ["我", "爱", "北京", "天安门", "[MASK]", "a"]
    assert sentence.labels[3:5] == ("北", "##京")


@given(st.text(alphabet="the cat我爱é!x 3\u0301[MASK]", max_size=20))
@settings(max_examples=50, deadline=None)
def test_words_and_tokens_stand_at_their_offsets(text: str) -> None:
    try:
        sentence = opened().read(text)
    except DataError:
        assert not text.strip("\u0301 ")
        return
    for word in sentence.words:
        assert text[word.start : word.end] == word.text
        spans = sentence.spans[word.first : word.last]
        assert all(s is not None and word.start <= s[0] <= s[1] <= word.end for s in spans)
    covered = [i for word in sentence.words for i in range(word.first, word.last)]
    assert covered == [i for i, span in enumerate(sentence.spans) if span is not None]


def test_a_word_is_found_as_it_stands_and_masked() -> None:
    sentence = opened().read("The Cat sat. the cat")
    assert sentence.find("cat").start == 17
    assert sentence.find("SAT").start == 8
    assert sentence.find(1).text == "Cat"
    hidden = sentence.masked(sentence.find("Cat"), 4)
    assert hidden.ids[2] == 4
    assert hidden.labels[2] == "[Cat]"
    with pytest.raises(DataError, match="'The' 'Cat' 'sat'"):
        sentence.find("dog")
    with pytest.raises(DataError, match="words 0 to 5"):
        sentence.find(9)


def test_questions_at_masks_and_at_words() -> None:
    asked = masked_questions(opened(), MASKED, target="sat")
    assert [(q.token, q.label, q.target) for q in asked] == [
        (3, "[MASK]", one_token(opened(), "sat"))
    ]
    pieces = masked_questions(opened(), "a zoo", word="zoo")
    assert [q.label for q in pieces] == ["[z]", "[##o]", "[##o]"]
    assert all(q.sentence.ids[q.token] == tiny.tokenizer().mask_token_id for q in pieces)
    with pytest.raises(DataError, match=r"no \[MASK\]"):
        masked_questions(opened(), "a cat")
    with pytest.raises(UsageError, match="z ##o ##o"):
        masked_questions(opened(), MASKED, target="zoo")


def test_what_is_too_long_or_empty_is_refused() -> None:
    with pytest.raises(DataError, match="the model reads 512"):
        opened().read("cat " * 600)
    with pytest.raises(DataError, match="empty"):
        opened().read("  ")


def test_an_encoder_without_a_head_opens() -> None:
    found = open_model(tiny.folder("BertModel"), "cpu")
    assert found.encoder is found.model
    assert open_model(found) is found


def test_masks_are_a_function_of_seed_text_and_position() -> None:
    def asked(batch_tokens: int, seed: int) -> dict[int, list[tuple[int, int]]]:
        found: dict[int, list[tuple[int, int]]] = {}
        texts = [*TEXTS, " "]
        for masked in masked_batches(opened(), texts, seed=seed, batch_tokens=batch_tokens):
            batch = masked.batch
            at = batch.mlm_positions
            assert bool((batch.input_ids[at] == tiny.tokenizer().mask_token_id).all())
            owner = torch.searchsorted(batch.lengths.cumsum(0), at, right=True)
            for i, position, label in zip(
                owner.tolist(),
                batch.position_ids[at].tolist(),
                batch.mlm_labels.tolist(),
                strict=True,
            ):
                found.setdefault(masked.numbers[i], []).append((position, label))
        return found

    one = asked(4096, 0)
    assert one == asked(20, 0)
    assert one != asked(4096, 1)
    assert sorted(one) == list(range(len(TEXTS)))  # at least one a text, none in a blank one
    ids = tiny.tokenizer()(TEXTS[0])["input_ids"]
    assert all(ids[position] == label for position, label in one[0])


def test_about_as_many_are_masked_as_was_asked() -> None:
    texts = ["cat " * 200] * 20
    total = sum(len(m.batch.mlm_labels) for m in masked_batches(opened(), texts))
    assert abs(total / 4000 - 0.15) < 4 * np.sqrt(0.15 * 0.85 / 4000)
    cut = sum(m.cut for m in masked_batches(opened(), ["cat " * 600]))
    assert cut == 1
    with pytest.raises(DataError, match="no text"):
        list(masked_batches(opened(), [" "]))
