"""English words as the Penn Treebank cuts them, for the metric of CMRC 2018.

The CMRC script cuts the Latin stretches of an answer with NLTK's word tokenizer. Here is what of
that cutting can matter there: the text is lower case and has lost the marks that the metric leaves
out, dashes, colons and back quotes among them. NLTK's sentence splitter, which needs a downloaded
model, is left out: a stretch is one sentence, so that only its last full stop stands alone.
"""

from __future__ import annotations

import re

# In the order of the Treebank's script (MacIntyre 1995, with NLTK's additions): each rule makes
# room around what it finds, or names a quote by its side.
_RULES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"[«‘„]", r" \g<0> "),
        (r'^"', " `` "),
        (r"(?<=[ (\[{<])(?:\"|'')", " `` "),
        (r"(?<!\w)'(?!(?i:re|ve|ll|[mtsdn])\b)(?=\w)", "' "),
        (r"(?<=[^.])(\.)([\])}>\"' »]*+)\s*$", r" \1 \2 "),
        (r",(\D)", r" , \1"),
        (r",$", " , "),
        (r"\.{2,}|[;@#$%&\u2012-\u2015?!]", r" \g<0> "),
        (r"(?<=[^'])' ", " ' "),
        (r"[\[\](){}<>]", r" \g<0> "),
        (r"^|$", " "),
        (r"»", " » "),
        (r"''|\"", " '' "),
        (r"\s+", " "),
        (r"(?<=[^' ])('[smd]?) ", r" \1 "),
        (r"(?<=[^' ])('(?:ll|re|ve)|n't) ", r" \1 "),
        (
            r"(?i)\b(can(?=not)|d(?='ye)|gim(?=me)|gon(?=na)|got(?=ta)|lem(?=me)|more(?='n)"
            r"|wan(?=na\s))(not|'ye|me|na|ta|'n)\b",
            r" \1 \2 ",
        ),
        (r"(?i) ('t)(is|was)\b", r" \1 \2 "),
    ]
]


def words(text: str) -> list[str]:
    """Cut a stretch of lower-case text that holds none of the marks that CMRC leaves out."""
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text.split()
