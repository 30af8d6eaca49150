"""`bertkit explain score|pairs` and `bertkit score`: how probable a model finds texts."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from bertkit.errors import UsageError
from bertkit.verbs.ask import Model, Revision
from bertkit.verbs.inside import Results, Segmenter, Text, Where, json_lines, opened_for
from bertkit.verbs.options import Common, Switch

if TYPE_CHECKING:
    from bertkit.explain.result import Result


@Parameter(name="*")
@dataclass(kw_only=True)
class Hiding:
    """What is hidden with a token."""

    method: Annotated[
        Literal["within-word", "original"],
        Parameter(help="within-word hides the rest of a word with a piece; original does not."),
    ] = "within-word"
    segmenter: Segmenter = None


def score_inside(
    model: Model,
    text: Text = None,
    /,
    *,
    hiding: Hiding | None = None,
    out: Annotated[
        Path | None, Parameter(help="With --file: a JSON line for each text, with its words.")
    ] = None,
    where: Where | None = None,
    common: Common | None = None,
) -> None:
    """How probable the model finds a text, word by word (pseudo-log-likelihood)."""
    where, common = where or Where(), common or Common()
    hidden = asdict(hiding or Hiding())
    where.check(text, out)
    if out is not None and text is not None:
        raise UsageError("--out goes with --file; --json gives the words of one text")
    from bertkit.explain.scores import score, score_over

    result: Result
    with opened_for(model, common, where.revision) as opened:
        if text is not None:
            result = score(opened, text, **hidden)
        else:
            with where.texts(common, "scoring") as (texts, report), json_lines(out) as take:
                result = score_over(opened, texts, **hidden, take=take, report=report)
        where.give(common, result)


def pairs(
    model: Model,
    file: Annotated[str, Parameter(help="CSV, TSV, JSONL or Parquet with two texts a row.")],
    /,
    *,
    good: Annotated[str | None, Parameter(help="The column of the better text.")] = None,
    bad: Annotated[str | None, Parameter(help="The column of the worse text.")] = None,
    kind: Annotated[str | None, Parameter(help="The column to count by.")] = None,
    hiding: Hiding | None = None,
    results: Results | None = None,
    common: Common | None = None,
) -> None:
    """How often the model prefers the better text of a minimal pair."""
    results, common = results or Results(), common or Common()
    results.check_free()
    from bertkit.explain.scores import pairs
    from bertkit.infer.minimal_pairs import read_pairs

    with (
        opened_for(model, common, results.revision) as opened,
        common.progress("scoring", "pairs") as report,
    ):
        total = 0 if file == "-" else sum(1 for _ in read_pairs(file, good, bad, kind))
        results.speak([file], (row.good for row in read_pairs(file, good, bad, kind)))
        rows = read_pairs(file, good, bad, kind)
        told = asdict(hiding or Hiding())
        result = pairs(opened, rows, **told, report=lambda done: report(done, total))
    results.give(common, result)


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
    hiding: Hiding | None = None,
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
    from bertkit.explain.result import counted
    from bertkit.explain.scores import score_over

    with (
        opened_for(model, common, revision) as opened,
        where.texts(common, "scoring") as (texts, report),
        json_lines(out) if out else _printed() as take,
    ):
        hidden = asdict(hiding or Hiding())
        result = score_over(opened, texts, **hidden, take=take, report=report)
    told = {
        "texts": len(result.scores),
        "tokens": int(result.tokens.sum()),
        "pseudo_perplexity": result.pseudo_perplexity,
    }
    common.say(
        f"{counted(len(result.scores), 'texts')}, pseudo-perplexity {result.pseudo_perplexity:.4g}"
    )
    if common.json:
        common.show(told)


@contextmanager
def _printed() -> Generator[Callable[[Any], None]]:
    yield lambda scored: print(json.dumps(scored.to_dict(), ensure_ascii=False))
