"""What is refused at once: these checks load no torch, which takes seconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from bertkit.errors import DataError, UsageError
from bertkit.settings import FinetuneRecipe, Recipe

AnyRecipe = Recipe | FinetuneRecipe
# Settings that may change between the sittings of one run.
FREE = {"checkpoint", "log"}


def check_data(folders: Sequence[Path]) -> None:
    """Refuse folders that `prepare` did not make.

    Raises:
        DataError: a folder holds no prepared data.
        UsageError: there is none.
    """
    if not folders:
        raise UsageError("name at least one DATA folder made by `bertkit prepare`")
    for folder in folders:
        if not (folder / "manifest.json").is_file():
            what = "no prepared data here" if folder.is_dir() else "no such folder of prepared data"
            raise DataError(f"{what}; make it with `bertkit prepare`", folder)


def check_old(recipe: Recipe) -> None:
    """Refuse text of an old domain that is missing, or of a model that has none.

    Raises:
        DataError: a file of `log.old` is missing.
        UsageError: `log.old` without `model.init`.
    """
    if recipe.log.old:
        if recipe.model.init is None:
            raise UsageError(
                "log.old (--old) goes with model.init (--init): what was trained before"
            )
        from bertkit.text.sources import expand_sources  # a tenth of the time of `--help`

        expand_sources(recipe.log.old)


def check_out(out: Path, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that is no run, or a run, unless it may be continued or replaced.

    Raises:
        UsageError: what is there is a file, no run, or a run that neither was asked for.
    """
    if resume and overwrite:
        raise UsageError("--resume continues the run that --overwrite removes: say one of them")
    if file := next((place for place in (out, *out.parents) if place.is_file()), None):
        raise UsageError(f"{file} is a file; name a folder")
    # A recipe alone, or what was to become one, is a run that was killed before it began.
    if not out.is_dir() or all("recipe.toml" in path.name for path in out.iterdir()):
        return
    if not (out / "recipe.toml").is_file():
        raise UsageError(f"{out} is not empty and holds no run; name another --out")
    if not (resume or overwrite):
        raise UsageError(f"{out} holds a run; say --resume to continue it or --overwrite")


def check_settings(before: AnyRecipe, now: AnyRecipe, where: Path) -> None:
    """Refuse to continue a run with other settings than those in its recipe `where`.

    Raises:
        UsageError: they differ in more than FREE.
    """
    old, new = msgspec.to_builtins(before), msgspec.to_builtins(now)
    changed = [
        f"{section}.{key} was {old[section][key]}, now {new[section][key]}"
        for section in old
        if section not in FREE
        for key in old[section]
        if old[section][key] != new[section][key]
    ]
    if changed:
        raise UsageError(
            f"{where}: this run has other settings: {', '.join(changed)}; "
            "leave them out to continue as it began, or name another --out"
        )
