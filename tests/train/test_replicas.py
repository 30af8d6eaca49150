"""Replicas in threads leave the gradients that one model leaves, to the last bit each time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bertkit
from bertkit.batch import PretrainBatch
from bertkit.checkpoint.config import BertConfig
from bertkit.errors import UsageError
from bertkit.model.dropout import Dropout
from bertkit.runtime import Runtime
from bertkit.settings import TaskTrainSettings, TrainSettings
from bertkit.train.finetune import finetune
from bertkit.train.log import read_log
from bertkit.train.replicas import Replicated, each_part, replica_of, with_replicas
from bertkit.train.setup import open_data
from bertkit.train.start import build_model
from bertkit.train.step import StepDropped, evaluate, forward_backward, wrap
from tests.train.conftest import MACHINE, small_recipe
from tests.train.small_tasks import quick, write_files, write_model
from tests.train.test_step import global_batch

TWO = replace(MACHINE, threads=2, replicas=2)
THREE = replace(MACHINE, threads=3, replicas=3)


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def module_for(data: Path, machine: Runtime, **settings: Any) -> nn.Module:
    torch.manual_seed(1)
    recipe = small_recipe(**settings)
    model = build_model(recipe, open_data([data]).tokenizer, None, print).train()
    return wrap(model, machine, compiled=False)


def step(module: nn.Module, parts: list[PretrainBatch], machine: Runtime, n: int = 0) -> Any:
    """The figures of a step and its gradients, by name."""
    result = forward_backward(module, parts, machine, (0, n))
    found = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad(set_to_none=True)
    return result, {name.removeprefix("module."): grad for name, grad in found.items()}


@pytest.mark.parametrize("objective", ["mlm+nsp", "mlm"])
@pytest.mark.parametrize(("machine", "parts"), [(TWO, 2), (TWO, 5), (THREE, 4), (TWO, 1)])
def test_gradients_and_figures_are_those_of_one_model(
    data: Path, objective: str, machine: Runtime, parts: int
) -> None:
    settings = {"data__objective": objective, "train__dropout": 0.3}
    batches = global_batch(data, small_recipe(**settings), parts)
    wanted, gradients = step(module_for(data, MACHINE, **settings).double(), batches, MACHINE)
    shared = module_for(data, replace(machine, replicas=1), **settings).double()
    shared = Replicated(type(shared), shared.model, machine)  # type: ignore[arg-type]
    result, found = step(shared, batches, machine)
    assert result.loss == pytest.approx(wanted.loss, rel=1e-12)
    assert (result.masked, result.tokens) == (wanted.masked, wanted.tokens)
    assert found.keys() == gradients.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, gradients[name], rtol=1e-10, atol=1e-13)


def test_the_same_bits_each_time_whatever_else_is_drawn(data: Path) -> None:
    module = module_for(data, TWO, train__dropout=0.3)
    batches = global_batch(data, small_recipe(), 4)
    first = step(module, batches, TWO, 5)
    for turn in range(5):
        torch.manual_seed(turn)
        result, found = step(module, batches, TWO, 5)
        assert result == first[0]
        assert all(torch.equal(found[name], first[1][name]) for name in found)
    assert step(module, batches, TWO, 6)[0].loss != first[0].loss


def test_replicas_see_every_update_and_are_counted_once(data: Path) -> None:
    module = module_for(data, TWO)
    assert isinstance(module, Replicated)
    model, copy = module.models
    assert [name for name, _ in module.named_parameters()] == [
        f"module.model.{name}" for name, _ in model.named_parameters()
    ]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    for mine, its in zip(model.parameters(), copy.parameters(), strict=True):
        assert mine.data_ptr() == its.data_ptr()
        assert mine is not its
    batches = global_batch(data, small_recipe(), 2)
    assert evaluate(module, batches, TWO) == evaluate(module.module, batches, MACHINE)


def test_what_is_frozen_or_tied_stays_so() -> None:
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    model["b"].weight = model["a"].weight
    model["a"].bias.requires_grad_(False)
    copy = replica_of(model)
    assert copy["b"].weight is copy["a"].weight
    assert not copy["a"].bias.requires_grad
    assert copy["b"].bias.requires_grad


class Doubled(nn.Module):
    """Makes 2 w x."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.model(x).sum()  # type: ignore[no-any-return]


@pytest.mark.parametrize("bad", [0, 1, 2, 3])
def test_an_error_in_one_replica_ends_all_and_leaves_nothing_on_them(bad: int) -> None:
    shared = Replicated(Doubled, nn.Linear(1, 1), TWO)

    def work(module: nn.Module, number: int, part: float) -> Tensor:
        if number == bad:
            raise ZeroDivisionError(number)
        module(torch.tensor([part])).backward()
        return torch.tensor(part)

    with pytest.raises(ZeroDivisionError):
        each_part(shared, [1.0, 2.0, 3.0, 4.0], work)
    assert torch.get_num_threads() == 2
    assert all(p.grad is None for p in shared.models[1].parameters())
    shared.zero_grad(set_to_none=True)
    bad = -1
    assert torch.stack(each_part(shared, [1.0, 2.0, 3.0], work)).tolist() == [1, 2, 3]
    assert shared.models[0].weight.grad.item() == 12  # type: ignore[operator, union-attr]


