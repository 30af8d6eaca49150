"""What a run says before it trains: what it understood of every file, and what is unusual."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bertkit.train import finetune as finetune_module
from bertkit.train import finetune_card
from bertkit.train.finetune import finetune
from bertkit.train.finetune_plan import Files
from bertkit.train.finetune_result import FinetuneResult
from bertkit.train.log import Progress, read_log
from tests.train.small_tasks import quick, write_choices, write_model, write_tags, write_texts

module: Any = finetune_module


def told(monkeypatch: pytest.MonkeyPatch, task: str, *files: Any, **settings: Any) -> list[str]:
    """What is said of a run, whose steps are left out."""
    said: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "warn", lambda self, text: said.append(text))
        patch.setattr(module, "_loop", lambda run: None)
        patch.setattr(finetune_card, "draw_curves", lambda lines, path, metric: None)
        model, train, dev, test, out = files
        finetune(task, model, train, dev, test, out, quick(**settings), device="cpu")
    return said


def test_dev_and_test_are_described_as_train_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_model(tmp_path / "model")
    train, dev = write_texts(tmp_path / "train.tsv", 40), tmp_path / "dev.tsv"
    known = train.read_text(encoding="utf-8").splitlines()[1]
    dev.write_text(f"label\ttext_a\n{known}\ngood\tw1 {'w2 ' * 80}\nbad\tw4\n", encoding="utf-8")
    said = told(monkeypatch, "classify", model, train, dev, dev, tmp_path / "run")
    first = said.index(f"dev: {dev}")
    lines = said[first : said.index(f"test: {dev}")]
    assert "  3 rows" in lines
    assert any(line.startswith("  labels: ") and "good" in line for line in lines)
    assert any(line.startswith("  3 examples of") and "longest 64" in line for line in lines)
    assert "  longer than that: 1 row (33.3%), cut off at the end" in lines
    assert "  1 row (33.3%) with a text that is in train too" in lines
    assert any(line.startswith("warning: --test is the same as --dev: ") for line in said)
    held = told(monkeypatch, "classify", model, train, None, None, tmp_path / "held", data__dev=0.2)
    lines = held[held.index(f"dev: held out of {train}") :]
    assert lines[1] == "  20.0% of its rows"
    assert any(line.endswith(" rows") for line in lines)
    assert not any("in train too" in line for line in lines)
    rows = [
        line for n in range(3) for line in [f"{'bad' if n else 'good'}\tw{n} w3"] * (9, 9, 2)[n]
    ]
    train.write_text("\n".join(["label\ttext_a", *rows]) + "\n", encoding="utf-8")
    few = told(monkeypatch, "classify", model, train, None, None, tmp_path / "few", data__dev=0.4)
    assert "  55.0% of its rows, not 40.0%: rows of one text, or passage, stay together" in few


def test_one_file_twice_is_noticed(tmp_path: Path) -> None:
    one, copy, other = (tmp_path / name for name in ("one", "copy", "other"))
    one.write_text("a\n")
    copy.write_text("a\n")
    other.write_text("b\n")
    assert Files(one, other).alike() == []
    assert [line.partition(":")[2].split(":")[0] for line in Files(one, copy, one).alike()] == [
        " --dev is the same as --train",
        " --test is the same as --train",
        " --test is the same as --dev",
    ]


def test_long_tags_of_dev_are_read_in_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_model(tmp_path / "model")
    train = write_tags(tmp_path / "train.conll", 20)
    dev = write_tags(tmp_path / "dev.conll", 10, longest=150)
    said = told(monkeypatch, "tag", model, train, dev, None, tmp_path / "run")
    lines = said[said.index(f"dev: {dev}") :]
    assert any(line.endswith("%), read in overlapping windows") for line in lines)
    assert "  what is learned: 7 tags, scheme BIO, chosen word by word" in said


def test_what_differs_from_the_defaults_is_said_and_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, train = write_model(tmp_path / "model"), write_texts(tmp_path / "train.tsv", 40)
    settings = {"train__loss": "focal", "train__r_drop": 0.5, "data__oversample": 1.0}
    files = (model, train, None, None)
    said = told(monkeypatch, "classify", *files, tmp_path / "run", train__steps=1, **settings)
    line = next(line for line in said if line.startswith("not the defaults: "))
    assert "data.oversample=1.0" in line
    assert "train.loss=focal" in line
    assert "train.learning_rate=0.005" in line
    assert "train.steps=1" in line
    assert "epochs" not in line
    assert "head_learning_rate" not in line  # which follows
    assert "loss: focal loss a row + 0.5 x R-Drop's distance; mean of the last 50 steps" in said
    assert any("at rate 0: nothing will be learned" in line for line in said)
    begin = read_log(tmp_path / "run" / "log.jsonl")[0]
    assert begin["changed"]["train.loss"] == "focal"
    twice = {"train__class_weights": "balanced", "data__oversample": 1.0, "train__epochs": 1}
    other = {"train__warmup_ratio": 0} | twice
    assert not any("twice" in line for line in said)
    said = told(monkeypatch, "classify", *files, tmp_path / "other", **other)
    assert any(line.endswith("for rare classes twice; choose one") for line in said)
    assert any(line.startswith("1 epoch, ") for line in said)
    assert "loss: nats a row; mean of the last 50 steps" in said
    assert not any("nothing will be learned" in line for line in said)


def test_choices_are_numbers_on_the_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetune_card, "draw_curves", lambda lines, path, metric: None)
    model, train = write_model(tmp_path / "model"), write_choices(tmp_path / "train.jsonl", 20)
    finetune(
        "choose", model, train, None, None, tmp_path / "run", quick(train__steps=1), quiet=True
    )
    card = (tmp_path / "run" / "model" / "README.md").read_text(encoding="utf-8")
    assert "LABEL_" not in card
    assert "the number of the choice, from 0" in card


def test_plain_mistakes_are_told_without_torch(tmp_path: Path) -> None:
    train = write_texts(tmp_path / "train.tsv", 5)
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").write_text("mine", encoding="utf-8")
    (tmp_path / "bare.tsv").write_text("text\nw1\nw2\n", encoding="utf-8")
    command = ["finetune", "classify", str(tmp_path), "--train", str(train), "--out"]
    cases = [
        ([*command, str(full)], "is not empty"),
        ([*command, str(tmp_path / "run"), "--dev", str(tmp_path / "no.tsv")], "no such file"),
        ([*command, str(tmp_path / "run"), "--dev", str(tmp_path / "bare.tsv")], "no labels in it"),
        ([*command, str(tmp_path / "run"), "--crf"], "data.crf is for tag"),
        ([*command, str(tmp_path / "run")], "config.json"),
    ]
    script = (
        "import sys; from bertkit.cli import main\n"
        f"for arguments in {[arguments for arguments, _ in cases]!r}: main(arguments)\n"
        "assert 'torch' not in sys.modules"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    lines = ended.stderr.splitlines()
    assert ended.returncode == 0, ended.stderr
    assert len(lines) == len(cases)
    for line, (_, wanted) in zip(lines, cases, strict=True):
        assert wanted in line


def test_figures_of_a_run_and_of_several_as_tables() -> None:
    figures = {"accuracy": 0.5, "f1": 1.0, "n": "?", "micro_f1": 0.5, "weighted_recall": 0.5}
    one = FinetuneResult(Path("r"), None, "classify", "f1", figures)
    table = one.table()
    assert table is not None
    assert table.header == ("figure", "dev")
    assert table.rows == (("f1", "1.0000"), ("accuracy", "0.5000"))
    chosen = replace(one, metric="micro_f1").table()
    assert chosen is not None
    assert [row[0] for row in chosen.rows] == ["micro_f1", "accuracy", "f1"]
    assert one.runs_table() is None
    assert FinetuneResult(Path("r"), None, "qa", "f1").table() is None
    runs = [{"run": f"r/seed-{n}", "figures": {}, "test": {"f1": n / 10}} for n in (1, 2)]
    both = FinetuneResult(
        Path("r"), None, "classify", "f1", test={"f1": 0.15}, runs=runs,
        deviations={"figures": {}, "test": {"f1": 0.0707}},
    )  # fmt: skip
    table, several = both.table(), both.runs_table()
    assert table is not None
    assert several is not None
    assert table.rows == (("f1", "0.1500 ± 0.0707"),)
    assert several.header == ("run", "f1 on test")
    assert several.rows == (("seed-1", "0.1000"), ("seed-2", "0.2000"))
