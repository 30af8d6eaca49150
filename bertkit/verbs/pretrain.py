"""`bertkit pretrain`: shards in, a pretrained model folder out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from cyclopts import Parameter

from bertkit.settings import Recipe, Size, load_recipe
from bertkit.train.early import check_data, check_old, check_out, check_settings
from bertkit.train.stopping import stops_told
from bertkit.verbs.options import Common
from bertkit.verbs.recipes import RunOptions, given_settings

if TYPE_CHECKING:
    from bertkit.train.setup import PretrainResult

BUDGETS = ("steps", "tokens", "epochs", "minutes")
# Short flags and the settings they stand for.
SHORT = {
    "init": "model.init",
    "old": "log.old",
    "size": "model.size",
    "objective": "data.objective",
    "max_length": "data.max_length",
    "masking": "data.masking",
    "mlm_probability": "data.mlm_probability",
    "batch_tokens": "train.batch_tokens",
    "learning_rate": "train.learning_rate",
    **{budget: f"train.{budget}" for budget in BUDGETS},
}
# Where neither flag nor recipe says otherwise, a model that is trained already goes on with the
# optimiser of BERT's own papers.
CONTINUING = {"train.optimizer": "adamw"}


@Parameter(name="*")
@dataclass(kw_only=True)
class PretrainOptions:
    """The settings that people change most."""

    init: Annotated[
        str | None, Parameter(help="Go on from this model instead of random weights.")
    ] = None
    old: Annotated[
        tuple[str, ...],
        Parameter(help="With --init: text of its old domain, whose loss is watched too."),
    ] = ()
    size: Annotated[Size | None, Parameter(help="Size of the network.")] = None
    objective: Annotated[
        Literal["mlm+nsp", "mlm", "mlm+sop"] | None,
        Parameter(help="Masked words, and next sentences or sentence order beside them."),
    ] = None
    max_length: Annotated[int | None, Parameter(help="Tokens of an example, at most.")] = None
    masking: Annotated[
        Literal["token", "word", "span"] | None, Parameter(help="What is masked together.")
    ] = None
    mlm_probability: Annotated[float | None, Parameter(help="Share of tokens chosen.")] = None
    batch_tokens: Annotated[int | None, Parameter(help="Tokens of one optimiser step.")] = None
    learning_rate: Annotated[float | None, Parameter(help="Highest learning rate.")] = None
    steps: Annotated[int | None, Parameter(help="Budget in optimiser steps.")] = None
    tokens: Annotated[int | None, Parameter(help="Budget in tokens seen.")] = None
    epochs: Annotated[float | None, Parameter(help="Budget in passes over the data.")] = None
    minutes: Annotated[float | None, Parameter(help="Budget in minutes of training.")] = None


def overrides(
    options: PretrainOptions, seed: int | None, sets: Sequence[str] = ()
) -> dict[str, Any]:
    """Every setting that the command line names, by its dotted name.

    A budget replaces the recipe's own budget, whatever unit that has.

    Raises:
        UsageError: a --set without "=", a setting given twice, or two budgets.
    """
    given: list[tuple[str, Any]] = [
        (dotted, getattr(options, flag)) for flag, dotted in SHORT.items() if flag != "old"
    ]
    given += [("log.old", list(options.old) or None), ("train.seed", seed)]
    return given_settings(sets, given, BUDGETS)


def read_recipe(path: Path | None, settings: dict[str, Any]) -> Recipe:
    """The recipe with `settings` laid over it; CONTINUING where a model is named to go on from."""
    recipe = load_recipe(path, settings, Recipe)
    if recipe.model.init is None:
        return recipe
    tree = {} if path is None else msgspec.toml.decode(path.read_bytes())
    said = {f"{section}.{key}" for section, keys in tree.items() for key in keys} | settings.keys()
    own = {name: value for name, value in CONTINUING.items() if name not in said}
    return load_recipe(path, own | settings, Recipe)


def pretrain(
    data: Annotated[
        list[Path], Parameter(help="Folders made by `bertkit prepare`, all with one tokenizer.")
    ],
    /,
    *,
    run: RunOptions,
    options: PretrainOptions | None = None,
    common: Common | None = None,
) -> None:
    """Pretrain a BERT on prepared shards: masked words and next sentences."""
    options, common = options or PretrainOptions(), common or Common()
    recipe = read_recipe(run.file(), overrides(options, common.seed, run.set))
    speaks = os.environ.get("RANK", "0") == "0"  # under torchrun one rank speaks for all
    check_data(data)
    check_old(recipe)
    if speaks:
        check_out(run.out, run.resume, run.overwrite)
        if run.resume and (saved := run.out / "recipe.toml") == run.file():
            check_settings(load_recipe(saved, {}, Recipe), recipe, saved)
    with stops_told(run.out, run.resume or run.overwrite):
        from bertkit.train.pretrain import pretrain as train

        result = train(
            data,
            run.out,
            recipe,
            resume=run.resume,
            overwrite=run.overwrite,
            device=common.device,
            quiet=common.quiet,
        )
    if speaks:
        common.show(result.to_dict(), _summary(result))
    if result.interrupted:
        raise KeyboardInterrupt


def _summary(result: PretrainResult) -> str:
    """The last word for people: what was done, how good it is, where it is."""
    lines = [f"{result.steps:,} steps, {result.tokens:,} tokens, {result.seconds / 60:.1f} minutes"]
    if result.skipped:
        lines.append(
            f"{result.skipped} steps were skipped for a bad loss; see {result.run}/log.jsonl"
        )
    figures = {name: value for name, value in result.figures.items() if value is not None}
    lines += [f"{name:<16}  {value:.4f}" for name, value in figures.items()]
    if result.before_after:
        from bertkit.train.forgetting import before_after_table

        lines.append(before_after_table(result.before_after))
    where = f"model in {result.model}" if result.model else "continue it with --resume"
    return "\n".join([*lines, where])
