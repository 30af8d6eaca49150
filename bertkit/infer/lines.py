"""Plain text files as a stream of texts: a line of text or a row of a table, with its place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bertkit.errors import UsageError
from bertkit.tasks.records import Place
from bertkit.text.corpus import CorpusOptions, read_documents


@dataclass(frozen=True, slots=True)
class Line:
    """One text of a file.

    Attributes:
        text: trimmed, never blank; the lines within a field of a table are joined by spaces.
        place: the file, and the line or row from 1.
    """

    text: str
    place: Place


def read_lines(sources: Sequence[str], field: str = "text") -> Iterator[Line]:
    """Stream the texts of files, folders or globs; "-" is standard input.

    Args:
        sources: text files, a text a line; or tables (.jsonl .csv .tsv .parquet ...).
        field: the column of tables that holds the text.

    Raises:
        DataError: a file is missing or bad, with the line.
    """
    for document in read_documents(sources, CorpusOptions(field=field, documents="line")):
        yield Line(" ".join(document.paragraphs), Place(document.source, document.line))


@dataclass(slots=True)
class Texts:
    """The texts of files; each pass reads them anew, so that they need not fit in memory."""

    sources: Sequence[str]
    field: str = "text"
    _begun: bool = False

    def __iter__(self) -> Iterator[str]:
        """Yield the texts alone.

        Raises:
            UsageError: standard input is to be read a second time.
        """
        if self._begun and "-" in self.sources:
            raise UsageError("the texts are read more than once; name a file instead of -")
        self._begun = True
        return (line.text for line in read_lines(self.sources, self.field))


def count_lines(sources: Sequence[str], field: str = "text") -> int:
    """How many texts there are; 0, not known, where one source is standard input.

    Raises:
        DataError: as `read_lines`; so what is bad is told before any work is done.
    """
    return 0 if "-" in sources else sum(1 for _ in read_lines(sources, field))
