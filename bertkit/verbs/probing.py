"""`bertkit explain probe|weak`: what layers hold, and where a model is weak, measured on files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from bertkit.errors import UsageError
from bertkit.verbs.ask import Model
from bertkit.verbs.columns import ColumnOptions, say_skipped
from bertkit.verbs.inside import Results, Where, opened_for
from bertkit.verbs.options import Common


@Parameter(name="*")
@dataclass(kw_only=True)
class ProbeFlags:
    """How probes are trained."""

    pooling: Annotated[
        Literal["cls", "mean"],
        Parameter(help="What is read of a text: [CLS], or the mean of its tokens."),
    ] = "cls"
    hidden: Annotated[int, Parameter(help="Units of a hidden layer; 0: the probe is linear.")] = 0
    most: Annotated[
        int, Parameter(help="Words (or texts) to learn from; half as many to check.")
    ] = 10_000
    steps: Annotated[int, Parameter(help="Steps of training.")] = 1000


def probe(
    model: Model,
    train: Annotated[
        str, Parameter(allow_leading_hyphen=True, help="Labelled rows to learn from.")
    ],
    dev: Annotated[str, Parameter(allow_leading_hyphen=True, help="Labelled rows to check on.")],
    /,
    *,
    task: Annotated[
        Literal["tag", "classify"] | None,
        Parameter(help="Labels of words (the default), or of texts."),
    ] = None,
    flags: ProbeFlags | None = None,
    reading: ColumnOptions | None = None,
    results: Results | None = None,
    common: Common | None = None,
) -> None:
    """Which labels each layer's states hold: probes, with control tasks and selectivity."""
    flags, reading, common = flags or ProbeFlags(), reading or ColumnOptions(), common or Common()
    results = results or Results()
    results.check_free()
    if task is None:
        check_words(train)
    kind: Literal["tag", "classify"] = task or "tag"
    from bertkit.explain.labelled_states import LabelledFile
    from bertkit.explain.probe_training import ProbeSettings
    from bertkit.explain.probing import probe

    settings = ProbeSettings(
        hidden=flags.hidden,
        pooling=flags.pooling,
        most=flags.most,
        steps=flags.steps,
        seed=common.seed or 0,
    )
    learn, check = (
        LabelledFile(path, kind, reading.columns(), reading.skip_bad_rows) for path in (train, dev)
    )
    results.speak([train], learn.texts())
    with (
        opened_for(model, common, results.revision) as opened,
        common.progress("probing", "steps") as report,
    ):
        result = probe(opened, learn, check, kind, settings=settings, report=report)
    for file in (learn, check):
        say_skipped(common, file.skipped)
    results.give(common, result)


def check_words(path: str) -> None:
    """Raise UsageError where rows of labelled texts would be read as words with tags."""
    from bertkit.tasks.inputs import TABLES, Input

    if not Path(path).is_file():
        return
    source = Input(path)
    if source.kind in TABLES:
        return
    lines = source.first_lines()
    blank = any(not line.strip() for line in lines[1:-1])
    texts = [line for line in lines if "\t" in line and " " in line.strip()]
    if not blank and 2 * len(texts) > len(lines):
        raise UsageError(
            f"{path}: its rows are texts with labels, not words with tags; write --task classify "
            "(or --task tag, if they are words)"
        )


def weak(
    model: Model,
    /,
    *,
    other: Annotated[
        str | None,
        Parameter(help="A model with the same tokenizer: before and after, at the same positions."),
    ] = None,
    where: Where | None = None,
    common: Common | None = None,
) -> None:
    """Where masked words are guessed badly: by frequency, part of word, position, script."""
    where, common = where or Where(), common or Common()
    if not where.file:
        raise UsageError("name text files with --file; their words are counted")
    if "-" in where.file:
        raise UsageError("the texts are read twice, for their words too; name a file instead of -")
    where.check(None)
    from bertkit.explain.weakness import weak_over

    with opened_for(model, common, where.revision) as opened:
        second = None
        if other is not None:
            from bertkit.explain.opening import open_model

            second = open_model(other, common.device)
        with where.texts(common, "masked words") as (texts, report):
            seed = common.seed or 0
            result = weak_over(opened, texts, other=second, seed=seed, report=report)
        where.give(common, result)
