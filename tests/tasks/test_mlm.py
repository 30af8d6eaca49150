"""Fills and next-sentence answers equal transformers' own model, and brute force for long words."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from bertkit.checkpoint.config import BertConfig
from bertkit.cli import main
from bertkit.errors import CheckpointError, DataError, MissingHeadError, UsageError
from bertkit.model.bert import BertModel
from bertkit.model.heads import (
    BertForMaskedLM,
    BertForNextSentencePrediction,
    BertForPreTraining,
)
from bertkit.tasks.load import Pipeline, load
from bertkit.tasks.mlm import FillMask
from bertkit.tasks.nsp import NextSentencePrediction
from bertkit.text.tokenizer import BertTokenizer

VOCAB = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] the cat sat on mat a dog ran . , un ##believ ##able good play "
    "##ing ##s 模 型 语 言 训 练 我 的 。"
).split()
TEXT = "The cat [MASK] on the mat."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with every weight random, heads and biases too."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(VOCAB) + 3,  # more rows than tokens, as many published models have
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=24,
    )
    model = BertForPreTraining(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5)
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    BertTokenizer(VOCAB, do_lower_case=True).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def asked(folder: Path) -> Pipeline:
    return load(folder, device="cpu")


@pytest.fixture(scope="module")
def theirs(folder: Path) -> tuple[Any, Any]:
    model = transformers.BertForPreTraining.from_pretrained(folder).eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder)


def probabilities(theirs: tuple[Any, Any], text: str) -> torch.Tensor:
    """[masks, V]: transformers' model, a softmax, the masks' rows."""
    model, tokenizer = theirs
    inputs = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).prediction_logits[0]
    row: torch.Tensor = logits[inputs["input_ids"][0] == tokenizer.mask_token_id].softmax(-1)
    return row


@pytest.mark.parametrize(
    "text", [TEXT, "[MASK]", "我 的 [MASK] [MASK] 。", "a [MASK] ran, the [MASK] sat on [MASK]."]
)
def test_fills_are_transformers_probabilities(
    asked: Pipeline, theirs: tuple[Any, Any], text: str
) -> None:
    answer = asked.fill(text, top_k=4)
    expected = probabilities(theirs, text)
    assert len(answer) == text.count("[MASK]")
    for fills, row in zip(answer, expected, strict=True):
        best = row[: len(VOCAB)].topk(4)
        assert [f["token"] for f in fills] == best.indices.tolist()
        assert [f["token_str"] for f in fills] == [VOCAB[i] for i in best.indices]
        assert [f["score"] for f in fills] == pytest.approx(best.values.tolist(), rel=1e-4)


def test_the_keys_and_one_mask_agree_with_the_fill_mask_pipeline(
    asked: Pipeline, theirs: tuple[Any, Any]
) -> None:
    model = transformers.BertForMaskedLM(theirs[0].config).eval()
    model.load_state_dict(theirs[0].state_dict(), strict=False)
    pipeline = transformers.pipeline("fill-mask", model=model, tokenizer=theirs[1])
    expected = pipeline(TEXT, targets=["good", "dog", "play"])
    found = asked.fill(TEXT, targets=["play", "good", "dog"])[0]
    for ours, reference in zip(found, expected, strict=True):
        assert ours.keys() == reference.keys()
        assert ours["score"] == pytest.approx(reference["score"], rel=1e-4)
        assert (ours["token"], ours["token_str"]) == (reference["token"], reference["token_str"])
        assert ours["sequence"].lower() == reference["sequence"].replace(" .", ".")


def test_a_batch_is_its_texts_one_by_one(asked: Pipeline) -> None:
    texts = [TEXT, "[MASK] [MASK]", "我的 [MASK]。"] * 40
    whole = asked.fill(texts, top_k=3)
    assert len(whole) == len(texts)
    for text, answer in zip(texts[:3], whole[:3], strict=True):
        single = asked.fill(text, top_k=3)
        for one, other in zip(single, answer, strict=True):
            assert [f["token"] for f in one] == [f["token"] for f in other]
            assert [f["score"] for f in one] == pytest.approx([f["score"] for f in other], rel=1e-4)
    assert asked.fill([]) == []


def test_the_sequence_is_the_users_own_text(asked: Pipeline) -> None:
    text = "THE  Café [MASK],\tthe [MASK] 模型!"
    answer = asked.fill(text, targets=["dog", "##ing"])
    told = {(m, f["token_str"]): f["sequence"] for m in (0, 1) for f in answer[m]}
    assert told[0, "dog"] == "THE  Café dog,\tthe [MASK] 模型!"
    assert told[1, "dog"] == "THE  Café [MASK],\tthe dog 模型!"
    assert told[0, "##ing"] == "THE  Caféing,\tthe [MASK] 模型!"


def by_brute_force(theirs: tuple[Any, Any], before: str, after: str, pieces: list[str]) -> float:
    """The chain rule, one forward pass of transformers a piece, no batching, no sharing."""
    model, tokenizer = theirs
    log = 0.0
    for done, piece in enumerate(pieces):
        place = pieces[:done] + ["[MASK]"] * (len(pieces) - done)
        tokens = [
            "[CLS]",
            *tokenizer.tokenize(before),
            *place,
            *tokenizer.tokenize(after),
            "[SEP]",
        ]
        ids = torch.tensor([tokenizer.convert_tokens_to_ids(tokens)])
        at = 1 + len(tokenizer.tokenize(before)) + done
        with torch.no_grad():
            row = model(ids).prediction_logits[0, at].log_softmax(-1)
        log += float(row[tokenizer.convert_tokens_to_ids(piece)])
    return math.exp(log)


WORDS = {
    "good": ["good"],
    "unbelievable": ["un", "##believ", "##able"],
    "playing": ["play", "##ing"],
    "plays": ["play", "##s"],
    "模型": ["模", "型"],
    "语言模型": ["语", "言", "模", "型"],
    "训": ["训"],
}


def test_words_of_several_tokens_follow_the_chain_rule(
    asked: Pipeline, theirs: tuple[Any, Any]
) -> None:
    before, after = "the dog", "on a mat."
    fills = asked.fill(f"{before} [MASK] {after}", top_k=99, targets=list(WORDS))[0]
    assert {f["token_str"] for f in fills} == WORDS.keys()
    for fill in fills:
        expected = by_brute_force(theirs, before, after, WORDS[fill["token_str"]])
        assert fill["score"] == pytest.approx(expected, rel=1e-3)
        ids = asked.tokenizer.convert_tokens_to_ids(WORDS[fill["token_str"]])
        assert fill["token"] == (ids if len(ids) > 1 else ids[0])
    scores = [f["score"] for f in fills]
    assert scores == sorted(scores, reverse=True)


def test_targets_in_one_of_several_masks_leave_the_others_masked(
    asked: Pipeline, theirs: tuple[Any, Any]
) -> None:
    answer = asked.fill("the [MASK] sat on [MASK]", targets=["模型", "dog"])
    expected = [
        by_brute_force(theirs, "the", "sat on [MASK]", ["模", "型"]),
        by_brute_force(theirs, "the [MASK] sat on", "", ["模", "型"]),
    ]
    for fills, wanted in zip(answer, expected, strict=True):
        score = next(f["score"] for f in fills if f["token_str"] == "模型")
        assert score == pytest.approx(wanted, rel=1e-3)


def test_words_that_begin_alike_sum_to_the_probability_of_their_beginning(asked: Pipeline) -> None:
    filler = FillMask(asked.model, asked.tokenizer)
    size = asked.model.config.vocab_size
    for first in (5, 22):
        words = {f"{first}/{second}": [first, second] for second in range(size)}
        filler._pieces = words.__getitem__  # type: ignore[method-assign, assignment]
        pairs = filler.fill(TEXT, top_k=size, targets=list(words))[0]
        total = sum(f["score"] for f in pairs)
        log = filler._with_prefix(filler._read([TEXT])[0], 2, (), 2)
        with torch.no_grad():
            ((_, row),) = list(filler._ask([log]))
        assert total == pytest.approx(float(row[0, first].exp()), rel=1e-4)


def test_a_long_text_is_read_around_its_masks(asked: Pipeline, theirs: tuple[Any, Any]) -> None:
    cut = "cat " * 11 + "[MASK] " + "dog " * 10
    whole = "the " * 50 + cut + "a " * 50
    expected = probabilities(theirs, cut)[0, : len(VOCAB)].topk(3)
    fills = asked.fill(whole, top_k=3)[0]
    assert [f["token"] for f in fills] == expected.indices.tolist()
    assert [f["score"] for f in fills] == pytest.approx(expected.values.tolist(), rel=1e-4)
    assert fills[0]["sequence"] == whole.replace("[MASK]", fills[0]["token_str"])
    for text in ("[MASK]" + " dog" * 50, "dog " * 50 + "[MASK]"):
        assert len(asked.fill(text, targets=["语言模型", "cat"])[0]) == 2
    with pytest.raises(DataError, match="stand 52 tokens apart; the model reads 22"):
        asked.fill("[MASK]" + " dog" * 50 + " [MASK]")


def test_what_cannot_be_asked_is_told_in_one_line(asked: Pipeline) -> None:
    with pytest.raises(DataError, match=r"'a \[Mask\]'; write \[MASK\] instead of \[Mask\]$"):
        asked.fill("a [Mask]")
    with pytest.raises(DataError, match=r"text 2 has no \[MASK\]: 'no mask'; write \[MASK\]"):
        asked.fill([TEXT, "no mask"])
    with pytest.raises(DataError, match="cannot write the target 'zebra'"):
        asked.fill(TEXT, targets=["cat", "zebra"])
    with pytest.raises(DataError, match="cannot write the target ' '"):
        asked.fill(TEXT, targets=[" "])
    with pytest.raises(UsageError, match="targets is empty"):
        asked.fill(TEXT, targets=[])
    with pytest.raises(UsageError, match="top_k is 0"):
        asked.fill(TEXT, top_k=0)
    with pytest.raises(DataError, match="first text is empty"):
        asked.next(" ", "b")
    with pytest.raises(DataError, match="2 first texts and 1 second"):
        asked.next(["a", "b"], ["c"])


PAIRS = [("the cat sat.", "the dog ran."), ("我 的 模型", "a mat"), ("the " * 40, "cat " * 40)]


def test_next_sentence_is_transformers_probability(
    asked: Pipeline, theirs: tuple[Any, Any]
) -> None:
    model, tokenizer = theirs
    answers = asked.next([a for a, _ in PAIRS], [b for _, b in PAIRS])
    for (a, b), answer in zip(PAIRS, answers, strict=True):
        inputs = tokenizer(a, b, return_tensors="pt", truncation=True, max_length=24)
        with torch.no_grad():
            row = model(**inputs).seq_relationship_logits[0].softmax(-1)
        assert [answer["is_next"], answer["random"]] == pytest.approx(row.tolist(), rel=1e-3)
        assert answer["label"] == ("is_next" if row[0] >= row[1] else "random")
        assert answer["score"] == max(answer["is_next"], answer["random"])
        assert asked.next(a, b)["score"] == pytest.approx(answer["score"], rel=1e-4)
    assert asked.next([], []) == []


def test_a_pair_that_is_cut_is_told(
    asked: Pipeline, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "the cat " * 20
    assert asked.next("a cat", "a dog")["truncated_tokens"] == [0, 0]
    assert not caplog.records
    assert asked.next("a cat", long)["truncated_tokens"] == [0, 21]
    assert caplog.messages.pop() == (
        "left out the last 21 tokens of the second text; the model reads 21 of a pair"
    )
    told = asked.next(["a cat", long], ["a dog", long])
    assert [one["truncated_tokens"] for one in told] == [[0, 0], [30, 29]]
    assert caplog.messages[-1] == (
        "pair 2: left out the last 30 tokens of the first text and the last 29 tokens of the "
        "second text; the model reads 21 of a pair (1 of 2 pairs are cut)"
    )
    assert main(["next", asked.model.name_or_path, "a cat", long, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["truncated_tokens"] == [0, 21]


def test_small_scores_keep_three_digits(
    asked: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["语言模型", "dog"]
    assert main(["fill", asked.model.name_or_path, TEXT, "--targets", ",".join(words)]) == 0
    shown = capsys.readouterr()
    assert shown.err == (
        "scores are probabilities among all words of the vocabulary, not among these\n"
    )
    fills = asked.fill(TEXT, targets=words)[0]
    assert fills[1]["score"] < 0.0005
    for line, fill in zip(shown.out.splitlines()[1:], fills, strict=True):
        score, word = line.split()
        assert word == fill["token_str"]
        assert float(score) == pytest.approx(fill["score"], rel=0.006)


def test_asking_leaves_a_model_in_training_as_it_was(asked: Pipeline, folder: Path) -> None:
    model = BertForPreTraining.from_pretrained(folder).train()
    filler = FillMask(model, asked.tokenizer)
    first = filler.fill(TEXT)
    assert first == filler.fill(TEXT)  # without dropout
    assert model.training
    batch = asked.tokenizer(["the cat"] * 2, return_tensors="pt")
    model(**batch).prediction_logits.sum().backward()
    assert model.bert.embeddings.word_embeddings.weight.grad is not None


def test_a_head_that_is_missing_is_named(
    asked: Pipeline, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for cls in (BertModel, BertForMaskedLM, BertForNextSentencePrediction):
        cls.from_pretrained(folder).save_pretrained(tmp_path / cls.__name__)
        asked.tokenizer.save_pretrained(tmp_path / cls.__name__)
    with pytest.raises(MissingHeadError, match=r"BertModel: has neither a masked-word head"):
        load(tmp_path / "BertModel")
    caplog.clear()
    masked = load(tmp_path / "BertForMaskedLM", device="cpu")
    assert masked.fill(TEXT)[0][0]["token"] == asked.fill(TEXT)[0][0]["token"]
    with pytest.raises(MissingHeadError, match=r"next-sentence head \(cls\.seq_relationship\)"):
        masked.next("a", "b")
    follows = load(tmp_path / "BertForNextSentencePrediction", device="cpu")
    assert follows.next("a", "the")["label"] == asked.next("a", "the")["label"]
    with pytest.raises(MissingHeadError, match=r"masked-word head \(cls\.predictions\)"):
        follows.fill(TEXT)
    assert not caplog.records
    begun = BertForPreTraining.from_pretrained(tmp_path / "BertForMaskedLM")
    with pytest.raises(MissingHeadError, match="has no next-sentence head"):
        NextSentencePrediction(begun, asked.tokenizer)


def test_a_head_that_was_never_trained_is_refused(asked: Pipeline) -> None:
    fresh = BertForPreTraining(asked.model.config)
    with pytest.raises(MissingHeadError, match=r"masked-word head .* was never trained"):
        FillMask(fresh, asked.tokenizer)
    with pytest.raises(MissingHeadError, match=r"next-sentence head .* was never trained"):
        NextSentencePrediction(fresh, asked.tokenizer)


def test_a_tokenizer_larger_than_the_model_is_refused(asked: Pipeline) -> None:
    large = BertTokenizer([*VOCAB, "b", "c", "d", "e"])
    with pytest.raises(CheckpointError, match="35 tokens but the model only 34"):
        FillMask(asked.model, large)
