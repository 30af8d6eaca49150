"""`bertkit explain VERB`: look inside a model; and `bertkit score`.

A verb takes texts, or with --file whole files. Results are tables on a terminal; --json, --html and
--npz give the numbers, a page with pictures, the arrays.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from bertkit.errors import UsageError
from bertkit.verbs.ask import Model, Revision
from bertkit.verbs.options import Common, Switch, warnings_unless_refused

if TYPE_CHECKING:
    from bertkit.explain.opening import Opened
    from bertkit.explain.result import Result

app = App(
    name="explain",
    help="Look inside a model: vectors, layers, heads, scores. Each verb has its own --help.",
)

Text = Annotated[
    str | None, Parameter(allow_leading_hyphen=True, help="The text; or name files with --file.")
]
Method = Literal["within-word", "original"]


@Parameter(name="*")
@dataclass(kw_only=True)
class Where:
    """What is read, and where results go."""

    file: Annotated[
        list[str] | None,
        Parameter(help="Text files (a text a line) or tables; - is standard input."),
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

        Console().print(result.table())


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
def _opened(model: str, common: Common, revision: str | None) -> Generator[Opened]:
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
        word: str | int | None = self.word
        if self.word is not None and self.word[:1] == "#" and self.word[1:].isdigit():
            word = int(self.word[1:])
        return {"word": word, "top_k": self.top, "segmenter": self.segmenter}


@app.command
def vector(
    model: Model,
    text: Text = None,
    /,
    *,
    place: Place | None = None,
    where: Where | None = None,
    common: Common | None = None,
) -> None:
    """The vector of each [MASK] in every layer: length, change, nearest words."""
    place, where, common = place or Place(), where or Where(), common or Common()
    where.check(text)
    named = place.named()
    from bertkit.explain.vectors import vector, vector_over

    result: Result
    with _opened(model, common, where.revision) as opened:
        if text is not None:
            result = vector(opened, text, place.pair, **named)
        else:
            with where.texts(common, "vectors") as texts:
                result = vector_over(opened, texts, seed=common.seed or 0)
        where.give(common, result)


@app.command
def lens(
    model: Model,
    text: Text = None,
    /,
    *,
    target: Annotated[
        str | None, Parameter(help="A word or label whose rank is shown in every layer.")
    ] = None,
    tuned: Annotated[Path | None, Parameter(help="A file that tune-lens has written.")] = None,
    place: Place | None = None,
    where: Where | None = None,
    common: Common | None = None,
) -> None:
    """What the model's head reads in every layer: likeliest words, rank, entropy, KL."""
    place, where, common = place or Place(), where or Where(), common or Common()
    where.check(text)
    named = place.named()
    from bertkit.explain.lenses import lens, lens_over
    from bertkit.explain.tuned import TunedLens

    result: Result
    with _opened(model, common, where.revision) as opened:
        maps = None if tuned is None else TunedLens.load(tuned)
        if text is not None:
            result = lens(opened, text, place.pair, target=target, tuned=maps, **named)
        else:
            with where.texts(common, "lens") as texts:
                result = lens_over(opened, texts, tuned=maps, seed=common.seed or 0)
        where.give(common, result)


@app.command(name="tune-lens")
def tune_lens(
    model: Model,
    corpus: Annotated[list[str], Parameter(help="Text files (a text a line) or tables.")],
    /,
    *,
    out: Annotated[Path, Parameter(help="The file to write, .safetensors.")],
    field: Annotated[str, Parameter(help="The column of tables that holds the text.")] = "text",
    steps: Annotated[int, Parameter(help="Batches to learn from.")] = 250,
    learning_rate: Annotated[float, Parameter(help="At the start; it falls to 0.")] = 1e-3,
    overwrite: Annotated[bool, Switch, Parameter(help="Replace the file if it is there.")] = False,
    common: Common | None = None,
) -> None:
    """Train a tuned lens: an affine map a layer, for `lens --tuned`."""
    common = common or Common()
    if out.exists() and not overwrite:
        raise UsageError(f"{out}: exists; --overwrite replaces it")
    if steps < 1:
        raise UsageError(f"--steps {steps}: at least 1 is taken")
    from bertkit.explain.tuned import train_lens
    from bertkit.infer.lines import Texts

    with _opened(model, common, None) as opened, common.progress("tuning", "steps") as report:
        made, told = train_lens(
            opened,
            Texts(corpus, field),
            steps=steps,
            learning_rate=learning_rate,
            seed=common.seed or 0,
            report=report,
        )
    made.save(out)
    lines = [f"{out}: KL to the last layer on {told.positions:,} held-out positions"]
    for layer, (raw, tuned) in enumerate(zip(told.raw, told.tuned, strict=True)):
        lines.append(f"  {f'layer {layer}' if layer else 'embeddings'}: {raw:.3f} -> {tuned:.3f}")
    figures = {"steps": told.steps, "positions": told.positions}
    common.show({**figures, "raw": told.raw, "tuned": told.tuned}, "\n".join(lines))


