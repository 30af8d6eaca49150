"""The word cache's way of encoding a batch equals the engine's, option by option, text by text."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, pre_tokenizers

from bertkit.errors import DataError
from bertkit.text import tokenizer as module
from bertkit.text import wordcache
from bertkit.text.tokenizer import BertTokenizer
from tests.text.test_tokenizer import SMALL, SPECIAL, TEXTS, VOCABS, WORDS, assert_same, both

MANY = (TEXTS * 5)[:23]
OTHERS = ([*TEXTS[2:], *TEXTS[:2]] * 5)[:23]


def fresh(lower: bool = True, **options: Any) -> BertTokenizer:
    return BertTokenizer(SMALL, do_lower_case=lower, **options)


@pytest.fixture
def always_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUICK_BATCH", 0)


def slow_answer(tokenizer: BertTokenizer, *texts: Any, **call: Any) -> dict[str, Any]:
    """The engine's answer: one text at a time, or the cache switched off."""
    plain = fresh(tokenizer.do_lower_case)
    plain.truncation_side = tokenizer.truncation_side
    assert plain.backend_tokenizer is not None  # from here on every call goes to the engine
    return plain(*texts, **call).data


@pytest.mark.parametrize("padding", [False, True, "max_length"])
@pytest.mark.parametrize("truncation", [False, True])
@pytest.mark.parametrize("special", [False, True])
def test_every_option_equals_transformers(padding: Any, truncation: bool, special: bool) -> None:
    ours, theirs = both("small", False)
    sides = ("right", "left")
    lengths: tuple[int | None, ...] = (4, 9, 24, 80)
    if padding is True and not truncation:
        lengths = (None,)  # transformers warns that it is ignored
    for length, offsets, side, cut in itertools.product(lengths, (False, True), sides, sides):
        call: dict[str, Any] = {"padding": padding, "truncation": truncation, "max_length": length}
        call |= {"add_special_tokens": special, "padding_side": side, "return_length": True}
        call |= {"return_special_tokens_mask": True, "return_offsets_mapping": offsets}
        call["pad_to_multiple_of"] = None if length == 9 else 4
        ours.truncation_side = theirs.truncation_side = cut
        for texts in ((MANY,), (MANY, OTHERS)):
            assert ours(*texts, **call).data == theirs(*texts, **call).data, call
    ours.truncation_side = theirs.truncation_side = "right"


@pytest.mark.parametrize("kind", ["pt", "np"])
def test_tensors_equal_transformers(kind: Any) -> None:
    ours, theirs = both()
    call: dict[str, Any] = {"return_offsets_mapping": True, "return_special_tokens_mask": True}
    mine = ours(MANY, OTHERS, padding=True, return_tensors=kind, **call)
    other = theirs(MANY, OTHERS, padding=True, return_tensors=kind, **call)
    for name in other:
        assert mine[name].dtype == other[name].dtype
        np.testing.assert_array_equal(np.asarray(mine[name]), np.asarray(other[name]))
    assert type(mine["input_ids"]) is type(other["input_ids"])
    same = ours(["the fox"] * 20, return_tensors=kind)
    assert tuple(same["input_ids"].shape) == (20, 4)
    with pytest.raises(DataError, match="differ in length"):
        ours(MANY, return_tensors=kind)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=16, max_size=20),
    room=st.integers(3, 14),
    left=st.booleans(),
)
def test_pairs_are_cut_as_the_engine_cuts(
    lengths: list[tuple[int, int]], room: int, left: bool
) -> None:
    ours, theirs = both()
    ours.truncation_side = theirs.truncation_side = "left" if left else "right"
    firsts = [" ".join("abcdefghi"[:n]) for n, _ in lengths]
    seconds = [" ".join("rstuvwxyz"[:n]) for _, n in lengths]
    call: dict[str, Any] = {"truncation": True, "max_length": room}
    try:
        assert ours(firsts, seconds, **call).data == theirs(firsts, seconds, **call).data
    finally:
        ours.truncation_side = theirs.truncation_side = "right"


MARKS = "\u0301\u0316\u200b\u200d\ufe0f"
ODD = "İ ß Σ ½ ① 한 \u1100\u1161 ﷺ 㐀 龥 👩\u200d👩\u200d👧 🇨🇳 \uf900 \U00020000 \ufffd \ue000"
PIECES = st.sampled_from(
    [
        *WORDS, *SPECIAL, *" \t\n\x00\x1f\x85\xa0\u3000", *",.\"'()-:;[]!#", *MARKS, *ODD.split(),
        "x" * 70, "y" * 120,
    ]
)  # fmt: skip
ANY_TEXT = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
    st.lists(PIECES, max_size=20).map("".join),
)


