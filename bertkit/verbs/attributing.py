"""`bertkit explain attribute`: which words made a model say that."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from bertkit.errors import UsageError
from bertkit.verbs.ask import Model
from bertkit.verbs.inside import Segmenter, Text, Where, json_lines, opened_for, watched, word_named
from bertkit.verbs.options import Common

if TYPE_CHECKING:
    from bertkit.explain.contributions import AttributionOptions
    from bertkit.explain.opening import Opened
    from bertkit.explain.result import Result


@Parameter(name="*")
@dataclass(kw_only=True)
class Asked:
    """What the model says, and of which words."""

    pair: Annotated[str | None, Parameter(help="The second text; the passage.")] = None
    word: Annotated[
        str | None,
        Parameter(
            help="A word to be masked, or whose label is asked; several side by side; or a word's "
            "number from 0 as #3."
        ),
    ] = None
    target: Annotated[
        str | None,
        Parameter(
            help="What the model may say: a token, a label, an entity's type, an answer. By "
            "default what it does say."
        ),
    ] = None
    against: Annotated[
        str | None, Parameter(help="Another target: the difference of both is explained.")
    ] = None
    segmenter: Segmenter = None


@Parameter(name="*")
@dataclass(kw_only=True)
class Manner:
    """How it is explained."""

    method: Annotated[
        Literal["integrated-gradients", "gradient-x-input", "occlusion", "deletion"],
        Parameter(help="occlusion masks each word in turn; deletion leaves it out."),
    ] = "integrated-gradients"
    quantity: Annotated[Literal["logit", "probability"], Parameter(help="Of which number.")] = (
        "logit"
    )
    baseline: Annotated[
        Literal["mask", "pad", "zero"],
        Parameter(help="Integrated gradients: the embedding that stands for nothing."),
    ] = "mask"
    steps: Annotated[
        int, Parameter(help="Integrated gradients: points between baseline and text.")
    ] = 50

    def options(self) -> AttributionOptions:
        """As the functions of bertkit.explain take them."""
        from bertkit.explain.contributions import AttributionOptions

        return AttributionOptions(self.method, self.quantity, self.baseline, self.steps)


def attribute(
    model: Model,
    text: Text = None,
    /,
    *,
    pair_field: Annotated[
        str | None,
        Parameter(help="With --file: the column of the second text, or of the passage."),
    ] = None,
    out: Annotated[
        Path | None, Parameter(help="With --file: a JSON line for each text, with its words.")
    ] = None,
    asked: Asked | None = None,
    manner: Manner | None = None,
    where: Where | None = None,
    common: Common | None = None,
) -> None:
    """Which words of the input made the model say that."""
    asked, manner = asked or Asked(), manner or Manner()
    where, common = where or Where(), common or Common()
    where.check(text, out)
    if text is not None and (out is not None or pair_field is not None):
        raise UsageError("--out and --pair-field go with --file; one text has --json and --pair")
    if text is None and (asked.word is not None or asked.pair is not None):
        raise UsageError("--word and --pair belong to one text; a file has --pair-field")
    from bertkit.explain.attribution import attribute
    from bertkit.explain.attribution_totals import attribute_over

    result: Result
    named: dict[str, Any] = {"target": asked.target, "against": asked.against}
    named |= {"segmenter": asked.segmenter, "options": manner.options()}
    with opened_for(model, common, where.revision) as opened:
        if text is not None:
            result = attribute(opened, text, asked.pair, word=word_named(asked.word), **named)
        else:
            with (
                _texts(where, common, opened, pair_field) as texts,
                json_lines(out) as take,
            ):
                result = attribute_over(opened, texts, seed=common.seed or 0, take=take, **named)
            if result.skipped:
                common.say(f"{result.skipped:,} texts were not explained; {result.reason}")
        where.give(common, result)


@contextmanager
def _texts(
    where: Where, common: Common, opened: Opened, pair_field: str | None
) -> Generator[Iterable[str | tuple[str, str | None]]]:
    """The texts of the files, or pairs: of a question-answering model in any of its formats."""
    from bertkit.model.task_heads import BertForQuestionAnswering

    answers = isinstance(opened.model, BertForQuestionAnswering)
    if not answers and pair_field is None:
        # Each text is explained before the next one is read.
        with where.texts(common, "attribution") as (texts, told):
            yield watched(texts, told)
        return
    from bertkit.tasks.columns import Columns
    from bertkit.tasks.formats import open_rows

    text = None if answers and where.field == "text" else where.field
    columns = Columns(text=text, pair=pair_field)

    def rows() -> Iterable[tuple[str, str | None]]:
        for path in where.file or ():
            kind = "qa" if answers else "classify"
            for row in open_rows(path, kind, columns, labels=False).rows():
                pair: Any = row
                yield (pair.question, pair.context) if answers else (pair.text, pair.pair)

    where.speak(where.file or (), (text for text, _ in rows()))
    with common.progress("attribution", "texts") as report:
        yield watched(rows(), lambda done: report(done, 0))
