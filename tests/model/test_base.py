"""What every BERT model can do beside answering, and classes of a user's own."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bertkit import BertConfig, BertForMaskedLM, BertModel, BertPreTrainedModel
from tests.model.peers import KINDS, assert_close, both, folder_of, rows


class Scorer(BertPreTrainedModel):
    """An encoder, a head, a buffer, a constant and a parameter of its own kind."""

    def __init__(self, config: BertConfig, scale: float = 1.0) -> None:
        super().__init__(config)
        self.bert = BertModel(config)
        self.scorer = nn.Linear(config.hidden_size, 3)
        self.norm = nn.BatchNorm1d(3)
        self.temperature = nn.Parameter(torch.full((3,), 2.5))
        self.weights = torch.arange(3.0) * scale
        self.post_init()

    def forward(self, **inputs: Tensor) -> Tensor:
        scores = self.norm(self.scorer(self.bert(**inputs).pooler_output))
        return scores * self.weights / self.temperature  # type: ignore[no-any-return]


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "bertkit")


def test_a_class_of_ones_own_takes_the_encoder_and_keeps_what_its_constructor_made() -> None:
    theirs, _ = both("BertModel")
    model = Scorer.from_pretrained(folder_of("BertModel"), scale=2.0)
    assert not model.training
    assert model.base_model is model.bert
    assert_close(model.bert(**rows("none"))[1], theirs(**rows("none"))[1])
    assert torch.equal(model.temperature, torch.full((3,), 2.5))
    assert model.weights.tolist() == [0, 2, 4]
    assert model.norm.running_var.tolist() == [1, 1, 1]
    assert model.scorer.bias.tolist() == [0, 0, 0]
    assert 0 < float(model.scorer.weight.detach().abs().max()) <= 0.04
    assert torch.isfinite(model(**rows("none"))).all()
    assert set(model.load_report.missing) == {
        "scorer.weight", "scorer.bias", "temperature", "norm.weight", "norm.bias",
    }  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_it_saves_it_opens_again_buffers_and_all(tmp_path: Path, dtype: torch.dtype) -> None:
    model = Scorer.from_pretrained(folder_of("BertModel"), dtype=dtype)
    model.train()
    for _ in range(3):
        model(**rows("none"))
    with torch.no_grad():
        model.temperature.mul_(2)
    model.eval().save_pretrained(tmp_path)
    again = Scorer.from_pretrained(tmp_path)
    assert again.dtype == dtype == again.norm.running_mean.dtype
    assert again.norm.num_batches_tracked == 3
    assert not again.load_report.missing
    assert not again.load_report.unexpected
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert_close(again(**rows("none")), model(**rows("none")))


def test_a_loaded_encoder_inside_keeps_its_numbers() -> None:
    class Around(BertPreTrainedModel):
        def __init__(self, config: BertConfig, old_way: bool) -> None:
            super().__init__(config)
            self.bert = BertModel.from_pretrained(folder_of("BertModel"))
            self.scorer = nn.Linear(config.hidden_size, 3)
            self.init_weights() if old_way else self.post_init()

    theirs, ours = both("BertModel")
    for old_way in (True, False):
        model = Around(ours.config, old_way)
        assert_close(model.bert(**rows("none"))[0], theirs(**rows("none"))[0])
        assert model.scorer.bias.tolist() == [0, 0, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_every_model_counts_and_names_its_parts_as_transformers_does(kind: str) -> None:
    theirs, ours = both(kind)
    for model in (theirs, ours):
        model.base_model.embeddings.LayerNorm.requires_grad_(False)
    for trainable in (True, False):
        for without in (True, False):
            found = ours.num_parameters(trainable, without)
            assert found == theirs.num_parameters(trainable, without)
    assert ours.get_memory_footprint() == theirs.get_memory_footprint(return_buffers=False)
    assert ours.base_model is (ours if kind == "BertModel" else ours.bert)
    assert ours.config_class is BertConfig
    assert ours.main_input_name == theirs.main_input_name


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing_is_switched_on_and_off(kind: str) -> None:
    _, ours = both(kind)
    assert not ours.is_gradient_checkpointing
    ours.gradient_checkpointing_enable({"use_reentrant": False})
    assert ours.is_gradient_checkpointing
    assert ours.is_activation_checkpointing
    assert ours.base_model.encoder.gradient_checkpointing
    ours.activation_checkpointing_disable()
    assert not ours.is_gradient_checkpointing


def test_a_state_given_is_saved_and_other_processes_save_nothing(tmp_path: Path) -> None:
    _, ours = both("BertForMaskedLM")
    state: dict[str, Any] = {name: t + 1 for name, t in ours.state_dict().items()}
    del state["cls.predictions.decoder.weight"], state["cls.predictions.decoder.bias"]
    ours.save_pretrained(tmp_path / "none", is_main_process=False)
    assert not (tmp_path / "none").exists()
    ours.save_pretrained(tmp_path / "one", state_dict=state)
    again = BertForMaskedLM.from_pretrained(tmp_path / "one")
    for name, tensor in state.items():
        assert torch.equal(again.state_dict()[name], tensor)
