"""Vocabulary learning: against a naive recount, the hard limit, every script's share."""

from __future__ import annotations

import gzip
import os
import random
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers, pre_tokenizers

from bertkit.errors import DataError, UsageError
from bertkit.text.merges import choose_alphabet, count_characters, learn_merges
from bertkit.text.scripts import script_of
from bertkit.text.vocab import (
    SPECIAL_TOKENS,
    VocabOptions,
    build_tokenizer,
    coverage_report,
    save_vocab,
    train_vocab,
)
from bertkit.text.wordcount import WordCounter, count_words

DATA = Path(__file__).parents[2].parent / "shared" / "data"
ENGLISH = (
    "the cat sat on the mat and the dog ran after the cats running quickly while others were "
    "walking talking jumping and looking at the walked talked jumped looked cars houses windows"
).split()


def english(words: int, seed: int = 0) -> str:
    return " ".join(random.Random(seed).choices(ENGLISH, k=words))


def chinese(chars: int, distinct: int = 600, seed: int = 0) -> str:
    weights = [1 / (rank + 10) for rank in range(distinct)]
    codes = random.Random(seed).choices(range(0x4E00, 0x4E00 + distinct), weights, k=chars)
    return "".join(map(chr, codes))


def naive(words: dict[str, int], alphabet: list[str], size: int, min_frequency: int) -> list[str]:
    """The same rule with a full recount for every merge."""
    vocab = alphabet[:size]
    spelled = [([w[0], *["##" + c for c in w[1:]]], n) for w, n in words.items()]
    spelled = [(pieces, n) for pieces, n in spelled if set(pieces) <= set(vocab)]
    while len(vocab) < size:
        pairs: Counter[tuple[int, int]] = Counter()
        for pieces, n in spelled:
            for a, b in pairwise(pieces):
                pairs[vocab.index(a), vocab.index(b)] += n
        if not pairs:
            break
        left, right = min(pairs, key=lambda p: (-pairs[p], p))
        if pairs[left, right] < min_frequency:
            break
        a, b = vocab[left], vocab[right]
        joined = a + b.removeprefix("##")
        if joined not in vocab:
            vocab.append(joined)
        for pieces, _ in spelled:
            i = 0
            while i < len(pieces) - 1:
                if pieces[i : i + 2] == [a, b]:
                    pieces[i : i + 2] = [joined]
                i += 1
    return vocab


small_words = st.dictionaries(
    st.text("abc#", min_size=1, max_size=9), st.integers(1, 6), min_size=1, max_size=14
)


@settings(max_examples=300, deadline=None)
@given(words=small_words, size=st.integers(1, 40), min_frequency=st.integers(1, 4))
def test_merges_equal_a_naive_recount(words: dict[str, int], size: int, min_frequency: int) -> None:
    alphabet = sorted(count_characters(words))
    vocab, seen = learn_merges(words, alphabet, size, min_frequency)
    assert vocab == naive(words, alphabet, size, min_frequency)
    assert len(vocab) == min(len(alphabet), size) + len(seen)
    assert len(set(vocab)) == len(vocab)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=6), st.booleans())
def test_words_are_counted_as_bert_cuts_them(texts: list[str], lower: bool) -> None:
    texts = [*texts, "a\tb\x85c\u3000d\r\n" + "long" * 12 + "。模型don't"]
    normalizer = normalizers.BertNormalizer(lowercase=lower)
    split = pre_tokenizers.BertPreTokenizer().pre_tokenize_str
    plain = Counter(w for t in texts for w, _ in split(normalizer.normalize_str(t)))
    assert count_words(texts, normalizer).words() == plain


def test_counting_is_bounded_and_says_when_it_drops_words() -> None:
    counter = WordCounter(normalizers.BertNormalizer(), max_words=100)
    for start in range(0, 2000, 10):
        counter.add(" ".join(["the", "cat", *(f"word{n}" for n in range(start, start + 10))]))
    words = counter.words()
    assert len(words) <= 100
    assert counter.pruned_below >= 2
    assert words["the"] == words["cat"] == 200
    result = train_vocab([english(200)] * 3, VocabOptions(size=60, max_words=20))
    assert any("dropped" in note for note in result.notes)


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=5),
    size=st.integers(6, 300),
    cased=st.booleans(),
)
def test_the_size_is_never_exceeded(texts: list[str], size: int, cased: bool) -> None:
    options = VocabOptions(size=size, cased=cased, min_frequency=1)
    result = train_vocab([*texts, "some words"], options)
    assert len(result.vocab) == len(set(result.vocab)) <= size
    assert tuple(result.vocab[:5]) == SPECIAL_TOKENS
    assert bool(result.notes) == (len(result.vocab) < size)


