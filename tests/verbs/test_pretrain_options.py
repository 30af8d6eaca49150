"""From the flags of `bertkit pretrain` to a recipe."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bertkit.cli import main
from bertkit.errors import UsageError
from bertkit.settings import Recipe, dump_recipe, load_recipe
from bertkit.verbs.pretrain import (
    BUDGETS,
    SHORT,
    PretrainOptions,
    overrides,
    read_recipe,
)
from bertkit.verbs.recipes import RunOptions, find_recipe


def recipe_of(
    path: Path | None = None, seed: int | None = None, set: tuple[str, ...] = (), **flags: Any
) -> Recipe:
    return load_recipe(path, overrides(PretrainOptions(**flags), seed, set), Recipe)


def test_no_flag_is_the_default_recipe() -> None:
    assert recipe_of() == Recipe()


def test_every_short_flag_reaches_its_setting() -> None:
    values: dict[str, Any] = {
        "init": "some/model",
        "old": ["a.txt", "b.txt"],
        "size": "tiny",
        "objective": "mlm",
        "max_length": 64,
        "masking": "span",
        "mlm_probability": 0.3,
        "batch_tokens": 2048,
        "learning_rate": 2e-3,
        "steps": 7,
        "tokens": 10_000,
        "epochs": 1.5,
        "minutes": 2.0,
    }
    assert set(values) == set(SHORT)
    for flag, value in values.items():
        recipe = msgspec.to_builtins(recipe_of(**{flag: value}))
        section, _, key = SHORT[flag].partition(".")
        assert recipe[section][key] == value
    assert recipe_of(seed=9).train.seed == 9


def test_going_on_from_a_model_is_gentle_where_nothing_else_is_said(tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"

    def optimizer(text: str = "", set: tuple[str, ...] = (), **flags: Any) -> str:
        mine.write_text(text, encoding="utf-8")
        return read_recipe(mine, overrides(PretrainOptions(**flags), None, set)).train.optimizer

    assert optimizer() == "muon"
    assert optimizer(init="x") == optimizer('[model]\ninit = "x"\n') == "adamw"
    assert optimizer(init="x", set=("train.optimizer=muon",)) == "muon"
    assert optimizer('[train]\noptimizer = "muon"\n', init="x") == "muon"
    assert read_recipe(None, {"model.init": "x"}).train.optimizer == "adamw"


def test_set_reaches_any_setting_as_its_own_type() -> None:
    recipe = recipe_of(
        set=("train.warmup_ratio=0.1", "data.weights=[1, 2.5]", "log.tensorboard=true")
    )
    assert recipe.train.warmup_ratio == 0.1
    assert recipe.data.weights == [1, 2.5]
    assert recipe.log.tensorboard is True


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_budget_replaces_the_recipes_own(budget: str) -> None:
    flags: dict[str, Any] = {budget: 5}
    recipe = recipe_of(find_recipe("bert-paper"), **flags)
    assert {b: getattr(recipe.train, b) for b in BUDGETS} == {
        b: 5 if b == budget else None for b in BUDGETS
    }


@pytest.mark.parametrize(
    "flags",
    [
        {"set": ("train.steps=3",), "steps": 4},
        {"set": ("train.steps=3", "train.steps=3")},
        {"set": ("train.steps=3",), "epochs": 1.0},
        {"set": ("train.steps",)},
    ],
)
def test_what_contradicts_itself_is_refused(flags: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        recipe_of(**flags)


def test_a_recipe_is_a_name_or_a_file(tmp_path: Path) -> None:
    assert find_recipe("bert-paper").name == "bert-paper.toml"
    mine = tmp_path / "mine.toml"
    mine.write_text('[model]\nsize = "tiny"\n', encoding="utf-8")
    assert recipe_of(find_recipe(str(mine)), steps=1).model.size == "tiny"
    with pytest.raises(UsageError, match=r"bert-paper, chinese-wwm"):
        find_recipe("nobodys")


def test_help_names_every_packaged_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for path in (Path(__file__).parents[2] / "recipes").glob("*.toml"):
        assert f"{path.stem} (" in shown


# Every command of a list of lists, with what it said; importing torch fails.
WITHOUT_TORCH = """
import contextlib, io, json, sys
sys.modules["torch"] = None
from bertkit.cli import main
for command in json.loads(sys.argv[1]):
    with contextlib.redirect_stderr(io.StringIO()) as err:
        code = main(command)
    print(code, err.getvalue().strip())
"""


def test_what_is_plainly_wrong_is_refused_before_torch_is_loaded(tmp_path: Path) -> None:
    data, used, gone = tmp_path / "data", tmp_path / "used", str(tmp_path / "gone")
    before = tmp_path / "before"
    for folder in (data, used, before):
        folder.mkdir()
    (before / "recipe.toml").write_text(dump_recipe(recipe_of(steps=3, size="tiny")))
    (before / "log.jsonl").touch()
    (data / "manifest.json").touch()
    (used / "thesis.txt").touch()
    right = [str(data), "--out", str(tmp_path / "run")]
    asked = {
        "no such folder of prepared data": [gone, "--out", gone],
        "used: no prepared data here": [str(used), "--out", str(before)],
        "before holds a run; say --resume": [*right[:2], str(before)],
        "used is not empty and holds no run": [*right[:2], str(used), "--resume"],
        "train.steps was 3, now 4": [*right[:2], str(before), "--resume", "--steps", "4"],
        "train.steps was 3, now None, train.tokens was None, now 9": [
            *(*right[:2], str(before), "--resume", "--tokens", "9", "--set", "log.evals=3")
        ],
        "used is not empty and holds no run; name another --out": [*right[:2], str(used)],
        "say one of them": [*right, "--resume", "--overwrite"],
        "thesis.txt is a file": [*right[:2], str(used / "thesis.txt")],
        "no setting is called 'train.stepz'; did you mean train.steps": [
            *right,
            "--set",
            "train.stepz=3",
        ],
        "train.steps=0: expected a whole number >= 1": [*right, "--steps", "0"],
        "no recipe is called 'mine'; there are bert-paper": [*right, "--recipe", "mine"],
        "mine.toml: cannot be read: No such file": [*right, "--recipe", "mine.toml"],
        "log.old (--old) goes with model.init": [*right, "--old", str(used)],
        "gone: no such file or folder": [*right, "--init", "model", "--old", gone],
    }
    commands = json.dumps([["pretrain", *words] for words in asked.values()])
    out = subprocess.check_output([sys.executable, "-c", WITHOUT_TORCH, commands], text=True)
    for said, line in zip(asked, out.splitlines(), strict=True):
        assert said in line
        assert line[0] in "12"


def test_a_run_goes_on_with_its_own_recipe(tmp_path: Path) -> None:
    saved = tmp_path / "recipe.toml"
    assert RunOptions(out=tmp_path, resume=True).file() is None
    saved.write_text("", encoding="utf-8")
    assert RunOptions(out=tmp_path).file() is None
    assert RunOptions(out=tmp_path, resume=True).file() == saved
    other = RunOptions(out=tmp_path, resume=True, recipe="bert-paper").file()
    assert other is not None
    assert other.name == "bert-paper.toml"
