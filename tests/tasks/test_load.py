"""`load` and `doctor`: what is in a checkpoint, what was trained, and whether its parts fit."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from bertkit.checkpoint.config import BertConfig
from bertkit.checkpoint.families import _OTHERS
from bertkit.checkpoint.layout import read_tensors, write_tensors
from bertkit.cli import main
from bertkit.errors import CheckpointError, ConfigError, MissingHeadError
from bertkit.model.bert import BertModel
from bertkit.model.heads import BertForMaskedLM, BertForPreTraining
from bertkit.tasks.load import load
from bertkit.text.tokenizer import BertTokenizer

GOOGLE = Path(__file__).parents[1] / "checkpoint" / "fixtures" / "google"
WORDS = (GOOGLE / "vocab.txt").read_text().split()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A trained model with its tokenizer: the weights of Google's fixture."""
    path = tmp_path / "model"
    BertForPreTraining.from_pretrained(GOOGLE).save_pretrained(path)
    BertTokenizer(WORDS).save_pretrained(path)
    return path


def rewrite(folder: Path, **changed: torch.Tensor | None) -> None:
    """Replace or drop tensors; `__` in a name stands for a dot."""
    state = {name: tensor.clone() for name, tensor in read_tensors(folder).items()}
    for name, tensor in changed.items():
        place = name.replace("__", ".")
        if tensor is None:
            state = {n: t for n, t in state.items() if not n.startswith(place)}
        else:
            state[place] = tensor
    write_tensors(folder / "model.safetensors", state)


def never_trained(folder: Path) -> None:
    """As the Chinese whole-word-masking checkpoints were published."""
    rewrite(
        folder,
        cls__predictions__bias=torch.zeros(14),
        cls__predictions__transform__LayerNorm__weight=torch.ones(8),
        cls__predictions__transform__LayerNorm__bias=torch.zeros(8),
    )