def test_fewer_tokens_only_when_the_corpus_has_no_more() -> None:
    text = english(400) + " 模型 模型 ß ß qz qz"
    result = train_vocab([text], VocabOptions(size=10_000))
    words = count_words([text], normalizers.BertNormalizer()).words()
    assert "fewer than the 10,000" in result.notes[0]
    # Every word seen twice is a token of its own: nothing is left to merge.
    assert {word for word, count in words.items() if count >= 2} <= set(result.vocab)
    full = train_vocab([text], VocabOptions(size=len(result.vocab) - 7))
    assert len(full.vocab) == len(result.vocab) - 7
    assert full.notes == []


def test_chinese_never_starves_beside_english(tmp_path: Path) -> None:
    documents = [english(800, seed) for seed in range(95)]
    documents += [chinese(3000, seed=seed) for seed in range(5)]
    for size in (400, 1500):
        report = build_tokenizer(
            documents,
            [english(500, 999), chinese(500, seed=999)],
            tmp_path / str(size),
            VocabOptions(size=size),
        )
        rows = {row.script: row for row in report.coverage}
        assert len(report.result.vocab) <= size
        assert rows["Latin"].unk_rate == 0
        assert rows["Latin"].tokens_per_word < 1.5
        assert rows["Han"].unk_rate < (0.5 if size == 400 else 0.01)
        assert rows["all"].words == sum(r.words for n, r in rows.items() if n != "all")


