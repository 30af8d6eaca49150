"""`bertkit evaluate`: a labelled file in, the figures that a reviewer asks for out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from bertkit.verbs.ask import Model, Revision
from bertkit.verbs.columns import ColumnOptions, DecodingOptions, say_skipped
from bertkit.verbs.options import Common, Switch, warnings_unless_refused

if TYPE_CHECKING:
    from bertkit.infer.evaluate import Evaluation


WIDTH = 80  # of a terminal


@Parameter(name="*")
@dataclass(kw_only=True)
class EvaluateFlags:
    """What to compare with, and where pictures and wrong cases go."""

    other: Annotated[
        str | None, Parameter(help="A second model: who wins where, and could it be chance?")
    ] = None
    out: Annotated[
        Path | None,
        Parameter(help="A folder for tables, pictures and wrong cases; without it, none."),
    ] = None
    metric: Annotated[
        str | None,
        Parameter(help="The figure to lead with and to compare by; by default the task's."),
    ] = None
    overwrite: Annotated[bool, Switch, Parameter(help="Replace what is there.")] = False
    revision: Revision = None


def evaluate(
    model: Model,
    file: Annotated[
        str, Parameter(allow_leading_hyphen=True, help="Labelled rows; - is standard input.")
    ],
    /,
    *,
    options: EvaluateFlags | None = None,
    reading: ColumnOptions | None = None,
    decoding: DecodingOptions | None = None,
    common: Common | None = None,
) -> None:
    """Measure a fine-tuned model on a labelled file; with --other compare two."""
    options, reading = options or EvaluateFlags(), reading or ColumnOptions()
    common, decoding = common or Common(), decoding or DecodingOptions()
    from bertkit.infer.evaluate import EvaluateOptions, check_metric, evaluate_file
    from bertkit.infer.predict import open_answers

    given = decoding.given()
    chosen = EvaluateOptions(
        columns=reading.columns(),
        out=options.out,
        skip_bad_rows=reading.skip_bad_rows,
        overwrite=options.overwrite,
        metric=options.metric,
    )
    with warnings_unless_refused():
        if options.metric is not None:
            check_metric(options.metric, model, options.revision, **given)
        answers = open_answers(model, common.device, revision=options.revision, **given)
        other = open_answers(options.other, common.device, **given) if options.other else None
        with common.progress("evaluating", "rows") as report:
            result = evaluate_file(
                answers, file, chosen, other=other, say=common.say, report=report
            )
    say_skipped(common, result.skipped)
    for note in result.notes:
        common.say(note)
    common.show(result.to_dict(), text_of(result, options.out))


def text_of(result: Evaluation, out: Path | None) -> str:
    """Every table, and where the rest is."""
    parts = [f"{result.task}, {result.rows:,} rows"]
    parts += ["\n".join(table.lines()) for table in result.tables()]
    if result.difference is not None:
        parts.insert(-1, f"first: {result.model}\nsecond: {result.compared_with}")
        parts.append(fill(result.difference.sentence(), WIDTH))
    if out is not None:
        parts.append(f"in {out}: {', '.join(path.name for path in result.files)}")
    return "\n\n".join(parts)
