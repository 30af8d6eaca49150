"""Fine-tuning from a file to a model folder: it learns, keeps the best, and says what it does."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

import bertkit
from bertkit.checkpoint.config import BertConfig
from bertkit.errors import DataError, TrainingError, UsageError
from bertkit.infer.engine import predict_rows
from bertkit.model.task_heads import BertForSequenceClassification
from bertkit.settings import FinetuneRecipe, load_recipe
from bertkit.tasks.build import saved_task
from bertkit.tasks.formats import open_rows
from bertkit.tasks.outcomes import label_table
from bertkit.text.tokenizer import BertTokenizer
from bertkit.train import finetune as finetune_module
from bertkit.train import finetune_card
from bertkit.train.finetune import finetune
from bertkit.train.finetune_result import FinetuneResult
from bertkit.train.finetune_run import Measured, TaskState, take_figures
from bertkit.train.finetune_step import StepResult
from bertkit.train.log import Progress, read_log
from tests.train.conftest import MACHINE
from tests.train.small_tasks import quick, write_files, write_model, write_texts

module: Any = finetune_module
# With a field over tags, which see what stands before them, the tiny model is sure of B and I.
ENOUGH = {"classify": 0.8, "regress": 0.9, "tag": 0.3, "tag, crf": 0.9, "qa": 90.0, "choose": 0.9}
EPOCHS = {"classify": 6, "regress": 3, "tag": 3, "tag, crf": 4, "qa": 3, "choose": 3}


@pytest.fixture(autouse=True)
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetune_card, "draw_curves", lambda lines, path, metric: None)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_files("classify", tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_files("classify", tmp_path_factory.mktemp("few"), 60, 20)


@pytest.fixture(scope="module")
def learned(
    model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[FinetuneResult, Path]]:
    """Of a name of ENOUGH the run that learned it, measured on dev twice, and the dev file."""

    @cache
    def once(name: str) -> tuple[FinetuneResult, Path]:
        task, _, crf = name.partition(", ")
        folder = tmp_path_factory.mktemp("learned")
        train, dev = write_files(task, folder)
        recipe = quick(
            train__epochs=EPOCHS[name],
            data__max_length=32,
            data__doc_stride=8,
            data__crf=bool(crf),
        )
        result = finetune(task, model, train, dev, dev, folder / "run", recipe, quiet=True)
        return result, dev

    return once


def run(
    model: Path,
    files: tuple[Path, Path | None],
    out: Path,
    *,
    task: str = "classify",
    recipe: FinetuneRecipe | None = None,
    **going_on: bool,
) -> FinetuneResult:
    train, dev = files
    recipe = recipe or quick()
    return finetune(
        task, model, train, dev, None, out, recipe, device="cpu", quiet=True, **going_on
    )


def test_the_recipe_may_name_the_model(
    model: Path, texts: tuple[Path, Path], tmp_path: Path
) -> None:
    none: Any = None
    named = quick(train__steps=1, model__init=str(model))
    result = run(none, (texts[0], None), tmp_path / "run", recipe=named)
    assert result.model is not None
    with pytest.raises(UsageError, match="name the model to begin with"):
        run(none, (texts[0], None), tmp_path / "none", recipe=quick(train__steps=1))


def losses(out: Path) -> list[float]:
    return [line["loss"] for line in read_log(out / "log.jsonl") if line["event"] == "train"]


@pytest.mark.parametrize("name", ENOUGH)
def test_every_task_is_learned_and_the_folder_answers_as_reported(
    name: str, learned: Callable[[str], tuple[FinetuneResult, Path]]
) -> None:
    result, dev = learned(name)
    task = result.task
    assert result.figures[result.metric] > ENOUGH[name]
    assert result.test == result.figures
    folder = result.run / "model"
    config = BertConfig.from_json_file(folder / "config.json")
    mine = saved_task(config, BertTokenizer.from_pretrained(folder))
    network = mine.model_class.from_pretrained(folder)
    meter: Any = mine.meter()
    for row, prediction in predict_rows(mine, network, open_rows(dev, task).rows()):
        meter.add(row, prediction)
    floor = result.figures.pop("majority_accuracy", None)
    assert (floor is None) == (task != "classify")
    assert meter.figures() == result.figures
    there = type(network).__name__.replace("Crf", "")
    theirs, info = getattr(transformers, there).from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert theirs.config.id2label == config.id2label
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert f"| {result.metric} | {result.figures[result.metric]:.4f} |" in card
    assert f"- train: train{dev.suffix}, 240 rows" in card
    assert f"- dev: dev{dev.suffix}, 60 rows; labels: " in card
    assert f"- test: dev{dev.suffix}, 60 rows" in card
    assert f"fine-tuned with bertkit {bertkit.__version__} for" in card
    labels = meter.per_label()
    assert ("By label, on dev" in card) == (task in ("classify", "tag"))
    assert not labels or label_table(labels).markdown() in card
    if floor is not None:
        rows = dev.with_stem("train").read_text(encoding="utf-8").splitlines()[1:]
        common = Counter(row.partition("\t")[0] for row in rows).most_common(1)[0][0]
        assert floor == sum(line.support for line in labels if line.label == common) / 60
        assert f"| majority_accuracy | {floor:.4f} | {floor:.4f} |" in card
    assert "learning_rate = 0.005" in card


def test_results_and_log_are_in_the_run_folder(
    model: Path, few: tuple[Path, Path], tmp_path: Path
) -> None:
    result = run(model, few, tmp_path / "run")
    kept = json.loads((tmp_path / "run" / "all_results.json").read_bytes())
    assert kept["eval_accuracy"] == result.figures["accuracy"]
    assert kept["steps"] == result.steps == 12
    assert kept["examples"] == result.examples == 180
    log = read_log(tmp_path / "run" / "log.jsonl")
    assert log[0]["event"] == "begin"
    assert log[0]["learning_rate"] == 5e-3
    assert [line["step"] for line in log if line["event"] == "eval"] == [4, 8, 12]
    train = [line for line in log if line["event"] == "train"]
    assert [line["step"] for line in train] == list(range(1, 13))
    assert train[0]["learning_rate"] == 0.0
    assert train[-1]["examples"] == 180
    assert not (tmp_path / "run" / "best").exists()
    again = run(model, few, tmp_path / "run", resume=True)
    assert again == result


def named(**settings: object) -> FinetuneRecipe:
    """BERT's own settings, and any model."""
    tree = {name.replace("__", "."): value for name, value in settings.items()}
    return load_recipe(None, {"model.init": "any"} | tree, FinetuneRecipe)


