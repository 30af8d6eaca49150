"""What the verbs of `bertkit explain` share: which texts, which position, where results go."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from bertkit.errors import UsageError
from bertkit.verbs.ask import Revision
from bertkit.verbs.options import Common, Switch, warnings_unless_refused

if TYPE_CHECKING:
    from bertkit.explain.opening import Opened
    from bertkit.explain.result import Result

Text = Annotated[
    str | None, Parameter(allow_leading_hyphen=True, help="The text; or name files with --file.")
]


@Parameter(name="*")
@dataclass(kw_only=True)
class Where:
    """What is read, and where results go."""

    file: Annotated[
        list[str] | None,
        Parameter(
            allow_leading_hyphen=True,
            help="Text files (a text a line) or tables; - is standard input.",
        ),
    ] = None
    field: Annotated[str, Parameter(help="The column of tables that holds the text.")] = "text"
    html: Annotated[Path | None, Parameter(help="Write a page with pictures.")] = None
    npz: Annotated[Path | None, Parameter(help="Write the arrays for numpy.")] = None
    overwrite: Annotated[bool, Switch, Parameter(help="Replace files that are there.")] = False
    revision: Revision = None

    def check(self, text: str | None, *more: Path | None) -> None:
        """Raise UsageError unless there is one text or files, and the outputs are free."""
        if (text is None) == (not self.file):
            raise UsageError("give one text, or files with --file")
        for path in (self.html, self.npz, *more):
            if path is not None and path.exists() and not self.overwrite:
                raise UsageError(f"{path}: exists; --overwrite replaces it")

    @contextmanager
    def texts(self, common: Common, title: str) -> Generator[Iterable[str]]:
        """The texts of the files, with progress."""
        from bertkit.infer.lines import Texts, count_lines

        assert self.file is not None
        total = count_lines(self.file, self.field)
        with common.progress(title, "texts") as report:
            yield _Watched(Texts(self.file, self.field), lambda done: report(done, total))

    def give(self, common: Common, result: Result) -> None:
        """Print a result and write what was asked for."""
        if self.html is not None:
            result.to_html(self.html)
            common.say(f"page: {self.html}")
        if self.npz is not None:
            result.to_npz(self.npz)
            common.say(f"arrays: {self.npz}")
        if common.json:
            print(result.to_json())
            return
        from rich.console import Console

        Console(markup=False).print(result.table())  # texts have brackets of their own


@dataclass(frozen=True)
class _Watched:
    """Texts whose number is told while they are read; they can be read again."""

    inner: Iterable[str]
    tell: Callable[[int], None]

    def __iter__(self) -> Iterator[str]:
        done = 0
        for done, text in enumerate(self.inner, 1):
            yield text
            self.tell(done)
        self.tell(done)


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
    segmenter: Annotated[
        Literal["jieba"] | None, Parameter(help="jieba makes words of Chinese characters.")
    ] = None

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