@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("chinese", [True, False])
@pytest.mark.usefixtures("always_quick")
def test_any_batch_equals_the_engine(lower: bool, chinese: bool) -> None:
    quick = fresh(lower, tokenize_chinese_chars=chinese)
    plain = fresh(lower, tokenize_chinese_chars=chinese)
    engine = plain.backend_tokenizer
    call: dict[str, Any] = {"return_offsets_mapping": True, "return_special_tokens_mask": True}

    @settings(max_examples=80, deadline=None)
    @given(texts=st.lists(ANY_TEXT, min_size=1, max_size=4), pair=st.booleans())
    def check(texts: list[str], pair: bool) -> None:
        given_texts = (texts, texts[::-1]) if pair else (texts,)
        assert quick(*given_texts, **call).data == plain(*given_texts, **call).data
        assert quick(*given_texts)["input_ids"] == plain(*given_texts)["input_ids"]

    check()
    assert quick._caches
    assert engine is plain.backend


@pytest.mark.usefixtures("always_quick")
def test_small_portions_and_a_full_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wordcache, "_CHARACTERS_AT_ONCE", 40)
    monkeypatch.setattr(module, "KEPT_WORDS", 7)
    ours = fresh()
    for offsets in (False, True):
        call: Any = {"return_offsets_mapping": offsets, "padding": True}
        assert ours(MANY, OTHERS, **call).data == slow_answer(ours, MANY, OTHERS, **call)
        assert len(ours._word_cache(offsets)._kept) < 120
    assert ours([], padding=True).data == {
        "input_ids": [], "token_type_ids": [], "attention_mask": []
    }  # fmt: skip


@pytest.mark.parametrize(
    "token",
    [
        "quick brown", "quick", "ui", "中", "模型", "<x>", "o'er", "[E-1]", "Ä!", "≮",
        AddedToken("over", single_word=True), AddedToken("fox", lstrip=True, rstrip=True),
        AddedToken("O.V", normalized=True), AddedToken("\u0301ab", normalized=True),
        AddedToken("[E:2]", special=True, normalized=False),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("always_quick")
def test_added_tokens_are_seen(token: Any) -> None:
    ours, plain = fresh(), fresh()
    content = str(token.content if isinstance(token, AddedToken) else token)
    texts = [f"the {content} fox", f"a{content}b", f"{content}中", f"x.{content}.", content.upper()]
    texts += ["the ab o.v <x> ≮-x> ä! abcover over中 foxes fox.", *TEXTS]
    before = ours(texts)["input_ids"]
    assert plain.backend_tokenizer is not None
    for tokenizer in (ours, plain):
        assert tokenizer.add_tokens([token]) >= 0
    call: Any = {"return_offsets_mapping": True}
    assert ours(texts, **call).data == plain(texts, **call).data
    assert ours(texts)["input_ids"] == plain(texts)["input_ids"]
    assert len(before) == len(texts)


def test_who_changes_the_engine_gets_what_he_asked_for() -> None:
    ours = fresh()
    before = ours(["fox-over"] * 20)["input_ids"]
    ours.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ours.backend_tokenizer.normalizer.lowercase = False
    after = ours(["fox-over"] * 20)["input_ids"]
    assert after == [ours("fox-over")["input_ids"]] * 20
    assert before == [fresh()("fox-over")["input_ids"]] * 20


@pytest.mark.parametrize("bad", ["a\ud800b", "\udfff"])
@pytest.mark.parametrize("offsets", [True, False])
def test_mistakes_in_a_large_batch_are_named(bad: str, offsets: bool) -> None:
    ours = fresh()
    call: Any = {"return_offsets_mapping": offsets}
    with pytest.raises(DataError, match=r"text 17 holds a lone surrogate, U\+D") as caught:
        ours([*["fox"] * 17, bad, "fox"], **call)
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(DataError, match="lone surrogate"):
        ours(["fox"] * 20, ["fox"] * 19 + [bad], **call)
    with pytest.raises(TypeError, match="text 18 is NoneType"):
        ours([*["fox"] * 18, None], **call)
    with pytest.raises(TypeError, match="float"):
        ours([*["fox"] * 18, float("nan")], **call)
    assert ours(["fox"] * 20)["input_ids"][7] == ours("fox")["input_ids"]


def test_encodings_behind_a_quick_batch_are_the_engines() -> None:
    ours, theirs = both()
    call: dict[str, Any] = {"padding": True, "truncation": True, "max_length": 12}
    assert_same(ours(MANY, OTHERS, **call), theirs(MANY, OTHERS, **call))
    tensors = ours(MANY, padding=True, return_tensors="pt")
    assert torch.equal(
        tensors.attention_mask.sum(1), torch.tensor([len(i) for i in ours(MANY).input_ids])
    )


@pytest.mark.parametrize("vocab", VOCABS)
def test_any_text_equals_transformers_with_real_vocabularies(vocab: str) -> None:
    ours, theirs = both(vocab, VOCABS[vocab])
    call: dict[str, Any] = {"return_offsets_mapping": True, "return_special_tokens_mask": True}

    @settings(max_examples=25, deadline=None)
    @given(st.lists(ANY_TEXT, min_size=16, max_size=17))
    def check(texts: list[str]) -> None:
        assert ours(texts, **call).data == theirs(texts, **call).data
        assert ours(texts, texts[::-1], padding=True).data == (
            theirs(texts, texts[::-1], padding=True).data
        )

    check()
    assert ours._caches
