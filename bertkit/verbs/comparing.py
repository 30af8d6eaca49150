"""`bertkit explain compare|trajectory`: layers, checkpoints and models side by side."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from bertkit.errors import UsageError
from bertkit.verbs.ask import Model
from bertkit.verbs.inside import Text, Where, opened_for
from bertkit.verbs.options import Common, Switch, warnings_unless_refused

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
    named: dict[str, Any] = {"unit": unit, "debiased": not biased}
    named |= {"sample": sample, "seed": common.seed or 0}
    with ExitStack() as stack:
        one = stack.enter_context(opened_for(model, common, where.revision))
        two = stack.enter_context(opened_for(other, common, None)) if other else None
        if text is not None:
            result = compare(one, text, two, **named)
        else:
            texts, report = stack.enter_context(where.texts(common, "comparing"))
            result = compare_over(one, texts, two, **named, report=report)
    where.give(common, result)


def trajectory(
    run: Annotated[str, Parameter(help="A run folder with its checkpoints; or a model folder.")],
    verb: Annotated[
        str,
        Parameter(
            help="lens, vector, attention, score, ablate, compare; attribute with a text, pairs "
            "and weak with --file, probe with --file and --dev."
        ),
    ],
    text: Text = None,
    /,
    *,
    also: Annotated[
        list[str] | None, Parameter(help="More runs or models, in order, behind the first.")
    ] = None,
    word: Annotated[str | None, Parameter(help="As that of the verb, for one text.")] = None,
    target: Annotated[str | None, Parameter(help="As that of the verb, for one text.")] = None,
    dev: Annotated[str | None, Parameter(help="Of probe: the held-out labelled file.")] = None,
    where: Where | None = None,
    common: Common | None = None,
) -> None:
    """How the figures of a verb came about, along the checkpoints of a run."""
    where, common = where or Where(), common or Common()
    where.check(text)
    if where.revision is not None:
        raise UsageError("--revision goes with one model; download the revisions to folders")
    if (dev is None) == (verb == "probe"):
        raise UsageError("--dev goes with probe, which needs it: labelled rows to check on")
    from bertkit.explain.trajectories import trajectory, trajectory_over

    settings = _settings(verb, text, word, target, common.seed)
    models = [run, *(also or [])]
    with warnings_unless_refused(), common.progress(verb, "checkpoints") as report:
        if text is not None:
            result = trajectory(models, verb, text, device=common.device, report=report, **settings)
        else:
            if dev is not None:
                settings["dev"] = dev
            result = trajectory_over(
                models, verb, _rows(verb, where), device=common.device, report=report, **settings
            )
    where.give(common, result)


def _settings(
    verb: str, text: str | None, word: str | None, target: str | None, seed: int | None
) -> dict[str, Any]:
    """Those that were given, as the verb's function takes them."""
    from bertkit.explain.trajectories import followed
    from bertkit.verbs.inside import Place

    given: dict[str, Any] = {
        "word": Place(word=word).named()["word"],
        "target": target,
        "seed": seed,
    }
    given = {name: value for name, value in given.items() if value is not None}
    takes = followed(verb).settings if text is not None else followed(verb).settings_over
    for name in given:
        if name not in takes and name != "seed":
            raise UsageError(f"--{name} does not go with {verb} {'--file' if text is None else ''}")
    return {name: value for name, value in given.items() if name in takes}


def _rows(verb: str, where: Where) -> Any:
    """What the verb reads over and over: texts, pairs of texts, a labelled file."""
    assert where.file is not None
    if verb in ("pairs", "probe") and len(where.file) > 1:
        raise UsageError(f"{verb} reads one file; name one --file")
    if verb == "probe":
        from bertkit.explain.labelled_states import LabelledFile

        labelled = LabelledFile(where.file[0], "tag")
        where.speak(where.file, labelled.texts())
        return labelled
    if verb == "pairs":
        from bertkit.infer.minimal_pairs import read_pairs

        rows = list(read_pairs(where.file[0]))
        where.speak(where.file, (row.good for row in rows))
        return rows
    texts = where.lines()
    # Standard input can be read only once.
    return list(texts) if "-" in where.file else texts