def test_the_defaults_are_berts(model: Path, texts: tuple[Path, Path], tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, "say", lambda self, text: said.append(text))
        patch.setattr(module, "_loop", lambda run: None)
        finetune("classify", model, *texts, None, tmp_path / "run", None, device="cpu")
    recipe = load_recipe(tmp_path / "run" / "recipe.toml", {}, FinetuneRecipe)
    train = recipe.train
    assert (train.learning_rate, train.epochs, train.batch_size) == (2e-5, 3.0, 32)
    assert (train.warmup_ratio, train.lr_scheduler_type) == (0.1, "linear")
    assert (train.weight_decay, train.max_grad_norm) == (0.01, 1.0)
    told = "\n".join(said)
    assert "learning_rate 2e-05" in told
    assert "warmup_ratio 0.1" in told
    assert "labels: " in told
    assert "240 examples of" in told
    for task, rate in (("tag", 3e-5), ("qa", 3e-5), ("regress", 2e-5)):
        own = module.resolve(task, named(), True, None)
        assert own.train.learning_rate == rate
    field = module.resolve("tag", named(data__crf=True), True, None)
    assert field.train.crf_learning_rate == pytest.approx(100 * 3e-5)


def scripted(monkeypatch: pytest.MonkeyPatch, values: list[float]) -> None:
    """Evaluations give these figures, one after the other."""
    left = iter(values)
    monkeypatch.setattr(
        module,
        "measure",
        lambda run, model, rows, task=None: Measured({"accuracy": next(left)}, []),
    )


