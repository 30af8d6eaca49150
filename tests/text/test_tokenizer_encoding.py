"""BatchEncoding and the manners that scripts rely on, beside transformers' own."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.tokenization_utils_base import BatchEncoding as ReferenceEncoding

from bertkit.errors import DataError, UsageError
from bertkit.text.encoding import BatchEncoding
from bertkit.text.tokenizer import BertTokenizer
from tests.text.test_tokenizer import SMALL, TEXTS, both


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(TEXTS[:2]), st.sampled_from(TEXTS[3:]), st.integers(0, 3))
def test_places_equal_transformers(first: str, second: str, row: int) -> None:
    ours, theirs = both()
    firsts, seconds = [first, second, first, "fox"], [second, "the fox", "", first]
    mine, other = ours(firsts, seconds, padding=True), theirs(firsts, seconds, padding=True)
    for token in range(len(mine["input_ids"][row])):
        assert mine.token_to_chars(row, token) == other.token_to_chars(row, token)
        assert mine.token_to_word(row, token) == other.token_to_word(row, token)
        assert mine.token_to_sequence(row, token) == other.token_to_sequence(row, token)
    for which, text in enumerate((firsts[row], seconds[row])):
        for char in range(len(text)):
            assert mine.char_to_token(row, char, which) == other.char_to_token(row, char, which)
            assert mine.char_to_word(row, char, which) == other.char_to_word(row, char, which)
        words = {
            w for w, s in zip(mine.word_ids(row), mine.sequence_ids(row), strict=True) if s == which
        }
        for word in words - {None}:
            assert mine.word_to_tokens(row, word, which) == other.word_to_tokens(row, word, which)
            assert mine.word_to_chars(row, word, which) == other.word_to_chars(row, word, which)
    assert mine.n_sequences == other.n_sequences == 2
    assert mine.is_fast


def test_it_is_a_dictionary_with_attributes_and_slices() -> None:
    ours, theirs = both()
    mine, other = ours(TEXTS, padding=True), theirs(TEXTS, padding=True)
    assert list(mine.keys()) == list(other.keys())
    assert list(mine.items()) == list(other.items())
    assert {**mine} == {**other}
    assert "input_ids" in mine
    assert mine.get("labels") is None
    assert [e.ids for e in mine[1:3]] == [e.ids for e in other[1:3]]
    assert mine[0].tokens == other[0].tokens
    mine["labels"] = [0] * len(TEXTS)
    assert mine.labels == mine.pop("labels")
    columns: dict[str, Any] = {"input_ids": [[1, 2], [3, 4], [5, 6]], "labels": [0, 1, 2]}
    plain, reference = BatchEncoding(columns), ReferenceEncoding(columns)
    assert plain[1:] == reference[1:] == {"input_ids": [[3, 4], [5, 6]], "labels": [1, 2]}
    assert plain.encodings is None
    assert plain.n_sequences is None
    with pytest.raises(UsageError, match="offsets"):
        plain[0]
    assert copy.deepcopy(mine)["input_ids"] == mine["input_ids"]


@pytest.mark.parametrize("kind", ["pt", "np"])
@pytest.mark.parametrize("axis", [False, True])
@pytest.mark.parametrize(
    "column", [[1, 2], [[1, 2], [3, 4]], [0.5, 1.5], [[0.5], [2.0]], [True, False], [], [[]]]
)
def test_tensors_keep_their_kind(kind: Any, axis: bool, column: Any) -> None:
    data = {"labels": column}
    mine = BatchEncoding(dict(data), tensor_type=kind, prepend_batch_axis=axis).labels
    other = ReferenceEncoding(dict(data), tensor_type=kind, prepend_batch_axis=axis).labels
    assert mine.dtype == other.dtype
    assert mine.shape == other.shape
    assert mine.tolist() == other.tolist()
    again = BatchEncoding({"labels": mine}, tensor_type=kind)
    assert again.labels is mine or np.array_equal(again.labels, mine)


@pytest.mark.parametrize("column", [[[1], [2, 3]], ["a"], [None], [{}]])
@pytest.mark.parametrize("kind", ["pt", "np"])
def test_what_makes_no_tensor_is_named(kind: Any, column: Any) -> None:
    with pytest.raises(DataError, match="labels"):
        BatchEncoding({"labels": column}, tensor_type=kind)


def test_pad_gives_back_what_it_got() -> None:
    ours, theirs = both()
    rows = [ours("the fox"), ours("the quick brown fox")]
    for make in (torch.tensor, np.array):
        features = [{k: make(v) for k, v in row.items()} for row in rows]
        mine, other = ours.pad(features), theirs.pad([dict(f) for f in features])
        for name in other:
            assert type(mine[name]) is type(other[name])
            assert mine[name].tolist() == other[name].tolist()
    labelled: Any = [{**row, "labels": 0.5} for row in rows]
    collated = ours.pad(labelled, return_tensors="pt")
    assert collated.labels.tolist() == [0.5, 0.5]
    assert ours.pad({"input_ids": []}, return_tensors=None)["input_ids"] == []


def test_rare_options_and_older_names_equal_transformers() -> None:
    ours, theirs = both()
    for pair in (False, True):
        assert ours.num_special_tokens_to_add(pair) == theirs.num_special_tokens_to_add(pair)
    assert ours.max_len_single_sentence == theirs.max_len_single_sentence == 510
    assert ours.max_len_sentences_pair == theirs.max_len_sentences_pair == 509
    assert ours.added_tokens_encoder == theirs.added_tokens_encoder
    assert ours.added_tokens_decoder == theirs.added_tokens_decoder
    assert ours.extra_special_tokens == ours.additional_special_tokens == []
    for name in (
        "model_max_length padding_side truncation_side vocab_size is_fast model_input_names "
        "pad_token_type_id special_tokens_map all_special_tokens all_special_ids cls_token "
        "sep_token_id unk_token pad_token_id mask_token_id"
    ).split():
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.encode_plus("fox", "the").data == theirs("fox", "the").data
    assert ours.batch_encode_plus(["fox", "the"]).data == theirs(["fox", "the"]).data
    call: dict[str, Any] = {"padding": "do_not_pad", "truncation": "do_not_truncate"}
    assert ours(TEXTS, **call).data == theirs(TEXTS, **call).data
    assert ours("fox", verbose=False).data == theirs("fox", verbose=False).data
    for text in TEXTS:
        assert ours.tokenize(text, pair="fox") == theirs.tokenize(text, pair="fox")
        framed = ours.tokenize(text, add_special_tokens=True)
        assert framed == theirs.tokenize(text, add_special_tokens=True)
        # (transformers 5 takes no notice of truncation here.)
        assert len(ours.tokenize(text, truncation=True, max_length=5)) <= 5
        tokens = ours.tokenize(text)
        assert ours.convert_tokens_to_ids(tokens) == theirs.convert_tokens_to_ids(tokens)
        assert ours.convert_tokens_to_string(tokens) == theirs.convert_tokens_to_string(tokens)


def test_decoding_equals_transformers() -> None:
    ours, theirs = both()
    ids = ours(TEXTS, padding=True)["input_ids"]
    for skip in (False, True):
        for clean in (None, False, True):
            call: dict[str, Any] = {"clean_up_tokenization_spaces": clean}
            assert ours.batch_decode(ids, skip, **call) == theirs.batch_decode(ids, skip, **call)
            assert ours.batch_decode(np.array(ids), skip) == theirs.batch_decode(
                np.array(ids), skip
            )
            assert ours.decode(ids[1], skip, **call) == theirs.decode(ids[1], skip, **call)
        assert ours.decode(7, skip) == theirs.decode(7, skip)
        assert ours.convert_ids_to_tokens(torch.tensor(ids[0]), skip) == (
            theirs.convert_ids_to_tokens(torch.tensor(ids[0]), skip)
        )
    assert ours.decode([]) == theirs.decode([]) == ""
    assert ours.decode([10**6]) == theirs.decode([10**6])
    assert ours.convert_ids_to_tokens(10**6) is None


def test_no_length_limit_is_none() -> None:
    long = BertTokenizer(SMALL, model_max_length=10**30)
    _, theirs = both()
    theirs = copy.deepcopy(theirs)
    theirs.model_max_length = 10**30
    for call in ({"truncation": True}, {"padding": "max_length"}, {"padding": True}):
        assert long(TEXTS, **call).data == theirs(TEXTS, **call).data


def test_ids_that_are_missing_are_not_given_twice() -> None:
    vocab = {token: i for i, token in enumerate([*SMALL, "fox"])}
    holed = BertTokenizer(vocab)
    with pytest.raises(UsageError, match="ids are missing"):
        holed.add_tokens(["new"])
