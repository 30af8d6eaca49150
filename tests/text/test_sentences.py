import gzip
import unicodedata
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertkit.errors import DataError
from bertkit.text.sentences import sentence_spans, split_sentences, word_spans

DATA = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.mark.parametrize(
    "sentences",
    [
        ["Mr. Smith met Dr. Jones.", "They talked."],
        ["He lives in Washington, D.C.", "He likes it."],
        ["The U.S. Army said that pi is 3.14 or so.", "Nobody laughed."],
        ["J. R. R. Tolkien wrote it.", "It sold well."],
        ["Some fruit, e.g. apples, i.e. Malus.", "Eat them."],
        ["We sell nuts, bolts, etc.", "The shop is open."],
        ["Acme Inc. Products are dear.", "Acme Inc.", "They went broke."],
        ["See Fig. 3 and No. 5 on pp. 10.", "Then stop."],
        ["She came on Jan. 5 at 5 p.m. Eastern time.", "He left."],
        ["Well... that was it.", "Wait...", "What?", "Really?!", "Yes!"],
        ['He said "Stop!" and left.', '"Why?" she asked.', "(It was late.)", "'Go.'", "End."],
        ["1. First point here.", "2. Second point."],
        ["Version 2.0 of foo.bar is at www.example.com now.", "Get it."],
        ["The end.", "…", "Éric came.", "Überall."],
        ["No stop at the end", "a new paragraph"],
    ],
)
def test_english(sentences: list[str]) -> None:
    joint = "\n\n" if "paragraph" in sentences[-1] else " "
    assert split_sentences(joint.join(sentences)) == sentences


@pytest.mark.parametrize(
    "sentences",
    [
        ["你好。", "我是学生。"],
        ["他说：“你好。”", "然后走了。", "真的吗？", "是的！"],
        ["（他走了。）", "「好！」", "『是。』", "《书》。"],
        ["他想……", "算了；", "走吧。"],
        ["“好。”，他说。", "完。"],
        ["圆周率是3.14。", "模型 BERT 3.0 版。", "Hello!", "你好 world."],
        ["Hello world.", "你好！", "Good?", "好"],
        ["真的？！", "不！！！", "没有标点"],
    ],
)
def test_chinese_and_mixed(sentences: list[str]) -> None:
    assert split_sentences("".join(sentences)) == sentences or (
        split_sentences(" ".join(sentences)) == sentences
    )


@pytest.mark.parametrize("text", ["", " ", "\n\n\n", "\u3000\xa0\t"])
def test_nothing(text: str) -> None:
    assert sentence_spans(text) == []
    assert word_spans(text) == []


PIECES = st.sampled_from(
    [
        *"AaiI1é中文國 \t\n。！？；…，.!?,;:\"'”’)」』(“「",
        "\n\n",
        "Mr.",
        "U.S.",
        "e.g.",
        "The",
        "3.14",
        "……",
    ]
)
TEXT = st.one_of(st.text(max_size=60), st.lists(PIECES, max_size=40).map("".join))


@settings(deadline=None)
@given(TEXT)
def test_spans_cover_all_that_is_not_space(text: str) -> None:
    spans = sentence_spans(text)
    covered: set[int] = set()
    last = 0
    for start, end in spans:
        assert last <= start < end <= len(text)
        assert text[start:end] == text[start:end].strip()
        covered.update(range(start, end))
        last = end
    assert all(i in covered for i, c in enumerate(text) if not c.isspace())
    assert split_sentences(text) == [text[a:b] for a, b in spans]


@settings(deadline=None)
@given(TEXT)
def test_a_sentence_is_one_sentence(text: str) -> None:
    for sentence in split_sentences(text):
        assert split_sentences(sentence) == [sentence]


def test_long_text_takes_linear_time() -> None:
    for text in (
        "." * 300_000,
        "a." * 150_000,
        ". " * 150_000,
        "a.\t" * 150_000,
        "\n " * 150_000,
        "”" * 300_000,
    ):
        characters = len("".join(text.split()))
        assert characters <= sum(b - a for a, b in sentence_spans(text)) <= len(text)


@settings(deadline=None)
@given(TEXT)
def test_words_cover_all_that_is_not_space(text: str) -> None:
    spans = word_spans(text)
    assert all(a < b for a, b in spans)
    assert all(a[1] <= b[0] for a, b in pairwise(spans))
    covered = {i for a, b in spans for i in range(a, b)}
    assert all(i in covered for i, c in enumerate(text) if not c.isspace())
    for a, b in spans:  # as BERT: punctuation and Han characters stand alone
        if any(
            unicodedata.category(c).startswith("P") or "\u4e00" <= c <= "\u9fff" for c in text[a:b]
        ):
            assert b - a == 1


def test_words_of_english_and_chinese() -> None:
    text = "Don't use 语言模型, please."
    words = ["Don", "'", "t", "use", *"语言模型", ",", "please", "."]
    assert [text[a:b] for a, b in word_spans(text)] == words
    words[4:8] = ["语言", "模型"]
    assert [text[a:b] for a, b in word_spans(text, "jieba")] == words


def test_jieba_takes_a_user_dictionary(tmp_path: Path) -> None:
    text = "我爱语言模型"
    user = tmp_path / "user.txt"
    user.write_text("语言模型 99999 n\n", encoding="utf-8")
    assert [text[a:b] for a, b in word_spans(text, "jieba", user)][-1] == "语言模型"
    assert [text[a:b] for a, b in word_spans(text, "jieba")][-1] == "模型"
    with pytest.raises(DataError, match=r"none\.txt: not a jieba dictionary"):
        word_spans(text, "jieba", tmp_path / "none.txt")


def test_real_articles() -> None:
    path = DATA / "en_wikipedia" / "dev.txt.gz"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        text = lines.read(300_000)
    sentences = [s for line in text.split("\n") for s in split_sentences(line)]
    assert 90 < sum(map(len, sentences)) / len(sentences) < 160
    # Few sentences begin with a small letter or end without a stop.
    odd = sum(s[0].islower() or s[-1] not in ".!?…\"'”’):;" for s in sentences)
    assert odd / len(sentences) < 0.02
