"""Model folders go to transformers and back, every tensor equal; broken ones are refused."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import bertkit
from bertkit.checkpoint.config import BertConfig
from bertkit.checkpoint.layout import write_tensors
from bertkit.errors import CheckpointError, ConfigError, UsageError
from bertkit.model.bert import BertModel
from bertkit.model.heads import (
    BertForMaskedLM,
    BertForNextSentencePrediction,
    BertForPreTraining,
)
from bertkit.model.pretrained import LoadReport

SMALL: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
}
CLASSES = (BertModel, BertForMaskedLM, BertForNextSentencePrediction, BertForPreTraining)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A transformers BertForPreTraining whose every tensor is random, and its folder."""
    torch.manual_seed(0)
    model = transformers.BertForPreTraining(transformers.BertConfig(**SMALL)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    folder = tmp_path_factory.mktemp("theirs")
    model.save_pretrained(folder)
    return model, folder


def test_every_tensor_of_transformers_is_loaded_equal(theirs: tuple[Any, Path]) -> None:
    model, folder = theirs
    ours = BertForPreTraining.from_pretrained(folder)
    assert ours.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name
    report = ours.load_report
    assert isinstance(report, LoadReport)
    assert report.missing == report.unexpected == report.resized == ()
    assert len(report.used) == len(list(ours.parameters()))
    assert not ours.training
    assert ours.cls.predictions.decoder.weight is ours.bert.embeddings.word_embeddings.weight
    ids = torch.tensor([[2, 7, 8, 3], [2, 9, 3, 0]])
    mask = (ids > 0).long()
    with torch.no_grad():
        a, b = ours(ids, attention_mask=mask), model(ids, attention_mask=mask)
    torch.testing.assert_close(a.seq_relationship_logits, b.seq_relationship_logits)
    torch.testing.assert_close(a.prediction_logits[0], b.prediction_logits[0])


@pytest.mark.parametrize("cls", CLASSES)
def test_transformers_opens_what_we_write(
    cls: Any, theirs: tuple[Any, Path], tmp_path: Path
) -> None:
    ours = cls.from_pretrained(theirs[1])
    ours.save_pretrained(tmp_path)
    model, info = getattr(transformers, cls.__name__).from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(info.values()), info
    for name, tensor in ours.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == [cls.__name__]
    assert config["dtype"] == "float32"
    again, own_info = cls.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(own_info.values())
    assert all(torch.equal(again.state_dict()[k], v) for k, v in ours.state_dict().items())
    model.save_pretrained(tmp_path / "theirs")
    assert set(load_file(tmp_path / "theirs" / "model.safetensors")) == set(
        load_file(tmp_path / "model.safetensors")
    )


def test_an_encoder_alone_and_one_with_heads_open_each_other(
    theirs: tuple[Any, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    BertModel.from_pretrained(theirs[1]).save_pretrained(tmp_path)
    assert "embeddings.word_embeddings.weight" in load_file(tmp_path / "model.safetensors")
    with caplog.at_level(logging.WARNING):
        model = BertForMaskedLM.from_pretrained(tmp_path)
    assert torch.equal(
        model.bert.encoder.layer[1].output.dense.weight,
        theirs[0].bert.encoder.layer[1].output.dense.weight,
    )
    assert {name.split(".")[1] for name in model.load_report.missing} == {"predictions"}
    assert "cls.predictions not in the checkpoint, new and untrained" in caplog.text
    assert "bert.pooler, cls.predictions" not in caplog.text
    assert "pooler.dense left out" in str(model.load_report)
    assert "\n" not in str(model.load_report)
    head = model.cls.predictions
    assert not head.bias.any()
    assert torch.equal(head.transform.LayerNorm.weight, torch.ones(16))
    assert 0.01 < float(head.transform.dense.weight.std().detach()) < 0.03
    assert not any(p.is_meta for p in model.parameters())


def test_dtype_is_as_stored_unless_told(theirs: tuple[Any, Path], tmp_path: Path) -> None:
    half = BertForPreTraining.from_pretrained(theirs[1], dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    half.save_pretrained(tmp_path)
    stored = BertForPreTraining.from_pretrained(tmp_path)
    assert {p.dtype for p in stored.parameters()} == {torch.bfloat16}
    assert stored.config.dtype == "bfloat16"
    for told in ({"dtype": "float32"}, {"torch_dtype": torch.float32}):
        assert BertModel.from_pretrained(tmp_path, **told).dtype == torch.float32
    assert BertModel.from_pretrained(tmp_path, dtype="auto").dtype == torch.bfloat16
    assert transformers.BertModel.from_pretrained(tmp_path, dtype="auto").dtype == torch.bfloat16
    with pytest.raises(UsageError, match="int8"):
        BertModel.from_pretrained(tmp_path, dtype="int8")


def test_settings_win_over_the_file(theirs: tuple[Any, Path]) -> None:
    model = BertModel.from_pretrained(
        theirs[1],
        num_labels=5,
        hidden_dropout_prob=0.3,
        attn_implementation="eager",
        add_pooling_layer=False,
    )
    assert (model.config.num_labels, model.config.hidden_dropout_prob) == (5, 0.3)
    assert model.pooler is None
    given = BertConfig(**SMALL, my_own=1)
    model = BertModel.from_pretrained(theirs[1], config=given, num_hidden_layers=1)
    assert len(model.encoder.layer) == 1
    assert given.num_hidden_layers == 2
    with pytest.raises(TypeError, match="nonsense"):
        BertModel.from_pretrained(theirs[1], nonsense=1)


def test_other_shapes_are_refused_or_begin_anew(theirs: tuple[Any, Path]) -> None:
    with pytest.raises(CheckpointError, match=r"\[50, 16\] in the weights but \[60, 16\]") as error:
        BertModel.from_pretrained(theirs[1], vocab_size=60)
    assert "\n" not in str(error.value)
    model = BertModel.from_pretrained(theirs[1], vocab_size=60, ignore_mismatched_sizes=True)
    assert model.load_report.resized == ("embeddings.word_embeddings.weight",)
    assert model.embeddings.word_embeddings.weight.shape == (60, 16)


def damaged(folder: Path, source: Path, drop: str, **extra: torch.Tensor) -> None:
    tensors = load_file(source / "model.safetensors")
    save_file(
        {k: v for k, v in tensors.items() if drop not in k} | extra, folder / "model.safetensors"
    )
    (folder / "config.json").write_bytes((source / "config.json").read_bytes())


def test_an_encoder_with_a_hole_is_refused(theirs: tuple[Any, Path], tmp_path: Path) -> None:
    damaged(tmp_path, theirs[1], "layer.1.output.dense.weight")
    with pytest.raises(CheckpointError, match=r"lack bert\.encoder\.layer\.1\.output\.dense"):
        BertForMaskedLM.from_pretrained(tmp_path)
    write_tensors(tmp_path / "model.safetensors", {"x": torch.ones(2)})
    with pytest.raises(CheckpointError, match=r"lack bert\.embeddings"):
        BertForMaskedLM.from_pretrained(tmp_path)
    words = {"bert.embeddings.word_embeddings.weight": torch.ones(50, 16, dtype=torch.int64)}
    damaged(tmp_path, theirs[1], "word_embeddings", **words)
    with pytest.raises(CheckpointError, match=r"as torch\.int64, not floats"):
        BertForMaskedLM.from_pretrained(tmp_path)


def test_layers_that_the_configuration_does_not_know_are_refused(
    theirs: tuple[Any, Path], tmp_path: Path
) -> None:
    _, folder = theirs
    shutil.copytree(folder, tmp_path / "model")
    told = json.loads((folder / "config.json").read_text())
    told["num_hidden_layers"] -= 1
    (tmp_path / "model" / "config.json").write_text(json.dumps(told))
    with pytest.raises(CheckpointError, match=r"hold bert\.encoder\.layer\.\d"):
        BertForPreTraining.from_pretrained(tmp_path / "model")


def test_old_files_load_quietly(theirs: tuple[Any, Path], tmp_path: Path) -> None:
    state = theirs[0].state_dict()
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in state.items()
    }
    old["bert.embeddings.position_ids"] = torch.arange(32)[None]
    torch.save(old, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_bytes((theirs[1] / "config.json").read_bytes())
    model = BertForPreTraining.from_pretrained(tmp_path)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in state.items())
    assert model.load_report.missing == model.load_report.unexpected == ()


def test_an_untied_decoder_is_its_own(tmp_path: Path) -> None:
    config = transformers.BertConfig(**SMALL, tie_word_embeddings=False)
    model = transformers.BertForMaskedLM(config)
    model.save_pretrained(tmp_path / "theirs")
    ours = BertForMaskedLM.from_pretrained(tmp_path / "theirs")
    assert torch.equal(ours.cls.predictions.decoder.weight, model.cls.predictions.decoder.weight)
    assert not torch.equal(ours.cls.predictions.decoder.weight, ours.get_input_embeddings().weight)
    ours.save_pretrained(tmp_path / "ours")
    again, info = transformers.AutoModelForMaskedLM.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not any(info.values())
    assert torch.equal(again.cls.predictions.decoder.weight, model.cls.predictions.decoder.weight)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["BertForMaskedLM", "BertForPreTraining"])
def test_two_biases_of_the_decoder_are_both_kept(kind: str, tied: bool, tmp_path: Path) -> None:
    config = transformers.BertConfig(**SMALL, tie_word_embeddings=tied)
    getattr(transformers, kind)(config).save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    for name in ("cls.predictions.bias", "cls.predictions.decoder.bias"):
        state[name] = torch.randn(SMALL["vocab_size"])
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    theirs = getattr(transformers, kind).from_pretrained(tmp_path).eval()
    ours = getattr(bertkit, kind).from_pretrained(tmp_path)
    assert ours.load_report.missing == ours.load_report.unexpected == ()
    ids = torch.tensor([[2, 5, 7, 3]])
    torch.testing.assert_close(ours(ids)[0], theirs(ids)[0], atol=1e-5, rtol=1e-5)
    ours.save_pretrained(tmp_path / "ours")
    again = load_file(tmp_path / "ours" / "model.safetensors")
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())
    ours.train()
    logits = ours(ids)[0]
    logits.logsumexp(-1).sum().backward()
    assert ours.cls.predictions.decoder.bias.grad is not None
    assert ours.cls.predictions.bias.grad is None
    ours.resize_token_embeddings(SMALL["vocab_size"] + 3)
    assert ours(ids)[0].shape[-1] == len(ours.cls.predictions.bias) == SMALL["vocab_size"] + 3


def test_a_device_map_names_one_device(theirs: tuple[Any, Path]) -> None:
    _, path = theirs
    named: object
    for named in ("cpu", "auto", torch.device("cpu"), {"": "cpu"}, {"bert": "cpu", "cls": "cpu"}):
        model = BertModel.from_pretrained(path, device_map=named)
        if named != "auto":
            assert model.device == torch.device("cpu")
    for named, told in (
        ("balanced", "spreads a model over devices"),
        ({"bert": "cpu", "cls": "disk"}, "names 2 devices"),
        ({}, "names 0 devices"),
        ("disk", "no device is called 'disk'"),
        (77, "no 'cuda:77' here"),
    ):
        with pytest.raises(UsageError, match=told) as caught:
            BertModel.from_pretrained(path, device_map=named)
        assert "\n" not in str(caught.value)


def test_another_kind_of_model_is_refused_with_the_reason(tmp_path: Path) -> None:
    transformers.RobertaConfig().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="model_type is 'roberta'; bertkit opens 'bert' only"):
        BertModel.from_pretrained(tmp_path)


