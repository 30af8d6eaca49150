"""What the verbs of `bertkit explain` share: which texts, which position, where results go."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from bertkit.errors import DataError, UsageError
from bertkit.verbs.ask import Revision
from bertkit.verbs.options import Common, Switch, warnings_unless_refused

if TYPE_CHECKING:
    from bertkit.explain.opening import Opened
    from bertkit.explain.result import Result
    from bertkit.infer.lines import Texts

Segmenter = Annotated[
    Literal["jieba"] | None, Parameter(help="jieba makes words of Chinese characters.")
]
Text = Annotated[
    str | None, Parameter(allow_leading_hyphen=True, help="The text; or name files with --file.")
]


@Parameter(name="*")
@dataclass(kw_only=True)
class Results:
    """Where results go."""

    html: Annotated[Path | None, Parameter(help="Write a page with pictures.")] = None
    language: Annotated[
        Literal["en", "zh"] | None, Parameter(help="Of the page; left out: that of the text.")
    ] = None
    npz: Annotated[Path | None, Parameter(help="Write the arrays for numpy.")] = None
    overwrite: Annotated[bool, Switch, Parameter(help="Replace files that are there.")] = False
    revision: Revision = None

    def check_free(self, *more: Path | None) -> None:
        """Raise UsageError unless all files can be written."""
        for path in (self.html, self.npz, *more):
            if path is not None:
                check_free(path, self.overwrite)

    def speak(self, sources: Sequence[str], texts: Iterable[str]) -> None:
        """Let the page be in the language of the first texts read, unless one was named.

        Args:
            sources: what is read; standard input, which cannot be read twice, is left alone.
            texts: of it; a pass of their own.
        """
        if self.html and not self.language and "-" not in sources:
            from bertkit.explain.wording import language_of

            self.language = language_of(islice(texts, 20))

    def give(self, common: Common, result: Result) -> None:
        """Print a result and write what was asked for."""
        if self.html is not None:
            result.to_html(self.html, self.language)
            common.say(f"page: {self.html}")
        if self.npz is not None:
            result.to_npz(self.npz)
            common.say(f"arrays: {self.npz}")
        if common.json:
            print(result.to_json())
            return
        from rich.console import Console

        Console(markup=False).print(result.table())  # texts have brackets of their own


def check_free(path: Path, overwrite: bool) -> None:
    """Raise UsageError where a file is there already, or its folder is not."""
    if path.exists() and not overwrite:
        raise UsageError(f"{path}: exists; --overwrite replaces it")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: there is no folder {path.parent}; make it first")


@Parameter(name="*")
@dataclass(kw_only=True)
class Where(Results):
    """What is read, and where results go."""

    file: Annotated[
        list[str] | None,
        Parameter(
            allow_leading_hyphen=True,
            help="Text files (a text a line) or tables; - is standard input.",
        ),
    ] = None
    field: Annotated[str, Parameter(help="The column of tables that holds the text.")] = "text"

    def check(self, text: str | None, *more: Path | None) -> None:
        """Raise UsageError unless there is one text or files, and the outputs are free."""
        if (text is None) == (not self.file):
            raise UsageError("give one text, or files with --file")
        self.check_free(*more)

    @contextmanager
    def texts(
        self, common: Common, title: str, most: int | None = None
    ) -> Generator[tuple[Iterable[str], Callable[[int], None]]]:
        """The texts of the files, at most so many, and what is told how many are done."""
        from bertkit.infer.lines import count_lines

        given = self.lines()
        total = count_lines(given.sources, given.field)
        total = min(total, most or total)
        with common.progress(title, "texts") as report:
            yield First(given, most), lambda done: report(done, total)

    def lines(self) -> Texts:
        """The texts of the files; the page's language is theirs, unless one was named.

        Raises:
            DataError: what is read as a text a line has columns.
        """
        from bertkit.infer.lines import Texts

        assert self.file is not None
        given = Texts([check_texts(path) for path in self.file], self.field)
        self.speak(given.sources, given)
        return given


@dataclass(frozen=True)
class First:
    """The first texts of many, or all; they can be read again."""

    inner: Iterable[str]
    most: int | None

    def __iter__(self) -> Iterator[str]:
        return islice(self.inner, self.most)


def check_texts(path: str) -> str:
    """The path, unless it is a file of labelled rows whose lines would be taken for texts.

    Raises:
        DataError: its lines are words with tags, or have columns.
    """
    from bertkit.tasks.conll import EXTENSIONS
    from bertkit.tasks.inputs import Input
    from bertkit.text.sources import ROWS, kind_of

    if not Path(path).is_file() or kind_of(path) in ROWS:
        return path
    source = Input(path)
    lines = [line for line in source.first_lines() if line.strip()]
    columns = [line.split("\t") if "\t" in line else line.split() for line in lines]
    several = 2 * sum("\t" in line for line in lines) > len(lines)
    # Words with tags: few columns, as many in each line, the last one of few kinds.
    few = {len(cells) for cells in columns} in ({2}, {3}, {4})
    tags = few and 4 * len({cells[-1] for cells in columns}) <= len(lines)
    if several or tags or source.kind in EXTENSIONS:
        raise DataError(
            "its lines are labelled rows in columns, not texts; write a text a line, or a table "
            "(.tsv, .csv, .jsonl) whose column --field names",
            path,
        )
    return path


def watched(texts: Iterable[Any], tell: Callable[[int], None]) -> Iterator[Any]:
    """What is told while it is read, for verbs that read each one when the last is done."""
    for done, text in enumerate(texts, 1):
        yield text
        tell(done)


@contextmanager
def opened_for(model: str, common: Common, revision: str | None) -> Generator[Opened]:
    """The model, while it is looked into."""
    from bertkit.explain.opening import open_model

    with warnings_unless_refused():
        yield open_model(model, common.device, revision=revision)


@Parameter(name="*")
@dataclass(kw_only=True)
class Place:
    """Which position of the text."""

    pair: Annotated[str | None, Parameter(help="The second text.")] = None
    word: Annotated[
        str | None,
        Parameter(help="A word of the text to be masked, or its number from 0 as #3."),
    ] = None
    top: Annotated[int, Parameter(help="How many words a layer.")] = 10
    segmenter: Segmenter = None

    def named(self) -> dict[str, Any]:
        """As the functions of bertkit.explain take them.

        Raises:
            UsageError: --top is less than 1.
        """
        if self.top < 1:
            raise UsageError(f"--top {self.top}: at least 1 word is shown")
        word = word_named(self.word)
        return {"word": word, "top_k": self.top, "segmenter": self.segmenter}


def word_named(word: str | None) -> str | int | None:
    """A word as it was given; #3 is its number."""
    if word is not None and word[:1] == "#" and word[1:].isdigit():
        return int(word[1:])
    return word


@contextmanager
def json_lines(out: Path | None) -> Generator[Callable[[Any], None]]:
    """A function that writes what one text gave as a line of JSON.

    Whole files alone get the name; without one, nothing is written.
    """
    if out is None:
        yield lambda found: None
        return
    beside = out.with_name(out.name + ".partial")
    with beside.open("w", encoding="utf-8") as file:
        yield lambda found: print(json.dumps(found.to_dict(), ensure_ascii=False), file=file)
    beside.replace(out)
