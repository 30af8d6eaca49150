"""Where sentences and words begin and end, in English, in Chinese and in text that mixes them.

One regular expression finds the places where a sentence may end; a cheap look at the word before
and the word after settles the doubtful ones, the full stops. No model, no dictionary but a list of
abbreviations. All offsets are indices into the given string, ends exclusive.
"""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from bertkit.errors import DataError

# A stop may be followed by closing quotes and brackets, which belong to the sentence that ends.
_CLOSERS = r"""["'”’＂＇)\]}）】」』》〉〕］｝»›]"""
_OPENERS = "\"'“‘＂＇([{（【「『《〈〔［｛«‹¿¡*-–—"
_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"

# Ways to end: a long small word, a full stop, a capital; a blank line; a wide stop (and the Chinese
# ellipsis ……), at once. And, in doubt (group 1): a stop with white space and no lower-case letter
# behind it, or ! and ? with a Han character right behind. The first item is one plain character
# set, for which `re` has a fast scan.
_CANDIDATE = re.compile(
    rf"""
    [.!?…。！？；｡\n]
    (?: (?<=[a-z]{{5}}\.)(?<!pprox\.)(?<!trans\.)(?<!assoc\.)(?<!essrs\.)\s+(?=[A-Z])
    |   (?<=\n)[^\S\n]*\n\s*
    |   (?<!\n)(?<![.!?…。！？；｡].)  # never from the middle of a run: that would be quadratic
        [.!?…。！？；｡]*+
        (?: (?: (?<=[。！？；｡]) | (?<=……) ) {_CLOSERS}*+ (?![，、,：:])\s*
        |   ({_CLOSERS}*+ (?: \s+(?![a-z\s]) | (?<![.…])(?=[{_HAN}]) ))
        )
    )
    """,
    re.VERBOSE | re.DOTALL,
)

# Never at the end of a sentence: what follows is a name, or the rest of the phrase.
_TITLES = frozenset(
    """mr mrs ms messrs mmes dr drs prof rev fr hon gov sen rep pres gen adm col maj capt cmdr lt
    sgt cpl pvt brig supt insp st ste mt ft vs v cf viz eg ie e.g i.e al ca approx c.f ed eds
    trans esp resp assoc asst dept univ dist gen.lt lt.col lt.gen maj.gen brig.gen""".split()
)
# Before a number they go on: No. 5, Fig. 2, Jan. 3, pp. 10.
_BEFORE_NUMBER = frozenset(
    """no nos nr fig figs vol vols ch chap sec art op ex p pp par para pt eq ref refs jan feb mar
    apr jun jul aug sep sept oct nov dec ver b d c r""".split()
)
# They may also end a sentence: only a word that often begins one, written large, tells.
_EITHER = frozenset("etc inc ltd co corp bros jr sr esq ave blvd rd bldg est ph.d m.d".split())
_STARTERS = frozenset(
    """the a an this that these those there he she it we they i you his her its our their my in on
    at by for from with after before during since when while where what who why how as if
    although though however but and or so yet then thus also in some many most all both each
    another other no not according despite because under over between among until today now here
    one two""".split()
)


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """Cut `text` into sentences.

    Returns:
        (start, end) of each sentence, ascending and disjoint; white space is trimmed off both ends,
        and every character that is not white space lies in exactly one span.
    """
    spans = []
    size = len(text)
    start = size - len(text.lstrip())
    for match in _CANDIDATE.finditer(text, start):
        if match.lastindex and not _ends(text, start, match) and match[1].count("\n") < 2:
            continue
        stop = match.end()
        spans.append((start, start + len(text[start:stop].rstrip())))
        start = stop
    end = len(text.rstrip())
    if start < end:
        spans.append((start, end))
    return spans


def split_sentences(text: str) -> list[str]:
    """The sentences of `text`, trimmed; see `sentence_spans`."""
    return [text[start:end] for start, end in sentence_spans(text)]