def test_the_best_weights_are_kept(
    model: Path, few: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = quick(train__epochs=3, checkpoint__every_steps=8, checkpoint__keep=9)
    scripted(monkeypatch, [0.5, 0.9, 0.7])
    result = run(model, few, tmp_path / "run", recipe=recipe)
    assert (result.best_step, result.steps) == (8, 12)
    assert result.figures["accuracy"] == 0.9
    there = tmp_path / "run" / "checkpoints"
    read = BertForSequenceClassification.from_pretrained
    best = read(tmp_path / "run" / "model").state_dict()
    for step, equal in ((8, True), (12, False)):
        other = read(there / f"step-{step:08}").state_dict()
        assert all(torch.equal(best[name], other[name]) for name in best) == equal


@pytest.mark.parametrize(
    ("metric", "values", "kept"),
    [
        ("f1", [0.0, 0.0, 0.0], [0, 1, 2]),
        ("f1", [0.0, 0.5, 0.5, 0.0], [0, 1]),
        ("mse", [0.0, 0.0], [0]),
        ("f1", [float("nan"), 0.0, float("nan")], [1]),
    ],
)
def test_of_equal_figures_the_first_is_kept_but_for_zeros(
    metric: str, values: list[float], kept: list[int]
) -> None:
    run: Any = SimpleNamespace(state=TaskState(), metric=metric, machine=MACHINE, recipe=quick())
    found = [take_figures(run, Measured({metric: value}, [])) for value in values]
    assert [number for number, one in enumerate(found) if one] == kept


def test_patience_ends_a_run_that_gets_no_better(
    model: Path, few: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, [0.5, 0.9, 0.9, 0.8, float("nan")])
    recipe = quick(train__epochs=20, train__evals=40, train__patience=2)
    result = run(model, few, tmp_path / "run", recipe=recipe)
    assert result.stopped_early
    assert not result.interrupted
    evals = [x["step"] for x in read_log(tmp_path / "run" / "log.jsonl") if x["event"] == "eval"]
    assert result.best_step == evals[1]
    assert result.steps == evals[3]
    assert len(evals) == 4


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"train__steps": 7}, 7),
        ({"train__epochs": 0.4}, 6),
        ({"train__epochs": 1.5}, 23),
        ({"train__minutes": 0.03}, None),
    ],
)
def test_budgets(
    settings: dict[str, Any],
    steps: int | None,
    model: Path,
    texts: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    result = run(model, texts, tmp_path / "run", recipe=quick(**settings))
    assert result.model is not None
    if steps is not None:
        assert result.steps == steps
    else:
        assert 0.5 < result.seconds < 20
    rates = [
        x["learning_rate"]
        for x in read_log(tmp_path / "run" / "log.jsonl")[1:]
        if x["event"] == "train"
    ]
    assert rates[-1] < 0.25 * max(rates)


@pytest.mark.parametrize("task", ["classify", "tag"])
@pytest.mark.parametrize("settings", [{}, {"train__class_weights": "balanced"}])
def test_micro_batches_change_nothing(
    task: str, settings: dict[str, Any], model: Path, tmp_path: Path
) -> None:
    files = write_files(task, tmp_path, 60, 10)
    plain = {"train__dropout": 0.0, "train__steps": 6, "train__learning_rate": 1e-3} | settings
    for name, micro in (("whole", None), ("cut", 40)):
        recipe = quick(**plain, train__micro_tokens=micro)
        run(model, (files[0], None), tmp_path / name, task=task, recipe=recipe)
    assert losses(tmp_path / "cut") == pytest.approx(losses(tmp_path / "whole"), abs=2e-6)


OPTIONS: dict[str, dict[str, Any]] = {
    "focal": {"train__loss": "focal"},
    "dice": {"train__loss": "dice"},
    "balanced": {"train__class_weights": "balanced"},
    "given weights": {"train__class_weights": {"bad": 3.0}},
    "oversampled": {"data__oversample": 1.0},
    "fgm": {"train__adversarial": "fgm", "train__adversarial_epsilon": 0.3},
    "pgd": {"train__adversarial": "pgd", "train__adversarial_epsilon": 0.3},
    "r-drop": {"train__r_drop": 1.0},
    "layer decay": {"train__layer_decay": 0.8},
    "head rate": {"train__head_learning_rate": 1e-2},
    "lora": {"train__lora_rank": 16, "train__lora_alpha": 64.0, "train__epochs": 12,
             "train__lora_targets": ["query", "key", "value", "intermediate", "output"]},
    "checkpointed": {"train__gradient_checkpointing": True},
    "cosine": {"train__lr_scheduler_type": "cosine"},
}  # fmt: skip


@pytest.fixture(scope="module")
def plain_losses(
    model: Path, texts: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> list[float]:
    out = tmp_path_factory.mktemp("plain") / "run"
    run(model, (texts[0], None), out, recipe=quick(train__steps=5))
    return losses(out)


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_changes_what_is_learned(
    name: str, model: Path, texts: tuple[Path, Path], tmp_path: Path, plain_losses: list[float]
) -> None:
    settings = {key: value for key, value in OPTIONS[name].items() if key != "train__epochs"}
    recipe = quick(train__steps=5, **settings)
    run(model, (texts[0], None), tmp_path / "run", recipe=recipe)
    # Computing layers anew on the way back changes no number; all else does.
    assert (losses(tmp_path / "run") == plain_losses) == (name == "checkpointed")


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_with_every_option_it_is_learned(
    name: str, model: Path, texts: tuple[Path, Path], tmp_path: Path
) -> None:
    recipe = quick(**({"train__epochs": 6} | OPTIONS[name]))
    result = run(model, texts, tmp_path / "run", recipe=recipe)
    assert result.figures["accuracy"] > 0.6  # a guess has a third


def test_frozen_layers_stay_as_they_were(
    model: Path, few: tuple[Path, Path], tmp_path: Path
) -> None:
    recipe = quick(train__freeze_layers=1, train__epochs=1)
    run(model, few, tmp_path / "run", recipe=recipe)
    read = BertForSequenceClassification.from_pretrained
    before, after = (read(path).state_dict() for path in (model, tmp_path / "run" / "model"))
    for name, tensor in before.items():
        frozen = ".embeddings." in name or ".layer.0." in name
        assert torch.equal(tensor, after[name]) == frozen, name


def test_lora_changes_the_named_matrices_alone_and_saves_a_plain_model(
    model: Path, few: tuple[Path, Path], tmp_path: Path
) -> None:
    recipe = quick(train__lora_rank=4, train__epochs=1)
    run(model, few, tmp_path / "run", recipe=recipe)
    read = BertForSequenceClassification.from_pretrained
    before, after = (read(path).state_dict() for path in (model, tmp_path / "run" / "model"))
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    inside = {name for name in moved if ".layer." in name}
    assert inside == {
        f"bert.encoder.layer.{layer}.attention.self.{matrix}.weight"
        for layer in range(2)
        for matrix in ("query", "value")
    }


def test_a_student_learns_from_its_teacher_who_stays_as_he_was(
    model: Path,
    texts: tuple[Path, Path],
    learned: Callable[[str], tuple[FinetuneResult, Path]],
    tmp_path: Path,
) -> None:
    teacher = learned("classify")[0].run / "model"
    before = (teacher / "model.safetensors").read_bytes()
    alone = {"train__teacher": str(teacher), "train__teacher_weight": 1.0, "train__epochs": 6}
    result = run(model, texts, tmp_path / "student", recipe=quick(**alone))
    assert result.figures["accuracy"] > 0.7  # of labels it has seen none
    assert (teacher / "model.safetensors").read_bytes() == before
    other = write_texts(tmp_path / "two.tsv", 40)
    other.write_text(other.read_text().replace("fine\t", "good\t"))
    with pytest.raises(UsageError, match="has the labels bad, fine, good; the training rows have"):
        run(model, (other, None), tmp_path / "refused", recipe=quick(**alone))


def test_augmented_tags_are_learned(model: Path, tmp_path: Path) -> None:
    files = write_files("tag", tmp_path, 120, 40)
    plain = {"train__epochs": 6, "data__max_length": 32}
    once = quick(**plain | {"train__epochs": 1})
    one = run(model, files, tmp_path / "one", task="tag", recipe=once)
    both = quick(**plain, data__augment="both")
    two = run(model, files, tmp_path / "two", task="tag", recipe=both)
    assert two.figures["accuracy"] > 0.6
    assert losses(tmp_path / "one")[0] != losses(tmp_path / "two")[0]
    assert 6 * one.steps <= two.steps


def test_rows_are_held_out_where_there_is_no_dev_file(
    model: Path, few: tuple[Path, Path], tmp_path: Path
) -> None:
    result = run(model, (few[0], None), tmp_path / "run", recipe=quick(data__dev=0.25))
    assert result.figures
    assert 3 * 60 * 0.6 < result.examples < 3 * 60 * 0.9
    none = run(model, (few[0], None), tmp_path / "none", recipe=quick(train__steps=3))
    assert none.figures == {}
    assert none.best_step == none.steps
    assert none.model is not None


def test_a_head_for_other_labels_begins_anew(
    learned: Callable[[str], tuple[FinetuneResult, Path]],
    texts: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taught = learned("classify")[0].run
    said: list[str] = []
    monkeypatch.setattr(Progress, "say", lambda self, text: said.append(text))
    other = write_texts(tmp_path / "other.tsv", 40)
    other.write_text(other.read_text().replace("fine\t", "neutral\t"))
    one = quick(train__steps=1, train__dropout=0.0)
    run(taught, (other, None), tmp_path / "anew", recipe=one)
    assert any("is for other labels (bad, fine, good): anew" in line for line in said)
    assert losses(tmp_path / "anew")[0] > 0.8
    run(taught, texts, tmp_path / "on", recipe=one)
    assert losses(tmp_path / "on")[0] < 0.6  # the same labels: it goes on with what it knows


def test_a_bad_step_is_skipped_and_too_many_end_the_run(
    model: Path, texts: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = module.forward_backward
    bad: set[int] = {2}

    def sometimes(network: Any, parts: Any, machine: Any, seeds: Any, stop: bool) -> StepResult:
        result: StepResult = sound(network, parts, machine, seeds, stop)
        if seeds[1] in bad:
            for parameter in network.parameters():
                parameter.grad.fill_(float("nan"))
        return result

    monkeypatch.setattr(module, "forward_backward", sometimes)
    result = run(model, texts, tmp_path / "run", recipe=quick(train__steps=6))
    assert result.skipped == 1
    state = BertForSequenceClassification.from_pretrained(tmp_path / "run").state_dict()
    assert all(bool(tensor.isfinite().all()) for tensor in state.values())
    stopping = quick(train__steps=6, train__on_bad_step="stop")
    with pytest.raises(TrainingError, match="stopped as train"):
        run(model, texts, tmp_path / "stop", recipe=stopping)
    bad.update(range(100))
    with pytest.raises(TrainingError, match="25 in a row were skipped"):
        run(model, texts, tmp_path / "lost", recipe=quick(train__steps=60))


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("classify", {"data__crf": True}, r"data\.crf is for tag"),
    ("tag", {"data__crf": True, "train__loss": "focal"}, "scores whole sequences"),
    ("qa", {"train__loss": "dice"}, "is for classify and tag"),
    ("regress", {"train__class_weights": "balanced"}, "is for classify, tag"),
    ("classify", {"data__augment": "entities"}, r"data\.augment is for tag"),
    ("classify", {"train__adversarial": "fgm", "train__lora_rank": 4}, "moves the word embeddings"),
    ("classify", {"train__steps": 4, "train__epochs": 1}, "one budget, please"),
    ("classify", {"data__dev": 0.1}, "without a dev file"),
    ("classify", {"data__folds": 3}, "takes its dev rows from train"),
    ("classify", {"train__freeze_layers": 3}, "there are 2 layers"),
    ("classify", {"data__max_length": 100}, "the model reads 64 tokens"),
    ("classify", {"train__metric_for_best_model": "bleu"}, "there are accuracy"),
    ("classify", {"train__class_weights": {"ugly": 2.0}}, "names 'ugly'"),
    ("sing", {}, "there is no task 'sing'"),
]


@pytest.mark.parametrize(("task", "settings", "said"), WRONG)
def test_settings_that_cannot_work_are_refused(
    task: str,
    settings: dict[str, Any],
    said: str,
    model: Path,
    texts: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    with pytest.raises(UsageError, match=said):
        run(model, texts, tmp_path / "run", task=task, recipe=quick(**settings))
    assert not (tmp_path / "run").exists()


def test_rows_that_cannot_work_are_refused(model: Path, tmp_path: Path) -> None:
    train = write_texts(tmp_path / "train.tsv", 30)
    cases = {
        "one": ("label\ttext_a\n" + "good\tw1 w2\n" * 9, "only the label 'good'"),
        "empty": ("label\ttext_a\n", "no rows"),
        "tags": ("text\tlabel\nw1\tB-PER\nw2\tI-PER\nw3\tO\n", "labels are tags of words"),
        "bare": ("text_a\nw1 w2\nw3\n", "no labels|can be understood|no column|which column"),
    }
    for name, (text, said) in cases.items():
        path = tmp_path / f"{name}.tsv"
        path.write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match=said):
            run(model, (path, None), tmp_path / "refused" / name, recipe=quick(train__seeds=2))
    assert not (tmp_path / "refused").exists()  # so that the command can be given again, mended
    unseen = tmp_path / "dev.tsv"
    unseen.write_text("label\ttext_a\ngood\tw1\nugly\tw2\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"dev\.tsv:3: the label 'ugly' is none of the model's"):
        run(model, (train, unseen), tmp_path / "run-unseen")
    # The one row that can be measured is right or wrong; the other is left out, and counted.
    skipping = quick(train__steps=1, data__skip_bad_rows=True)
    result = run(model, (train, unseen), tmp_path / "run-skips", recipe=skipping)
    assert result.figures["accuracy"] in (0.0, 1.0)
    with pytest.raises(DataError, match="all lines are one text, no tag like B-PER"):
        run(model, (write_texts(tmp_path / "texts.conll", 30), None), tmp_path / "o", task="tag")
    with pytest.raises(DataError, match=r"train\.tsv: labels must be numbers for regress"):
        run(model, (train, None), tmp_path / "run-words", task="regress")
    with pytest.raises(UsageError, match="read several times"):
        run(model, (Path("-"), None), tmp_path / "run-stdin")


def test_a_run_goes_on_with_its_own_rows_and_settings(
    model: Path, texts: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(module, "finish", lambda run: FinetuneResult(out, None, "classify", "f1"))
        run(model, texts, out, recipe=quick(train__steps=3))
    with pytest.raises(UsageError, match="holds a run; say --resume"):
        run(model, texts, out, recipe=quick(train__steps=3))
    with pytest.raises(UsageError, match=r"train\.steps was 3, now 4"):
        run(model, texts, out, recipe=quick(train__steps=4), resume=True)
    other = write_texts(tmp_path / "other.tsv", 240, seed=9)
    with pytest.raises(UsageError, match=r"other\.tsv: not the rows that"):
        run(model, (other, texts[1]), out, recipe=quick(train__steps=3), resume=True)
    result = run(model, texts, out, recipe=FinetuneRecipe(), resume=True)
    assert result.steps == 3
    assert run(model, texts, out, recipe=quick(train__steps=2), overwrite=True).steps == 2
