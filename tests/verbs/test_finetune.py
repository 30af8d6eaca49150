"""`bertkit finetune`: from flags to a recipe, and each task from a file to answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest

from bertkit.cli import main
from bertkit.errors import UsageError
from bertkit.settings import FinetuneRecipe, load_recipe
from bertkit.tasks.load import load
from bertkit.train import finetune as finetune_module
from bertkit.train import finetune_card
from bertkit.train.finetune_result import FinetuneResult
from bertkit.verbs.columns import FileOptions
from bertkit.verbs.finetune import (
    BUDGETS,
    SHORT,
    DataFlags,
    FinetuneOptions,
    TrainingFlags,
    overrides,
    summary,
)
from tests.train.interrupting import Killed, at_step, end_of, kill, terminate
from tests.train.small_tasks import (
    write_choices,
    write_files,
    write_model,
    write_numbers,
    write_questions,
    write_tags,
    write_texts,
)

Flags = TypeVar("Flags", TrainingFlags, DataFlags, FileOptions)
VALUES: dict[str, Any] = {
    "epochs": 1.5,
    "steps": 7,
    "minutes": 2.0,
    "batch_size": 8,
    "learning_rate": 1e-3,
    "class_weights": "balanced",
    "loss": "focal",
    "adversarial": "fgm",
    "r_drop": 0.5,
    "layer_decay": 0.9,
    "freeze_layers": 1,
    "lora_rank": 4,
    "teacher": "some/model",
    "seeds": 3,
    "patience": 2,
    "metric_for_best_model": "macro_f1",
    "folds": 5,
    "oversample": 0.5,
    "augment": "both",
    "max_length": 64,
    "doc_stride": 16,
    "crf": True,
    "scheme": "BIOES",
    "text_column": "one",
    "pair_column": "two",
    "label_column": "three",
    "header": False,
    "file_format": "csv",
    "joiner": "",
    "skip_bad_rows": True,
}


def recipe_of(
    seed: int | None = None, dev: str | None = None, set: tuple[str, ...] = (), **flags: Any
) -> tuple[FinetuneRecipe, Path | None]:
    options = FinetuneOptions(train=Path("t"), dev=dev)

    def of(kind: type[Flags]) -> Flags:
        return kind(**{name: value for name, value in flags.items() if hasattr(kind(), name)})

    training, data, files = of(TrainingFlags), of(DataFlags), of(FileOptions)
    settings, path = overrides(options, training, data, files, seed=seed, sets=set)
    return load_recipe(None, settings, FinetuneRecipe), path


def test_no_flag_is_the_default_recipe() -> None:
    assert recipe_of() == (FinetuneRecipe(), None)


def test_every_short_flag_reaches_its_setting() -> None:
    assert set(VALUES) == set(SHORT)
    for flag, value in VALUES.items():
        recipe = msgspec.to_builtins(recipe_of(**{flag: value})[0])
        section, _, key = SHORT[flag].partition(".")
        assert recipe[section][key] == value
    assert recipe_of(seed=9)[0].train.seed == 9
    weights = recipe_of(class_weights='{"rare": 3}')[0].train.class_weights
    assert weights == {"rare": 3.0}


def test_dev_is_a_file_or_a_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, path = recipe_of(dev="0.1")
    assert (recipe.data.dev, path) == (0.1, None)
    recipe, path = recipe_of(dev="dev.tsv")
    assert (recipe.data.dev, path) == (0.0, Path("dev.tsv"))
    monkeypatch.chdir(tmp_path)
    Path("0.1").write_text("a file of that name")
    assert recipe_of(dev="0.1")[1] == Path("0.1")
    for wrong in ("1.5", "0", "-1"):
        with pytest.raises(UsageError, match="a share of --train between 0 and 1"):
            recipe_of(dev=wrong)


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_budget_replaces_any_other(budget: str) -> None:
    own: dict[str, Any] = {budget: 5}
    recipe, _ = recipe_of(**own)
    assert {b: getattr(recipe.train, b) for b in BUDGETS} == {
        b: 5 if b == budget else None for b in BUDGETS
    }
    with pytest.raises(UsageError, match=r"one budget at a time|given twice"):
        recipe_of(set=("train.epochs=1",), **own)


QUICK = ["--batch_size", "16", "--steps", "12", "--learning_rate", "0.002"]
QUICK += ["--set", "train.precision=fp32", "--set", "train.compile=off", "--quiet"]
WRITERS = {
    "classify": (write_texts, "rows.tsv", "accuracy"),
    "regress": (write_numbers, "rows.jsonl", "pearson"),
    "tag": (write_tags, "rows.conll", "f1"),
    "qa": (write_questions, "rows.json", "f1"),
    "choose": (write_choices, "rows.jsonl", "accuracy"),
}


@pytest.mark.parametrize("task", list(WRITERS))
def test_from_a_labelled_file_to_answers(
    task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write, name, metric = WRITERS[task]
    model = write_model(tmp_path / "base")
    for part, rows in (("train", 60), ("dev", 20), ("test", 20)):
        (tmp_path / part).mkdir()
        write(tmp_path / part / name, rows, seed=len(part))
    files = [f"--{part}={tmp_path / part / name}" for part in ("train", "dev", "test")]
    run = tmp_path / "run"
    command = ["finetune", task, str(model), *files, "--out", str(run), *QUICK]
    assert main([*command, "--json"]) == 0, capsys.readouterr().err
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["task"], result["steps"], result["interrupted"]) == (task, 12, False)
    assert Path(result["model"]) == run / "model"
    assert main(["evaluate", str(run), str(tmp_path / "test" / name), "--json", "--quiet"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])["figures"]
    assert figures[metric] == pytest.approx(result["test"][metric], abs=1e-6)
    out = tmp_path / "out.jsonl"
    test = str(tmp_path / "test" / name)
    assert main(["predict", str(run), test, "--out", str(out), "--quiet"]) == 0
    assert len(out.read_text().splitlines()) == 20
    assert main(command) == 2  # what is there is not replaced


def test_interrupted_and_resumed_it_ends_as_if_it_never_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetune_card, "draw_curves", lambda lines, path, metric: None)
    model, module = write_model(tmp_path / "base"), finetune_module
    train, dev = write_files("classify", tmp_path, 60, 20)
    command = ["finetune", "classify", str(model), "--train", str(train), "--dev", str(dev)]
    chosen = [*QUICK, "--set", "checkpoint.every_steps=3", "--set", "log.every_steps=1"]
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    assert main([*command, *chosen, "--out", str(straight)]) == 0
    command += ["--out", str(broken)]
    capsys.readouterr()
    with monkeypatch.context() as patch:
        at_step(module, patch, 4, terminate)  # told to stop
        assert main([*command, *chosen]) == 130
    said = capsys.readouterr()
    assert "continue it with --resume" in said.out
    assert said.err.splitlines()[-1].startswith("bertkit: interrupted")
    assert not (broken / "model").exists()
    assert main([*command, *chosen]) == 2
    assert "say --resume" in capsys.readouterr().err
    assert main([*command, "--resume", "--quiet", "--steps", "5"]) == 2
    assert "train.steps was 12, now 5" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        at_step(module, patch, 10, kill)  # killed
        with pytest.raises(Killed):
            main([*command, *chosen, "--resume"])
    # A run goes on with its own settings: they need not be said again.
    assert main([*command, "--resume", "--quiet", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["steps"], result["interrupted"]) == (12, False)
    assert end_of(broken) == end_of(straight)


def test_a_share_of_the_training_rows_and_a_table_for_people(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, rows = write_model(tmp_path / "base"), write_texts(tmp_path / "rows.tsv", 60)
    command = ["finetune", "classify", str(model), "--train", str(rows), "--dev", "0.2"]
    command += ["--out", str(tmp_path / "run"), *QUICK, "--seeds", "2", "--seed", "5"]
    assert main(command) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    assert ["figure", "dev"] in lines
    first = lines[lines.index(["figure", "dev"]) + 1]
    assert (first[0], first[2], len(first)) == ("accuracy", "±", 4)
    assert ["run", "accuracy", "on", "dev"] in lines
    assert [line[0] for line in lines if line[0].startswith("seed-")] == ["seed-5", "seed-6"]
    assert "mean ± standard deviation of 2 runs" in out
    assert f"MB in {tmp_path / 'run'}/*/checkpoints, needed no more" in out
    assert sorted(p.name for p in (tmp_path / "run").glob("seed-*")) == ["seed-5", "seed-6"]
    assert load(tmp_path / "run").classify("w1 good1 w2")[0]["label"] in ("bad", "fine", "good")


def test_a_tagger_that_finds_nothing_is_told_so() -> None:
    place = Path("run")
    for figures, told in (
        ({"f1": 0.0, "conlleval_f1": 0.0}, True),
        ({"f1": 0.5, "conlleval_f1": 0.5}, False),
        ({"accuracy": 0.0, "f1": 0.0}, False),
    ):
        said = summary(FinetuneResult(place, place / "model", "tag", "f1", figures, steps=1))
        assert ("no entity of dev was found: train longer" in said) == told
        assert said.startswith("1 step, 0 examples, ")


def test_what_cannot_work_is_refused_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, rows = write_model(tmp_path / "base"), write_texts(tmp_path / "rows.tsv", 12)
    one = tmp_path / "one.tsv"
    one.write_text("label\ttext\n" + "same\tw1 w2\n" * 5)
    out = tmp_path / "run"
    for arguments, status, line in (
        (["classify", model, "--train", tmp_path / "none.tsv"], 1, "none.tsv: no such file"),
        (["classify", model, "--train", one], 1, "there must be two or more"),
        (["classify", tmp_path / "no", "--train", rows], 1, "no such folder"),
        (["sing", model, "--train", rows], 2, "sing"),
        (["classify", model, "--train", rows, "--crf"], 2, "crf is for tag"),
        (["classify", model, "--train", rows, "--steps", "1", "--epochs", "1"], 2, "one budget"),
        (["classify", model, "--train", rows, "--set", "train.beauty=1"], 2, "train.beauty"),
        (["classify", model, "--train", rows, "--class_weights", "{bad: 3"], 2, "not valid JSON"),
        (["classify", model, "--train", rows, "--class_weights", '{"odd": 3}'], 2, "odd"),
    ):
        command = ["finetune", *map(str, arguments), "--out", str(out), "--quiet"]
        assert main(command) == status, arguments
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("bertkit: error: ")
        assert line in error
    assert not (out / "model").exists()
