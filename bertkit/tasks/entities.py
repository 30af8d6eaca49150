"""Texts with labelled stretches in JSON: CLUENER, doccano, {text, entities}, lists of tokens.

| layout | keys | ends |
|---|---|---|
| CLUENER | label: {type: {surface: [[start, end]]}} | inclusive |
| doccano | label, labels or entities: [[start, end, type]] | exclusive |
| spans | entities, spans, label ...: [{start, end, label}] | exclusive; where the surface is given (word, entity, surface) it tells |
| tokens | tokens or words, or text as a list, with ner_tags, tags or labels | |

Of nested and overlapping entities the longest is kept, of equally long ones the first.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from bertkit.errors import DataError
from bertkit.tasks.columns import LABELS, Columns, plain_name
from bertkit.tasks.conll import check_tags, join_words, joiner_of, spans_of_words
from bertkit.tasks.labelled import id_of, text_of
from bertkit.tasks.reading import Reading
from bertkit.tasks.records import Span, TagRow, Where
from bertkit.tasks.schemes import detect_scheme, illegal
from bertkit.tasks.tables import Table
from bertkit.text.sentences import word_spans

TEXTS = ("text", "text_a", "sentence", "data", "content", "raw_text", "context", "review")
TOKENS = ("tokens", "words", "text", "sentence")
SPANS = ("entities", "label", "labels", "spans", "ents", "annotations")
TAGS = ("ner_tags", "tags", "labels", "label", "pos_tags", "chunk_tags", "ner")
STARTS = ("start", "start_offset", "start_idx", "begin", "start_pos")
ENDS = ("end", "end_offset", "end_idx", "end_pos")
TYPES = ("label", "type", "entity_group", "entity_type", "tag", "category")
SURFACES = ("word", "surface", "value", "entity", "text", "mention")
Entity = tuple[Span, bool]  # the flag: its end is settled, not taken from the layout


class EntityTable:
    """A table whose rows are texts with entities, or lists of tokens with tags.

    Attributes:
        labelled: there is a column of entities or tags.
        whole: the column of labels of whole texts, if there is one instead.
        layout: "CLUENER", "[start, end, type] lists", "{start, end, label} objects", "tokens".
    """

    def __init__(self, table: Table, columns: Columns) -> None:
        self.table = table
        sample = table.sample
        self.tokens = _first(table.names, (columns.text,) if columns.text else TOKENS)
        if self.tokens is not None and not _any_list(sample, self.tokens):
            self.tokens = None
        self.text = self.tokens or _first(table.names, (columns.text,) if columns.text else TEXTS)
        if self.text is None and columns.text is None and len(table.names) == 1:
            self.text = table.names[0]
        if self.text is None:
            known = columns.text or "text"
            hint = (
                "" if table.header else "; --text names a column; labels of texts are for classify"
            )
            what = f"there is no column {known!r}; there are {table.columns()}{hint}"
            raise table.source.error(what)
        names = [name for name in table.names if name != self.text]
        wanted = (columns.label,) if columns.label else TAGS if self.tokens else SPANS
        self.label = _first(names, wanted)
        if columns.label and self.label is None:
            what = f"there is no column {columns.label!r}; there are {table.columns()}"
            raise table.source.error(what)
        self.id = _first(names, (columns.id,) if columns.id else ("id", "idx", "guid"))
        if columns.label is None and not any(
            isinstance(record.get(self.label or ""), list | dict | None) for record in sample
        ):
            self.label = None
        of_texts = (name for name in names if plain_name(name) in LABELS)
        self.whole = next(of_texts, None) if self.label is None else None
        self.labelled = self.label is not None
        self.layout = self._layout()
        self.scheme, self.joiner = columns.scheme or "BIO", columns.joiner
        self.names = table.labels.get(self.label or "", [])
        if self.tokens is not None:
            self._look_at_tokens(columns)

    def _layout(self) -> str:
        if self.tokens is not None:
            return "tokens"
        values = [record.get(self.label or "") for record in self.table.sample]
        if any(isinstance(value, dict) for value in values):
            return "CLUENER"
        items = [item for value in values if isinstance(value, list) for item in value]
        if any(isinstance(item, dict) for item in items):
            return "{start, end, label} objects"
        return "[start, end, type] lists"

    def _look_at_tokens(self, columns: Columns) -> None:
        """The scheme and the joiner of lists of tokens."""
        words = [w for r in self.table.sample for w in _list(r.get(self.tokens or ""))]
        self.joiner = joiner_of(list(map(str, words))) if self.joiner is None else self.joiner
        tags = [t for r in self.table.sample for t in self._tags(r.get(self.label or ""))]
        if columns.scheme is None and self.labelled:
            try:
                self.scheme = detect_scheme(tags)
            except DataError as error:
                raise self.table.source.error(error.what) from error

    def _tags(self, value: Any) -> list[str]:
        names = self.names
        return [
            names[tag] if isinstance(tag, int) and 0 <= tag < len(names) else str(tag)
            for tag in _list(value)
        ]

    def describe(self) -> list[str]:
        """What was understood."""
        lines = [f"{self.table.format}, {self.layout if self.labelled else 'no entities'}"]
        parts = {"id": self.id, "text": self.text, "entities": self.label}
        lines.append("; ".join(f"{role}: {name}" for role, name in parts.items() if name))
        if self.tokens is not None:
            joined = "spaces" if self.joiner == " " else "nothing"
            lines.append(f"words joined by {joined}; scheme: {self.scheme}")
        return lines

    def rows(self, reading: Reading) -> Iterator[TagRow]:
        """The rows."""
        for line, record in self.table.read(reading):
            try:
                if self.tokens is not None:
                    row = self._token_row(record, line, reading)
                else:
                    row = self._text_row(record, line, reading)
            except DataError as error:
                reading.refuse(error)
                continue
            reading.passed += 1
            yield row

    def _text_row(self, record: dict[str, Any], line: Where, reading: Reading) -> TagRow:
        assert self.text is not None
        text = text_of(record, self.text, self.table.source, line)
        entities = None
        if self.label is not None and reading.labels:
            spans = [self._settle(span, text, line) for span in self._spans(record, line)]
            entities = longest(text, spans, line, reading)
            note_parts_of_words(text, entities, line, reading)
        identity = id_of(record, self.id, reading.passed)
        return TagRow(identity, text, entities, None, reading.place(line))

    def _token_row(self, record: dict[str, Any], line: Where, reading: Reading) -> TagRow:
        source = self.table.source
        words = _list(record.get(self.tokens or ""))
        if not words or not all(isinstance(word, str) for word in words):
            raise source.error(f"no text: {self.tokens} is no list of strings", line)
        words = [word or " " for word in words]
        text, places = join_words(words, self.joiner or "")
        if not text.strip() or "\0" in text:
            raise source.error(f"empty text: {self.tokens} is blank, or holds NUL", line)
        entities = None
        if self.label is not None and reading.labels:
            tags = self._tags(record.get(self.label))
            if len(tags) != len(words):
                raise source.error(f"tags: {len(tags)} of them for {len(words)} tokens", line)
            check_tags(tags, self.scheme, source, [line] * len(tags))
            for i in illegal(tags, self.scheme):
                reading.note(line, f"illegal tags, read as conlleval reads them: {tags[i]}")
            entities = spans_of_words(tags, places, self.scheme)
        identity = id_of(record, self.id, reading.passed)
        return TagRow(identity, text, entities, places, reading.place(line))

    def _spans(self, record: dict[str, Any], line: Where) -> Iterator[tuple[Any, Any, Any, Any]]:
        """(start, end exclusive if there is no surface, type, surface or None) as they stand."""
        value = record.get(self.label or "")
        if value is None and self.label not in record:
            raise self.table.source.error(f"no label: {self.label} is missing", line)
        if isinstance(value, dict):
            yield from self._cluener(value, line)
            return
        if value is not None and not isinstance(value, list):
            raise self._bad("a list is expected", line)
        for item in value or ():
            if isinstance(item, dict):
                yield _of_object(item)
            elif isinstance(item, list) and len(item) == 3:
                yield item[0], item[1], item[2], None
            else:
                raise self._bad("[start, end, type] or an object is expected", line)

    def _cluener(self, value: dict[str, Any], line: Where) -> Iterator[tuple[Any, Any, Any, Any]]:
        for label, surfaces in value.items():
            if not isinstance(surfaces, dict):
                raise self._bad(f"{{surface: [[start, end]]}} is expected of {label!r}", line)
            for surface, places in surfaces.items():
                for place in _list(places):
                    if not isinstance(place, list) or len(place) != 2:
                        raise self._bad(f"[[start, end]] is expected of {surface!r}", line)
                    yield place[0], place[1], label, surface

    def _settle(self, span: tuple[Any, Any, Any, Any], text: str, line: Where) -> Span:
        """Check one entity against its text; the surface tells whether the end is inclusive."""
        start, end, label, surface = span
        if type(start) is not int or type(end) is not int:
            raise self._bad(f"the offsets {start!r} and {end!r} are no whole numbers", line)
        if not isinstance(label, str) or not label.strip():
            raise self._bad(f"the type of [{start}, {end}] is {label!r}", line)
        if isinstance(surface, str):
            ends = (end + 1, end) if self.layout == "CLUENER" else (end, end + 1)
            fitting = [e for e in ends if 0 <= start < e and text[start:e] == surface]
            if not fitting:
                there = f"the text has {text[max(start, 0) : max(end, 0) + 1]!r}"
                raise self._bad(f"{surface!r} is not at [{start}, {end}], {there}", line)
            end = fitting[0]
        if not 0 <= start < end <= len(text):
            what = "is empty or reversed" if start >= end else "lies outside of the text"
            raise self._bad(f"[{start}, {end}] {what}, which has {len(text)} characters", line)
        return Span(start, end, label.strip())

    def _bad(self, what: str, line: Where) -> DataError:
        return self.table.source.error(f"bad entity: {what}", line)


def _of_object(item: dict[str, Any]) -> tuple[Any, Any, Any, Any]:
    def one(names: tuple[str, ...]) -> Any:
        return next((item[name] for name in names if name in item), None)

    label = one(TYPES)
    names: tuple[str, ...] = SURFACES
    if label is None:
        label, names = item.get("entity"), tuple(name for name in SURFACES if name != "entity")
    return one(STARTS), one(ENDS), label, one(names)


def longest(text: str, spans: list[Span], line: Where, reading: Reading) -> tuple[Span, ...]:
    """Disjoint entities, ascending: of nested and overlapping ones the longest, the first."""
    kept: list[Span] = []
    for span in sorted(spans, key=lambda s: s.start - s.end):
        rival = next((k for k in kept if span.start < k.end and k.start < span.end), None)
        if rival is None:
            kept.append(span)
        elif rival == span:
            reading.note(line, f"entities given twice: {_show(text, span)}")
        else:
            within = rival.start <= span.start and span.end <= rival.end
            kind = "nested" if within else "overlapping"
            shown = f"{_show(text, span)} in {_show(text, rival)}"
            reading.note(line, f"{kind} entities, the longest kept: {shown}")
    return tuple(sorted(kept))


def note_parts_of_words(text: str, spans: Sequence[Span], line: Where, reading: Reading) -> None:
    """List the entities that no tags of whole words can say."""
    if not spans:
        return
    words = word_spans(text)
    starts, ends = {start for start, _ in words}, {end for _, end in words}
    for span in spans:
        if span.start not in starts or span.end not in ends:
            touched = [w for w in words if w[0] < span.end and span.start < w[1]]
            whole = text[touched[0][0] : touched[-1][1]] if touched else ""
            shown = f"{_show(text, span)} is read as {whole[:40]!r}"
            reading.note(line, f"entities that do not begin and end with words: {shown}")


def _show(text: str, span: Span) -> str:
    surface = text[span.start : span.end]
    return f"{span.label} {surface if len(surface) <= 30 else surface[:27] + '...'!r}"


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _any_list(sample: list[dict[str, Any]], name: str) -> bool:
    return any(isinstance(record.get(name), list) for record in sample)


def _first(names: list[str], wanted: tuple[str | None, ...]) -> str | None:
    return next((name for name in wanted if name in names), None)
