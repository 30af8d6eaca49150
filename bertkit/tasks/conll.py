"""CoNLL columns: a word and its tag on each line, a blank line between sentences.

Columns are separated by tabs, or where the file has none by spaces; the word stands first, the tag
last. An empty word, and in files without tabs a line that begins with a space, stands for the word
" ": files of single characters have such lines for the spaces of their texts. -DOCSTART- lines and
comments (a # line that has not the columns of the others, or no tag) are passed over.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate
from operator import sub

from bertkit.errors import DataError
from bertkit.tasks.columns import Columns
from bertkit.tasks.inputs import Input, Line
from bertkit.tasks.reading import Reading
from bertkit.tasks.records import Span, TagRow, Where
from bertkit.tasks.schemes import (
    LETTERS,
    OUTSIDE,
    PLAIN,
    detect_scheme,
    illegal,
    parse,
    to_spans,
    to_tags,
)

EXTENSIONS = (".conll", ".bio", ".iob", ".iob2", ".bioes", ".bmes", ".bios", ".col", ".ner")
LOOK = 20_000
DOCSTART = "-DOCSTART-"
_HAN = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]")
_TAG_LIKE = re.compile(r"O|[BIMELSUW][-_]\S+|[BIMES]")


class ConllFile:
    """A file of CoNLL columns.

    Attributes:
        labelled: there is a column beside the words.
        separator: a tab or a space.
        width: how many columns there are.
        joiner: what is put between the words to make a text of them.
        scheme: of the tags; "BIO" where there are none.
        iob1: stretches begin with I-, and with B- only right behind another of their type.
    """

    def __init__(self, source: Input, columns: Columns) -> None:
        self.source = source
        lines = [line for line in source.first_lines(LOOK) if line.strip(" \t")]
        self.separator = "\t" if 2 * sum("\t" in line for line in lines) > len(lines) else " "
        cells = [self._split(line) for line in lines]
        self.width = Counter(map(len, cells)).most_common(1)[0][0]
        cells = [c for c in cells if len(c) == self.width and c[0] != DOCSTART]
        self.labelled = self.width > 1
        self._word, self._tag = _columns(source, columns, self.width)
        self.joiner = columns.joiner
        if self.joiner is None:
            self.joiner = joiner_of([c[self._word] for c in cells])
        self.scheme, self.iob1 = columns.scheme or "BIO", False
        if self.labelled:
            tags = [c[self._tag] for c in cells if not c[0].startswith("#")]
            self._find_scheme(tags, columns.scheme)

    def _find_scheme(self, tags: list[str], told: str | None) -> None:
        try:
            self.scheme = told or detect_scheme(tags)
        except DataError as error:
            raise self.source.error(error.what) from error
        if self.scheme == "BIO":
            starts = sum(tag[:1] == "B" for tag in tags)
            self.iob1 = len(illegal(tags, "BIO")) > starts

    def describe(self) -> list[str]:
        """What was understood."""
        by = "tabs" if self.separator == "\t" else "spaces"
        columns = f"{self.width} columns by {by}" if self.labelled else "one column, no tags"
        joined = "spaces" if self.joiner == " " else repr(self.joiner) if self.joiner else "nothing"
        lines = [f"CoNLL, {columns}; words joined by {joined}"]
        if self.labelled:
            word = f"word: column {self._word + 1}; tag: column {self._tag + 1}"
            lines.append(f"{word}; scheme: {'IOB1, read as BIO' if self.iob1 else self.scheme}")
        return lines

    def rows(self, reading: Reading) -> Iterator[TagRow]:
        """The sentences that have words."""
        for lines, words, tags in self._sentences(reading):
            try:
                row = self._row(lines, words, tags, reading)
            except DataError as error:
                reading.refuse(error)
                continue
            reading.passed += 1
            yield row

    def _row(self, lines: list[int], words: list[str], tags: list[str], reading: Reading) -> TagRow:
        text, places = join_words(words, self.joiner or "")
        if not text.strip():
            raise self.source.error("empty text: the sentence is blank", lines[0])
        entities: tuple[Span, ...] | None = None
        if self.labelled and reading.labels:
            entities = ()
            if self.scheme == PLAIN or not {OUTSIDE}.issuperset(tags):
                self._check(lines, tags, reading)
                entities = spans_of_words(tags, places, self.scheme)
        return TagRow(str(reading.passed), text, entities, places, reading.place(lines[0]))

    def _check(self, lines: list[int], tags: list[str], reading: Reading) -> None:
        """Tags that are not of the scheme are bad; those that break its order are noted."""
        check_tags(tags, self.scheme, self.source, lines)
        for i in [] if self.iob1 else illegal(tags, self.scheme):
            reading.note(lines[i], f"illegal tags, read as conlleval reads them: {tags[i]}")

    def _sentences(self, reading: Reading) -> Iterator[tuple[list[int], list[str], list[str]]]:
        """(line numbers, words, tags) of each sentence; those with a bad line are refused."""
        lines: list[int] = []
        words: list[str] = []
        tags: list[str] = []
        broken: DataError | None = None
        word, tag = self._word, self._tag
        for number, line in self._with_end():
            if isinstance(line, DataError):
                broken = broken or line
                continue
            cells = None if self._is_blank(line) else self._split(line)
            if cells is None or line.startswith(DOCSTART):
                if broken is not None:
                    reading.refuse(broken)
                elif words:
                    yield lines, words, tags
                lines, words, tags, broken = [], [], [], None
            elif len(cells) == self.width and not (line[0] == "#" and self._is_comment(cells)):
                lines.append(number)
                words.append(cells[word] or " ")
                tags.append(cells[tag])
            elif not line.startswith("#"):
                what = f"columns: {len(cells)} of them here, {self.width} in other lines"
                broken = broken or self.source.error(what, number)

    def _with_end(self) -> Iterator[Line]:
        yield from self.source.lines()
        yield 0, ""

    def _is_blank(self, line: str) -> bool:
        if line.strip(" \t"):
            return False
        # The one column of unlabelled characters may hold a space.
        return not (line == " " and self.width == 1 and not self.joiner)

    def _is_comment(self, cells: list[str]) -> bool:
        if not self.labelled or self.scheme == PLAIN:
            return False
        tag = cells[self._tag]
        return tag != OUTSIDE and parse(tag).role == OUTSIDE

    def _split(self, line: str) -> list[str]:
        if self.separator == "\t":
            return line.split("\t")
        # Not str.split(): an ideographic space is a word like any other.
        cells = line.split(" ")
        if "" in cells:
            cells = [cell for cell in cells if cell]
            return [" ", *cells] if line[0] == " " else cells
        return cells


def _columns(source: Input, columns: Columns, width: int) -> tuple[int, int]:
    """The indices of word and tag."""
    found = []
    for name, default in ((columns.text, 0), (columns.label, width - 1)):
        if name is not None and not (name.isdecimal() and 0 < int(name) <= width):
            what = f"there is no column {name!r}: the file has {width}, called by numbers from 1"
            raise source.error(what)
        found.append(default if name is None else int(name) - 1)
    return found[0], found[1]


def looks_like_conll(source: Input) -> bool:
    """Whether a text file has CoNLL's columns, told by its extension and its beginning."""
    if source.kind in EXTENSIONS:
        return True
    lines = source.first_lines(LOOK)
    blank = any(not line.strip(" \t") for line in lines[1:-1])
    body = [x for x in lines if x.strip(" \t") and not x.startswith(("# ", DOCSTART))]
    if not body:
        return False
    tabs = 2 * sum("\t" in line for line in body) > len(body)
    cells = [x.split("\t") if tabs else [c for c in x.split(" ") if c] for x in body]
    if tabs and any(_are_texts([row[i] for row in cells]) for i in (0, -1)):
        return False
    width = Counter(map(len, cells)).most_common(1)[0][0]
    if width == 1:
        single = sum(len(line) == 1 for line in body)
        short = all(len(line) <= 40 and not _HAN.search(line) for line in body)
        return len(body) > 1 and (10 * single >= 9 * len(body) or (blank and short))
    last = [c[-1] for c in cells if c]
    if tabs or 5 * sum(_TAG_LIKE.fullmatch(tag) is not None for tag in last) >= 4 * len(last):
        return True
    # Labels without prefixes: each line alike, and sentences of several lines.
    same = sum(len(c) == width for c in cells)
    return blank and 50 * same >= 49 * len(cells)


