import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertkit.text import wordcache
from bertkit.text.sentences import split_sentences
from bertkit.text.tokenizer import BertTokenizer
from bertkit.text.wordcache import WordCache

DATA = Path(__file__).parents[2].parent / "shared" / "data"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = [*"abcdeABCDE019.,'[]!“”–中文國é", *(f"##{c}" for c in "abcdeABCDE019中é")]
WORDS = [*SPECIAL, *LETTERS, "abc", "##cd", "bad", "cab", "##eee", "MASK", "mask"]


def tokenizer(lower: bool = True, chinese: bool = True) -> BertTokenizer:
    """Cased words for a cased tokenizer; none with a capital for one that lower-cases."""
    words = [w for w in WORDS if w in SPECIAL or not lower or w == w.lower()]
    return BertTokenizer(words, do_lower_case=lower, tokenize_chinese_chars=chinese)


PIECES = st.sampled_from(
    [*"abcdeABxZ019 .,'![]“”–…中文國éüΣ\t\n\x00\x1f\x85\xa0\u3000\u0301\u200b，。", "bad", "[MASK]"]
)
TEXT = st.one_of(st.text(max_size=30), st.lists(PIECES, max_size=30).map("".join))


def assert_same(tok: BertTokenizer, cache: WordCache, texts: list[str]) -> None:
    tokens, lengths = cache.encode(texts)
    rows = tok.encode_sentences(texts)
    assert lengths.tolist() == [len(r) for r in rows]
    assert tokens.tolist() == [i for r in rows for i in r]


@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("chinese", [True, False])
def test_equal_to_the_engine(lower: bool, chinese: bool) -> None:
    tok = tokenizer(lower, chinese)
    cache = WordCache(tok, limit=20)

    @settings(deadline=None)
    @given(st.lists(TEXT, max_size=4))
    def check(texts: list[str]) -> None:
        assert_same(tok, cache, texts)

    check()


@pytest.mark.parametrize("added", ["ab", "new york", "中文", "<x>"])
def test_added_tokens_are_found(added: str) -> None:
    tok = tokenizer()
    tok.add_tokens([added])
    texts = [f"a {added} b", f"a{added}b", added, f"{added}.", f"cab{added} 中{added}文"]
    assert_same(tok, WordCache(tok), texts)


def test_no_sentence_and_an_empty_one() -> None:
    tok = tokenizer()
    for texts in ([], [""], ["", "a"], ["a\nb", "c"], ["[", "]"]):
        assert_same(tok, WordCache(tok), texts)


def test_long_words() -> None:
    tok = tokenizer()
    assert_same(tok, WordCache(tok), ["a" * n for n in (63, 64, 65, 99, 100, 101, 5000)])


def test_more_new_words_than_a_line_holds() -> None:
    tok = tokenizer()
    words = [f"w{i}x{i * 7}" for i in range(3 * wordcache._WORDS_IN_LINE + 1)]
    assert_same(tok, WordCache(tok), [" ".join(words), "", "  ".join(words[::-1])])


def test_a_word_that_parts_words_in_lines() -> None:
    tok = tokenizer()
    assert_same(tok, WordCache(tok), ["the [SEP] cat", "a[SEP]b [SEP][SEP]", "[sep] [SEP]. word"])


def test_the_width_follows_the_vocabulary() -> None:
    small = WordCache(tokenizer())
    many = [*WORDS, *(f"w{i}x" for i in range(70_000))]
    large = WordCache(BertTokenizer(many, do_lower_case=False))
    assert small.encode(["bad"])[0].dtype == np.uint16
    assert large.encode(["w69999x"])[0].dtype == np.uint32
    assert large.encode(["w69999x"])[0].tolist() == [len(WORDS) + 69_999]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_real_text(language: str) -> None:
    path = DATA / f"{language}_wikipedia" / "dev.txt.gz"
    name = {"en": "bert-base-cased", "zh": "bert-base-chinese"}[language]
    vocab = DATA / "vocab" / f"{name}.txt"
    if not path.exists() or not vocab.exists():
        pytest.skip(f"{path} or {vocab} is not here")
    tok = BertTokenizer(vocab, do_lower_case=language == "zh")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        text = lines.read(200_000)
    assert_same(
        tok, WordCache(tok), [s for line in text.split("\n") for s in split_sentences(line)]
    )
