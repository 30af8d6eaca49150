"""Auto classes lead to the class that transformers' namesake leads to."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import bertkit
from bertkit.errors import ConfigError
from tests.model.peers import SETTINGS, folder_of

MODELS = sorted(name for name in bertkit.__all__ if name.startswith("AutoModel"))
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "##s", "sat"]


def test_the_names_are_those_of_the_classes() -> None:
    assert len(MODELS) == 8
    heads = {name for name in bertkit.__all__ if name.startswith("BertFor")}
    assert {f"Bert{name.removeprefix('AutoModel')}" for name in MODELS} - {"Bert"} == heads


@pytest.mark.parametrize("name", MODELS)
def test_they_open_what_their_namesakes_open(name: str) -> None:
    config = transformers.BertConfig(**SETTINGS)
    theirs = getattr(transformers, name).from_config(config)
    auto = getattr(bertkit, name)
    new = auto.from_config(bertkit.BertConfig(**SETTINGS))
    kind = type(theirs).__name__
    assert type(new).__name__ == kind
    assert new.dtype == torch.float32
    assert auto.from_config(bertkit.BertConfig(**SETTINGS), dtype=torch.float16).dtype == torch.half
    folder = folder_of(kind)
    opened = auto.from_pretrained(folder, hidden_dropout_prob=0.3)
    assert type(opened) is type(new)
    assert not opened.training
    assert opened.config.hidden_dropout_prob == 0.3
    assert opened.state_dict().keys() == theirs.state_dict().keys()
    with pytest.raises(TypeError, match=rf"use {name}\.from_pretrained"):
        auto()


def test_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    transformers.RobertaConfig().save_pretrained(tmp_path)
    for auto in (bertkit.AutoModel, bertkit.AutoConfig):
        with pytest.raises(ConfigError, match="roberta"):
            auto.from_pretrained(tmp_path)


def test_configurations() -> None:
    folder = folder_of("BertModel")
    config = bertkit.AutoConfig.from_pretrained(folder, num_labels=7, trust_remote_code=True)
    assert isinstance(config, bertkit.BertConfig)
    assert config.num_labels == 7
    assert config.hidden_size == SETTINGS["hidden_size"]
    assert bertkit.AutoConfig.for_model("bert", hidden_size=24).hidden_size == 24
    with pytest.raises(ConfigError, match="gpt2"):
        bertkit.AutoConfig.for_model("gpt2")


def test_tokenizers(tmp_path: Path) -> None:
    bertkit.BertTokenizer(WORDS).save_pretrained(tmp_path)
    opened: Any = bertkit.AutoTokenizer.from_pretrained(tmp_path, use_fast=True)
    assert type(opened) is bertkit.BertTokenizer
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert opened("A cat sat, cats")["input_ids"] == theirs("A cat sat, cats")["input_ids"]
    sides = bertkit.AutoTokenizer.from_pretrained(tmp_path, padding_side="left")
    assert sides("a", padding="max_length", max_length=5)["input_ids"] == [0, 0, 2, 5, 3]
    for auto in (bertkit.AutoTokenizer, bertkit.AutoConfig):
        with pytest.raises(TypeError, match="from_pretrained"):
            auto()


def test_configurations_and_tokenizers_load_no_torch() -> None:
    code = (
        "import sys; from bertkit import AutoConfig, AutoTokenizer, BertTokenizer;"
        f"BertTokenizer({WORDS!r})('a cat'); AutoConfig.for_model('bert');"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
