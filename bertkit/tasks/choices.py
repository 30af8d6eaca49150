"""Multiple choice: SWAG's CSV, JSONL with choices, RACE, C3, ARC.

SWAG: sent1 is the context, sent2 begins each ending. C3 is a JSON list of [sentences, questions,
id]; its sentences are joined by line ends. RACE has several questions to an article.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from bertkit.errors import DataError
from bertkit.tasks.columns import Columns
from bertkit.tasks.inputs import Input, json_items
from bertkit.tasks.labelled import id_of
from bertkit.tasks.reading import Reading
from bertkit.tasks.records import ChoiceRow, Where
from bertkit.tasks.tables import Table

CONTEXTS = "context sent1 ctx article passage premise paragraph document text startphrase".split()
QUESTIONS = "question sent2 query question_stem stem prompt ask_for".split()
CHOICES = "choices options endings choice option answer_choices candidates".split()
LABELS = "label answer answerKey gold correct answers labels target".split()
IDS = "id idx index ind qid guid".split()
SERIAL = re.compile(r"(ending|choice|option|answer|hypothesis|solution|sol)_?(\d+|[a-h])", re.I)


class ChoiceTable:
    """A table with a question and its choices in each row, or an article with several questions.

    Attributes:
        labelled: there is a column of right answers.
    """

    def __init__(self, table: Table, columns: Columns) -> None:
        self.table = table
        names = table.names
        told = (columns.text, columns.pair, columns.label, columns.id)
        missing = next((name for name in told if name is not None and name not in names), None)
        if missing is not None:
            raise table.source.error(f"there is no column {missing!r}; there are {table.columns()}")
        if not table.header and len(names) >= 3 and columns.text is None:
            # Lines for prediction: context, tab, choice, tab, choice ...
            self.serial = names[1:]
            self.context: str | None = names[0]
            self.question = self.choices = self.label = self.id = None
        else:
            self.serial = sorted(
                (name for name in names if SERIAL.fullmatch(name)), key=lambda name: _serial(name)
            )
            self.choices = _first(names, CHOICES)
            self.context = columns.text or _first(names, CONTEXTS)
            self.question = columns.pair or _first(names, [*QUESTIONS, "questions"])
            self.label = columns.label or _first(names, LABELS)
            self.id = columns.id or _first(names, IDS)
        if (self.choices is None and len(self.serial) < 2) or not (self.context or self.question):
            wanted = "choices" if self.context or self.question else "the context"
            what = f"there is no column for {wanted}; there are {table.columns()}"
            raise table.source.error(what)
        self.labelled = self.label is not None

    def describe(self) -> list[str]:
        """What was understood."""
        parts = {
            "id": self.id,
            "context": self.context,
            "question": self.question,
            "choices": self.choices or ", ".join(self.serial),
            "label": self.label,
        }
        header = "" if self.table.header else ", no header"
        shown = "; ".join(f"{role}: {name}" for role, name in parts.items() if name)
        return [f"{self.table.format}{header}", shown]

    def rows(self, reading: Reading) -> Iterator[ChoiceRow]:
        """The questions."""
        for line, record in self.table.read(reading):
            several = isinstance(record.get(self.question or ""), list)
            for one in _race(record, self) if several else [record]:
                try:
                    row = self._row(one, line, reading)
                except DataError as error:
                    reading.refuse(error)
                    continue
                reading.passed += 1
                yield row

    def _row(self, record: dict[str, Any], line: Where, reading: Reading) -> ChoiceRow:
        source = self.table.source
        if self.choices is not None and record.get(self.choices) is not None:
            given, letters = _choices(record[self.choices])
        else:
            given, letters = [record.get(name) for name in self.serial], []
            while given and given[-1] in (None, ""):
                given.pop()  # questions of one file may have fewer choices than others
        label = record.get(self.label or "")
        what = {
            "context": _joined(record.get(self.context or "", "")),
            "question": _joined(record.get(self.question or "", "")),
            "choices": given,
            "letters": letters,
            "label": label if self.labelled and reading.labels else None,
        }
        wanted = self.labelled and reading.labels
        identity = id_of(record, self.id, reading.passed)
        return choice_row(what, identity, line, (source, reading, wanted))


def choice_row(
    what: dict[str, Any], identity: str, line: Where, about: tuple[Input, Reading, bool]
) -> ChoiceRow:
    """Check and build one row.

    Args:
        what: context, question, choices, letters (the choices' own names) and label.
        identity: the id.
        line: its place.
        about: the file, the pass over it, and whether the label is wanted.

    Raises:
        DataError: fewer than two choices, an empty text, a label that names none of them.
    """
    source, reading, wanted = about
    choices, context, question = what["choices"], what["context"], what["question"]
    if len(choices) < 2:
        raise source.error(f"choices: {len(choices)} of them; at least two are needed", line)
    if not isinstance(context, str) or not isinstance(question, str):
        raise source.error("no text: the context or the question is not a string", line)
    if not all(isinstance(choice, str) and choice.strip() for choice in choices):
        raise source.error("empty text: a choice is blank or not a string", line)
    if not (context + question).strip():
        raise source.error("empty text: there is neither a context nor a question", line)
    if "\0" in context + question + "".join(choices):
        raise source.error("NUL: a text holds a NUL character; is this text?", line)
    label = None
    if wanted:
        label = _label(what["label"], choices, what["letters"])
        if label is None or not 0 <= label < len(choices):
            shown = f"{what['label']!r} names none of {len(choices)} choices"
            hint = "a number from 0, a letter from A, or the choice itself is expected"
            raise source.error(f"bad label: {shown}; {hint}", line)
    place = reading.place(line)
    return ChoiceRow(identity, context, question, tuple(choices), label, place)


def _label(value: Any, choices: list[str], letters: list[str]) -> int | None:
    """The number of the right choice, from 0."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if type(value) is int:
        return value
    if not isinstance(value, str):
        return None
    value = value.strip()
    if value in letters:
        return letters.index(value)
    if choices.count(value) == 1:
        return choices.index(value)
    if value.isascii() and value.isdecimal():
        return int(value)
    return ord(value.upper()) - ord("A") if len(value) == 1 and value.isalpha() else None


def _choices(value: Any) -> tuple[list[Any], list[str]]:
    """The choices and their own names: a list of strings or objects, or ARC's two lists."""
    if isinstance(value, dict) and isinstance(value.get("text"), list):
        letters = value.get("label")
        return value["text"], list(map(str, letters)) if isinstance(letters, list) else []
    if isinstance(value, dict):  # {"A": ..., "B": ...}
        return list(value.values()), list(map(str, value))
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        letters = [str(item.get("label", "")) for item in value]
        return [item.get("text") for item in value], letters
    return (value, []) if isinstance(value, list) else ([], [])


def _race(record: dict[str, Any], table: ChoiceTable) -> Iterator[dict[str, Any]]:
    """The questions of one article, each as a record of its own."""
    for i, question in enumerate(record[table.question or ""]):
        one = {**record, table.question or "": question}
        for key in (table.choices, table.label):
            values = record.get(key or "")
            if isinstance(values, list):
                one[key or ""] = values[i] if i < len(values) else None
        if table.id is not None and record.get(table.id) is not None:
            one[table.id] = f"{record[table.id]}-{i}"
        yield one


def _joined(value: Any) -> Any:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return "\n".join(value)
    return "" if value is None else value


def _serial(name: str) -> tuple[int, str]:
    match = SERIAL.fullmatch(name)
    assert match is not None
    return (int(match[2]), "") if match[2].isdecimal() else (0, match[2].lower())


def _first(names: list[str], wanted: list[str]) -> str | None:
    return next((name for name in wanted if name in names), None)


class C3File:
    """C3: a JSON list of [sentences, questions, id].

    Attributes:
        labelled: the first questions have answers.
    """

    def __init__(self, source: Input) -> None:
        self.source = source
        self.labelled = b'"answer"' in source.head

    def describe(self) -> list[str]:
        """What was understood."""
        return [f"C3 JSON{'' if self.labelled else ', no answers'}"]

    def rows(self, reading: Reading) -> Iterator[ChoiceRow]:
        """The questions, numbered through the file."""
        number = 0
        for nth, item in enumerate(json_items(self.source), start=1):
            match item:
                case [list() as sentences, list() as questions, *rest]:
                    identity = str(rest[0]) if rest else str(number)
                case _:
                    what = "broken C3: [sentences, questions, id] is expected"
                    reading.refuse(self.source.error(what, f"item {nth}"))
                    continue
            for i, question in enumerate(questions):
                number += 1
                try:
                    yield self._row(sentences, question, f"{identity}-{i}", number, reading)
                except DataError as error:
                    reading.refuse(error)

    def _row(
        self, sentences: list[Any], question: Any, identity: str, number: int, reading: Reading
    ) -> ChoiceRow:
        place = f"question {number} ({identity})"
        if not isinstance(question, dict):
            raise self.source.error("broken C3: a question is no object", place)
        what = {
            "context": _joined(sentences),
            "question": question.get("question", ""),
            "choices": _choices(question.get("choice"))[0],
            "letters": [],
            "label": question.get("answer"),
        }
        return choice_row(
            what, identity, place, (self.source, reading, self.labelled and reading.labels)
        )
