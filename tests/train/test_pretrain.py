"""A whole run: it learns, it ends in a folder that transformers opens, nothing bad is kept."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from bertkit.checkpoint.store import newest_step, verify_step
from bertkit.errors import CheckpointError, TrainingError, UsageError
from bertkit.model.heads import BertForMaskedLM, BertForPreTraining
from bertkit.runtime import Runtime
from bertkit.settings import Recipe, load_recipe
from bertkit.text.tokenizer import BertTokenizer
from bertkit.train import pretrain as pretrain_module
from bertkit.train import state
from bertkit.train.log import read_log
from bertkit.train.pretrain import pretrain
from bertkit.train.run import Run
from bertkit.train.setup import PretrainResult, build_loader, open_data
from bertkit.train.step import StepResult
from bertkit.train.stopping import stop_signals
from tests.train.conftest import small_recipe

ROOT = Path(__file__).parents[2]
# Their names are replaced by name below.
module: Any = pretrain_module
state_module: Any = state


def run(data: Path, out: Path, **settings: Any) -> PretrainResult:
    resume = settings.pop("resume", False)
    recipe = small_recipe(**settings)
    return pretrain([data], out, recipe, resume=resume, device="cpu", quiet=True)


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> PretrainResult:
    """One run of 160 steps, looked at from many sides."""
    return run(
        data,
        tmp_path_factory.mktemp("runs") / "finished",
        train__steps=160,
        train__learning_rate=5e-3,
        checkpoint__every_steps=60,
        log__every_steps=5,
    )


def test_it_learns(finished: PretrainResult) -> None:
    figures = finished.figures
    assert figures["unigram_loss"] == pytest.approx(math.log(60), abs=0.1)
    # Knowing the topic alone leaves ln 10 = 2.3 of the unigram's 4.1.
    assert figures["mlm_loss"] < figures["unigram_loss"] - 0.3
    assert figures["mlm_perplexity"] == pytest.approx(math.exp(figures["mlm_loss"]))
    assert 0 <= figures["nsp_accuracy"] <= 1
    assert (finished.steps, finished.skipped, finished.interrupted) == (160, 0, False)


def test_the_run_folder(finished: PretrainResult) -> None:
    out = finished.run
    assert {p.name for p in out.iterdir()} == {"checkpoints", "log.jsonl", "model", "recipe.toml"}
    steps = sorted(p.name for p in (out / "checkpoints").iterdir())
    assert steps == ["step-00000120", "step-00000160"]  # two are kept
    assert finished.model == out / "model"
    assert {p.name for p in (out / "model").iterdir()} == {
        "README.md",
        "config.json",
        "curves.png",
        "model.safetensors",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
    }
    recipe = load_recipe(out / "recipe.toml", {}, Recipe)
    assert (recipe.train.steps, recipe.train.learning_rate) == (160, 5e-3)
    assert json.loads(json.dumps(finished.to_dict()))["model"] == str(out / "model")


def test_model_and_every_checkpoint_open_here_and_in_transformers(
    finished: PretrainResult,
) -> None:
    assert finished.model is not None
    ids = torch.randint(5, 65, (3, 20), generator=torch.Generator().manual_seed(1))
    for folder in (finished.model, *sorted((finished.run / "checkpoints").iterdir())):
        ours = BertForPreTraining.from_pretrained(folder)
        assert not ours.training
        kind: Any = transformers.BertForPreTraining
        theirs, info = kind.from_pretrained(folder, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        with torch.no_grad():
            a, b = theirs.eval()(ids), ours(ids)
        torch.testing.assert_close(b.prediction_logits, a.prediction_logits, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            b.seq_relationship_logits, a.seq_relationship_logits, atol=1e-5, rtol=1e-5
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        text = "ag ah bp xx"
        assert tokenizer(text)["input_ids"] == BertTokenizer.from_pretrained(folder).encode(text)
    newest = newest_step(finished.run / "checkpoints")
    assert newest is not None
    weights = "model.safetensors"
    assert (newest / weights).read_bytes() == (finished.model / weights).read_bytes()


def test_what_is_saved_keeps_berts_dropout_for_fine_tuning(finished: PretrainResult) -> None:
    config = json.loads((finished.run / "model" / "config.json").read_text())
    assert config["hidden_dropout_prob"] == config["attention_probs_dropout_prob"] == 0.1
    assert config["architectures"] == ["BertForPreTraining"]


def test_card_and_curves(finished: PretrainResult, data: Path) -> None:
    assert finished.model is not None
    card = (finished.model / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert (
        f"| {finished.figures['mlm_loss']:.3f} | {finished.figures['unigram_loss']:.3f} |" in card
    )
    figures = finished.figures
    pairs = f"accuracy | {figures['nsp_accuracy']:.3f} | {figures['nsp_constant_accuracy']:.3f} |"
    assert pairs in card
    assert figures["nsp_constant_accuracy"] >= 0.5
    assert "160 steps" in card
    assert "learning_rate = 0.005" in card
    assert (
        f"- `data`: 240 documents, {sum(s.tokens for s in open_data([data]).train):,} tok" in card
    )
    assert "; held out 24 documents, " in card
    assert (finished.model / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_short_run_does_not_spend_its_time_on_evaluations(data: Path, tmp_path: Path) -> None:
    result = run(data, tmp_path / "run", train__steps=20, log__evals=1000)
    lines = read_log(result.run / "log.jsonl")
    seen = [line["tokens"] for line in lines if line["event"] == "eval"]
    steps = [line["step"] for line in lines if line["event"] == "eval"]
    assert 1 < len(seen) <= 1 + result.tokens // 1024
    assert steps[-1] == 20
    few = run(data, tmp_path / "few", train__steps=3, log__evals=10)
    lines = read_log(few.run / "log.jsonl")
    assert [line["step"] for line in lines if line["event"] == "eval"] == [3]


def test_the_log_tells_everything(finished: PretrainResult) -> None:
    lines = read_log(finished.run / "log.jsonl")
    assert lines[0]["event"] == "start"
    assert lines[0]["unigram_loss"] == finished.figures["unigram_loss"]
    train = [line for line in lines if line["event"] == "train"]
    assert [line["step"] for line in train] == [1, *range(5, 161, 5)]
    for line in train:
        assert line["loss"] == pytest.approx(line["mlm_loss"] + line["nsp_loss"])
        assert line["masked"] > 0
        assert line["tokens"] <= 256 * line["step"]
    rates = [line["learning_rate"] for line in train]
    peak = rates.index(max(rates))
    assert 0 < train[peak]["step"] <= 15  # warmed up over 6% of the run, then down
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    evals = [line for line in lines if line["event"] == "eval"]
    assert [line["step"] for line in evals] == [80, 160]
    assert evals[-1]["mlm_loss"] == finished.figures["mlm_loss"]
    samples = [line["fills"] for line in lines if line["event"] == "samples"]
    assert len(samples) == 2
    assert all(len(fills) == 3 for fills in samples)


def test_packing_fills_the_steps(finished: PretrainResult) -> None:
    assert finished.tokens > 0.98 * 256 * 160


def test_an_existing_folder_is_refused(finished: PretrainResult, data: Path) -> None:
    before = (finished.run / "log.jsonl").read_bytes()
    with pytest.raises(UsageError, match="--resume to continue it or --overwrite"):
        run(data, finished.run, train__steps=5)
    with pytest.raises(UsageError, match=r"train\.steps was 160, now 5"):
        run(data, finished.run, train__steps=5, train__learning_rate=5e-3, resume=True)
    assert (finished.run / "log.jsonl").read_bytes() == before


def test_resume_without_a_checkpoint_starts_at_zero(data: Path, tmp_path: Path) -> None:
    result = run(data, tmp_path / "new", train__steps=2, resume=True)
    assert result.steps == 2
    assert read_log(tmp_path / "new" / "log.jsonl")[0]["event"] == "start"


def test_resuming_a_finished_run_changes_nothing(data: Path, tmp_path: Path) -> None:
    first = run(data, tmp_path, train__steps=4)
    kept = {p: p.read_bytes() for p in (tmp_path / "model").iterdir()}
    log = (tmp_path / "log.jsonl").read_bytes()
    again = run(data, tmp_path, train__steps=4, resume=True)
    assert again.steps == 4
    assert again.figures == first.figures
    assert (tmp_path / "log.jsonl").read_bytes() == log
    for path, content in kept.items():
        if path.name not in ("curves.png", "README.md"):
            assert path.read_bytes() == content, path
    assert "No documents were held out" not in (tmp_path / "model" / "README.md").read_text()


def test_two_phases(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[tuple[int, int, int]] = []
    step = module._step

    def spy(run: Run, parts: Any) -> StepResult:
        longest = max(int(part.lengths.max()) for part in parts)
        lengths.append((run.state.step, run.state.phase, longest))
        result: StepResult = step(run, parts)
        return result

    monkeypatch.setattr(module, "_step", spy)
    run(
        data,
        tmp_path,
        train__steps=20,
        data__max_length=16,
        data__final_max_length=64,
        data__final_share=0.25,
    )
    assert [phase for _, phase, _ in lengths] == [0] * 15 + [1] * 5
    assert max(n for _, phase, n in lengths if phase == 0) <= 16
    assert max(n for _, phase, n in lengths if phase == 1) > 32


@pytest.mark.parametrize(
    ("budget", "value", "low", "high"),
    [("steps", 7, 7, 7), ("tokens", 1500, 6, 6), ("epochs", 0.2, 5, 30)],
)
def test_budgets(
    budget: str, value: float, low: int, high: int, data: Path, tmp_path: Path
) -> None:
    result = run(data, tmp_path, **{f"train__{budget}": value}, log__evals=0)
    assert low <= result.steps <= high
    assert not result.interrupted
    if budget == "tokens":
        assert 1500 <= result.tokens < 1500 + 256


def test_a_budget_of_epochs_sees_the_data_so_often(data: Path, tmp_path: Path) -> None:
    result = run(data, tmp_path, train__epochs=0.5, log__evals=0)
    assert result.steps == read_log(tmp_path / "log.jsonl")[-1]["step"]
    source = open_data([data])
    machine = Runtime(torch.device("cpu"), torch.float32, 0, 1, 1)
    epoch = 0
    for parts, cursor in build_loader(
        source.train, small_recipe(), source.tokenizer, machine, phase=0
    ).batches():
        if cursor.epoch > 0:
            break
        epoch += sum(part.real_tokens for part in parts)
    assert result.tokens == pytest.approx(0.5 * epoch, rel=0.1)


def test_a_budget_of_minutes_ends_in_time_and_reaches_the_end_of_the_schedule(
    data: Path, tmp_path: Path
) -> None:
    result = run(data, tmp_path, train__minutes=0.03, log__evals=0)
    assert 1.8 <= result.seconds < 10
    rates = [x["learning_rate"] for x in read_log(tmp_path / "log.jsonl") if x["event"] == "train"]
    assert rates[-1] < 0.3 * max(rates)


def test_a_masked_language_model_alone(data: Path, tmp_path: Path) -> None:
    result = run(data, tmp_path, train__steps=4, data__objective="mlm")
    assert result.figures["nsp_accuracy"] is None
    model = BertForMaskedLM.from_pretrained(tmp_path / "model")
    assert model.load_report is not None
    assert not model.load_report.missing
    assert "next-sentence" not in (tmp_path / "model" / "README.md").read_text()
    assert all(x["nsp_loss"] == 0 for x in read_log(tmp_path / "log.jsonl") if "nsp_loss" in x)


def test_starting_from_a_model(finished: PretrainResult, data: Path, tmp_path: Path) -> None:
    recipe = small_recipe(train__steps=1)
    result = pretrain([data], tmp_path, recipe, init=str(finished.run), device="cpu", quiet=True)
    # The first step of a warm-up moves nothing.
    assert result.figures["mlm_loss"] == pytest.approx(finished.figures["mlm_loss"], rel=1e-6)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_manual_names_every_figure_of_the_log(finished: PretrainResult, language: str) -> None:
    page = (ROOT / "docs" / language / "pretrain.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([a-z_]+)` \| (.+) \|$", page, re.M))
    for line in read_log(finished.run / "log.jsonl"):
        for figure in line.keys() - {"event", "step"}:
            assert f"`{figure}`" in rows[line["event"]], (line["event"], figure)


def test_losses_of_words_and_of_pairs_are_told_apart(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain([data], tmp_path, small_recipe(train__steps=4), device="cpu")
    err = capsys.readouterr().err
    lines = [line for line in read_log(tmp_path / "log.jsonl") if line["event"] == "train"]
    words, pairs = (sum(x[name] for x in lines) / 4 for name in ("mlm_loss", "nsp_loss"))
    assert f"step 4  loss: words {words:.3f}, pairs {pairs:.3f}  " in err
    assert "masks: masked-word loss" in err
    assert ": masked-word loss" in err[err.index("held out at step 4") :]
    assert ", next-sentence accuracy 0." in err
    assert re.search(r"cpu, float32, \d+ threads?, ", err)


def test_how_large_a_step_is_and_that_it_takes_long(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"log__evals": 0, "train__micro_tokens": 128}
    pretrain([data], tmp_path / "a", small_recipe(train__steps=2, **settings), device="cpu")
    err = capsys.readouterr().err
    assert "a step: 256 tokens (train.batch_tokens), 128 at a time (train.micro_tokens)" in err
    assert "a step takes" not in err
    monkeypatch.setattr(module, "SLOW_STEP", 0.0)
    pretrain([data], tmp_path / "b", small_recipe(train__steps=2, **settings), device="cpu")
    err = capsys.readouterr().err
    assert err.count("a step takes ") == 1
    assert "with a smaller train.batch_tokens (--batch_tokens)" in err
    assert err.index("a step takes ") < err.index("step 2  loss")


def test_a_refused_start_leaves_nothing(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bertkit.train.setup.has_compiler", lambda device: False)
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "deep" / "run", tmp_path / "empty"):
        with pytest.raises(UsageError, match=r"train\.compile=on"):
            run(data, out, train__steps=2, train__compile="on")
        assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


def test_without_a_held_out_share(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "data"
    shutil.copytree(data, other)
    shutil.rmtree(other / "dev")
    result = pretrain([other], tmp_path / "run", small_recipe(train__steps=2), device="cpu")
    assert result.figures == {}
    assert "prepare the data with --held_out 0.01" in capsys.readouterr().err
    assert "No documents were held out" in (tmp_path / "run" / "model" / "README.md").read_text()


@pytest.mark.filterwarnings("ignore")  # TensorBoard's own
def test_tensorboard_when_asked(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    run(data, tmp_path, train__steps=2, log__tensorboard=True)
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))


def spoil(
    monkeypatch: pytest.MonkeyPatch, steps: set[int], how: Callable[[Any, StepResult], StepResult]
) -> None:
    """Let some steps (counted from 0) go wrong."""
    sound = module.forward_backward

    def spoiled(network: Any, parts: Any, machine: Any, seeds: Any, stop: bool) -> StepResult:
        result = sound(network, parts, machine, seeds, stop)
        return how(network, result) if seeds[1] in steps else result

    monkeypatch.setattr(module, "forward_backward", spoiled)


def not_a_number(network: Any, result: StepResult) -> StepResult:
    for parameter in network.parameters():
        parameter.grad.fill_(math.nan)
    return replace(result, loss=math.nan, mlm_loss=math.nan)


def infinite_gradient(network: Any, result: StepResult) -> StepResult:
    next(network.parameters()).grad.view(-1)[0] = math.inf
    return result


def spike(network: Any, result: StepResult) -> StepResult:
    return replace(result, loss=result.loss + 50)


@pytest.mark.parametrize("how", [not_a_number, infinite_gradient], ids=lambda f: f.__name__)
def test_a_bad_step_is_skipped_and_logged(
    how: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, {2, 5}, how)
    result = run(data, tmp_path, train__steps=8, checkpoint__every_steps=1, checkpoint__keep=9)
    assert (result.steps, result.skipped) == (8, 2)
    bad = [line for line in read_log(tmp_path / "log.jsonl") if line["event"] == "bad_step"]
    assert [line["step"] for line in bad] == [3, 6]
    weights: list[dict[str, torch.Tensor]] = []
    for folder in sorted((tmp_path / "checkpoints").iterdir()):
        tensors = BertForPreTraining.from_pretrained(folder).state_dict()
        assert all(torch.isfinite(t).all() for t in tensors.values())
        weights.append(tensors)
    same = [all(torch.equal(a[name], b[name]) for name in a) for a, b in pairwise(weights)]
    assert same == [False, True, False, False, True, False, False]  # a skipped step moves nothing
    assert "2 steps skipped" in (tmp_path / "model" / "README.md").read_text()


def test_a_spike_is_skipped_once_the_mean_is_known(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, {10, 55}, spike)
    result = run(data, tmp_path, train__steps=58, log__evals=0)
    bad = [line["step"] for line in read_log(tmp_path / "log.jsonl") if line["event"] == "bad_step"]
    assert bad == [56]
    assert result.skipped == 1


def test_a_bad_step_stops_where_the_recipe_says_so(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, {4}, not_a_number)
    with pytest.raises(TrainingError, match=r"step 5: loss nan.*on_bad_step"):
        run(
            data,
            tmp_path,
            train__steps=8,
            train__on_bad_step="stop",
            checkpoint__every_steps=2,
        )
    assert not (tmp_path / "model").exists()
    newest = newest_step(tmp_path / "checkpoints")
    assert newest is not None
    assert newest.name == "step-00000004"
    assert read_log(tmp_path / "log.jsonl")[-1]["loss"] == "nan"


def test_a_run_that_only_skips_gives_up(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, set(range(2, 100)), not_a_number)
    with pytest.raises(TrainingError, match=r"25 in a row were skipped.*train\.learning_rate"):
        run(data, tmp_path, train__steps=60, checkpoint__every_steps=2, checkpoint__keep=99)
    for folder in (tmp_path / "checkpoints").iterdir():
        assert verify_step(folder) == []


def test_a_full_disk_leaves_the_last_good_checkpoint(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = state_module.write_tensors

    def full(path: Path, tensors: Any) -> None:
        if "00000006" in str(path):
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, tensors)

    monkeypatch.setattr(state_module, "write_tensors", full)
    settings = {"train__steps": 8, "checkpoint__every_steps": 3}
    with pytest.raises(CheckpointError, match="No space left on device"):
        run(data, tmp_path, **settings)
    newest = newest_step(tmp_path / "checkpoints")
    assert newest is not None
    assert newest.name == "step-00000003"
    monkeypatch.setattr(state_module, "write_tensors", write)
    assert run(data, tmp_path, **settings, resume=True).steps == 8


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_save_and_report(
    number: int, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = module.forward_backward
    outer = signal.signal(number, nothing := lambda *_: None)  # nohup would have set one aside

    def interrupting(network: Any, parts: Any, machine: Any, seeds: Any, asked: Any) -> StepResult:
        result: StepResult = sound(network, parts, machine, seeds, asked)
        if seeds[1] == 3:
            os.kill(os.getpid(), number)
        return result

    monkeypatch.setattr(module, "forward_backward", interrupting)
    result = run(data, tmp_path, train__steps=20)
    assert signal.signal(number, outer) is nothing
    assert result.interrupted
    assert result.model is None
    assert result.steps == 4
    newest = newest_step(tmp_path / "checkpoints")
    assert newest is not None
    assert newest.name == "step-00000004"
    assert not (tmp_path / "model").exists()


def test_under_nohup_a_closed_terminal_stops_nothing() -> None:
    outer = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals(SimpleNamespace(asked=False, progress=None)):
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, outer)


def test_a_second_ctrl_c_ends_at_once(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice(*_: Any) -> StepResult:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        raise AssertionError("not reached")

    monkeypatch.setattr(module, "forward_backward", twice)
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path, train__steps=20)


def test_a_process_that_is_told_to_stop_saves_and_says_so(data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.train.runner", str(data), str(tmp_path / "run")]
    command += ["train.steps=100000", "log.evals=0"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        log = tmp_path / "run" / "log.jsonl"
        deadline = time.monotonic() + 120
        while len(read_log(log)) < 4:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    told = json.loads(out.splitlines()[-1])
    assert told["interrupted"]
    newest = newest_step(tmp_path / "run" / "checkpoints")
    assert newest is not None
    assert newest.name == f"step-{told['steps']:08d}"
