"""What one row of a labelled file says, whatever the file's format (tasks/formats.py reads them).

All offsets are Python string indices into the row's own text, end exclusive.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

# Where a row stands in its file: the line from 1; where rows are no lines, "question 7 (q12)".
Where = int | str


class Place(NamedTuple):
    """Where a row stands: the file, and where in it."""

    path: str
    line: Where

    def __str__(self) -> str:
        at = f":{self.line}" if isinstance(self.line, int) else f", {self.line}"
        return self.path + at


class Span(NamedTuple):
    """A labelled stretch of a text."""

    start: int
    end: int
    label: str


class Answer(NamedTuple):
    """An answer of the passage; start -1: not there (as in CMRC 2018), but it counts in scores."""

    text: str
    start: int


@dataclass(frozen=True, slots=True)
class TextRow:
    """A text, or a pair, to classify or to give a number.

    Attributes:
        id: the row's own id; where the file has none, its number from 0.
        text: the text, or the first of the pair.
        pair: the second; None for single texts.
        label: a name; names, where a text may have several; a number (regress); None: unlabelled.
        place: where the row stands.
    """

    id: str
    text: str
    pair: str | None
    label: str | tuple[str, ...] | float | None
    place: Place


@dataclass(frozen=True, slots=True)
class TagRow:
    """A text with labelled stretches.

    Attributes:
        id: as TextRow's.
        text: words of a CoNLL file are joined by spaces, characters of a Chinese one by nothing.
        entities: in the order of their starts; None: unlabelled. Of plain token labels (parts of
            speech) there is one for each word.
        words: the stretches that the file itself calls words (or characters); None: it gives text
            and offsets, and the tokenizer's own words are taken.
        place: of the first line of the row.
    """

    id: str
    text: str
    entities: tuple[Span, ...] | None
    words: tuple[tuple[int, int], ...] | None
    place: Place


@dataclass(frozen=True, slots=True)
class QuestionRow:
    """A question about a passage.

    Attributes:
        id: of the question; unique in its file.
        question: the question.
        context: the passage that answers are cut from.
        answers: those that count as right; empty where there is none (`is_impossible`); None:
            unlabelled.
        is_impossible: the file says that the passage does not answer it (SQuAD 2.0).
        place: where the question stands.
    """

    id: str
    question: str
    context: str
    answers: tuple[Answer, ...] | None
    is_impossible: bool
    place: Place


@dataclass(frozen=True, slots=True)
class ChoiceRow:
    """A question with choices, one of them right.

    Attributes:
        id: as TextRow's.
        context: what the question is about, or the beginning to be continued.
        question: joined to the front of each choice; may be empty.
        choices: at least two.
        label: the number of the right one, from 0; None: unlabelled.
        place: where the row stands.
    """

    id: str
    context: str
    question: str
    choices: tuple[str, ...]
    label: int | None
    place: Place


Row = TextRow | TagRow | QuestionRow | ChoiceRow
