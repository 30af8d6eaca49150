"""Words that a tokenizer breaks up: found, chosen, added."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from tokenizers.models import WordPiece

from bertkit import BertTokenizer
from bertkit.errors import DataError, UsageError
from bertkit.text.extend import check_saved, cut, extend_tokenizer, find_words

LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{c}" for c in LETTERS)]
VOCAB += ["the", "cell", "cells", "##ing", "cyto", "##kin", "我", "们", "1", "2", "##1", "##2"]
VOCAB += [".", ","]


def tokenizer() -> BertTokenizer:
    return BertTokenizer(VOCAB)


@given(st.text("abckinst1", max_size=12))
def test_a_word_is_cut_as_wordpiece_cuts_it(word: str) -> None:
    vocab = {token: n for n, token in enumerate([*VOCAB, "##t", "ab", "##kinst", "##cab"])}
    del vocab["##s"]
    theirs = [t.value for t in WordPiece(vocab, unk_token="[UNK]").tokenize(word)] if word else []
    assert (cut(word, vocab) or []) == ([] if theirs == ["[UNK]"] else theirs)


def test_what_saves_most_comes_first() -> None:
    texts = ["the cytokine " * 20 + "cytokines " * 6 + "zap " * 30 + "cells " * 99, "rare " * 4]
    found = find_words(texts, tokenizer(), 10)
    # cyto ##kin ##e: 2 x 20; z ##a ##p: 2 x 30; then cytokine ##s saves no more than 6.
    words = [(w.token, w.count, w.saved) for w in found.words]
    assert words == [("zap", 30, 60), ("cytokine", 20, 40), ("cytokines", 6, 18)]
    assert found.words[1].pieces == ("cyto", "##kin", "##e")
    assert [VOCAB[i] for i in found.words[1].piece_ids] == ["cyto", "##kin", "##e"]
    assert found.total_words == 20 * 2 + 6 + 30 + 99 + 4
    assert len(found.notes) == 1
    assert found.notes[0].startswith("3 words, fewer than the 10 asked")
    assert [w.token for w in find_words(texts, tokenizer(), 1).words] == ["zap"]
    assert find_words(texts, tokenizer(), 3).notes == []
    assert "rare" in [w.token for w in find_words(texts, tokenizer(), 9, min_frequency=4).words]


@settings(max_examples=50)
@given(
    st.dictionaries(st.text("abckinest", min_size=1, max_size=7), st.integers(5, 60), max_size=12),
    st.integers(1, 8),
)
def test_the_choice_is_the_greedy_one(words: dict[str, int], add: int) -> None:
    """Against the plain way: weigh every word anew before each choice.

    Only where an earlier choice makes a word worth more (its longer first piece leaves a worse
    rest) may the heap, which has the weight from before, choose another.
    """
    if not words:
        return
    text = " ".join(f"{word} " * count for word, count in words.items())
    chosen = [w.token for w in find_words([text], tokenizer(), add).words]
    vocab = dict.fromkeys(VOCAB)

    def worth(word: str) -> int:
        pieces = cut(word, vocab)
        assert pieces is not None
        return words[word] * (len(pieces) - 1)

    first = {word: worth(word) for word in words}
    for token in chosen:
        best = max(words, key=worth)
        assert worth(token) == worth(best) or worth(best) > first[best]
        assert worth(token) > 0
        vocab[token] = None
    if len(chosen) < add:
        assert all(worth(word) == 0 or first[word] == 0 for word in words)


def test_numbers_are_no_words() -> None:
    found = find_words(["2112 1212 1,121.2 " * 50 + "p2p 12p " * 9], tokenizer(), 10)
    assert {w.token for w in found.words} == {"p2p", "12p"}


def test_missing_characters_have_their_place_and_start_from_what_stood_for_them() -> None:
    base = BertTokenizer([*VOCAB, "é", "##ß"], strip_accents=False)
    texts = ["嘌 " * 7 + "caféa naé " * 6 + "ßa " * 5 + "wxyz " * 9]
    found = find_words(texts, base, 10)
    by_token = {w.token: w for w in found.words}
    # Saved: 9 x 3, 6 x 4, 6 x 2, 7 and 5 [UNK]; "##é" has no [UNK] left to mend after its words.
    assert list(by_token) == ["wxyz", "caféa", "naé", "嘌", "ß", "ßa"]
    texts.append("caféb " * 3 + "cbé " * 3)
    found = find_words(texts, base, 10)
    by_token = {w.token: w for w in found.words}
    assert list(by_token) == ["wxyz", "caféa", "##é", "naé", "嘌", "ß", "ßa"]
    assert by_token["##é"].count == 18
    assert by_token["嘌"].pieces == ("[UNK]",)
    assert by_token["##é"].pieces == ("é",)
    assert by_token["ß"].pieces == ("##ß",)
    assert by_token["caféa"].pieces == ("c", "##a", "##f", "é", "##a")
    grown = extend_tokenizer(base, list(by_token))
    assert grown.tokenize("嘌 caféa éé") == ["嘌", "caféa", "é", "##é"]
    # The few that are asked for are words that are seen often, not rare characters.
    assert [w.token for w in find_words(texts, base, 2).words] == ["wxyz", "caféa"]


def test_chinese_words_cannot_be_added_and_that_is_said() -> None:
    texts = ["我们用pcr检测 " * 10 + "嘌呤 " * 10]
    found = find_words(texts, tokenizer(), 20)
    tokens = {w.token for w in found.words}
    assert {"pcr", "嘌", "呤", "用"} <= tokens
    assert not any(len(token) > 1 and token[0] > "\u3000" for token in tokens)
    assert any("every Han character a word" in note for note in found.notes)
    whole = BertTokenizer(VOCAB, tokenize_chinese_chars=False)
    found = find_words(["嘌呤 " * 10], whole, 20)
    assert "嘌呤" in {w.token for w in found.words}
    assert not any("every Han" in note for note in found.notes)


def test_nothing_to_add_is_said() -> None:
    with pytest.raises(DataError, match="no words"):
        find_words(["  ", ""], tokenizer(), 5)
    with pytest.raises(UsageError, match="add is 0"):
        find_words(["a"], tokenizer(), 0)
    assert find_words(["the cell, the cells."], tokenizer(), 5).words == []


def test_a_bounded_count_says_so() -> None:
    texts = [" ".join(f"{a}{b}{c}" for a in LETTERS for b in LETTERS for c in "abc"), "zap " * 50]
    found = find_words(texts, tokenizer(), 3, max_words=300)
    assert found.pruned_below == 2
    assert any("bound memory" in note for note in found.notes)
    assert [w.token for w in found.words] == ["zap"]


@given(st.text(st.sampled_from("abcnetkios 我们.,12É"), max_size=40))
def test_old_texts_keep_their_ids_and_old_words_theirs(text: str) -> None:
    old = tokenizer()
    new = extend_tokenizer(old, ["xylem", "##zz"])
    assert old(text)["input_ids"] == new(text)["input_ids"]


def test_transformers_reads_the_grown_tokenizer_alike(tmp_path: Path) -> None:
    old = BertTokenizer(VOCAB, model_max_length=77, padding_side="left")
    old.add_tokens([AddedToken("<gene>", normalized=False)])
    old.add_tokens(["[E1]"], special_tokens=True)
    new = extend_tokenizer(old, ["cytokine", "mrna", "嘌", "##x9"])
    assert {t: i for t, i in new.get_vocab().items() if t in old.get_vocab()} == old.get_vocab()
    assert new.convert_tokens_to_ids("cytokine") == len(old) == len(VOCAB) + 2
    texts = [
        "The CYTOKINE, cytokines; mRNA <gene> [E1] 嘌呤.",
        "xmrna a9 ax9 Mrna's",
        "",
        "我们mrna",
    ]
    new.save_pretrained(tmp_path)
    check_saved(new, tmp_path, texts)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs(texts)["input_ids"] == new(texts)["input_ids"]
    assert len(theirs) == len(new)
    assert theirs.model_max_length == new.model_max_length == 77
    assert new.padding_side == "left"
    assert new.tokenize("Cytokines mRNA") == ["cytokine", "##s", "mrna"]
    assert new("[E1]").input_ids[1] == old("[E1]").input_ids[1]
    lines = (tmp_path / "vocab.txt").read_text(encoding="utf-8").splitlines()
    assert lines[len(old) :] == ["cytokine", "mrna", "嘌", "##x9"]
    with pytest.raises(UsageError, match="'mrna' is in the vocabulary"):
        extend_tokenizer(new, ["mrna"])
