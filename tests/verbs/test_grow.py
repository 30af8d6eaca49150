"""`bertkit vocab --extend` and `bertkit grow`, as a user types them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from bertkit import BertConfig, BertForMaskedLM, BertTokenizer
from bertkit.cli import main

WORDS = ["the", "of", "acts", "on", "cell", "##s", "in", "is", "."]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
Ask = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    vocab = [*SPECIALS, *LETTERS, *(f"##{c}" for c in LETTERS if c != "s"), *WORDS]
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocab), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=20,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(folder)
    BertTokenizer(vocab, model_max_length=20).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "domain.txt"
    lines = [
        f"the cytokine acts on the cell {LETTERS[n % 26]}{LETTERS[n // 26]} . cytokines in mrna ."
        for n in range(200)
    ]
    path.write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Ask:
    def ask(*arguments: object) -> tuple[int, dict[str, Any], str]:
        capsys.readouterr()
        status = main([*map(str, arguments), "--quiet"])
        out, err = capsys.readouterr()
        last = out.splitlines()[-1] if out else "{}"
        return status, json.loads(last) if "--json" in arguments else {}, out + err

    return ask


def test_a_domains_words_are_added(model: Path, corpus: Path, tmp_path: Path, ask: Ask) -> None:
    out = tmp_path / "grown"
    command = ["vocab", "--extend", model, corpus, "--add", "3", "--out", out]
    status, found, _ = ask(*command, "--json")
    assert status == 0
    assert [word["token"] for word in found["added"]] == ["cytokines", "cytokine", "mrna"]
    first = found["added"][1]
    assert 150 < first["count"] < 200  # one paragraph in twenty is held out
    assert first["pieces"] == ["c", "##y", "##t", "##o", "##k", "##i", "##n", "##e"]
    assert first["saved"] == 7 * first["count"]
    assert found["notes"] == []
    before, after = found["before"][-1], found["after"][-1]
    assert before["script"] == after["script"] == "all"
    assert before["words"] == after["words"] > 50
    assert after["tokens_per_word"] < before["tokens_per_word"] - 0.5
    assert before["unk_rate"] == after["unk_rate"] == 0
    old, new = BertTokenizer.from_pretrained(model), BertTokenizer.from_pretrained(out)
    assert len(new) == found["vocab_size"] == len(old) + 3
    theirs = transformers.AutoTokenizer.from_pretrained(out)
    text = "The cytokine, cytokines and mRNA of cells."
    assert theirs(text)["input_ids"] == new(text)["input_ids"]
    assert new.tokenize("cytokine") == ["cytokine"]
    weights = BertForMaskedLM.from_pretrained(out)
    assert not weights.load_report.missing
    rows = weights.get_input_embeddings().weight
    was = BertForMaskedLM.from_pretrained(model).get_input_embeddings().weight
    assert torch.equal(rows[len(old) + 1], was[first["piece_ids"]].mean(0))
    network = transformers.AutoModelForMaskedLM.from_pretrained(out)
    assert network(**theirs(text, return_tensors="pt")).logits.shape[-1] == len(new)
    # Once more it would be written over.
    status, _, said = ask(*command)
    assert status == 2
    assert "--overwrite" in said
    status, _, said = ask(*command, "--overwrite")
    assert status == 0
    assert "cytokine" in said
    assert "3 words added" in said
    assert f"{before['tokens_per_word']:.3f} -> {after['tokens_per_word']:.3f}" in said


def test_fewer_than_asked_is_said(model: Path, corpus: Path, tmp_path: Path, ask: Ask) -> None:
    status, found, _ = ask("vocab", corpus, "--extend", model, "--out", tmp_path / "all", "--json")
    assert status == 0
    assert found["asked"] == 1000
    assert 3 <= len(found["added"]) < 20
    assert f"{len(found['added'])} words, fewer than the 1000 asked" in found["notes"][0]
    _, few, _ = ask(
        "vocab",
        corpus,
        "--extend",
        model,
        "--out",
        tmp_path / "few",
        "--min_frequency",
        50,
        "--json",
    )
    assert {word["token"] for word in few["added"]} == {"cytokine", "cytokines", "mrna"}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--size", "500"], "leave --size out"),
        (["--cased"], "leave --cased out"),
        (["--keep_accents"], "leave --strip_accents out"),
        (["--add", "0"], "add is 0"),
    ],
)
def test_what_does_not_go_with_extending(
    model: Path, corpus: Path, tmp_path: Path, ask: Ask, flags: list[str], said: str
) -> None:
    status, _, text = ask("vocab", corpus, "--extend", model, "--out", tmp_path / "new", *flags)
    assert status == 2
    assert said in text
    assert not (tmp_path / "new").exists()


def test_refusals_in_one_line(model: Path, corpus: Path, tmp_path: Path, ask: Ask) -> None:
    status, _, said = ask("vocab", corpus, "--out", tmp_path / "new", "--add", "5")
    assert status == 2
    assert "--add goes with --extend" in said
    status, _, said = ask("vocab", corpus, "--extend", model, "--out", model, "--overwrite")
    assert status == 2
    assert "is the model itself" in said
    status, _, said = ask("vocab", corpus, "--extend", tmp_path / "none", "--out", tmp_path / "new")
    assert status == 1
    assert said.count("\n") == 1
    (tmp_path / "blank.txt").write_text(" \n\n", encoding="utf-8")
    status, _, said = ask(
        "vocab", tmp_path / "blank.txt", "--extend", model, "--out", tmp_path / "new"
    )
    assert status == 1


def test_longer_inputs(model: Path, tmp_path: Path, ask: Ask) -> None:
    out = tmp_path / "long"
    status, found, _ = ask("grow", model, "--positions", 45, "--out", out, "--json")
    assert status == 0
    assert found == {"folder": str(out), "positions_before": 20, "positions": 45}
    old, new = BertForMaskedLM.from_pretrained(model), BertForMaskedLM.from_pretrained(out)
    assert new.config.max_position_embeddings == 45
    tokenizer = BertTokenizer.from_pretrained(out)
    assert tokenizer.model_max_length == 45
    assert transformers.AutoTokenizer.from_pretrained(out).model_max_length == 45
    batch = tokenizer("a cell " * 100, truncation=True, return_tensors="pt")
    assert new(**batch).logits.shape[1] == 45
    assert transformers.AutoModelForMaskedLM.from_pretrained(out)(**batch).logits.shape[1] == 45
    short = {name: value[:, :20] for name, value in batch.items()}
    with torch.no_grad():
        assert torch.equal(old(**short).logits, new(**short).logits)
    status, _, said = ask("grow", model, "--positions", 45, "--out", out)
    assert (status, "--overwrite" in said) == (2, True)
    status, _, said = ask("grow", model, "--positions", 20, "--out", tmp_path / "other")
    assert (status, "20 is not longer" in said) == (2, True)
