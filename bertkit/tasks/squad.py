"""Questions about passages: SQuAD 1.1 and 2.0, DRCD, CMRC 2018 in both layouts, and flat tables.

An answer stands where its file says. Where it does not, it is looked for near that place; one that
is nowhere in the passage (CMRC 2018 has such, written freely) keeps its text, which the official
scores count, and has the start -1: nothing can be learnt from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bertkit.errors import DataError
from bertkit.tasks.columns import Columns
from bertkit.tasks.inputs import Input, json_items
from bertkit.tasks.labelled import id_of, text_of
from bertkit.tasks.reading import Reading
from bertkit.tasks.records import Answer, QuestionRow, Where
from bertkit.tasks.tables import Table

QUESTIONS = ("question", "query", "query_text", "question_text")
CONTEXTS = ("context", "passage", "context_text", "paragraph", "document", "article", "text")
ANSWERS = ("answers", "answer")
IDS = ("id", "qid", "query_id", "question_id", "qas_id")
NOWHERE = -1


class Questions:
    """Builds the questions of one pass over a file: ids that are unique, answers that are found."""

    def __init__(self, source: Input, reading: Reading) -> None:
        self.source, self.reading = source, reading
        self.ids: set[str] = set()

    def row(
        self, record: dict[str, Any], names: dict[str, str], context: str, line: Where
    ) -> QuestionRow:
        """One question.

        Args:
            record: what the file says of it.
            names: the keys of "question", "id" and "answers" in the record.
            context: the passage.
            line: its place.

        Raises:
            DataError: it cannot be used.
        """
        question = self._question(record, names.get("question", "question"), line)
        identity = id_of(record, names.get("id"), self.reading.passed)
        if identity in self.ids:
            raise self.source.error(f"duplicate id: {identity!r} was given to two questions", line)
        self.ids.add(identity)
        answers, impossible = None, bool(record.get("is_impossible"))
        if "answers" in names and names["answers"] in record and self.reading.labels:
            given = list(self._given(record, names["answers"], line))
            impossible = impossible or not given
            if given and record.get("is_impossible"):
                self.reading.note(line, f"answers of an impossible question, left out: {identity}")
            found = [] if impossible else [self._find(a, context, line) for a in given]
            answers = tuple(found)
            if lost := [answer.text for answer in found if answer.start == NOWHERE]:
                what = "questions with an answer that is not in the passage"
                self.reading.note(line, f"{what}: {lost[0][:30]!r}")
        place = self.reading.place(line)
        self.reading.passed += 1
        return QuestionRow(identity, question, context, answers, impossible, place)

    def _question(self, record: dict[str, Any], key: str, line: Where) -> str:
        value = record.get(key)
        if isinstance(value, str) and not value.strip():
            # CMRC 2018 has one; the official scores count it.
            self.reading.note(line, "questions that are blank")
            return value
        return text_of(record, key, self.source, line)

    def _given(self, record: dict[str, Any], key: str, line: Where) -> Iterator[Answer]:
        """The answers as they stand: objects, strings, or lists of texts and of starts."""
        value = record[key]
        if isinstance(value, dict) and isinstance(value.get("text"), list):
            texts, starts = value["text"], value.get("answer_start") or value.get("start")
            if not isinstance(starts, list) or len(starts) != len(texts):
                starts = [NOWHERE] * len(texts)
            value = [
                {"text": text, "answer_start": start}
                for text, start in zip(texts, starts, strict=True)
            ]
        if value is None or value == "":
            return
        if isinstance(value, (str, dict)):
            start = record.get("answer_start", NOWHERE)
            value = [value if isinstance(value, dict) else {"text": value, "answer_start": start}]
        if not isinstance(value, list):
            raise self.source.error("bad answer: a list of answers is expected", line)
        for item in value:
            item = {"text": item} if isinstance(item, str) else item
            if not isinstance(item, dict) or not isinstance(item.get("text"), str):
                raise self.source.error("bad answer: an object with a text is expected", line)
            start = item.get("answer_start", NOWHERE)
            if not item["text"].strip():
                self.reading.note(line, "empty answers, left out")
                continue
            yield Answer(item["text"], start if type(start) is int else NOWHERE)

    def _find(self, answer: Answer, context: str, line: Where) -> Answer:
        text, start = answer
        if start >= 0 and context.startswith(text, start):
            return answer
        for wanted in (text, text.strip()):
            if (found := nearest(context, wanted, start)) >= 0:
                if start != NOWHERE or wanted != text:
                    what = f"{wanted[:30]!r} at {found}, not at {start}"
                    self.reading.note(line, f"answers found near the place given: {what}")
                return Answer(wanted, found)
        return Answer(text, NOWHERE)


def nearest(context: str, text: str, start: int) -> int:
    """Where `text` stands, as near to `start` as may be; -1 if nowhere."""
    start = max(start, 0)
    after = context.find(text, start)
    before = context.rfind(text, 0, start + len(text))
    if before >= 0 and (after < 0 or start - before <= after - start):
        return before
    return after


class SquadFile:
    """A JSON file of articles, paragraphs and questions.

    Attributes:
        labelled: the first questions have answers.
    """

    def __init__(self, source: Input, columns: Columns) -> None:
        self.source = source
        self.labelled = b'"answers"' in source.head

    def describe(self) -> list[str]:
        """What was understood."""
        head = self.source.head
        if b'"context_text"' in head:
            name = "CMRC 2018 JSON"
        else:
            version = "2.0" if b'"is_impossible"' in head else "1.1"
            name = f"SQuAD {version} JSON"
        return [f"{name}{'' if self.labelled else ', no answers'}"]

    def rows(self, reading: Reading) -> Iterator[QuestionRow]:
        """The questions, article by article."""
        questions = Questions(self.source, reading)
        number = 0
        for article in json_items(self.source, "data"):
            for paragraph in self._paragraphs(article, f"question {number + 1}"):
                context: str | None = None
                for qa in self._questions(paragraph, f"question {number + 1}"):
                    number += 1
                    names = _names(list(qa) if isinstance(qa, dict) else [], Columns())
                    place = f"question {number}"
                    if "id" in names:
                        place += f" ({qa[names['id']]})"
                    try:
                        if context is None:
                            context = self._context(paragraph, place)
                        if not isinstance(qa, dict):
                            raise self.source.error("broken SQuAD: a question is no object", place)
                        yield questions.row(qa, {"answers": "answers"} | names, context, place)
                    except DataError as error:
                        reading.refuse(error)

    def _context(self, paragraph: dict[str, Any], place: str) -> str:
        key = next((name for name in CONTEXTS if name in paragraph), "context")
        return text_of(paragraph, key, self.source, place)

    def _paragraphs(self, article: Any, place: str) -> list[dict[str, Any]]:
        found = article.get("paragraphs", [article]) if isinstance(article, dict) else None
        if isinstance(found, list) and all(isinstance(item, dict) for item in found):
            return found
        raise self.source.error("broken SQuAD: a list of paragraphs is expected", place)

    def _questions(self, paragraph: dict[str, Any], place: str) -> list[Any]:
        found = paragraph.get("qas")
        if not isinstance(found, list):
            known = ", ".join(map(repr, list(paragraph)[:10]))
            raise self.source.error(f"broken SQuAD: no list 'qas' beside {known}", place)
        return found


class QuestionTable:
    """A table with a question and its passage in each row.

    Attributes:
        labelled: there is a column of answers.
    """

    def __init__(self, table: Table, columns: Columns) -> None:
        self.table = table
        if not table.header and len(table.names) == 2:
            # Lines for prediction: question, tab, passage.
            self.names = {"question": table.names[0], "context": table.names[1]}
        else:
            self.names = _names(table.names, columns)
        told = (columns.text, columns.pair, columns.label, columns.id)
        missing = [name for name in told if name is not None and name not in table.names]
        if missing or not {"question", "context"} <= set(self.names):
            wanted = repr(missing[0]) if missing else "for the question, or none for the passage"
            what = f"there is no column {wanted}; there are {table.columns()}"
            raise table.source.error(what)
        self.labelled = "answers" in self.names

    def describe(self) -> list[str]:
        """What was understood."""
        header = "" if self.table.header else ", no header"
        parts = "; ".join(f"{role}: {name}" for role, name in self.names.items())
        return [f"{self.table.format}{header}", parts]

    def rows(self, reading: Reading) -> Iterator[QuestionRow]:
        """The questions."""
        questions = Questions(self.table.source, reading)
        for line, record in self.table.read(reading):
            try:
                context = text_of(record, self.names["context"], self.table.source, line)
                yield questions.row(record, self.names, context, line)
            except DataError as error:
                reading.refuse(error)


def _names(names: list[str], columns: Columns) -> dict[str, str]:
    """The columns of question, passage, answers and id."""
    found = {}
    roles = {
        "id": (columns.id, IDS),
        "question": (columns.text, QUESTIONS),
        "context": (columns.pair, CONTEXTS),
        "answers": (columns.label, ANSWERS),
    }
    for role, (told, usual) in roles.items():
        name = told or next((name for name in usual if name in names), None)
        if name is not None:
            found[role] = name
    return found
