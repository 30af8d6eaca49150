"""`bertkit explain vector|lens|tune-lens|attention`: what passes through a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from bertkit.errors import UsageError
from bertkit.verbs.ask import Model
from bertkit.verbs.inside import Place, Segmenter, Text, Where, check_free, opened_for
from bertkit.verbs.options import Common, Switch

if TYPE_CHECKING:
    from bertkit.explain.result import Result


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
    with opened_for(model, common, where.revision) as opened:
        if text is not None:
            result = vector(opened, text, place.pair, **named)
        else:
            with where.texts(common, "vectors") as (texts, report):
                result = vector_over(opened, texts, seed=common.seed or 0, report=report)
        where.give(common, result)


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
    with opened_for(model, common, where.revision) as opened:
        maps = None if tuned is None else TunedLens.load(tuned)
        if text is not None:
            result = lens(opened, text, place.pair, target=target, tuned=maps, **named)
        else:
            with where.texts(common, "lens") as (texts, report):
                seed = common.seed or 0
                result = lens_over(opened, texts, tuned=maps, seed=seed, report=report)
        where.give(common, result)


def tune_lens(
    model: Model,
    corpus: Annotated[
        list[str],
        Parameter(allow_leading_hyphen=True, help="Text files (a text a line) or tables."),
    ],
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
    check_free(out, overwrite)
    if steps < 1:
        raise UsageError(f"--steps {steps}: at least 1 is taken")
    from bertkit.explain.tuned import train_lens

    texts = Where(file=corpus, field=field).lines()
    with opened_for(model, common, None) as opened, common.progress("tuning", "steps") as report:
        made, told = train_lens(
            opened,
            texts,
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


def attention(
    model: Model,
    text: Text = None,
    /,
    *,
    pair: Annotated[str | None, Parameter(help="The second text.")] = None,
    segmenter: Segmenter = None,
    where: Where | None = None,
    common: Common | None = None,
) -> None:
    """What each head looks at: maps, entropy, distance, norm-weighted, rollout."""
    where, common = where or Where(), common or Common()
    where.check(text)
    from bertkit.explain.maps import attention, attention_over

    result: Result
    with opened_for(model, common, where.revision) as opened:
        if text is not None:
            result = attention(opened, text, pair, segmenter=segmenter)
        else:
            with where.texts(common, "attention") as (texts, report):
                result = attention_over(opened, texts, report=report)
        where.give(common, result)
