"""What the two training verbs share: a recipe, settings over it, and what becomes of the folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from bertkit.errors import UsageError
from bertkit.verbs.options import Switch

# Where packaged recipes lie: inside an installed package, or beside it in a checkout.
RECIPE_FOLDERS = (Path(__file__).parents[1] / "recipes", Path(__file__).parents[2] / "recipes")


@Parameter(name="*")
@dataclass(kw_only=True)
class RunOptions:
    """The run folder, and where its settings come from."""

    out: Annotated[Path, Parameter(help="The run folder; its model/ holds the result.")]
    recipe: Annotated[
        str | None,
        Parameter(
            help="A TOML file of settings. For pretrain also bert-paper (the paper's settings), "
            "chinese-wwm (whole words of Chinese), minutes (for a few minutes)."
        ),
    ] = None
    set: Annotated[
        tuple[str, ...],
        Parameter(help="Any setting, as train.warmup_ratio=0.1; may be given again."),
    ] = ()
    resume: Annotated[
        bool, Switch, Parameter(help="Continue from the newest whole checkpoint, if there is one.")
    ] = False
    overwrite: Annotated[bool, Switch, Parameter(help="Replace what the run folder holds.")] = False

    def file(self) -> Path | None:
        """The recipe's file. A run goes on with its own; flags may name what is to change.

        Raises:
            UsageError: there is no such recipe.
        """
        if self.recipe:
            return find_recipe(self.recipe)
        saved = self.out / "recipe.toml"
        return saved if self.resume and saved.is_file() else None


def find_recipe(name: str) -> Path:
    """The file of a recipe: a path as it is, else a packaged recipe's name.

    Raises:
        UsageError: there is no such file and no such recipe.
    """
    if Path(name).suffix == ".toml" or Path(name).is_file():
        return Path(name)
    for folder in RECIPE_FOLDERS:
        if (folder / f"{name}.toml").is_file():
            return folder / f"{name}.toml"
    names = sorted({path.stem for folder in RECIPE_FOLDERS for path in folder.glob("*.toml")})
    raise UsageError(f"no recipe is called {name!r}; there are {', '.join(names)}, or name a file")


def given_settings(
    sets: Sequence[str], flags: Sequence[tuple[str, Any]], budgets: Sequence[str]
) -> dict[str, Any]:
    """What --set and short flags say, by dotted names.

    Args:
        sets: as they were typed, "section.name=value".
        flags: (dotted name, value); None: not given.
        budgets: of which one at most may be given; it replaces the recipe's.

    Raises:
        UsageError: a --set without "=", a setting given twice, or two budgets.
    """
    given: list[tuple[str, Any]] = []
    for item in sets:
        name, equals, value = item.partition("=")
        if not equals:
            raise UsageError(f"--set {item}: write it as section.name=value")
        given.append((name.strip(), value.strip()))
    settings: dict[str, Any] = {}
    for name, value in [*given, *flags]:
        if value is None:
            continue
        if name in settings:
            raise UsageError(f"{name} is given twice")
        settings[name] = value
    chosen = [f"train.{name}" for name in budgets if f"train.{name}" in settings]
    if len(chosen) > 1:
        raise UsageError(f"one budget at a time: {' and '.join(chosen)} are both given")
    if chosen:
        settings |= {f"train.{b}": None for b in budgets if f"train.{b}" != chosen[0]}
    return settings