def test_asked_to_stop_the_step_is_dropped(data: Path) -> None:
    module = module_for(data, TWO)
    begun: list[int] = []
    batches = global_batch(data, small_recipe(), 6)

    def asked() -> bool:
        begun.append(1)
        return len(begun) > 3

    with pytest.raises(StepDropped):
        forward_backward(module, batches, TWO, asked=asked)


HEADS = [name for name in bertkit.__all__ if name.startswith("BertFor") or "Crf" in name]
CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("machine", "hidden", "tokens", "count"),
    [
        (Runtime(CPU, torch.float32, 0, 1, 2), 256, 2048, 2),
        (Runtime(CPU, torch.float32, 0, 1, 16), 768, 9000, 2),
        (Runtime(CPU, torch.float32, 0, 1, 2), 128, 2048, 1),
        (Runtime(CPU, torch.float32, 0, 1, 2), 256, 2047, 1),
        (Runtime(CPU, torch.float32, 0, 1, 1), 256, 2048, 1),
        (Runtime(CPU, torch.float32, 0, 2, 2), 256, 2048, 1),
        (Runtime(GPU, torch.float32, 0, 1, 2), 256, 2048, 1),
    ],
)
def test_two_where_they_pay(machine: Runtime, hidden: int, tokens: int, count: int) -> None:
    assert with_replicas(machine, TrainSettings(), False, hidden, tokens).replicas == count
    one = with_replicas(machine, TrainSettings(replicas=1), False, hidden, tokens)
    assert one.replicas == 1


@pytest.mark.parametrize(
    ("machine", "train", "compiled", "why"),
    [
        (replace(TWO, device=GPU), TrainSettings(replicas=2), False, "for CPUs"),
        (replace(TWO, world=2), TrainSettings(replicas=2), False, "ranks share"),
        (TWO, TrainSettings(replicas=3), False, "threads are 2"),
        (TWO, TrainSettings(replicas=2), True, "compiled"),
        (TWO, TrainSettings(replicas=2, gradient_checkpointing=True), False, "allows one"),
        (TWO, TaskTrainSettings(replicas=2, loss="dice"), False, "dice"),
    ],
)
def test_where_there_can_be_one_only_it_is_said(
    machine: Runtime, train: TrainSettings, compiled: bool, why: str
) -> None:
    with pytest.raises(UsageError, match=f"train.replicas={train.replicas}, but .*{why}"):
        with_replicas(machine, train, compiled, 768, 9000)
    train.replicas = None
    fits = why == "threads are 2"
    assert with_replicas(machine, train, compiled, 768, 9000).replicas == (2 if fits else 1)


def test_every_dropout_of_every_model_draws_in_its_own_thread() -> None:
    """torch's nn.Dropout draws by the generator that threads share: bits would depend on luck."""
    config = BertConfig.of_size("tiny", vocab_size=99)
    for name in HEADS:
        parts = [m for m in getattr(bertkit, name)(config).modules() if isinstance(m, nn.Dropout)]
        assert parts
        assert {type(part) for part in parts} == {Dropout}


TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "classify": ("classify", {"train__adversarial": "fgm"}),
    "tag": ("tag", {"data__crf": True, "data__max_length": 32, "train__lora_rank": 4}),
    "qa": ("qa", {"data__max_length": 24, "data__doc_stride": 6, "train__freeze_layers": 1}),
    "choose": ("choose", {"train__micro_tokens": 200}),
}


@pytest.mark.parametrize("name", TASKS)
def test_fine_tuned_twice_with_dropout_it_ends_in_the_same_bits(name: str, tmp_path: Path) -> None:
    """Nothing is drawn from torch's own generator, which the threads share."""
    task, settings = TASKS[name]
    model = write_model(tmp_path / "model")
    train, dev = write_files(task, tmp_path, 33, 10)
    recipe = quick(train__replicas=2, train__epochs=1, train__dropout=0.3, **settings)
    ends = []
    for turn in ("one", "two"):
        finetune(task, model, train, dev, None, tmp_path / turn, recipe, device="cpu", quiet=True)
        log = read_log(tmp_path / turn / "log.jsonl")
        ends.append([line["loss"] for line in log if line["event"] == "train"])
    assert ends[0] == ends[1]


@pytest.mark.parametrize("name", TASKS)
def test_fine_tuned_by_two_it_learns_what_one_does(name: str, tmp_path: Path) -> None:
    task, settings = TASKS[name]
    model = write_model(tmp_path / "model")
    train, dev = write_files(task, tmp_path, 33, 10)
    losses = []
    for replicas in (1, 2):
        recipe = quick(
            train__replicas=replicas,
            train__epochs=2,
            train__dropout=0,
            train__batch_size=16,
            **settings,
        )
        out = tmp_path / str(replicas)
        finetune(task, model, train, dev, None, out, recipe, device="cpu", quiet=True)
        log = read_log(out / "log.jsonl")
        losses.append([line["loss"] for line in log if line["event"] == "train"])
    assert len(losses[0]) > 4
    assert losses[1] == pytest.approx(losses[0], rel=2e-5)
