"""Recipes: every name and value is checked, and what is saved reads back the same."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bertkit.errors import ConfigError, UsageError
from bertkit.settings import SIZES, FinetuneRecipe, Recipe, dump_recipe, load_recipe


def test_defaults_are_valid() -> None:
    assert load_recipe(None, {}, Recipe) == Recipe()


def test_strings_take_the_type_of_their_setting() -> None:
    recipe = load_recipe(
        None,
        {
            "train.steps": "100",
            "train.learning_rate": "1e-3",
            "data.weights": "[1, 2.5]",
            "log.tensorboard": "true",
            "model.size": "base",
            "train.minutes": "none",
        },
        Recipe,
    )
    assert recipe.train.steps == 100
    assert recipe.train.learning_rate == 1e-3
    assert recipe.data.weights == [1.0, 2.5]
    assert recipe.log.tensorboard is True
    assert recipe.model.size == "base"
    assert recipe.train.minutes is None


def test_a_file_with_overrides_on_top(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text("[train]\nsteps = 5\nseed = 3\n[model]\nsize = 'tiny'\n")
    recipe = load_recipe(path, {"train.steps": 7}, Recipe)
    assert (recipe.train.steps, recipe.train.seed, recipe.model.size) == (7, 3, "tiny")


def test_a_recipe_survives_its_dump(tmp_path: Path) -> None:
    overrides = {"train.tokens": 12345, "data.masking": "word", "train.adam_epsilon": 1e-8}
    recipe = load_recipe(None, overrides, Recipe)
    path = tmp_path / "saved.toml"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(path, {}, Recipe) == recipe


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("train.stepz", 5, "train.stepz"),
        ("training.steps", 5, "training.steps"),
        ("train", 5, "'train'"),
        ("train.steps", 0, "train.steps=0: expected a whole number >= 1"),
        ("train.steps", "many", "train.steps=many: expected a whole number"),
        ("train.warmup_ratio", 1.5, "train.warmup_ratio=1.5: expected a number <= 1.0"),
        ("model.size", "huge", "model.size=huge: expected one of tiny, mini, small, medium"),
        ("data.mlm_probability", 0, "data.mlm_probability=0: expected a number > 0.0"),
        ("train.dropout", 1, "train.dropout=1: expected a number < 1.0"),
        ("data.max_length", 4, "data.max_length=4: expected a whole number >= 8"),
        ("data.weights", "[1, -2]", "data.weights=[1, -2]: expected a number > 0.0"),
        ("log.old", "a.txt", "log.old=a.txt: expected a list"),
        ("log.tensorboard", "x", "log.tensorboard=x: expected true or false"),
    ],
)
def test_a_wrong_override_is_a_usage_error_that_names_it(name: str, value: Any, said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)) as caught:
        load_recipe(None, {name: value}, Recipe)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        (
            "train.class_weights",
            "[1]",
            "train.class_weights=[1]: expected text or settings by name",
        ),
        (
            "train.class_weights",
            '{"a": -1}',
            "train.class_weights={'a': -1}: expected a number > 0",
        ),
        ("train.lora_targets", '["x"]', "expected one of query, key, value, attention.output, "),
        ("data.squad_metric", "x", "data.squad_metric=x: expected one of squad, squad2, cmrc"),
    ],
)
def test_so_is_one_of_fine_tuning(name: str, value: str, said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        load_recipe(None, {name: value}, FinetuneRecipe)


def test_an_unknown_setting_names_its_like() -> None:
    with pytest.raises(UsageError, match=r"did you mean checkpoint\.every_steps, .*\?"):
        load_recipe(None, {"checkpoint.every": 5}, Recipe)


@pytest.mark.parametrize(
    "text",
    [
        "[train]\nstepz = 5\n",
        "[train]\nsteps = 'x'\n",
        "[nonsense]\na = 1\n",
        "train = 1\n",
        "a = 1\n",
        "= not toml",
        "\xff",
    ],
)
def test_a_wrong_file_is_a_config_error_that_names_it(text: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"bad\.toml"):
        load_recipe(path, {}, Recipe)
    with pytest.raises(
        ConfigError, match=r"gone\.toml: cannot be read: No such file or directory$"
    ):
        load_recipe(tmp_path / "gone.toml", {}, Recipe)


def test_sizes_have_heads_of_64_numbers() -> None:
    for _, hidden, heads in SIZES.values():
        assert hidden == 64 * heads
    assert SIZES["base"] == (12, 768, 12)
    assert SIZES["large"] == (24, 1024, 16)


def test_settings_load_no_torch() -> None:
    code = "import sys, bertkit.settings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_none_is_nothing_unless_it_is_a_choice() -> None:
    said = {"train.adversarial": "none", "train.class_weights": "none", "train.minutes": "none"}
    recipe = load_recipe(None, said, FinetuneRecipe)
    assert recipe.train.adversarial == "none"
    assert recipe.train.class_weights == "none"
    assert recipe.train.minutes is None
    weights = load_recipe(None, {"train.class_weights": '{"a b": 2, "是": 0.5}'}, FinetuneRecipe)
    assert weights.train.class_weights == {"a b": 2.0, "是": 0.5}


def test_a_recipe_of_fine_tuning_survives_a_dump(tmp_path: Path) -> None:
    said = {
        "train.class_weights": {"a": 2.0},
        "data.crf": "true",
        "train.lora_targets": ("output",),
    }
    recipe = load_recipe(None, said, FinetuneRecipe)
    path = tmp_path / "recipe.toml"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(path, {}, FinetuneRecipe) == recipe
