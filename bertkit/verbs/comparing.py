"""`bertkit explain compare`: layers, checkpoints and models side by side."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from bertkit.verbs.ask import Model
from bertkit.verbs.inside import Text, Where, opened_for
from bertkit.verbs.options import Common, Switch

if TYPE_CHECKING:
    from bertkit.explain.result import Result


def compare(
    model: Model,
    text: Text = None,
    /,
    *,
    other: Annotated[
        str | None, Parameter(help="A second model or checkpoint; without it, layer by layer.")
    ] = None,
    unit: Annotated[
        Literal["token", "word", "text"] | None,
        Parameter(help="What has a vector; tokens, or words where the tokenizers differ."),
    ] = None,
    biased: Annotated[bool, Switch, Parameter(help="Kornblith's plain CKA.")] = False,
    sample: Annotated[int, Parameter(help="Vectors whose distances RSA compares.")] = 500,
    where: Where | None = None,
    common: Common | None = None,
) -> None:
    """How alike layers, checkpoints or models represent texts: CKA, RSA, anisotropy, rank."""
    where, common = where or Where(), common or Common()
    where.check(text)
    from bertkit.explain.comparing import compare, compare_over

    result: Result
    with ExitStack() as stack:
        one = stack.enter_context(opened_for(model, common, where.revision))
        two = stack.enter_context(opened_for(other, common, None)) if other else None
        if text is not None:
            result = compare(
                one, text, two, unit=unit, debiased=not biased, sample=sample, seed=common.seed or 0
            )
        else:
            texts = stack.enter_context(where.texts(common, "comparing"))
            result = compare_over(
                one,
                texts,
                two,
                unit=unit,
                debiased=not biased,
                sample=sample,
                seed=common.seed or 0,
            )
    where.give(common, result)