def _are_texts(cells: Sequence[str]) -> bool:
    """Whether a column holds texts rather than words or tags."""
    return 2 * sum(" " in cell.strip() or len(cell) > 20 for cell in cells) > len(cells)


def holds_tags(source: Input) -> bool:
    """Whether a file is of words with tags like B-PER: no table of texts with labels."""
    if source.kind in EXTENSIONS:
        return True
    lines = [line.strip(" \t") for line in source.first_lines(LOOK)]
    tags = [line.replace("\t", " ").rpartition(" ")[2] for line in lines if line]
    like = [tag for tag in tags if _TAG_LIKE.fullmatch(tag)]
    parted = "" in lines[1:-1] and any(len(tag) > 1 for tag in like)
    return parted and 5 * len(like) >= 4 * len(tags)


def joiner_of(words: Sequence[str]) -> str:
    """What stands between words in the text that they come from.

    Nothing where nine of ten words are single characters, or where at least half of those with
    letters or digits have Chinese or Japanese ones; else a space.
    """
    single = sum(len(word) <= 1 for word in words)
    if 10 * single >= 9 * len(words):
        return ""
    lettered = [word for word in words if any(map(str.isalnum, word))]
    han = sum(_HAN.search(word) is not None for word in lettered)
    return "" if han and 2 * han >= len(lettered) else " "


