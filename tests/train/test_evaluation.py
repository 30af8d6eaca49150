"""Samples of filled masks for people."""

from __future__ import annotations

import torch

from bertkit.batch import PretrainBatch
from bertkit.train.evaluation import sample_fills
from bertkit.train.setup import Source
from bertkit.train.start import build_model
from bertkit.train.step import Model
from tests.train.conftest import MACHINE, small_recipe


def test_without_held_out_masks_there_are_no_samples(source: Source) -> None:
    model = build_model(small_recipe(), source.tokenizer, None, print)
    assert sample_fills(model, source.tokenizer, [], MACHINE) == []


class Oracle:
    """Stands in for the model: always says the words it is given, in order."""

    def __init__(self, model: Model, answers: list[int]) -> None:
        self.model, self.answers, self.training = model, answers, True

    def eval(self) -> None:
        self.training = False

    def train(self, mode: bool) -> None:
        self.training = mode

    def mlm_logits_at(self, batch: object, positions: torch.Tensor) -> torch.Tensor:
        answers = [self.answers.pop(0) for _ in range(len(positions))]
        return torch.nn.functional.one_hot(torch.tensor(answers), 65).float()


def test_samples_show_the_guess_and_what_was_right(
    source: Source, dev: list[PretrainBatch]
) -> None:
    model = build_model(small_recipe(), source.tokenizer, None, print)
    labels = dev[0].mlm_labels.tolist()
    answers = [labels[0], 5, *labels[2:]]
    assert labels[1] != 5
    oracle = Oracle(model, answers)
    lines = sample_fills(oracle, source.tokenizer, dev, MACHINE, count=3)  # type: ignore[arg-type]
    assert oracle.training
    assert len(lines) == 3
    words = source.tokenizer.convert_ids_to_tokens(labels[:2])
    assert f"[{words[0]}]" in lines[0]
    wrong = source.tokenizer.convert_ids_to_tokens([5])[0]
    assert f"[{wrong}|{words[1]}]" in " ".join(lines)
    assert "[MASK]" not in " ".join(lines)


def test_samples_of_a_model_repeat_and_leave_it_training(
    source: Source, dev: list[PretrainBatch]
) -> None:
    model = build_model(small_recipe(train__dropout=0.5), source.tokenizer, None, print).train()
    first = sample_fills(model, source.tokenizer, dev, MACHINE)
    assert sample_fills(model, source.tokenizer, dev, MACHINE) == first
    assert model.training
