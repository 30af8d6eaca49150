"""Every packaged recipe can be read, and a wheel carries it."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from bertkit.settings import Recipe, dump_recipe, load_recipe

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.toml"))


def test_there_are_recipes() -> None:
    assert "bert-paper" in {path.stem for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads_and_survives_a_dump(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path, {}, Recipe)
    resolved = tmp_path / "resolved.toml"
    resolved.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(resolved, {}, Recipe) == recipe


def test_the_papers_settings_are_the_papers() -> None:
    recipe = load_recipe(ROOT / "recipes" / "bert-paper.toml", {}, Recipe)
    assert recipe.train.batch_tokens == 256 * 512
    assert recipe.train.steps is not None
    assert recipe.train.steps * recipe.train.warmup_ratio == 10_000
    assert (recipe.data.max_length, recipe.data.final_max_length) == (128, 512)


def test_the_wheel_carries_every_package_and_the_recipes() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    setuptools = project["tool"]["setuptools"]
    folders = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "bertkit").rglob("__init__.py")
    }
    assert set(setuptools["packages"]) == folders | {"bertkit.recipes"}
    assert setuptools["package-dir"] == {"bertkit.recipes": "recipes"}
    assert setuptools["package-data"]["bertkit.recipes"] == ["*.toml"]
