"""The language of a page: English as it stands in the code, Chinese from one table (chinese.py).

A page is in the language of the text that was asked about, or in the one that is named.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, Literal

from bertkit.explain.chinese import CHINESE
from bertkit.text.scripts import script_of

Language = Literal["en", "zh"]
_spoken: ContextVar[Language] = ContextVar("spoken", default="en")


@contextmanager
def speaking(language: Language) -> Iterator[None]:
    """What `say` and `named` speak inside."""
    before = _spoken.set(language)
    try:
        yield
    finally:
        _spoken.reset(before)


def spoken() -> Language:
    """The language of now: English, but inside of `speaking`."""
    return _spoken.get()


def say(template: str, **values: Any) -> str:
    """A sentence of the code with its values, in the language of now."""
    return _in_language(template).format(**values)


def named(name: str) -> str:
    """A name that a result holds in English ("layer 3", "first piece"), in the language of now."""
    if _spoken.get() == "en" or name in CHINESE:
        return _in_language(name)
    for pattern, template in _patterns():
        if found := pattern.fullmatch(name):
            return template.format(**{k: named(v) for k, v in found.groupdict().items()})
    return name


def language_of(texts: Iterable[str]) -> Language | None:
    """Chinese where there are as many Han characters as Latin words; None without either.

    Kana or Hangul beside them is no Chinese.
    """
    han = latin = other = 0
    for text in texts:
        scripts = [script_of(char) for char in text]
        han += scripts.count("Han")
        other += scripts.count("Kana") + scripts.count("Hangul")
        before = ["", *scripts]
        latin += sum(b == "Latin" and a != "Latin" for a, b in zip(before, scripts, strict=False))
    if han + latin + other == 0:
        return None
    return "zh" if han > 0 and han >= latin and other <= han // 4 else "en"


def _in_language(template: str) -> str:
    return CHINESE.get(template, template) if _spoken.get() == "zh" else template


@lru_cache
def _patterns() -> list[tuple[re.Pattern[str], str]]:
    """Templates of names, as what they match; those that say most come first."""
    found = []
    for template, chinese in sorted(CHINESE.items(), key=lambda item: -len(item[0])):
        if re.fullmatch(r"[^.:]*\{\w+\}[^.:]*", template):
            parts = re.split(r"\{(\w+)\}", template)
            source = "".join(
                f"(?P<{part}>.+)" if i % 2 else re.escape(part) for i, part in enumerate(parts)
            )
            found.append((re.compile(source), chinese))
    return found