def test_every_major_script_is_covered_alike() -> None:
    pieces = {chr(0x4E00 + n): 1000 // (n + 1) for n in range(300)}
    pieces |= {chr(97 + n): 9000 for n in range(26)} | {f"##{chr(97 + n)}": 90 for n in range(26)}
    pieces |= {chr(0x3042 + n): 500 // (n + 1) for n in range(40)}
    alphabet = choose_alphabet(pieces, 260, 2)
    assert len(alphabet) <= 260
    for script in ("Han", "Kana", "Latin"):
        whole = sum(n for p, n in pieces.items() if script_of(p[-1]) == script)
        kept = sum(pieces[p] for p in alphabet if script_of(p[-1]) == script)
        assert kept > 0.85 * whole, script


def test_accents_and_case() -> None:
    texts = ["Café café NAÏVE naïve Übung übung"] * 3
    uncased = train_vocab(texts, VocabOptions(size=200)).vocab
    assert {"cafe", "naive", "ubung"} <= set(uncased)
    accents = train_vocab(texts, VocabOptions(size=200, strip_accents=False)).vocab
    assert {"café", "naïve", "übung"} <= set(accents)
    cased = train_vocab(texts, VocabOptions(size=200, cased=True)).vocab
    assert {"Café", "NAÏVE", "Übung"} <= set(cased)


def test_chinese_words_when_characters_are_not_split() -> None:
    texts = ["模型 模型 模型"]
    assert "模型" in train_vocab(texts, VocabOptions(size=50, tokenize_chinese_chars=False)).vocab
    assert "模型" not in train_vocab(texts, VocabOptions(size=50)).vocab


def test_both_forms_of_letters_are_kept() -> None:
    vocab = train_vocab(["q q q word word word"], VocabOptions(size=100)).vocab
    assert {"q", "##q", "w", "##w"} <= set(vocab)


@pytest.mark.parametrize("texts", [[], [""], [" \n\t "], ["\x00"]])
def test_an_empty_corpus_is_an_error(texts: list[str]) -> None:
    with pytest.raises(DataError, match="no words"):
        train_vocab(texts)


def test_bad_input_is_an_error() -> None:
    with pytest.raises(UsageError, match="size"):
        train_vocab(["a"], VocabOptions(size=5))
    with pytest.raises(UsageError, match="min_frequency"):
        train_vocab(["a"], VocabOptions(min_frequency=0))
    with pytest.raises(DataError, match="surrogate"):
        train_vocab(["a \ud800"])


def test_the_same_whatever_the_hash_seed() -> None:
    code = (
        "from tests.text.test_vocab import *\n"
        "from bertkit.text.vocab import *\n"
        "texts = [english(2000), chinese(2000), 'Ünï ço\\u0301 дом か な']\n"
        "print(ascii(train_vocab(texts, VocabOptions(size=500)).vocab))"
    )
    root = Path(__file__).parents[2]
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=root,
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
    assert b"u4e00" in outputs.pop()


def test_saved_files_are_reloaded_and_compared(tmp_path: Path) -> None:
    options = VocabOptions(size=300, cased=True)
    result = train_vocab([english(500), "Ünïcode " * 3], options)
    tokenizer = save_vocab(result.vocab, tmp_path, options, [english(50)])
    assert not tokenizer.do_lower_case
    assert tokenizer.pad_token_id == 0
    assert (tmp_path / "vocab.txt").read_text(encoding="utf-8").split("\n")[:-1] == result.vocab
    assert tokenizer.unk_token_id not in tokenizer.encode(english(50))


def test_coverage_counts_unknown_words_by_script() -> None:
    result = train_vocab([english(500)], VocabOptions(size=200))
    from bertkit.text.tokenizer import BertTokenizer

    tokenizer = BertTokenizer(result.vocab)
    rows = {row.script: row for row in coverage_report(tokenizer, ["the cat 模型模, дом"])}
    assert (rows["Latin"].words, rows["Latin"].unk_words, rows["Latin"].characters) == (2, 0, 6)
    assert (rows["Han"].words, rows["Han"].unk_words) == (3, 3)
    assert rows["Han"].unk_examples == ("模", "型")
    assert rows["Cyrillic"].unk_rate == 1
    assert (rows["all"].words, rows["all"].unk_words) == (7, 5)


def test_without_held_out_text_the_corpus_stands_in(tmp_path: Path) -> None:
    report = build_tokenizer(["one two", "two 3"], [], tmp_path, VocabOptions(size=100))
    assert (report.held_out, report.to_dict()["held_out"]) == (False, False)
    assert {row.script: row.words for row in report.coverage} == {"Latin": 3, "Digits": 1, "all": 4}
    assert report.result.words == 4
    other = build_tokenizer(["one two"], ["two"], tmp_path, VocabOptions(size=100))
    assert (other.held_out, other.coverage[-1].words) == (True, 1)


def test_progress_and_report(tmp_path: Path) -> None:
    told: list[tuple[str, int]] = []
    texts = (english(3000, seed) for seed in range(80))
    report = build_tokenizer(
        texts,
        iter([english(50)] * 3),
        tmp_path,
        VocabOptions(size=300),
        progress=lambda what, n: told.append((what, n)),
    )
    assert told[-1][0] in ("characters", "tokens")
    assert [n for what, n in told if what == "characters"][-1] == report.result.characters
    data = report.to_dict()
    assert data["size"] == len(report.result.vocab)
    assert data["coverage"][-1]["script"] == "all"
    assert "vocab" not in data


@pytest.mark.parametrize(
    ("char", "script"),
    [
        ("a", "Latin"),
        ("é", "Latin"),
        ("Ａ", "Latin"),
        ("ª", "Latin"),
        ("中", "Han"),
        ("々", "Han"),
        ("か", "Kana"),
        ("カ", "Kana"),
        ("ー", "Kana"),
        ("한", "Hangul"),
        ("д", "Cyrillic"),
        ("٣", "Digits"),
        ("。", "Punctuation"),
        ("€", "Symbols"),
        ("😀", "Symbols"),
        ("\u0301", "Marks"),
        ("\ue000", "Other"),
    ],
)
def test_scripts(char: str, script: str) -> None:
    assert script_of(char) == script


@pytest.mark.slow
@pytest.mark.parametrize(("name", "limit"), [("en_wikipedia", 0.002), ("zh_wikipedia", 0.002)])
def test_whole_wikipedia_is_covered(name: str, limit: float, tmp_path: Path) -> None:
    train, dev = DATA / name / "train.txt.gz", DATA / name / "dev.txt.gz"
    if not train.exists():
        pytest.skip(f"needs {train}")
    with gzip.open(train, "rt", encoding="utf-8") as a, gzip.open(dev, "rt", encoding="utf-8") as b:
        report = build_tokenizer(a, b, tmp_path, VocabOptions(size=8192))
    assert len(report.result.vocab) == 8192
    assert report.coverage[-1].unk_rate < limit
