"""`bertkit explain probe|weak`: what layers hold, and where a model is weak, measured on files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from bertkit.errors import UsageError
from bertkit.verbs.ask import Model, Revision
from bertkit.verbs.columns import ColumnOptions, say_skipped
from bertkit.verbs.inside import Where, opened_for
from bertkit.verbs.options import Common, Switch


@Parameter(name="*")
@dataclass(kw_only=True)
class ProbeFlags:
    """How probes are trained, and where results go."""

    pooling: Annotated[
        Literal["cls", "mean"],
        Parameter(help="What is read of a text: [CLS], or the mean of its tokens."),
    ] = "cls"
    hidden: Annotated[int, Parameter(help="Units of a hidden layer; 0: the probe is linear.")] = 0
    most: Annotated[
        int, Parameter(help="Words (or texts) to learn from; half as many to check.")
    ] = 10_000
    steps: Annotated[int, Parameter(help="Steps of training.")] = 1000
    html: Annotated[Path | None, Parameter(help="Write a page with pictures.")] = None
    npz: Annotated[Path | None, Parameter(help="Write the arrays for numpy.")] = None
    overwrite: Annotated[bool, Switch, Parameter(help="Replace files that are there.")] = False
    revision: Revision = None


def probe(
    model: Model,
    train: Annotated[
        str, Parameter(allow_leading_hyphen=True, help="Labelled rows to learn from.")
    ],
    dev: Annotated[str, Parameter(allow_leading_hyphen=True, help="Labelled rows to check on.")],
    /,
    *,
    task: Annotated[
        Literal["tag", "classify"], Parameter(help="Labels of words, or of texts.")
    ] = "tag",
    flags: ProbeFlags | None = None,
    reading: ColumnOptions | None = None,
    common: Common | None = None,
) -> None:
    """Which labels each layer's states hold: probes, with control tasks and selectivity."""
    flags, reading, common = flags or ProbeFlags(), reading or ColumnOptions(), common or Common()
    where = Where(html=flags.html, npz=flags.npz, overwrite=flags.overwrite)
    where.check(train)
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
        LabelledFile(path, task, reading.columns(), reading.skip_bad_rows) for path in (train, dev)
    )
    with (
        opened_for(model, common, flags.revision) as opened,
        common.progress("probing", "steps") as report,
    ):
        result = probe(opened, learn, check, task, settings=settings, report=report)
    for file in (learn, check):
        say_skipped(common, file.skipped)
    where.give(common, result)


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
        with where.texts(common, "masked words") as texts:
            result = weak_over(opened, texts, other=second, seed=common.seed or 0)
        where.give(common, result)
