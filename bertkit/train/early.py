"""What is refused at once: these checks load no torch, which takes seconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bertkit.errors import DataError, UsageError
from bertkit.settings import Recipe


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
    """Refuse a run folder that is in use, unless it may be continued or replaced.

    Raises:
        UsageError: what is there is a file, no run, or a run that neither was asked for.
    """
    if resume and overwrite:
        raise UsageError("--resume continues the run that --overwrite removes: say one of them")
    if file := next((place for place in (out, *out.parents) if place.is_file()), None):
        raise UsageError(f"{file} is a file; name a folder")
    saved = out / "recipe.toml"
    # A recipe alone is a run that was refused before it began.
    if resume or not out.is_dir() or all(path == saved for path in out.iterdir()):
        return
    if not saved.is_file():
        raise UsageError(f"{out} is not empty and holds no run; name another --out")
    if not overwrite:
        raise UsageError(f"{out} holds a run; say --resume to continue it or --overwrite")