@app.command
def attention(
    model: Model,
    text: Text = None,
    /,
    *,
    pair: Annotated[str | None, Parameter(help="The second text.")] = None,
    where: Where | None = None,
    common: Common | None = None,
) -> None:
    """What each head looks at: maps, entropy, distance, norm-weighted, rollout."""
    where, common = where or Where(), common or Common()
    where.check(text)
    from bertkit.explain.maps import attention, attention_over

    result: Result
    with _opened(model, common, where.revision) as opened:
        if text is not None:
            result = attention(opened, text, pair)
        else:
            with where.texts(common, "attention") as texts:
                result = attention_over(opened, texts)
        where.give(common, result)


Hiding = Annotated[
    Method, Parameter(help="within-word hides the rest of a word with a piece; original does not.")
]


@app.command(name="score")
def score_inside(
    model: Model,
    text: Text = None,
    /,
    *,
    method: Hiding = "within-word",
    out: Annotated[
        Path | None, Parameter(help="With --file: a JSON line for each text, with its words.")
    ] = None,
    where: Where | None = None,
    common: Common | None = None,
) -> None:
    """How probable the model finds a text, word by word (pseudo-log-likelihood)."""
    where, common = where or Where(), common or Common()
    where.check(text, out)
    if out is not None and text is not None:
        raise UsageError("--out goes with --file; --json gives the words of one text")
    from bertkit.explain.scores import score, score_over

    result: Result
    with _opened(model, common, where.revision) as opened:
        if text is not None:
            result = score(opened, text, method=method)
        else:
            with where.texts(common, "scoring") as texts, _lines(out) as take:
                result = score_over(opened, texts, method=method, take=take)
        where.give(common, result)


@contextmanager
def _lines(out: Path | None) -> Generator[Callable[[Any], None]]:
    """A function that writes a text's score as one line of JSON; whole files alone get the name."""
    if out is None:
        yield lambda scored: None
        return
    beside = out.with_name(out.name + ".partial")
    with beside.open("w", encoding="utf-8") as file:
        yield lambda scored: print(json.dumps(scored.to_dict(), ensure_ascii=False), file=file)
    beside.replace(out)


@app.command
def pairs(
    model: Model,
    file: Annotated[str, Parameter(help="CSV, TSV, JSONL or Parquet with two texts a row.")],
    /,
    *,
    good: Annotated[str | None, Parameter(help="The column of the better text.")] = None,
    bad: Annotated[str | None, Parameter(help="The column of the worse text.")] = None,
    kind: Annotated[str | None, Parameter(help="The column to count by.")] = None,
    method: Hiding = "within-word",
    where: Where | None = None,
    common: Common | None = None,
) -> None:
    """How often the model prefers the better text of a minimal pair."""
    where, common = where or Where(), common or Common()
    where.check(file)
    from bertkit.explain.scores import pairs
    from bertkit.infer.minimal_pairs import read_pairs

    with (
        _opened(model, common, where.revision) as opened,
        common.progress("scoring", "pairs") as report,
    ):
        total = 0 if file == "-" else sum(1 for _ in read_pairs(file, good, bad, kind))
        rows = _told(read_pairs(file, good, bad, kind), lambda done: report(done, total))
        result = pairs(opened, rows, method=method)
    where.give(common, result)


def _told(rows: Iterable[Any], tell: Callable[[int], None]) -> Iterator[Any]:
    done = 0
    for done, row in enumerate(rows, 1):
        yield row
        tell(done)
    tell(done)


def score(
    model: Model,
    file: Annotated[
        list[str],
        Parameter(
            allow_leading_hyphen=True,
            help="Text files (a text a line) or tables; - is standard input.",
        ),
    ],
    /,
    *,
    method: Hiding = "within-word",
    field: Annotated[str, Parameter(help="The column of tables that holds the text.")] = "text",
    out: Annotated[
        Path | None, Parameter(help="A JSON line for each text; without it, standard output.")
    ] = None,
    overwrite: Annotated[bool, Switch, Parameter(help="Replace the file if it is there.")] = False,
    revision: Revision = None,
    common: Common | None = None,
) -> None:
    """Score every text of a file: pseudo-log-likelihoods, as JSON lines."""
    common = common or Common()
    where = Where(file=file, field=field, overwrite=overwrite, revision=revision)
    where.check(None, out)
    from bertkit.explain.scores import score_over

    with (
        _opened(model, common, revision) as opened,
        where.texts(common, "scoring") as texts,
        _lines(out) if out else _printed() as take,
    ):
        result = score_over(opened, texts, method=method, take=take)
    told = {
        "texts": len(result.scores),
        "tokens": int(result.tokens.sum()),
        "pseudo_perplexity": result.pseudo_perplexity,
    }
    line = f"{told['texts']:,} texts, pseudo-perplexity {told['pseudo_perplexity']:.4g}"
    common.say(line)
    if common.json:
        common.show(told)


@contextmanager
def _printed() -> Generator[Callable[[Any], None]]:
    yield lambda scored: print(json.dumps(scored.to_dict(), ensure_ascii=False))