def test_a_head_that_was_never_trained_is_refused_and_may_be_trained(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    never_trained(folder)
    with caplog.at_level(logging.WARNING, "bertkit"):
        asked = load(folder, "cpu")
    assert "cls.predictions never trained" in caplog.text
    with pytest.raises(MissingHeadError, match=r"masked-word head \(cls\.predictions\) was never"):
        asked.fill("the [MASK]")
    assert asked.next("the cat", "a mat")["label"]
    model = BertForMaskedLM.from_pretrained(folder)
    assert model.load_report.untrained == ("cls.predictions",)
    assert "never trained" in model.load_report.table()
    ids = torch.tensor([[2, 5, 6, 3]])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    model.save_pretrained(folder)
    assert load(folder, "cpu").fill("the [MASK]")[0]


@pytest.mark.parametrize(
    ("verb", "texts", "status"),
    [("fill", ["the [MASK]"], 1), ("next", ["the cat", "a mat"], 0)],
)
def test_a_refusal_on_the_command_line_is_one_line(
    verb: str,
    texts: list[str],
    status: int,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    never_trained(folder)
    assert main([verb, str(folder), *texts]) == status
    (line,) = [*capsys.readouterr().err.splitlines(), *caplog.messages]
    assert "cls.predictions" in line


def test_one_trained_number_makes_a_head_trained(folder: Path) -> None:
    never_trained(folder)
    bias = torch.zeros(14)
    bias[3] = 0.01
    rewrite(folder, cls__predictions__bias=bias)
    assert BertForMaskedLM.from_pretrained(folder).load_report.untrained == ()
    assert load(folder, "cpu").fill("the [MASK]")[0]


def test_a_vocabulary_larger_than_the_embeddings_is_refused_with_both_numbers(folder: Path) -> None:
    BertTokenizer([*WORDS, "dog", "ran"]).save_pretrained(folder)
    with pytest.raises(CheckpointError, match=r"16 tokens but the model only 14 embeddings"):
        load(folder)
    assert main(["doctor", str(folder)]) == 1


def test_a_smaller_vocabulary_is_told(folder: Path) -> None:
    model = BertForPreTraining.from_pretrained(folder)
    model.resize_token_embeddings(16)
    model.save_pretrained(folder)
    report = load(folder, "cpu").load_report
    assert report is not None
    assert report.notes == ("2 of 16 embeddings have no token",)
    assert str(report).endswith("2 of 16 embeddings have no token")


def test_lower_casing_with_capitals_in_the_vocabulary_is_refused(folder: Path) -> None:
    words = [*WORDS[:-4], "Cat", "Mat", "The", "London"]
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).unlink()
    (folder / "vocab.txt").write_text("\n".join(words))
    with pytest.raises(CheckpointError, match="do_lower_case"):
        load(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    assert load(folder, "cpu").fill("the [MASK]")[0]


@pytest.mark.parametrize("model_type", sorted(_OTHERS))
def test_other_kinds_of_models_are_refused_with_the_reason(model_type: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    for call in (load, BertModel.from_pretrained, BertConfig.from_pretrained):
        with pytest.raises(ConfigError) as caught:
            call(tmp_path)
        text = str(caught.value)
        assert text.startswith(f"{tmp_path / 'config.json'}: model_type is {model_type!r}")
        assert _OTHERS[model_type] in text
        assert "\n" not in text


def test_the_kinds_that_transformers_knows_are_spelled_as_it_spells_them() -> None:
    known = set(transformers.CONFIG_MAPPING)
    gone = {
        "mra",
        "neobert",
        "nezha",
        "nomic_bert",
        "qdqbert",
    }  # models of older versions, or of the hub
    assert set(_OTHERS) - gone <= known


def test_names_do_not_make_a_model_bert_or_not(folder: Path, tmp_path: Path) -> None:
    renamed = tmp_path / "chinese-roberta-wwm-ext"
    shutil.copytree(folder, renamed)
    config = json.loads((folder / "config.json").read_text())
    for changed in (
        {"architectures": ["MacBertForMaskedLM"]},
        {"model_type": None, "architectures": None},
    ):
        kept = {k: v for k, v in (config | changed).items() if v is not None}
        (renamed / "config.json").write_text(json.dumps(kept))
        assert load(renamed, "cpu").fill("the [MASK]")[0]


@pytest.mark.parametrize(
    ("kind", "named"), [("Roberta", "roberta"), ("DistilBert", "distilbert"), ("Albert", "albert")]
)
def test_a_folder_of_2019_without_a_model_type_is_judged_by_its_tensors(
    kind: str, named: str, tmp_path: Path
) -> None:
    sizes: dict[str, Any] = {"vocab_size": 14, "hidden_size": 8, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "intermediate_size": 12}
    if kind == "DistilBert":
        sizes |= {"dim": 8, "n_layers": 1, "n_heads": 2, "hidden_dim": 12}
        del sizes["hidden_size"], sizes["num_hidden_layers"], sizes["num_attention_heads"]
    config = getattr(transformers, f"{kind}Config")(**sizes)
    getattr(transformers, f"{kind}ForMaskedLM")(config).save_pretrained(tmp_path)
    old = {"vocab_size": 14, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps(old))
    with pytest.raises(CheckpointError, match=f"not a whole BERT encoder .*{named}") as caught:
        BertModel.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_old_pytorch_folders_with_googles_config_open(folder: Path, tmp_path: Path) -> None:
    """pytorch-pretrained-bert, 2018: bert_config.json, pytorch_model.bin, gamma and beta."""
    old = tmp_path / "old"
    old.mkdir()
    shutil.copy(GOOGLE / "bert_config.json", old)
    shutil.copy(GOOGLE / "vocab.txt", old)
    state = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor.clone()
        for name, tensor in read_tensors(folder).items()
    }
    torch.save(state, old / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    found = load(old, "cpu").fill("the [MASK]")[0]
    expected = load(folder, "cpu").fill("the [MASK]")[0]
    assert [f["token"] for f in found] == [f["token"] for f in expected]


def test_a_decoder_of_its_own_is_kept_though_the_configuration_ties_it(folder: Path) -> None:
    rewrite(folder, cls__predictions__decoder__weight=torch.rand(14, 8))
    ours = BertForMaskedLM.from_pretrained(folder)
    theirs = transformers.BertForMaskedLM.from_pretrained(folder).eval()
    ids = torch.tensor([[2, 5, 4, 3]])
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, theirs(ids).logits)
    assert ours.config.tie_word_embeddings is False
    assert "kept apart" in str(ours.load_report)


def test_doctor_tells_what_a_model_holds(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    never_trained(folder)
    rewrite(folder, cls__seq_relationship=None, strange__thing=torch.ones(3))
    assert main(["doctor", str(folder), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert facts["heads"] == {"masked words": "never trained", "pooler": "there"}
    assert facts["unexpected"] == ["strange.thing"]
    assert (facts["vocabulary"], facts["embeddings"]) == (14, 14)
    assert (facts["vocabulary_fits"], facts["casing"]) == ("exactly", "lower-cases")
    assert facts["parameters"] == sum(t.numel() for t in read_tensors(folder).values())
    assert facts["weights"] == str(folder / "model.safetensors")
    assert main(["doctor", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "masked words (never trained), pooler (there)" in shown
    assert [line.split() for line in shown.splitlines() if line.startswith("bert.encoder")] == [
        ["bert.encoder", "32", "-"]
    ]
    (folder / "model.safetensors").write_bytes(b"broken")
    assert main(["doctor", str(folder)]) == 1
    assert capsys.readouterr().err.startswith(f"bertkit: error: {folder / 'model.safetensors'}")


def test_doctor_looks_at_googles_folders_and_at_encoders_alone(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    BertModel.from_pretrained(folder).save_pretrained(tmp_path / "encoder")
    for path, heads in (
        (GOOGLE, ["masked words", "next sentence", "pooler"]),
        (tmp_path / "encoder", ["pooler"]),
    ):
        assert main(["doctor", str(path), "--json"]) == 0
        facts = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert list(facts["heads"]) == heads
        assert facts["unexpected"] == []
    assert facts["vocabulary"] is None
