"""Writing systems: which script a character is of, by what Unicode says of it."""

from __future__ import annotations

import unicodedata
from functools import lru_cache

# The first word of a character's Unicode name, where that is not the script's usual name.
NAMES = {
    "CJK": "Han",
    "IDEOGRAPHIC": "Han",
    "HIRAGANA": "Kana",
    "KATAKANA": "Kana",
    "KATAKANA-HIRAGANA": "Kana",
    "FEMININE": "Latin",
    "MASCULINE": "Latin",
}
# Scripts of a few dozen letters, any of which can stand anywhere in a word.
SMALL_ALPHABETS = frozenset({"Latin", "Digits", "Greek", "Cyrillic"})


@lru_cache(maxsize=1 << 17)
def script_of(char: str) -> str:
    """Latin, Han, Kana, Hangul, Cyrillic ..., or Digits, Punctuation, Symbols, Marks, Other."""
    category = unicodedata.category(char)
    if category == "Nd":
        return "Digits"
    if category[0] == "P":
        return "Punctuation"
    if category[0] in "SN":
        return "Symbols"
    if category[0] not in "LM":
        return "Other"
    words = unicodedata.name(char, "OTHER").split()
    if words[0] in ("FULLWIDTH", "HALFWIDTH") and len(words) > 1:
        words = words[1:]
    if words[0] in ("COMBINING", "MODIFIER"):
        return "Marks"
    return NAMES.get(words[0], words[0].capitalize())