def _ends(text: str, start: int, match: re.Match[str]) -> bool:
    """Whether the sentence begun at `start` ends at this narrow stop."""
    stop, behind = match.start(), match.end()
    follows = text[behind : behind + 1]
    if follows.islower():
        return False
    if text[stop] != "." or text[stop + 1 : stop + 2] in ("!", "?"):
        return True
    if text[stop + 1 : stop + 2] == ".":  # an ellipsis: what is written large begins anew
        return True
    words = text[max(start, stop - 16) : stop].rsplit(None, 1)
    if not words or text[stop - 1].isspace() or len(words[-1]) > 12:  # no abbreviation is so long
        return True
    word = words[-1]
    first = start == stop - len(word)
    return _full_stop_ends(word.lstrip(_OPENERS), first, text[behind : behind + 24])


def _full_stop_ends(word: str, first: bool, rest: str) -> bool:
    """Whether the full stop after `word` ends a sentence that `rest` follows.

    Args:
        word: what stands between the last space and the stop.
        first: the word is the first of its sentence.
        rest: the beginning of what follows the white space.
    """
    lower = word.lower()
    if lower in _TITLES:
        return False
    if lower in _BEFORE_NUMBER and rest[:1].isdigit():
        return False
    if first and (word.isdigit() or len(word) == 1):  # "1. Introduction", "A. First point"
        return False
    initial = len(word) == 1 and word.isupper()
    if initial or lower in _EITHER or (word[-2:-1] == "." and word[-1].isalpha()):
        return _next_word(rest) in _STARTERS
    return True


def _next_word(rest: str) -> str:
    """The first word of `rest` in lower case, if it begins with a capital; else nothing."""
    words = rest.lstrip(_OPENERS).split(None, 1)
    word = words[0].rstrip(".,;:!?)]}\"'”’") if words else ""
    return word.lower() if word[:1].isupper() else ""


def word_spans(
    text: str,
    segmenter: Literal["jieba"] | None = None,
    user_dict: str | Path | None = None,
) -> list[tuple[int, int]]:
    """Cut `text` into words, for whole-word masking.

    Words are those of BERT's pre-tokeniser: white space separates, punctuation stands alone. Within
    them a Han character is a word by itself, unless a segmenter says which belong together.

    Args:
        text: one sentence or a paragraph.
        segmenter: "jieba" for Chinese words; None for single characters.
        user_dict: a dictionary for jieba, a word a line, optionally with frequency and tag.

    Returns:
        (start, end) of each word, ascending and disjoint.

    Raises:
        DataError: the user dictionary cannot be read.
    """
    spans: list[tuple[int, int]] = []
    for _, (start, end) in _pre_tokenizer().pre_tokenize_str(text):
        for part in _RUNS.finditer(text, start, end):
            run = part.span()
            if not _IS_HAN.match(text, run[0]):
                spans.append(run)
            elif segmenter is None:
                spans.extend((i, i + 1) for i in range(*run))
            else:
                cut: Iterable[tuple[str, int, int]] = _jieba(user_dict).tokenize(part[0])
                spans.extend((run[0] + a, run[0] + b) for _, a, b in cut)
    return spans


_IS_HAN = re.compile(f"[{_HAN}]")
_RUNS = re.compile(f"[{_HAN}]+|[^{_HAN}]+")


@lru_cache(maxsize=1)
def _pre_tokenizer() -> Any:
    from tokenizers.pre_tokenizers import BertPreTokenizer

    return BertPreTokenizer()


@lru_cache(maxsize=4)
def _jieba(user_dict: str | Path | None) -> Any:
    """Our own jieba tokenizer: silent, its cache in the user's folder instead of a shared /tmp."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its import trips over pkg_resources and old escapes
        import jieba

        jieba.setLogLevel(logging.WARNING)
        tokenizer = jieba.Tokenizer()
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bertkit"
        try:
            home.mkdir(parents=True, exist_ok=True)
            tokenizer.tmp_dir = str(home)
        except OSError:
            pass  # nowhere to keep the cache: jieba then builds its dictionary each time
        tokenizer.initialize()
        if user_dict is not None:
            _load_user_dict(tokenizer, Path(user_dict))
    return tokenizer


def _load_user_dict(tokenizer: Any, path: Path) -> None:
    try:
        with path.open("rb") as lines:
            tokenizer.load_userdict(lines)
    except (OSError, ValueError) as error:
        raise DataError(f"not a jieba dictionary (UTF-8, a word a line): {error}", path) from error