def test_saving_over_a_model_can_be_refused(theirs: tuple[Any, Path], tmp_path: Path) -> None:
    model = BertModel.from_pretrained(theirs[1])
    model.save_pretrained(tmp_path, overwrite=False)
    with pytest.raises(CheckpointError, match=r"config\.json: already there"):
        model.save_pretrained(tmp_path, overwrite=False)
    # Its weights are mapped from the very file that it replaces.
    mapped = BertModel.from_pretrained(tmp_path)
    mapped.save_pretrained(tmp_path)
    again = BertModel.from_pretrained(tmp_path)
    assert all(torch.equal(again.state_dict()[k], v) for k, v in model.state_dict().items())


def test_a_loaded_model_computes_the_same_bits_and_trains(
    theirs: tuple[Any, Path], tmp_path: Path
) -> None:
    torch.manual_seed(1)
    built = BertForPreTraining(BertConfig(**SMALL)).eval()
    built.save_pretrained(tmp_path)
    loaded = BertForPreTraining.from_pretrained(tmp_path)
    for length in (1, 2, 5, 9):
        ids = torch.randint(5, 50, (1, length))
        with torch.no_grad():
            for a, b in zip(built(ids).to_tuple(), loaded(ids).to_tuple(), strict=True):
                assert torch.equal(a, b)
    before = (tmp_path / "model.safetensors").read_bytes()
    ids = torch.randint(5, 50, (2, 8))
    optimizer = torch.optim.SGD(loaded.parameters(), lr=0.1)
    loss = loaded(ids, labels=ids, next_sentence_label=torch.tensor([0, 1])).loss
    loss.backward()
    optimizer.step()
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert loaded(ids, labels=ids, next_sentence_label=torch.tensor([0, 1])).loss < loss
