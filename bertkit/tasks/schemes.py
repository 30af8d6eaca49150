"""Tag schemes: how labels of single words spell stretches of words.

| scheme | first | inside | last | alone | |
|---|---|---|---|---|---|
| BIO | B | I | I | B | also written IOB2; IOB1 is read as BIO |
| BIOS | B | I | I | S | |
| BIOES | B | I | E | S | |
| BMES | B | M | E | S | |
| BILOU | B | I | L | U | |
| IO | I | I | I | I | two neighbours of one type become one |
| plain | | | | | one label for each word, as parts of speech |

Whatever a file does, it is read as conlleval.pl of CoNLL-2000 reads it (seqeval's default is the
same): a new stretch begins where the type changes, even without a B.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from bertkit.errors import DataError
from bertkit.tasks.records import Span

OUTSIDE = "O"
PLAIN = "plain"
# The letters for first, inside, last and alone.
LETTERS = {
    "BIO": "BIIB",
    "BIOS": "BIIS",
    "BIOES": "BIES",
    "BMES": "BMES",
    "BILOU": "BILU",
    "IO": "IIII",
}
SCHEMES = (*LETTERS, PLAIN)
# Every scheme's letters in those of BIOES.
_ROLES = {"B": "B", "I": "I", "M": "I", "E": "E", "L": "E", "S": "S", "U": "S", "W": "S"}
_TAG = re.compile(r"([BIMELSUW])(?:[-_](.+))?", re.DOTALL)


class Tag(NamedTuple):
    """A tag taken apart: B, I, E, S or O, and the type, "" outside."""

    role: str
    type: str


@lru_cache(maxsize=1 << 14)
def parse(tag: str) -> Tag:
    """Take a tag apart; what is no tag of any scheme stands outside. A bare B has the type _."""
    match = _TAG.fullmatch(tag)
    return Tag(_ROLES[match[1]], match[2] or "_") if match else Tag(OUTSIDE, "")


def detect_scheme(tags: Iterable[str]) -> str:
    """Name the scheme that tags are written in, from all of a file or a good part of it.

    Returns:
        One of SCHEMES. Where several would do (only O and S-), they read alike.

    Raises:
        DataError: some tags have prefixes and some have not, or the prefixes belong to no scheme.
    """
    kinds = set(tags) - {OUTSIDE}
    prefixed = {tag for tag in kinds if _TAG.fullmatch(tag)}
    bare = {tag for tag in prefixed if len(tag) == 1}
    if not kinds:
        return "BIO"
    if not prefixed or (bare == prefixed and not _segmentation(kinds)):
        return PLAIN
    if odd := kinds - prefixed:
        what = f"tags with and without prefixes: {min(prefixed)!r}, {min(odd)!r}"
        raise DataError(f"mixed schemes: {what}; name the scheme (plain: one label a word)")
    letters = {tag[0] for tag in prefixed}
    for scheme in ("IO", "BIO", "BIOES", "BMES", "BILOU", "BIOS"):
        if letters <= set(LETTERS[scheme]) and not _rather_bios(letters, scheme):
            return scheme
    if letters <= set("BMEW"):
        return "BMES"
    seen = ", ".join(sorted(letters))
    raise DataError(
        f"mixed schemes: the prefixes {seen} belong to no scheme ({', '.join(LETTERS)})"
    )


def _rather_bios(letters: set[str], scheme: str) -> bool:
    """B and S without an E, or I and S: the last word of a stretch has no letter of its own."""
    return scheme in ("BIOES", "BMES") and "E" not in letters and bool(letters & {"B", "I"})


def _segmentation(kinds: set[str]) -> bool:
    """Bare letters are a scheme without types (word segmentation), or the names of labels."""
    return "B" in kinds and (kinds <= set("BI") or kinds <= set("BMES") or kinds <= set("BIES"))


def to_spans(tags: Sequence[str], scheme: str = "BIO") -> list[Span]:
    """Read the stretches that tags spell; `start` and `end` count words, end exclusive.

    Of "plain" labels each word is a stretch, also those labelled O.
    """
    if scheme == PLAIN:
        return [Span(i, i + 1, tag) for i, tag in enumerate(tags)]
    spans: list[Span] = []
    start = -1
    before = Tag(OUTSIDE, "")
    for i, tag in enumerate(map(parse, tags)):
        if start >= 0 and (tag.role == OUTSIDE or _breaks(before, tag)):
            spans.append(Span(start, i, before.type))
            start = -1
        if start < 0 and tag.role != OUTSIDE:
            start = i
        before = tag
    if start >= 0:
        spans.append(Span(start, len(tags), before.type))
    return spans


def _breaks(before: Tag, tag: Tag) -> bool:
    """Two neighbours, neither outside, belong to two stretches (conlleval's endOfChunk)."""
    return before.role in "ES" or tag.role in "BS" or before.type != tag.type


def to_tags(
    spans: Iterable[Span], length: int, scheme: str = "BIO", loose: Collection[Span] = ()
) -> list[str]:
    """Spell disjoint stretches of `length` words; of "plain", words without one are O.

    Those in `loose` are spelled illegally, as a model did: conlleval reads them, strict mode not.
    """
    tags = [OUTSIDE] * length
    for span in spans:
        start, end, label = span
        assert 0 <= start < end <= length, "a span lies outside of the words"
        assert all(tag == OUTSIDE for tag in tags[start:end]) or scheme == PLAIN, "spans overlap"
        if scheme == PLAIN:
            tags[start:end] = [label] * (end - start)
            continue
        first, inside, last, alone = tuple(LETTERS[scheme])
        if span in loose:
            first, alone = inside, first if scheme == "BIOS" else last
        letters = [first, *[inside] * (end - start - 2), last] if end - start > 1 else [alone]
        tags[start:end] = [f"{letter}-{label}" for letter in letters]
    return tags


def convert(tags: Sequence[str], source: str, target: str) -> list[str]:
    """Spell the same stretches in another scheme; between "plain" and others it makes no sense."""
    assert (source == PLAIN) == (target == PLAIN), "plain labels spell no stretches"
    return to_tags(to_spans(tags, source), len(tags), target)


def tag_set(types: Iterable[str], scheme: str = "BIO") -> list[str]:
    """Every tag for these types, in their order, O first; of "plain" the types themselves."""
    if scheme == PLAIN:
        return list(types)
    letters = list(dict.fromkeys(LETTERS[scheme]))
    return [OUTSIDE, *(f"{letter}-{name}" for name in types for letter in letters)]


def allowed(
    tags: Sequence[str], scheme: str = "BIO"
) -> tuple[list[bool], list[list[bool]], list[bool]]:
    """Which tags may stand first, which may follow which, and which may stand last.

    Returns:
        (starts [C], transitions [C][C] from row to column, ends [C]).
    """
    if scheme in (PLAIN, "IO"):
        every = [True] * len(tags)
        return every, [list(every) for _ in tags], list(every)
    parsed = [parse(tag) for tag in tags]
    outside = Tag(OUTSIDE, "")
    transitions = [[_follows(a, b, scheme) for b in parsed] for a in parsed]
    starts = [_follows(outside, tag, scheme) for tag in parsed]
    ends = [_follows(tag, outside, scheme) for tag in parsed]
    return starts, transitions, ends


def _follows(a: Tag, b: Tag, scheme: str) -> bool:
    """Tag `b` may stand right after `a`."""
    goes_on = b.role in "IE"
    if a.role in "BI":
        if goes_on:
            return a.type == b.type
        # An open stretch may end here only where its last word has no letter of its own.
        return scheme == "BIO" or (scheme == "BIOS" and a.role == "I")
    return not goes_on


def illegal(tags: Sequence[str], scheme: str = "BIO") -> list[int]:
    """The words whose tags break the scheme: they go on with what never began, or end too early.

    Of a stretch that breaks off (B- of BIOES with no E-) the last word is named.
    """
    if scheme in (PLAIN, "IO"):
        return []
    outside = Tag(OUTSIDE, "")
    parsed = [parse(tag) for tag in tags]
    found = set()
    for i, (a, b) in enumerate(zip([outside, *parsed], [*parsed, outside], strict=True)):
        if not _follows(a, b, scheme):
            found.add(i if b.role in "IE" else i - 1)
    return sorted(found)
