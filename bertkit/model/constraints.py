"""Which tag may follow which, read from the names of the tags; no torch is needed for it.

    BIO     B-PER I-PER            an entity begins with B and goes on with I
    BIOES   B-PER I-PER E-PER      it also ends with E; S-PER is an entity of one word
    BMES    B-PER M-PER E-PER      the same, M for I; BILOU has L for E and U for S
    BIOS    B-PER I-PER            as BIO, but an entity of one word is an S

`O` is no entity. Names without a type (`B M E S`, of word segmentation) follow the same rules.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

Allowed = tuple[list[bool], list[list[bool]], list[bool]]
_NAME = re.compile(r"([BIMELSUW])(?:[-_](.+))?", re.DOTALL)
_ROLES = {"B": "B", "I": "I", "M": "I", "E": "E", "L": "E", "S": "S", "U": "S", "W": "S"}


class _Tag(NamedTuple):
    """A name taken apart: B, I, E, S or O, and the type."""

    role: str
    kind: str


def constraints_of(labels: Sequence[str]) -> Allowed:
    """The tags that may begin, follow one another and end, by the scheme of the labels.

    Labels of no such scheme (parts of speech, `LABEL_0`, I and O alone) may follow as they like.
    Where no label is an S, an entity of one word is a B alone.

    Args:
        labels: the names, by their numbers.

    Returns:
        starts [C], transitions [C][C] (from row to column), ends [C].
    """
    tags = _taken_apart(labels)
    if tags is None or not any(tag.role == "B" for tag in tags):
        free = [True] * len(labels)
        return free, [free[:] for _ in labels], free[:]
    closes = any(tag.role == "E" for tag in tags)
    alone = not any(tag.role == "S" for tag in tags)

    def complete(tag: _Tag) -> bool:
        return tag.role in "OES" or (not closes if tag.role == "I" else alone)

    def follows(tag: _Tag, after: _Tag) -> bool:
        return _goes_on(tag, after) if after.role in "IE" else complete(tag)

    starts = [tag.role not in "IE" for tag in tags]
    transitions = [[follows(tag, after) for after in tags] for tag in tags]
    return starts, transitions, [complete(tag) for tag in tags]


def continuations_of(labels: Sequence[str]) -> list[list[bool]]:
    """[C][C]: whether a word with the column's tag goes on with the entity of the row's tag.

    All false for labels of no scheme.
    """
    tags = _taken_apart(labels) or [_Tag("O", "")] * len(labels)
    return [[_goes_on(tag, after) for after in tags] for tag in tags]


def distances_of(labels: Sequence[str]) -> list[list[float]]:
    """[C][C]: how far apart two tags are, for the repair of tags that no scheme allows.

    0 the same tag; 1 another tag of the same type; 2 an entity made of none; 2.5 an entity given
    up; 3 another type. So `O I-PER` becomes `O B-PER`, and `B-PER O` in BIOES becomes `S-PER O`.
    """
    tags = _taken_apart(labels)

    def distance(i: int, j: int) -> float:
        if i == j or tags is None:
            return float(i != j)
        a, b = tags[i], tags[j]
        if a.role == "O" or b.role == "O":
            return 2.0 if a.role == "O" else 2.5
        return 1.0 if a.kind == b.kind else 3.0

    return [[distance(i, j) for j in range(len(labels))] for i in range(len(labels))]


def _goes_on(tag: _Tag, after: _Tag) -> bool:
    return tag.role in "BI" and after.role in "IE" and tag.kind == after.kind


def _taken_apart(labels: Sequence[str]) -> list[_Tag] | None:
    """The parts of each name; None where a name is of no scheme."""
    found = []
    for label in labels:
        match = _NAME.fullmatch(label)
        if match is None and label != "O":
            return None
        found.append(_Tag(_ROLES[match[1]], match[2] or "") if match else _Tag("O", ""))
    return found