def join_words(words: Sequence[str], joiner: str) -> tuple[str, tuple[tuple[int, int], ...]]:
    """The text of the words, and where each stands in it."""
    sizes = list(map(len, words))
    gap = len(joiner)
    ends = [end + gap * i for i, end in enumerate(accumulate(sizes))]
    starts = map(sub, ends, sizes)
    return joiner.join(words), tuple(zip(starts, ends, strict=True))


def spans_of_words(
    tags: Sequence[str], places: Sequence[tuple[int, int]], scheme: str
) -> tuple[Span, ...]:
    """The stretches that tags spell, in characters of the text."""
    return tuple(
        Span(places[start][0], places[end - 1][1], label)
        for start, end, label in to_spans(tags, scheme)
    )


def check_tags(tags: Sequence[str], scheme: str, source: Input, lines: Sequence[Where]) -> None:
    """Refuse tags that the scheme does not have.

    Raises:
        DataError: with the line of the tag.
    """
    if scheme == PLAIN:
        bad = next((i for i, tag in enumerate(tags) if not tag), None)
    else:
        letters = LETTERS[scheme] + ("W" if scheme == "BMES" else "")
        odd = {tag for tag in set(tags) if not _fits(tag, letters)}
        bad = next((i for i, tag in enumerate(tags) if tag in odd), None) if odd else None
    if bad is not None:
        raise source.error(f"mixed schemes: the tag {tags[bad]!r} in a {scheme} file", lines[bad])


def _fits(tag: str, letters: str) -> bool:
    return tag == OUTSIDE or (tag[:1] in letters and parse(tag).role != OUTSIDE)


def conll_lines(row: TagRow, scheme: str = "BIO", separator: str = "\t") -> list[str]:
    """A row with words as lines of word and tag, without the blank line that follows.

    Raises:
        DataError: an entity does not begin and end with words.
    """
    assert row.words is not None, "the row has no words of its own"
    starts = {start: i for i, (start, _) in enumerate(row.words)}
    ends = {end: i + 1 for i, (_, end) in enumerate(row.words)}
    spans = []
    for start, end, label in row.entities or ():
        if start not in starts or end not in ends:
            what = f"the entity {row.text[start:end]!r} does not begin and end with words"
            raise DataError(what, row.place.path, row.place.line)
        spans.append(Span(starts[start], ends[end], label))
    tags = to_tags(spans, len(row.words), scheme)
    words = [row.text[start:end] for start, end in row.words]
    return [f"{word}{separator}{tag}" for word, tag in zip(words, tags, strict=True)]
