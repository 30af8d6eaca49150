"""BertConfig has Hugging Face's names, defaults and file, and refuses what is not BERT."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

from bertkit.checkpoint.config import BertConfig
from bertkit.errors import CheckpointError, ConfigError
from bertkit.settings import SIZES


def test_the_defaults_are_those_of_transformers() -> None:
    theirs, ours = transformers.BertConfig(), BertConfig()
    for name in ours.to_dict():
        if hasattr(theirs, name):
            assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.num_labels == theirs.num_labels
    assert ours.id2label == theirs.id2label


def test_files_go_both_ways(tmp_path: Path) -> None:
    theirs = transformers.BertConfig(
        vocab_size=99, hidden_size=32, num_attention_heads=4, id2label={0: "甲", 1: "乙", 2: "丙"}
    )
    theirs.save_pretrained(tmp_path / "theirs")
    ours = BertConfig.from_pretrained(tmp_path / "theirs")
    assert (ours.vocab_size, ours.hidden_size, ours.num_labels) == (99, 32, 3)
    assert ours.label2id == {"甲": 0, "乙": 1, "丙": 2}
    ours.save_pretrained(tmp_path / "ours")
    again = transformers.BertConfig.from_pretrained(tmp_path / "ours")
    assert again.id2label == theirs.id2label
    assert BertConfig.from_pretrained(tmp_path / "ours") == ours
    assert [p.name for p in (tmp_path / "ours").iterdir()] == ["config.json"]


def test_a_file_of_transformers_is_written_back_and_no_more_than_it_held(tmp_path: Path) -> None:
    kinds: list[dict[str, Any]] = [
        {},
        {"num_labels": 3},
        {"bos_token_id": 2, "chunk_size_feed_forward": 4},
    ]
    for settings in kinds:
        transformers.BertConfig(vocab_size=99, **settings).save_pretrained(tmp_path / "theirs")
        theirs = json.loads((tmp_path / "theirs" / "config.json").read_text())
        ours = BertConfig.from_pretrained(tmp_path / "theirs")
        assert ours.name_or_path == str(tmp_path / "theirs")
        ours.save_pretrained(tmp_path / "ours")
        again = json.loads((tmp_path / "ours" / "config.json").read_text())
        assert theirs.items() <= again.items()
        assert again.keys() - theirs.keys() <= {"id2label", "label2id"}
    BertConfig().save_pretrained(tmp_path)
    assert not json.loads((tmp_path / "config.json").read_text()).keys() & {
        "is_decoder", "bos_token_id", "name_or_path", "_name_or_path", "torch_dtype"
    }  # fmt: skip
    with pytest.raises(ConfigError, match="is_encoder_decoder is set"):
        BertConfig(is_encoder_decoder=True)


def test_importing_the_configuration_loads_no_torch() -> None:
    code = "import sys, bertkit.checkpoint.config; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "False\n"


def test_sizes_have_names() -> None:
    mini = BertConfig.of_size("mini", vocab_size=100)
    assert (mini.num_hidden_layers, mini.hidden_size, mini.num_attention_heads) == (4, 256, 4)
    assert (mini.intermediate_size, mini.vocab_size) == (1024, 100)
    assert BertConfig.of_size("base") == BertConfig()
    assert all(BertConfig.of_size(size).hidden_size for size in SIZES)
    assert BertConfig.of_size("tiny", hidden_size=64).intermediate_size == 256
    with pytest.raises(ConfigError, match=r"'giant'.*tiny, mini"):
        BertConfig.of_size("giant")


def test_unknown_settings_are_kept() -> None:
    config = BertConfig(my_setting=[1, 2], transformers_version="4.1")
    assert config.my_setting == [1, 2]  # type: ignore[attr-defined]
    assert BertConfig.from_dict(config.to_dict()) == config
    assert BertConfig(my_setting=[1]) != config


def test_labels_are_one_thing() -> None:
    assert BertConfig(num_labels=3).id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    assert BertConfig(label2id={"b": 1, "a": 0}).id2label == {0: "a", 1: "b"}
    assert BertConfig(id2label={"1": "b", "0": "a"}).label2id == {"a": 0, "b": 1}
    named = {"id2label": {"0": "x", "1": "y"}}
    assert BertConfig.from_dict(named, num_labels=3).num_labels == 3
    assert BertConfig.from_dict(named).id2label == {0: "x", 1: "y"}
    config = BertConfig(id2label={0: "a", 1: "b"})
    config.num_labels = 2
    assert config.id2label[1] == "b"
    config.num_labels = 4
    assert config.label2id["LABEL_3"] == 3


def test_it_prints_as_json() -> None:
    text = repr(BertConfig(num_labels=3))
    assert text.startswith("BertConfig {\n")
    assert json.loads(text.removeprefix("BertConfig "))["id2label"]["2"] == "LABEL_2"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"hidden_size": 7, "num_attention_heads": 2}, "not a multiple"),
        ({"hidden_size": 10**12}, "hidden_size is 1000000000000"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"vocab_size": "30522"}, "whole number"),
        ({"vocab_size": True}, "whole number"),
        ({"hidden_act": "swiglu"}, "gelu, gelu_new"),
        ({"hidden_dropout_prob": float("nan")}, "hidden_dropout_prob is nan"),
        ({"layer_norm_eps": -1}, "layer_norm_eps"),
        ({"position_embedding_type": "relative_key"}, "absolute"),
        ({"is_decoder": True}, "encoders only"),
        ({"pad_token_id": 30522}, "pad_token_id"),
        ({"model_type": "roberta"}, "model_type is 'roberta'"),
        ({"num_labels": 10**9}, "num_labels"),
        ({"id2label": {"0": "a", "2": "b"}}, "0 to 1"),
        ({"id2label": {"a": 0}}, "numbers to names"),
        ({"id2label": []}, "table"),
        ({"label2id": 3}, "table"),
        ({"label2id": {"a": []}}, "numbers to names"),
        ({"to_dict": 1}, "'to_dict' cannot be"),
        ({"tie_word_embeddings": "yes"}, "true or false"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(
    settings: dict[str, Any], told: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=told):
        BertConfig(**settings)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(settings))
    with pytest.raises(ConfigError) as caught:
        BertConfig.from_pretrained(tmp_path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"{", "not valid JSON"),
        (b"[1]", "holds a list, not a JSON object"),
        (b"null", "holds null, not a JSON object"),
        (b"true", "holds true or false"),
        (b'{"model_type": null}', "model_type is null"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"hidden_size": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b" " * 10_000_001, "over 10 MB"),
        (b"", "not valid JSON"),
    ],
)
def test_a_broken_file_is_one_line(content: bytes, told: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=told) as caught:
        BertConfig.from_json_file(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mine\.json: cannot be read: No such file"):
        BertConfig.from_json_file(tmp_path / "mine.json")
    (tmp_path / "config.json").write_text('{"hidden_size": null}')
    with pytest.raises(ConfigError, match=r"hidden_size is null; it must be a whole number"):
        BertConfig.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="no such folder"):
        BertConfig.from_pretrained(tmp_path / "nothing")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
names = st.sampled_from([*BertConfig().to_dict(), "num_labels", "id2label", "label2id", "dtype"])


@given(st.dictionaries(names | st.text(max_size=6), json_values, max_size=4))
def test_any_json_gives_a_configuration_or_a_config_error(settings: dict[str, Any]) -> None:
    try:
        config = BertConfig.from_dict(settings)
    except ConfigError:
        return
    assert BertConfig.from_dict(json.loads(config.to_json_string())).hidden_size > 0


def test_asking_for_as_many_labels_as_there_are_keeps_their_names() -> None:
    stored = BertConfig(id2label={0: "neg", 1: "neu", 2: "pos"}).to_dict()
    assert BertConfig.from_dict(stored, num_labels=3).label2id == {"neg": 0, "neu": 1, "pos": 2}
    assert BertConfig.from_dict(stored, num_labels=4).id2label[0] == "LABEL_0"
    with pytest.raises(ConfigError, match="id2label must be a table"):
        BertConfig.from_dict({"id2label": True}, id2label=True)
    assert BertConfig.from_dict({"id2label": True}, num_labels=2).num_labels == 2
